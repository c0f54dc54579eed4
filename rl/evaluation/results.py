"""What came of asking prompts several times: who was right how often, and what that says of the policy, per task and overall."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.text.answer_key import answer_key
from rl.evaluation.estimators import average_at_k, bootstrap_interval, majority_at_k, pass_at_k

TOLERANCE = 1e-9
"""Weights that add up to 1 may do so in floating point to a little less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectnessRule:
    """When a completion counts as correct.

    Attributes:
        at_least: From this reward on.
        part: The part of the score that decides, instead of the reward; `None`: the reward.
    """

    at_least: float = 1.0
    part: str | None = None

    def __call__(self, completion: Mapping[str, Any]) -> bool:
        """Says it of a completion that was recorded; one without the part, because a gate kept it from that, is not correct."""
        worth = completion["reward"] if self.part is None else completion["parts"].get(self.part, -np.inf)
        return bool(worth >= self.at_least - TOLERANCE)

    def require_part(self, known: Collection[str]) -> None:
        """Refuses a part that no score has.

        Args:
            known: The parts of all scores.

        Raises:
            ValueError: Names the part, and those that there are.
        """
        if self.part is not None and self.part not in known:
            told = ", ".join(sorted(known)) or "none"
            raise ValueError(f"correct.part = {self.part!r} is no part of the reward, which has: {told}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """One prompt's samples: K were asked for, n of them have a verdict.

    Attributes:
        prompt_id: The prompt.
        task: Its task.
        correct: [n] whether each is correct.
        answers: [n] their answers, as `answer_key` has them.
        rewards: [n].
        lengths: [K] sampled tokens of each, those without a verdict included.
        num_truncated: How many were cut at a limit.
        errors: How many have no verdict, by the verifier that reached none.
    """

    prompt_id: str
    task: str
    correct: Sequence[bool]
    answers: Sequence[str]
    rewards: Sequence[float]
    lengths: Sequence[int]
    num_truncated: int
    errors: Mapping[str, int]


def prompt_result(row: Mapping[str, Any], correct: CorrectnessRule = CorrectnessRule()) -> PromptResult:
    """The outcome of a group as `rl.run_dir.tracker.transcript` has recorded it."""
    done = row["completions"]
    judged = [each for each in done if each["error"] is None]
    return PromptResult(
        prompt_id=row["prompt_id"],
        task=row["task"],
        correct=[correct(each) for each in judged],
        answers=[answer_key(each["text"]) for each in judged],
        rewards=[each["reward"] for each in judged],
        lengths=[each["num_tokens"] for each in done],
        num_truncated=sum(each["finish_reason"] == "length" for each in done),
        errors=Counter(each["failed"] or "?" for each in done if each["error"] is not None),
    )


def summarise(
    outcomes: Sequence[PromptResult], num_samples: int, *, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Every figure of an evaluation, per task and over all prompts.

    Samples without a verdict count neither as right nor as wrong: they are counted by themselves, a prompt's figures are of its
    others, and a prompt with fewer than k of these has no part in pass@k. Each figure says of how many prompts it is the mean.

    Args:
        outcomes: One for each prompt.
        num_samples: K, how often each prompt was asked.
        level: Of the intervals.
        seed: Seeds the bootstrap.

    Returns:
        `tasks` and `overall`, each with `prompts`, `samples`, `figures` (name → value, low, high, prompts), `reward`, `tokens`,
        `truncated`, `without_verdict` and `errors`; and `mean_over_tasks`, in which each task weighs the same.
    """
    by_task: dict[str, list[PromptResult]] = defaultdict(list)
    for outcome in outcomes:
        by_task[outcome.task].append(outcome)
    tasks = {task: _summary(found, num_samples, level, seed) for task, found in sorted(by_task.items())}
    names = dict.fromkeys(name for each in tasks.values() for name in each["figures"])
    return {
        "level": level,
        "tasks": tasks,
        "overall": _summary(outcomes, num_samples, level, seed),
        "mean_over_tasks": {
            name: float(np.mean([t["figures"][name]["value"] for t in tasks.values() if name in t["figures"]]))
            for name in names
        },
    }


def _summary(outcomes: Sequence[PromptResult], num_samples: int, level: float, seed: int) -> dict[str, Any]:
    lengths = [length for outcome in outcomes for length in outcome.lengths]
    rewards = [reward for outcome in outcomes for reward in outcome.rewards]
    errors = sum((Counter(outcome.errors) for outcome in outcomes), Counter[str]())
    figures = {}
    for name, values in _values(outcomes, num_samples):
        low, high = bootstrap_interval(values, level=level, seed=seed, bounds=(0.0, 1.0))
        figures[name] = {"value": float(np.mean(values)), "low": low, "high": high, "prompts": len(values)}
    return {
        "prompts": len(outcomes),
        "samples": len(lengths),
        "figures": figures,
        "reward": float(np.mean(rewards)) if rewards else None,
        "tokens": _spread(lengths),
        "truncated": sum(outcome.num_truncated for outcome in outcomes) / max(1, len(lengths)),
        "without_verdict": sum(errors.values()),
        "errors": dict(errors),
    }


def _values(outcomes: Sequence[PromptResult], num_samples: int) -> Iterator[tuple[str, np.ndarray]]:
    """Each figure's name, and its value for each prompt that has enough verdicts."""
    judged = [outcome for outcome in outcomes if outcome.correct]
    if not judged:
        return
    n = np.array([len(outcome.correct) for outcome in judged])
    c = np.array([sum(outcome.correct) for outcome in judged])
    yield f"avg@{num_samples}", average_at_k(n, c)
    for k in powers_of_two(num_samples):
        if (n >= k).any():
            yield f"pass@{k}", pass_at_k(n[n >= k], c[n >= k], k)
    if num_samples > 1:
        votes = [majority_at_k(outcome.answers, outcome.correct) for outcome in judged]
        yield f"majority@{num_samples}", np.array(votes)


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**i for i in range(most.bit_length())]


