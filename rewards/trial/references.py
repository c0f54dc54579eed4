"""A trial of a reward on the reference answers, before a run: an answer that its verifier never accepts teaches nothing.

Nor does a reward that pays wrong answers as much: so each reference's neighbours are tried, too.
"""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product
from reprlib import Repr
from typing import Any

from rewards.text.boxes import BOX, shapes_of_reference
from rewards.trial.dry_run import fake_completion
from rewards.trial.neighbours import neighbours, same_form
from rewards.types import Score
from rewards.workers.runner import RewardRunner
from rollout.types import Group, Prompt

logger = logging.getLogger(__name__)

MIN_ROWS = 4
"""Rows that are tried however long it takes. A task is refused from this many on, or earlier if no task earns a reward."""
MAX_NAMED = 3
"""Rows that a message lists."""
FORMS = (
    "{}",
    r"\boxed{{{}}}",
    "<think>\n…\n</think>\n\n" + r"\boxed{{{}}}",
    "<think>\n…\n</think>\n\n{}",
    "<think>\n…\n</think>\n<answer>\n{}\n</answer>",
)
"""Forms in which a response may give its answer."""
DISABLE_HINT = (
    "if the reward needs more than an answer, switch this trial off by check_references = False (--no-check-references)"
)

_BRIEF = Repr()
_BRIEF.maxstring = _BRIEF.maxother = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """Scores of a prompt's reference answer, and of nonsense, as responses."""

    prompt: Prompt
    rewards: Sequence[float]
    """Rewards of both in all forms that have a verdict."""
    best: tuple[str, str] | None
    """The form and the text in which the reference earned most above nonsense; `None` if it earned no more in any."""
    error: str | None
    """The first error, where no form has a verdict."""

    @property
    def beats_nonsense(self) -> bool:
        return self.best is not None


def check_references(runner: RewardRunner, rounds: Iterable[Sequence[Prompt]], *, seconds: float = 1.0) -> None:
    r"""Scores the reference answers of some prompts as if they were responses: plain, in `\boxed{}`, after thoughts.

    A reference fails if in no form it earns more than nonsense of the same length; a warning lists the failures. A task is
    refused if all its references fail and everything earns the same reward, not above 0: no response could be learned from.
    Prompts without an answer are skipped.

    In the form that earns most, the reference's neighbours are scored as well: in the first round, and while time lasts. Another
    warning lists those that earn as much as the reference, unless nonsense of the same form does.

    Leave this trial out for rewards that need more than an answer: tools, a program's tests, other tags, the state of an
    environment. `train` leaves it out where there is an environment. A judge is called ten times for each row, and up to
    eight times more for those of the first round.

    Args:
        runner: The reward.
        rounds: Prompts, one of each task in each round; read lazily.
        seconds: Time after the first round in which further rounds begin; the first `MIN_ROWS` begin in any case.

    Raises:
        ValueError: A task is refused. The message has the rows and the reasons.
    """
    deadline: float | None = None
    trials: dict[str, list[_Trial]] = defaultdict(list)
    paid_too: dict[str, list[str]] = defaultdict(list)
    for number, prompts in enumerate(rounds, 1):
        groups = [_group(prompt, _responses(prompt)) for prompt in prompts if prompt.answer is not None]
        tried = [_trial(group.prompt, scores) for group, scores in zip(groups, runner.score(groups), strict=True)]
        for trial in tried:
            trials[trial.prompt.task].append(trial)
        if deadline is None:  # after the first round, in which verifiers import their libraries
            deadline = time.monotonic() + seconds
        if number == 1 or time.monotonic() < deadline:
            for task, told in _paid_neighbours(runner, tried):
                paid_too[task].append(told)
        if number >= MIN_ROWS and time.monotonic() > deadline:
            break
    _warn_of_paid(paid_too)
    is_any_right = any(trial.beats_nonsense for task_trials in trials.values() for trial in task_trials)
    for task, task_trials in trials.items():
        failed = [trial for trial in task_trials if not trial.beats_nonsense]
        enough = len(task_trials) >= MIN_ROWS or not is_any_right
        earned = {reward for trial in task_trials for reward in trial.rewards} or {0.0}
        if len(failed) == len(task_trials) and enough and len(earned) == 1 and max(earned) <= 0:
            raise ValueError(
                f"task {task!r}: none of its first {len(task_trials)} reference answers earns a reward, in none of "
                f"{len(FORMS)} forms: {_describe_failures(failed)}. Correct the answers or choose another reward; "
                f"{DISABLE_HINT}"
            )
        if failed:
            logger.warning(
                "task %r: %d of its first %d reference answers earn no more than nonsense does: %s",
                *(task, len(failed), len(task_trials), _describe_failures(failed)),
            )


