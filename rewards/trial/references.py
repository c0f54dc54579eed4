"""Scoring the reference answers themselves, before a run: an answer that its verifier can never accept teaches nothing."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from reprlib import Repr
from typing import Any

from rewards.trial.dry_run import fake_completion
from rewards.types import Score
from rewards.verifiers.boxes import BOX, shapes_of_reference
from rewards.workers.runner import RewardRunner
from rollout.types import Group, Prompt

logger = logging.getLogger(__name__)

LEAST = 4
"""Rows that are looked at however long it takes; and what a task must have shown to be refused while others go well."""
SHOWN = 3
"""Rows that a message names."""
FORMS = (
    "{}",
    r"\boxed{{{}}}",
    "<think>\n…\n</think>\n\n" + r"\boxed{{{}}}",
    "<think>\n…\n</think>\n\n{}",
    "<think>\n…\n</think>\n<answer>\n{}\n</answer>",
)
"""How a response may give its answer."""
OFF = "switch this trial off by check_references = False (--no-check-references) where a reward asks for more than an answer"

_BRIEF = Repr()
_BRIEF.maxstring = _BRIEF.maxother = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """A prompt's reference as a response.

    Attributes:
        prompt: The prompt.
        rewards: What it and nonsense earned, in all forms; none where the reward has no verdict.
        is_told_apart: Whether in some form it earned more than nonsense.
        error: Why there is no verdict in any form.
    """

    prompt: Prompt
    rewards: Sequence[float]
    is_told_apart: bool
    error: str | None


def check_references(runner: RewardRunner, rounds: Iterable[Sequence[Prompt]], *, seconds: float = 1.0) -> None:
    r"""Scores the reference answers of some prompts as if they were responses: as they are, in `\boxed{}`, behind thoughts.

    A reference fails if in no form it earns more than nonsense of its length does: these are told in a warning. A task of which all
    fail, and the reward is the same for everything and not above 0, is refused: no response will teach it. Prompts without an
    answer are left out.

    That cannot see what a reward asks for besides an answer: for tools, a program's tests, tags of other names, what an environment
    knew. A judge is asked ten times for each row. For such rewards leave it out, as `train` does where there is an environment.

    Args:
        runner: The reward.
        rounds: Prompts, by and by; one of each task at a time.
        seconds: So long after the first round no further one begins, but for the first `LEAST`.

    Raises:
        ValueError: All references of a task fail (where other tasks go well: all of at least `LEAST`), and there is no verdict, or
            the same one that is not above 0. The message has the rows and the reasons.
    """
    deadline: float | None = None
    trials: dict[str, list[_Trial]] = defaultdict(list)
    for number, prompts in enumerate(rounds, 1):
        groups = [_group(prompt) for prompt in prompts if prompt.answer is not None]
        for group, scores in zip(groups, runner.score(groups), strict=True):
            trials[group.prompt.task].append(_trial(group.prompt, scores))
        if deadline is None:  # the first round has verifiers import their libraries
            deadline = time.monotonic() + seconds
        if number >= LEAST and time.monotonic() > deadline:
            break
    is_any_right = any(trial.is_told_apart for its in trials.values() for trial in its)
    for task, its in trials.items():
        failed = [trial for trial in its if not trial.is_told_apart]
        enough = len(its) >= LEAST or not is_any_right
        earned = {reward for trial in its for reward in trial.rewards} or {0.0}
        if len(failed) == len(its) and enough and len(earned) == 1 and max(earned) <= 0:
            raise ValueError(
                f"task {task!r}: none of its first {len(its)} reference answers earns a reward, in none of {len(FORMS)} forms: "
                f"{_told(failed)}. Mend the answers or choose another reward; {OFF}"
            )
        if failed:
            logger.warning(
                "task %r: %d of its first %d reference answers earn no more than nonsense does: %s",
                *(task, len(failed), len(its), _told(failed)),
            )


def _group(prompt: Prompt) -> Group:
    """The forms of the reference, and behind them as many of nonsense."""
    import numpy as np

    texts = list(_texts(prompt.answer))
    answers = [form.format(text) for form in FORMS for text in texts]
    nonsense = [form.format(_nonsense(text)) for form in FORMS for text in texts]
    return Group(
        prompt=prompt,
        prompt_token_ids=np.zeros(1, np.int32),
        completions=[fake_completion(text) for text in (*answers, *nonsense)],
    )


def _texts(answer: Any) -> Iterator[str]:
    """What a response may say for an answer: itself; of a list one of its texts, or a table; of boxes also their centres."""
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
    """As long, so that what a reward gives or takes for the length is the same; without letters, which math-verify takes a while
    to multiply with each other, and which would be of some language.
    """
    return "".join(islice(cycle("~?"), max(len(text), 1)))


def _trial(prompt: Prompt, scores: Sequence[Score]) -> _Trial:
    half = len(scores) // 2
    pairs = [
        (answer.reward, nonsense.reward)
        for answer, nonsense in zip(scores[:half], scores[half:], strict=True)
        if answer.error is None
    ]
    return _Trial(
        prompt=prompt,
        rewards=[reward for pair in pairs for reward in pair],
        is_told_apart=any(answer > nonsense for answer, nonsense in pairs),
        error=None if pairs else scores[0].error,
    )


def _told(failed: Sequence[_Trial]) -> str:
    rows = [
        f"prompt {trial.prompt.id!r} with the answer {_BRIEF.repr(trial.prompt.answer)}"
        + (f" ({trial.error})" if trial.error else "")
        for trial in failed[:SHOWN]
    ]
    more = f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
    return "; ".join(rows) + more