def _spread(lengths: Sequence[int]) -> dict[str, float]:
    if not lengths:
        return {}
    figures: dict[str, Callable[[Sequence[int]], Any]] = {
        "mean": np.mean,
        "median": np.median,
        "p95": lambda found: np.quantile(found, 0.95),
        "max": np.max,
    }
    return {name: float(of(lengths)) for name, of in figures.items()}


def evaluation_metrics(outcomes: Sequence[PromptResult], num_samples: int) -> dict[str, float]:
    """What a chart shows of an evaluation during training: `<task>/avg` and, of several samples, `<task>/pass@<k>` for the largest
    power of two k and `<task>/majority`; and `<task>/errors` where there are any.
    """
    metrics: dict[str, float] = {}
    for task in sorted({outcome.task for outcome in outcomes}):
        found = [outcome for outcome in outcomes if outcome.task == task]
        values = {name: float(np.mean(values)) for name, values in _values(found, num_samples)}
        largest = powers_of_two(num_samples)[-1]
        names = {"avg": f"avg@{num_samples}"}
        if num_samples > 1:
            names |= {f"pass@{largest}": f"pass@{largest}", "majority": f"majority@{num_samples}"}
        metrics |= {f"{task}/{short}": values[name] for short, name in names.items() if name in values}
        if errors := sum(sum(outcome.errors.values()) for outcome in found):
            metrics[f"{task}/errors"] = float(errors)
    return metrics


def pass_rate(outcome: PromptResult) -> dict[str, Any]:
    """A row of the file of pass rates; `pass_rate` and `mean_reward` are None where no sample has a verdict."""
    n, c = len(outcome.correct), sum(outcome.correct)
    return {
        "prompt_id": outcome.prompt_id,
        "task": outcome.task,
        "n": n,
        "correct": c,
        "pass_rate": c / n if n else None,
        "mean_reward": float(np.mean(outcome.rewards)) if n else None,
        "mean_tokens": float(np.mean(outcome.lengths)) if outcome.lengths else None,
        "truncated": outcome.num_truncated,
        "without_verdict": sum(outcome.errors.values()),
    }
