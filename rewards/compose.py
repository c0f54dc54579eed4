"""Rewards composed of other rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real

from rewards.types import UNREAD, GroupFunction, Score, Verifier
from rewards.workers.call import OfGroup, is_group_reward, reward_name, score_completions
from rollout.types import Completion, Prompt


def weighted(parts: Mapping[str, tuple[Verifier, float]]) -> Verifier:
    """Makes a reward that is a weighted sum: `weighted({"accuracy": (math_answer, 1.0), "format": (my_format, 0.2)})`.

    The weights are not normalised. `Score.parts` holds the reward of each part before weighting, and the parts of a part as
    `"part/inner"`. If a part has no verdict, the sum has none, and its error is that of the first such part.

    Args:
        parts: Function and weight of each part, by its name in metrics; a part of weight 0 is only a metric.

    Raises:
        ValueError: There are no parts, or one is not a pair of a function and a number.
    """
    if not parts:
        raise ValueError("weighted needs at least one part, such as {'accuracy': (exact, 1.0)}, got none")
    for name, part in parts.items():
        is_pair = isinstance(part, tuple) and len(part) == 2
        if not is_pair or not callable(part[0]) or not isinstance(part[1], Real):
            raise ValueError(f"part {name!r} of weighted must be a pair (function, weight), got {part!r}")
    parts = dict(parts)

    def sums(prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
        scores_by_part = {name: score_completions(reward, prompt, completions) for name, (reward, _) in parts.items()}
        return [_sum({name: scores[i] for name, scores in scores_by_part.items()}) for i in range(len(completions))]

    def _sum(scores: Mapping[str, Score]) -> Score:
        seen: dict[str, float] = {}
        for name, score in scores.items():
            if score.error is not None:
                return _no_verdict(name, score, seen)
            seen |= _named(name, score)
        reward = sum(weight * scores[name].reward for name, (_, weight) in parts.items())
        return Score(reward=reward, parts=seen, unread=any(score.unread for score in scores.values()))

    return _combined(sums, f"weighted({', '.join(parts)})", [reward for reward, _ in parts.values()])


def gated(gate: Verifier, reward: Verifier, *, at_least: float = 1.0, otherwise: float = 0.0) -> Verifier:
    """Makes a reward that checks a condition first: `gated(format_tags, math_answer)`.

    A completion with less than `at_least` from the gate has the reward `otherwise`, and the other reward is not called for it.
    `Score.parts` holds `gate`, and the parts of the reward.

    Args:
        gate: The condition.
        reward: The reward of completions that pass; if it is `of_group`, it gets only these.
        at_least: The smallest passing value of the gate.
        otherwise: The reward of completions that do not pass.

    Raises:
        ValueError: One of the two is not a function.
    """
    for role, function in {"gate": gate, "reward": reward}.items():
        if not callable(function):
            raise ValueError(f"the {role} of gated must be a function, got {function!r}")

    def gate_and_score(prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
        gates = score_completions(gate, prompt, completions)
        passes = [score.error is None and score.reward >= at_least for score in gates]
        passing = [completion for completion, is_in in zip(completions, passes, strict=True) if is_in]
        rewards = iter(score_completions(reward, prompt, passing))
        return [
            _gated_score(score, next(rewards) if is_in else None) for score, is_in in zip(gates, passes, strict=True)
        ]

    def _gated_score(score: Score, rewarded: Score | None) -> Score:
        if score.error is not None:
            return _no_verdict("gate", score, {})
        if rewarded is None:
            return Score(reward=otherwise, parts=_named("gate", score), unread=score.unread)
        return replace(rewarded, parts=_named("gate", score) | dict(rewarded.parts))

    return _combined(gate_and_score, f"gated({reward_name(gate)}, {reward_name(reward)})", [gate, reward])


def of_group(function: GroupFunction) -> Verifier:
    """Makes a verifier of a function of a whole group: `(prompt, completions) -> one number or Score for each`.

    ```python
    @of_group
    def shortest(prompt, completions):
        least = min(len(completion.token_ids) for completion in completions)
        return [float(len(completion.token_ids) == least) for completion in completions]
    ```

    The time limit holds for the whole group, and a crash or timeout costs the group its verdicts.
    """
    if not callable(function):
        raise ValueError(f"of_group takes a function of (prompt, completions), got {function!r}")
    return OfGroup(function, getattr(function, "__name__", type(function).__name__))


def by_task(rewards: Mapping[str, Verifier]) -> Verifier:
    """Makes a reward that calls the reward of each prompt's task: `by_task({"sums": math_answer, "vqa": exact})`.

    Args:
        rewards: The reward of each task, by `Prompt.task`.

    Raises:
        ValueError: There are no rewards, or one is not a function; in a call, the prompt's task has no reward.
    """
    if not rewards:
        raise ValueError("by_task needs at least one task, such as {'sums': math_answer}, got none")
    for task, reward in rewards.items():
        if not callable(reward):
            raise ValueError(f"the reward of task {task!r} must be a function, got {reward!r}")
    rewards = dict(rewards)

    def of_task(prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
        if prompt.task not in rewards:
            raise ValueError(f"by_task has no reward for task {prompt.task!r}, only for {sorted(rewards)}")
        return score_completions(rewards[prompt.task], prompt, completions)

    return _combined(of_task, f"by_task({', '.join(rewards)})", list(rewards.values()))


def first_readable(*rewards: Verifier, responses: bool = False) -> Verifier:
    """Makes a reward that uses the first verifier able to read the reference: `first_readable(numeric(relative=0.05), exact)`.

    It is for datasets that mix answers of several forms. A verifier that cannot read a reference returns an error, and the next
    one is called. If none has a verdict, the error is that of the last one.

    Args:
        rewards: The verifiers, in the order of their calls.
        responses: Calls the next verifier also where one finds no answer in the response: `first_readable(math_answer, judge,
            responses=True)` asks the judge where rules cannot tell.

    Raises:
        ValueError: There are no rewards, or one is not a function.
    """
    if not rewards:
        raise ValueError("first_readable needs at least one reward, such as math_answer, got none")
    for reward in rewards:
        if not callable(reward):
            raise ValueError(f"a reward of first_readable must be a function, got {reward!r}")

    def first(prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
        found = score_completions(rewards[0], prompt, completions)
        for reward in rewards[1:]:
            unread = [i for i, score in enumerate(found) if score.error is not None or (responses and score.unread)]
            if not unread:
                break
            scores = score_completions(reward, prompt, [completions[i] for i in unread])
            for place, score in zip(unread, scores, strict=True):
                found[place] = score
        return found

    return _combined(first, f"first_readable({', '.join(map(reward_name, rewards))})", list(rewards))


def _combined(
    scores: Callable[[Prompt, Sequence[Completion]], list[Score]], name: str, parts: list[Verifier]
) -> Verifier:
    """Makes a verifier that scores groups only if one of its parts does: a call that hangs costs all of a group its verdicts."""
    if any(map(is_group_reward, parts)):
        return OfGroup(scores, name)

    def verifier(prompt: Prompt, completion: Completion) -> float | Score:
        [score] = scores(prompt, [completion])
        if score.parts or score.error:
            return score
        return UNREAD if score.unread else score.reward

    verifier.__name__ = name
    return verifier


def _named(name: str, score: Score) -> dict[str, float]:
    return {name: score.reward, **{f"{name}/{inner}": value for inner, value in score.parts.items()}}


def _no_verdict(name: str, score: Score, parts: Mapping[str, float]) -> Score:
    return Score(reward=0.0, parts=parts, error=f"part {name!r}: {score.error}", failed=f"{name}/{score.failed}")
