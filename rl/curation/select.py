"""Selects training queries: not too hard, not too easy, not solvable blind, in no evaluation set, no duplicates.

As in Qwen3-VL's report (arXiv 2511.21631), it drops queries that fail all 16 samples, queries with a pass rate above 90 %, and
visual questions that are solved without the picture.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rich.progress import track

from rewards.text.answer_text import normalised
from rl.curation.config import SelectConfig, SimilarityConfig
from rl.curation.similarity import Duplicates, EvaluationPrompts, Fingerprint, common_grams, fingerprint_of
from rl.data import evaluation_set
from rollout.data.media import UnreadablePrompt
from rollout.data.prompts import Prompts
from rollout.data.stream import READERS

logger = logging.getLogger(__name__)

Reason = Literal[
    "not_measured", "no_verdict", "never_solved", "known", "solved_blind", "unreadable", "contaminated", "duplicate"
]
"""Reasons to drop a query. The first in this order counts, so that only the remaining queries' pictures are opened."""
REASONS: Mapping[Reason, str] = {
    "not_measured": "has no pass rate",
    "no_verdict": "no sample has a verdict",
    "never_solved": "never or too rarely solved",
    "known": "almost always solved",
    "solved_blind": "solved without its pictures",
    "unreadable": "cannot be read",
    "contaminated": "in an evaluation set",
    "duplicate": "duplicate of another one",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A query that was read."""

    row: int
    """Row in the data."""
    prompt_id: str
    task: str
    answer: str | None
    """Reference answer without case and white space; None if there is none."""
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """The reason why a query is dropped."""

    reason: Reason
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Evidence for JSON: a rate, or the similar query and its similarity."""


DropRule: TypeAlias = Callable[[Query], Dropped | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The kept and the dropped queries of a set."""

    num_rows: int
    """Queries in the set."""
    kept: Sequence[Query]
    """In order of rows."""
    dropped: Mapping[int, Dropped]
    """Row → reason."""
    names: Mapping[int, tuple[str, str]]
    """Row → id and task, for rows that were measured or read."""
    rates: Mapping[int, float | None]
    """Row → pass rate, None if no sample has a verdict; empty if none were measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """The measured pass rate of a query."""

    prompt_id: str
    task: str
    pass_rate: float | None
    """Share of samples that are correct; None if none has a verdict."""


def select(config: SelectConfig, prompts: Prompts) -> Selection:
    """Applies every rule to a set of queries, and returns the selection.

    Args:
        config: The rules.
        prompts: The whole set.

    Raises:
        ValueError: A pass-rate file or an evaluation set cannot be read, or belongs to other data.
    """
    rates = read_rates(config.pass_rates, len(prompts), blind=False)
    blind = read_rates(config.blind_pass_rates, len(prompts), blind=True)
    names = {row: (rate.prompt_id, rate.task) for row, rate in (blind | rates).items()}
    dropped: dict[int, Dropped] = {}
    for row in range(len(prompts)):
        if (reason := _by_rates(row, rates, blind, config)) is not None:
            dropped[row] = reason
    queries = []
    for query in _read_queries(prompts, [row for row in range(len(prompts)) if row not in dropped], "queries", dropped):
        measured_id, _ = names.setdefault(query.row, (query.prompt_id, query.task))
        if measured_id != query.prompt_id:
            raise ValueError(
                f"row {query.row} is prompt {measured_id!r} in the pass rates and {query.prompt_id!r} in the data: they were "
                "measured on other data, or with other columns"
            )
        queries.append(query)
    rules = [_contamination(config, queries), *([_duplication(config.like)] if config.duplicates else [])]
    for rule in rules:
        reasons = {query.row: rule(query) for query in queries}
        dropped |= {row: reason for row, reason in reasons.items() if reason}
        queries = [query for query in queries if query.row not in dropped]
    measured = {row: rate.pass_rate for row, rate in rates.items()}
    return Selection(num_rows=len(prompts), kept=queries, dropped=dropped, names=names, rates=measured)


def read_rates(file: Path | None, num_rows: int, *, blind: bool) -> dict[int, Rate]:
    """Reads a file of `recipes.measure_pass_rate`.

    Args:
        file: .jsonl or .parquet; None: there is none.
        num_rows: Rows of the measured data.
        blind: True if pictures must have been hidden.

    Returns:
        Row → rate; empty without a file.

    Raises:
        ValueError: The file is missing, has another format, belongs to other data, or was measured with the other `--blind`.
    """
    if file is None:
        return {}
    option = "blind_pass_rates" if blind else "pass_rates"
    try:
        if file.suffix == ".parquet":
            from pyarrow import parquet

            lines = parquet.read_table(file).to_pylist()
        else:
            lines = [json.loads(line) for line in file.read_text().splitlines()]
        rates = {
            line["row"]: Rate(prompt_id=line["prompt_id"], task=line["task"], pass_rate=line["pass_rate"])
            for line in lines
        }
        hidden = {bool(line["blind"]) for line in lines}
    except FileNotFoundError:
        raise ValueError(f"{option}: there is no file {file}: python -m recipes.measure_pass_rate writes one") from None
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{option}: {file} is not a file of measure_pass_rate ({reason})") from error
    if not rates:
        raise ValueError(f"{option}: {file} has no pass rates")
    if max(rates) >= num_rows:
        raise ValueError(
            f"{option}: {file} has row {max(rates)}, but the data has {num_rows} rows: it belongs to other data"
        )
    if hidden != {blind}:
        raise ValueError(f"{option}: {file} was measured {'without' if blind else 'with'} --blind")
    return rates


def _by_rates(row: int, rates: Mapping[int, Rate], blind: Mapping[int, Rate], config: SelectConfig) -> Dropped | None:
    if rates:
        if row not in rates:
            return Dropped(reason="not_measured")
        rate = rates[row].pass_rate
        if rate is None:
            return Dropped(reason="no_verdict")
        if rate <= config.rate.above:
            return Dropped(reason="never_solved", detail={"pass_rate": rate})
        if rate > config.rate.at_most:
            return Dropped(reason="known", detail={"pass_rate": rate})
    blind_rate = blind[row].pass_rate if row in blind else None
    if blind_rate is not None and blind_rate > config.rate.blind_at_most:
        return Dropped(reason="solved_blind", detail={"blind_pass_rate": blind_rate})
    return None


def _contamination(config: SelectConfig, queries: Sequence[Query]) -> DropRule:
    """Returns the rule for queries of an evaluation set. Its unreadable prompts are left out, with a warning."""
    evaluation_prompts: list[tuple[str, Query]] = []
    for name in config.against:
        prompts = evaluation_set(name, config)
        unreadable: dict[int, Dropped] = {}
        read = list(_read_queries(prompts, range(len(prompts)), name, unreadable))
        if unreadable:
            row, reason = next(iter(unreadable.items()))
            logger.warning(
                "%d of %d prompts of %s cannot be read, so queries are not compared with them; row %d: %s",
                len(unreadable), len(prompts), name, row, reason.detail["error"],
            )  # fmt: skip
        evaluation_prompts += [(name, query) for query in read]
    like = config.like
    known = EvaluationPrompts(
        [query.fingerprint for _, query in evaluation_prompts],
        common_grams((query.fingerprint.words for query in queries), like.overlap_words),
        num_words=like.overlap_words,
        overlap=like.overlap,
        num_bits=like.picture_bits,
    )

    def rule(query: Query) -> Dropped | None:
        if (match := known.find(query.fingerprint)) is None:
            return None
        name, evaluation_prompt = evaluation_prompts[match.number]
        bits = {} if match.picture_bits is None else {"picture_bits": match.picture_bits}
        detail = {"set": name, **_like(evaluation_prompt), **bits, "overlap": match.overlap}
        return Dropped(reason="contaminated", detail=detail)

    return rule


def _duplication(like: SimilarityConfig) -> DropRule:
    """Returns the rule for duplicates of earlier queries; call it once for each query, in order."""
    seen = Duplicates(num_words=like.text_words, similarity=like.text, num_bits=like.picture_bits)
    kept: list[Query] = []

    def rule(query: Query) -> Dropped | None:
        first = seen.first_like(query.fingerprint, query.answer)
        if first is None:
            kept.append(query)
            return None
        return Dropped(reason="duplicate", detail=_like(kept[first]))

    return rule


def _like(query: Query) -> dict[str, Any]:
    return {"like": {"row": query.row, "prompt_id": query.prompt_id}}


def _read_queries(prompts: Prompts, rows: Sequence[int], label: str, unreadable: dict[int, Dropped]) -> Iterator[Query]:
    """Yields queries in order, and adds a reason to `unreadable` for each that cannot be read."""

    def read(row: int) -> Query | str:
        try:
            prompt = prompts[row]
        except UnreadablePrompt as error:
            return str(error)
        answer = None if prompt.answer is None else normalised(str(prompt.answer))
        return Query(row=row, prompt_id=prompt.id, task=prompt.task, answer=answer, fingerprint=fingerprint_of(prompt))

    with ThreadPoolExecutor(READERS, thread_name_prefix="queries") as readers:
        queries = track(readers.map(read, rows), label, len(rows), transient=True)
        for row, query in zip(rows, queries, strict=True):
            if isinstance(query, Query):
                yield query
            else:
                unreadable[row] = Dropped(reason="unreadable", detail={"error": query})
