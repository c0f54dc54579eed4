"""A verifier has time to import its libraries in its first call in a worker, whenever that comes."""

import sys
import time
from collections.abc import Sequence

import numpy as np
import pytest

from rewards import Score, Verifier, by_task, gated, of_group, weighted
from rewards.workers import runner
from rewards.workers.runner import RewardRunner
from rollout import Completion, Group, Prompt


@pytest.fixture(autouse=True)
def one_extra_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_CALL_EXTRA", 1.0)


def group(prompt_id: str, *texts: str, task: str = "quick") -> Group:
    return Group(
        prompt=Prompt(id=prompt_id, messages=[], task=task),
        prompt_token_ids=np.zeros(3, np.int32),
        completions=[Completion(text=text) for text in texts],
    )


def test_the_first_call_of_a_worker_has_time_to_import() -> None:
    def importing(prompt: Prompt, completion: Completion) -> float:
        if "imported" not in sys.__dict__:
            time.sleep(1.3)
            sys.imported = True
        return 1.0

    with RewardRunner(importing, timeout=1.0) as rewards:
        assert rewards.score([group("p-7", "a", "b")]) == [[Score(reward=1.0)] * 2]


def quick_or_importing(name: str) -> Verifier:
    """Returns a composition, of which one part is first called in the worker's second call, where it "imports" for 1.3 s."""
    calls: list[str] = []

    def quick(prompt: Prompt, completion: Completion) -> float:
        return float(completion.text != "not yet")

    def importing(prompt: Prompt, completion: Completion) -> float:
        calls.append(completion.text)
        if len(calls) == 1 or completion.text == "hang":
            time.sleep(99 if completion.text == "hang" else 1.3)
        return 1.0

    @of_group
    def importing_together(prompt: Prompt, completions: Sequence[Completion]) -> list[float]:
        return [importing(prompt, completion) for completion in completions]

    async def importing_async(prompt: Prompt, completion: Completion) -> float:
        return importing(prompt, completion)

    return {
        "by_task": by_task({"quick": quick, "other": importing}),
        "gated": gated(quick, importing),
        "of_group": by_task({"quick": quick, "other": importing_together}),
        "async": by_task({"quick": quick, "other": importing_async}),
        "deep": by_task({"quick": quick, "other": weighted({"a": (quick, 1.0), "b": (gated(quick, importing), 1.0)})}),
    }[name]


@pytest.mark.parametrize("name", ["by_task", "gated", "of_group", "async", "deep"])
def test_the_first_call_of_each_part_has_it_too_however_late_and_no_other_call(name: str) -> None:
    with RewardRunner(quick_or_importing(name), timeout=1.0) as rewards:
        [[warm]] = rewards.score([group("p-7", "not yet", task="quick")])
        [[first]] = rewards.score([group("p-8", "a", task="other")])
        [[second]] = rewards.score([group("p-9", "hang", task="other")])
    assert (warm.error, first.error) == (None, None)
    problem = second.timeout if second.error is None else second.error  # of a group's only call it is an error
    assert problem is not None and "took longer than 1 s for prompt 'p-9'" in problem
