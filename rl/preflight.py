"""What is tried before anything costly starts: a prompt of each task, the reward on it, and on the reference answers."""

from __future__ import annotations

from rewards.trial.references import check_references
from rewards.workers.runner import RewardRunner, dry_run
from rollout.data.mixture import rounds, sources_of
from rollout.data.prompts import Accept, Rows, readable
from rollout.types import Prompt

NUM_REFERENCES = 64
"""Reference answers of each source that are scored at most."""


def first_prompts(prompts: Rows, accept: Accept) -> list[Prompt]:
    """The first prompt of each source that can be used.

    Raises:
        ValueError: A source has none.
    """
    found = {name: next(readable(source, accept), None) for name, source in sources_of(prompts).items()}
    for name, prompt in found.items():
        if prompt is None:
            of_task = f" of task {name!r}" if name else ""
            raise ValueError(f"no prompt{of_task} can be used: the warnings above name each row and the reason")
    return [prompt for prompt in found.values() if prompt is not None]


def try_reward(runner: RewardRunner, prompts: Rows, first: list[Prompt], *, references: bool) -> None:
    """Tries the reward, of each task its own, on made-up responses.

    Args:
        runner: The reward.
        prompts: The run's prompts.
        first: One of each source.
        references: Whether to score the reference answers, too; see `rewards.trial.references`.

    Raises:
        ValueError: The reward fails, or accepts no reference answer of a task.
    """
    for prompt in first:
        dry_run(runner, prompt)
    if references:
        check_references(runner, rounds(prompts, NUM_REFERENCES))
