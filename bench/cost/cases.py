"""The batches of bench.scaling: a base case, and one size varied at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

PHASES = ("generate", "score", "hand over", "prepare", "learn", "sync", "rest")
"""Consecutive parts of a step. hand over: samples are made, pickled, and unpickled by the learner. prepare: the learner makes
microbatches. rest: what the loop does between these, the metrics' file included."""


@dataclass(frozen=True, order=True, slots=True, kw_only=True)
class Case:
    """The sizes of a batch, of its policy and of its engines."""

    vocabulary: int = 263
    """Tokens of the vocabulary; by default the small policy's."""
    engines: int = 1
    prompts: int = 8
    """Prompts of a step."""
    group_size: int = 8
    """Completions of each prompt."""
    response_tokens: int = 16
    """Tokens of each completion."""
    image_side: int = 64
    """Pixels per side of each prompt's picture."""

    @property
    def samples(self) -> int:
        """Completions of a step."""
        return self.prompts * self.group_size


AXES = ("prompts", "group_size", "response_tokens", "image_side", "vocabulary", "engines")


def case_of(row: Mapping[str, float]) -> Case:
    """Returns the case that a row was measured with."""
    return Case(**{name: int(row[name]) for name in AXES})


def cases_of(axes: Mapping[str, Sequence[int]]) -> list[Case]:
    """Returns the base case, and for each axis the cases that differ from it in that size; those of a run side by side."""
    return sorted({Case(), *(replace(Case(), **{axis: value}) for axis, values in axes.items() for value in values)})


def axis_rows(rows: Sequence[Mapping[str, float]], axis: str) -> list[Mapping[str, float]]:
    """Returns the rows that have the base case's sizes in all but one axis, ascending."""
    others = {name: size for name, size in asdict(Case()).items() if name != axis}
    on_axis = [row for row in rows if all(row[name] == size for name, size in others.items())]
    return sorted(on_axis, key=lambda row: row[axis])
