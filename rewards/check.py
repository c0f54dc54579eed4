"""Runs a reward over recorded completions, and shows its rewards, errors and times.

    python -m rewards.check math_answer --data runs/digit_sums/samples
    python -m rewards.check my_reward.py:score --data answers.jsonl --reference

The reward is FILE.py:FUNCTION, or the name of a verifier of the package `rewards`. It runs as in training: in processes that may
hang or die without harm. The exit status is 1 if there is no verdict at all, and 2 after a mistake in the options.
"""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.text import Text

import rewards
from rewards.loading import load_reward
from rewards.trial.recorded import Columns, read_recorded
from rewards.trial.tables import (
    Scored,
    print_errors,
    print_guesses,
    print_histogram,
    print_references,
    print_slowest,
    print_summary,
    printable,
)
from rewards.types import Score, Verifier
from rewards.verifiers.options import WithOptions
from rewards.workers.call import OfGroup, call_verifier, is_group_reward, reward_name, score_completions
from rewards.workers.runner import RewardRunner
from rollout.types import Completion, Group, Prompt

SECONDS = "seconds of this call"  # a part of the score; no reward has a part of that name


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Options of the command."""

    reward: tyro.conf.Positional[str]
    """FILE.py:FUNCTION, or the name of a verifier of the package `rewards`."""
    data: Path
    """A run's samples folder, one of its step_*.jsonl, or another .jsonl or .parquet file with a row for each prompt."""
    columns: Columns = field(default_factory=Columns)
    limit: int = 0
    """Rows to read; 0: all."""
    reference: bool = False
    """Also scores each reference answer as a response; it should get the highest reward."""
    workers: int = 1
    """Processes that score."""
    timeout: float = 10.0
    """Seconds that one call may take; 30 more for the first."""
    memory_gib: float = 8.0
    """GiB of memory that one process may allocate for its calls; beyond, they raise a MemoryError; 0: any."""
    samples: int = 5
    """Responses to show: of the slowest, and of each kind of error."""


def main() -> None:
    """Reads the command line and runs `check`; prints a ValueError, the user's mistake, in one sentence."""
    options = tyro.cli(Check, prog=os.environ.get("SAPO_PROGRAM", "python -m rewards.check"), description=__doc__)
    try:
        sys.exit(check(options, Console()))
    except ValueError as error:
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), printable(str(error))), soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def check(options: Check, console: Console) -> int:
    """Scores the recorded completions, and on request the reference answers, and prints the tables.

    Returns:
        The exit status: 0, or 1 if there is no verdict at all.

    Raises:
        ValueError: An option is wrong, or the data or the reward cannot be loaded.
    """
    for name in ("limit", "samples"):
        if getattr(options, name) < 0:
            raise ValueError(f"{name} must be >= 0, got {getattr(options, name)}")
    reward = find_reward(options.reward)
    recorded = read_recorded(options.data.expanduser(), options.columns, options.limit)
    groups = recorded.groups
    references = [_reference(group.prompt) for group in groups if group.prompt.answer is not None]
    if options.reference and not references:
        raise ValueError(f"--reference needs answers, and {options.data} has none; name their column: --columns.answer")
    with RewardRunner(
        timed(reward), num_workers=options.workers, timeout=options.timeout, memory_gib=options.memory_gib
    ) as runner:
        scored = _score(runner, groups, console)
        reference_scores = _score(runner, references, console) if options.reference else []
    print_summary(console, reward_name(reward), scored)
    print_guesses(console, recorded.num_guessed, len(scored))
    print_histogram(console, scored)
    print_errors(console, scored, options.samples)
    print_slowest(console, scored, options.samples, by_group=is_group_reward(reward))
    if reference_scores:
        print_references(console, reference_scores, options.samples)
    return int(all(each.score.problem is not None for each in scored))


def find_reward(name: str) -> Verifier:
    """Returns the reward named by `FILE.py:FUNCTION`, or by the name of a verifier of this package.

    Raises:
        ValueError: There is no such reward.
    """
    if ":" in name or name.endswith(".py"):
        return load_reward(name)
    known = {each: getattr(rewards, each) for each in rewards.__all__}
    verifiers = {each: function for each, function in known.items() if _is_verifier(function)}
    if name not in verifiers:
        raise ValueError(f"there is no verifier {name!r}; give FILE.py:FUNCTION or one of {', '.join(verifiers)}")
    verifier: Verifier = verifiers[name]
    return verifier


def _is_verifier(function: object) -> bool:
    if isinstance(function, WithOptions):
        return True
    return inspect.isfunction(function) and list(inspect.signature(function).parameters) == ["prompt", "completion"]


def timed(reward: Verifier) -> Verifier:
    """Returns the reward with one more part: the seconds of the call, which is one for a whole group if it scores groups."""

    def verifier(prompt: Prompt, completion: Completion) -> Score:
        start = time.perf_counter()
        return _with_seconds(call_verifier(reward, prompt, completion), start)

    def score_group(prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
        start = time.perf_counter()
        return [_with_seconds(score, start) for score in score_completions(reward, prompt, completions)]

    if is_group_reward(reward):
        return OfGroup(score_group, reward_name(reward))
    verifier.__name__ = reward_name(reward)
    return verifier


def _with_seconds(score: Score, start: float) -> Score:
    return replace(score, parts={**score.parts, SECONDS: time.perf_counter() - start})


def _score(runner: RewardRunner, groups: Sequence[Group], console: Console) -> list[Scored]:
    futures = [runner.submit(group) for group in groups]
    done = [
        future.result()
        for future in track(futures, "scoring", console=console, disable=not console.is_terminal, transient=True)
    ]
    return [
        _scored(group.prompt, completion, score)
        for group, scores in zip(groups, done, strict=True)
        for completion, score in zip(group.completions, scores, strict=True)
    ]


def _scored(prompt: Prompt, completion: Completion, score: Score) -> Scored:
    parts = dict(score.parts)
    seconds = parts.pop(SECONDS, None)
    return Scored(prompt, completion, replace(score, parts=parts), seconds)


def _reference(prompt: Prompt) -> Group:
    completion = Completion(text=str(prompt.answer), token_ids=np.zeros(1, np.int32), logprobs=np.zeros(1, np.float32))
    return Group(prompt=prompt, prompt_token_ids=np.zeros(1, np.int32), completions=[completion])


if __name__ == "__main__":
    main()
