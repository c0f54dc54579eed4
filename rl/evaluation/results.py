"""Results of sampling each prompt K times: accuracy, pass@k and majority@K, per task and overall."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.text.answer_key import answer_key
from rl.evaluation.estimators import average_at_k, bootstrap_interval, majority_at_k, pass_at_k

TOLERANCE = 1e-9
"""Slack of the threshold: weights that add up to 1 may give slightly less in floating point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectnessRule:
    """Decides which completions count as correct."""

    at_least: float = 1.0
    """Smallest value that counts as correct."""
    part: str | None = None
    """Part of the score that decides; None: the reward."""

    def __call__(self, completion: Mapping[str, Any]) -> bool:
        """Returns True for a correct recorded completion. A completion without the part, such as one that failed a gate, is not."""
        value = completion["reward"] if self.part is None else completion["parts"].get(self.part, -np.inf)
        return bool(value >= self.at_least - TOLERANCE)

    def require_part(self, known: Collection[str]) -> None:
        """Refuses a part that no score has.

        Args:
            known: The parts of all scores.

        Raises:
            ValueError: Names the part and the known ones.
        """
        if self.part is not None and self.part not in known:
            names = ", ".join(sorted(known)) or "none"
            raise ValueError(f"correct.part = {self.part!r} is not a part of the reward, which has: {names}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """K samples of one prompt, n of which have a verdict."""

    prompt_id: str
    task: str
    correct: Sequence[bool]
    """[n]."""
    answers: Sequence[str]
    """[n] normal forms, as `answer_key` returns them."""
    rewards: Sequence[float]
    """[n]."""
    lengths: Sequence[int]
    """[K] sampled tokens, including samples without a verdict."""
    num_truncated: int
    """Samples that ended at a limit."""
    errors: Mapping[str, int]
    """Verifier → number of samples that it failed to score."""


def prompt_result(row: Mapping[str, Any], correct: CorrectnessRule = CorrectnessRule()) -> PromptResult:
    """Returns the result of a group in the form that `rl.run_dir.transcripts.transcript` records."""
    completions = row["completions"]
    scored = [each for each in completions if each["error"] is None]
    return PromptResult(
        prompt_id=row["prompt_id"],
        task=row["task"],
        correct=[correct(each) for each in scored],
        answers=[answer_key("<think>" * each.get("thinking", False) + each["text"]) for each in scored],
        rewards=[each["reward"] for each in scored],
        lengths=[each["num_tokens"] for each in completions],
        num_truncated=sum(each["finish_reason"] == "length" for each in completions),
        errors=Counter(each["failed"] or "?" for each in completions if each["error"] is not None),
    )


def summarise(
    results: Sequence[PromptResult], num_samples: int, *, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Returns every figure of an evaluation, per task and over all prompts.

    Samples without a verdict count neither as correct nor as wrong; they are counted separately. A prompt with fewer than k
    verdicts is left out of pass@k. Each figure has the number of prompts that it averages over.

    Args:
        results: One for each prompt.
        num_samples: K, samples per prompt.
        level: Confidence level of the intervals.
        seed: Seeds the bootstrap.

    Returns:
        `tasks` and `overall`, each with `prompts`, `samples`, `figures` (name → value, low, high, prompts), `reward`, `tokens`,
        `truncated`, `without_verdict` and `errors`; and `mean_over_tasks`, with equal weights for all tasks.
    """
    by_task: dict[str, list[PromptResult]] = defaultdict(list)
    for result in results:
        by_task[result.task].append(result)
    tasks = {task: _summary(found, num_samples, level, seed) for task, found in sorted(by_task.items())}
    names = dict.fromkeys(name for each in tasks.values() for name in each["figures"])
    return {
        "level": level,
        "tasks": tasks,
        "overall": _summary(results, num_samples, level, seed),
        "mean_over_tasks": {
            name: float(np.mean([t["figures"][name]["value"] for t in tasks.values() if name in t["figures"]]))
            for name in names
        },
    }


def _summary(results: Sequence[PromptResult], num_samples: int, level: float, seed: int) -> dict[str, Any]:
    lengths = [length for result in results for length in result.lengths]
    rewards = [reward for result in results for reward in result.rewards]
    errors = sum((Counter(result.errors) for result in results), Counter[str]())
    figures = {}
    for name, values in _values(results, num_samples):
        low, high = bootstrap_interval(values, level=level, seed=seed, bounds=(0.0, 1.0))
        figures[name] = {"value": float(np.mean(values)), "low": low, "high": high, "prompts": len(values)}
    return {
        "prompts": len(results),
        "samples": len(lengths),
        "figures": figures,
        "reward": float(np.mean(rewards)) if rewards else None,
        "tokens": _spread(lengths),
        "truncated": sum(result.num_truncated for result in results) / max(1, len(lengths)),
        "without_verdict": sum(errors.values()),
        "errors": dict(errors),
    }


def _values(results: Sequence[PromptResult], num_samples: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each figure's name and its values for the prompts with enough verdicts."""
    scored = [result for result in results if result.correct]
    if not scored:
        return
    n = np.array([len(result.correct) for result in scored])
    c = np.array([sum(result.correct) for result in scored])
    yield f"avg@{num_samples}", average_at_k(n, c)
    for k in powers_of_two(num_samples):
        if (n >= k).any():
            yield f"pass@{k}", pass_at_k(n[n >= k], c[n >= k], k)
    if num_samples > 1:
        votes = [majority_at_k(result.answers, result.correct) for result in scored]
        yield f"majority@{num_samples}", np.array(votes)


def powers_of_two(most: int) -> list[int]:
    """Returns 1, 2, 4, ... up to `most`."""
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
    return {name: float(figure(lengths)) for name, figure in figures.items()}


def evaluation_metrics(results: Sequence[PromptResult], num_samples: int) -> dict[str, float]:
    """Returns the metrics of an evaluation during training.

    They are `<task>/avg` and, with several samples, `<task>/pass@<k>` for the largest power of two k and `<task>/majority`.
    `<task>/errors` is present if there are any.
    """
    metrics: dict[str, float] = {}
    for task in sorted({result.task for result in results}):
        found = [result for result in results if result.task == task]
        values = {name: float(np.mean(values)) for name, values in _values(found, num_samples)}
        largest = powers_of_two(num_samples)[-1]
        names = {"avg": f"avg@{num_samples}"}
        if num_samples > 1:
            names |= {f"pass@{largest}": f"pass@{largest}", "majority": f"majority@{num_samples}"}
        metrics |= {f"{task}/{short}": values[name] for short, name in names.items() if name in values}
        if errors := sum(sum(result.errors.values()) for result in found):
            metrics[f"{task}/errors"] = float(errors)
    return metrics


def pass_rate(result: PromptResult) -> dict[str, Any]:
    """Returns a row of the pass-rate file; `pass_rate` and `mean_reward` are None if no sample has a verdict."""
    n, c = len(result.correct), sum(result.correct)
    return {
        "prompt_id": result.prompt_id,
        "task": result.task,
        "n": n,
        "correct": c,
        "pass_rate": c / n if n else None,
        "mean_reward": float(np.mean(result.rewards)) if n else None,
        "mean_tokens": float(np.mean(result.lengths)) if result.lengths else None,
        "truncated": result.num_truncated,
        "without_verdict": sum(result.errors.values()),
    }
