"""No response crashes a verifier, hangs it past its limit, or is paid for nothing, and the score after it is right."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rewards
from rewards.workers.call import score_completions
from rewards.workers.runner import RewardRunner
from rollout import Completion, Group
from tests.rewards.cases import CASES
from tests.rewards.hostile import HOSTILE, LARGE, NUMBERS

ESCAPED = Path("/tmp/escaped")


def limit(name: str) -> float:
    """Seconds for a call. SymPy takes seconds or for ever over some formulas, which is what the runner is there for."""
    return 1.0 if name.startswith("math_answer") else 6.0


def test_every_verifier_is_tried_here_or_in_a_file_of_its_own() -> None:
    # Rewards made of others, and types.
    makers = {"by_task", "first_readable", "gated", "of_group", "weighted", "from_trl", "Score", "Verifier"}
    needs_more = {"tool_calls_target", "code_tests", "judge"}  # an episode, a sandbox, a server
    assert {name.split(",")[0] for name in CASES} == set(rewards.__all__) - makers - needs_more


@pytest.mark.parametrize("name", CASES)
def test_a_right_answer_is_paid(name: str) -> None:
    case = CASES[name]
    [score] = score_completions(case.verifier, case.prompt, [case.completion])
    assert (score.error, score.reward) == (None, case.best)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_nothing_hostile_is_paid_and_the_next_score_is_right(name: str) -> None:
    ESCAPED.unlink(missing_ok=True)
    case = CASES[name]
    texts = NUMBERS if ", " in name else HOSTILE  # SymPy's part of it takes minutes, and has been tried on all of them
    every = [Completion(text=text) for text in texts]
    mixed = [completion for each in every for completion in (each, case.completion)]
    group = Group(prompt=case.prompt, prompt_token_ids=np.zeros(1, np.int32), completions=mixed)
    with RewardRunner(case.verifier, timeout=limit(name), memory_gib=4) as runner:
        [scores] = runner.score([group])
    of_hostile = {repr(text[:60]): score for text, score in zip(texts, scores[::2], strict=True)}
    assert not {text: score.reward for text, score in of_hostile.items() if score.reward > case.floor}
    assert not {text: score.error for text, score in of_hostile.items() if "raised" in (score.error or "")}
    assert [(score.error, score.reward) for score in scores[1::2]] == [(None, case.best)] * len(every)
    assert not ESCAPED.exists()


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_random_text_earns_no_more_than_the_floor(name: str, data: st.DataObject) -> None:
    case = CASES[name]
    text = data.draw(st.text(st.characters(codec="utf-8", exclude_characters=case.key), max_size=200))
    for said in ("", text, f"\\boxed{{{text}}}", f"The answer is {text}"):
        [score] = score_completions(case.verifier, case.prompt, [Completion(text=said)])
        assert score.error is None
        assert score.reward <= case.floor


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if ", " not in name])
def test_five_megabytes_are_read_in_no_time(name: str) -> None:
    case = CASES[name]
    score_completions(case.verifier, case.prompt, [case.completion])  # imports
    for text in LARGE:
        start = time.process_time()
        score_completions(case.verifier, case.prompt, [Completion(text=text)])
        assert time.process_time() - start < 3.0, repr(text[:40])
