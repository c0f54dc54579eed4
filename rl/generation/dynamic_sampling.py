"""Dynamic sampling (DAPO, arXiv 2503.14476): replaces groups without reward variance, which have no advantage to learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rewards.types import Score
from rollout.types import Group


def has_variance(scores: Sequence[Score]) -> bool:
    """Returns True if a group's rewards differ; scores with an error do not count."""
    return len({score.reward for score in scores if score.error is None}) > 1


def refill_budget(num_refills: int, sources: Sequence[str]) -> dict[str, int]:
    """Divides a batch's refills among its sources, so that the fastest source does not draw them all.

    Args:
        num_refills: Refills of the batch.
        sources: The source of each prompt of the batch.

    Returns:
        Refills of each source, in proportion to its prompts.
    """
    counts = Counter(sources)
    budget = {source: num_refills * count // len(sources) for source, count in counts.items()}
    remainder = {source: num_refills * count % len(sources) for source, count in counts.items()}
    for source in sorted(counts, key=remainder.__getitem__, reverse=True)[: num_refills - sum(budget.values())]:
        budget[source] += 1
    return budget


def select_groups(
    scored: Sequence[tuple[Group, Sequence[Score]]], sources: Sequence[str], num_groups: int
) -> list[tuple[Group, Sequence[Score]]]:
    """Selects the first groups of each source with reward variance, and if they are too few, the first of the others.

    Args:
        scored: The groups of a batch, followed by its refills.
        sources: The source of each.
        num_groups: Groups of the batch. Each place keeps its source, so that minibatches keep their task ratio.

    Returns:
        [num_groups] groups with their scores, in their original order within each source.
    """
    is_flat = [not has_variance(scores) for _, scores in scored]
    places = sources[:num_groups]
    selected = {}
    for source in set(places):
        candidates = [index for index, other in enumerate(sources) if other == source]
        informative_first = sorted(candidates, key=lambda index: (is_flat[index], index))
        selected[source] = iter(sorted(informative_first[: places.count(source)]))
    return [scored[next(selected[source])] for source in places]