def _warn_of_paid(paid_too: Mapping[str, Sequence[str]]) -> None:
    for task, told_of in paid_too.items():
        more = f"; and {len(told_of) - MAX_NAMED} more" if len(told_of) > MAX_NAMED else ""
        logger.warning(
            "task %r: the reward pays wrong answers as much as the reference: %s%s. A policy will learn to give them; let the "
            "reward compare the whole answer",
            *(task, "; ".join(told_of[:MAX_NAMED]), more),
        )


def _paid_neighbours(runner: RewardRunner, trials: Sequence[_Trial]) -> Iterator[tuple[str, str]]:
    """Yields task and description of each prompt with a neighbour that earns as much as the reference."""
    asked = [
        (trial.prompt, form, text, others)
        for trial in trials
        for form, text in [trial.best or ("", "")]
        if form and (others := neighbours(trial.prompt, text))
    ]
    groups = [
        _group(prompt, [form.format(each) for each in (text, _nonsense(text), same_form(text), *others)])
        for prompt, form, text, others in asked
    ]
    for (prompt, _, text, others), scores in zip(asked, runner.score(groups), strict=True):
        right, *nonsense = scores[:3]
        if right.problem is not None or any(each.problem or each.reward >= right.reward for each in nonsense):
            continue
        paid = [
            other
            for other, score in zip(others, scores[3:], strict=True)
            if score.problem is None and score.reward >= right.reward
        ]
        if paid:
            also = " and ".join(map(_BRIEF.repr, paid[:2]))
            yield prompt.task, f"prompt {prompt.id!r} with the answer {_BRIEF.repr(text)} also pays {also}"


def _group(prompt: Prompt, responses: Iterable[str]) -> Group:
    import numpy as np

    completions = [fake_completion(text) for text in responses]
    return Group(prompt=prompt, prompt_token_ids=np.zeros(1, np.int32), completions=completions)


def _responses(prompt: Prompt) -> Iterator[str]:
    """Yields the reference in all forms, followed by as many of nonsense."""
    texts = list(_texts(prompt.answer))
    yield from (form.format(text) for form, text in product(FORMS, texts))
    yield from (form.format(_nonsense(text)) for form, text in product(FORMS, texts))


def _texts(answer: Any) -> Iterator[str]:
    """Yields texts that may stand for an answer: itself; for a list, its JSON, first text or table; for boxes, their centres."""
    if not isinstance(answer, list | tuple | dict):
        yield str(answer)
    else:
        yield json.dumps(answer, default=str, ensure_ascii=False)
        if isinstance(answer, list | tuple):
            yield from [text for text in answer if isinstance(text, str)][:1]
            if all(isinstance(row, list | tuple) for row in answer):
                yield "\n".join("| " + " | ".join(map(str, row)) + " |" for row in answer)
    try:
        boxes = shapes_of_reference(answer, BOX)
    except ValueError:
        return
    centres = [
        {"point_2d": [(left + right) / 2, (top + bottom) / 2], **({"label": box.label} if box.label else {})}
        for box in boxes
        if box.place is not None
        for left, top, right, bottom in [box.place]
    ]
    yield json.dumps(centres, ensure_ascii=False)


def _nonsense(text: str) -> str:
    """Returns nonsense of the same length, so that rewards for length are the same.

    It has no letters: math-verify takes a while to multiply them with each other, and they would belong to some language.
    """
    return "".join(islice(cycle("~?"), max(len(text), 1)))


def _trial(prompt: Prompt, scores: Sequence[Score]) -> _Trial:
    half = len(scores) // 2
    pairs = [
        (answer.reward, nonsense.reward, form)
        for answer, nonsense, form in zip(
            scores[:half], scores[half:], product(FORMS, _texts(prompt.answer)), strict=True
        )
        if answer.error is None
    ]
    best = max(pairs, key=lambda pair: pair[0] - pair[1], default=None)
    return _Trial(
        prompt=prompt,
        rewards=[reward for answer, nonsense, _ in pairs for reward in (answer, nonsense)],
        best=best[2] if best and best[0] > best[1] else None,
        error=None if pairs else scores[0].error,
    )


def _describe_failures(failed: Sequence[_Trial]) -> str:
    rows = [
        f"prompt {trial.prompt.id!r} with the answer {_BRIEF.repr(trial.prompt.answer)}"
        + (f" ({trial.error})" if trial.error else "")
        for trial in failed[:MAX_NAMED]
    ]
    more = f"; and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else ""
    return "; ".join(rows) + more
