"""Which queries of a set are worth training on: neither hopeless nor known, not solved blind, in no evaluation set, each once.

After Qwen3-VL's report (arXiv 2511.21631): queries that fail all of 16 samples are dropped, so are those with a pass rate above
90 %, and visual questions that are solved without the picture.
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
"""Why a query is dropped; of several reasons the first in this order, so that pictures are opened of what is left alone."""
REASONS: Mapping[Reason, str] = {
    "not_measured": "has no pass rate",
    "no_verdict": "no sample has a verdict",
    "never_solved": "never or too seldom solved",
    "known": "solved nearly always",
    "solved_blind": "solved without its pictures",
    "unreadable": "cannot be read",
    "contaminated": "in an evaluation set",
    "duplicate": "like another one",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A query that was looked at.

    Attributes:
        row: Its row in the data.
        prompt_id: Its name.
        task: Its task.
        answer: Its reference answer, as far as two are compared: case and white space aside. None: it has none.
        fingerprint: What it fingerprints like.
    """

    row: int
    prompt_id: str
    task: str
    answer: str | None
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Why a query is not worth training on.

    Attributes:
        reason: One word.
        detail: What that is taken from, for JSON: a rate, or what the query is like and how much.
    """

    reason: Reason
    detail: Mapping[str, Any] = field(default_factory=dict)


DropRule: TypeAlias = Callable[[Query], Dropped | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What became of a set of queries.

    Attributes:
        num_rows: Queries of the set.
        kept: Those that are worth training on, by row.
        dropped: Why the others are not, by row.
        names: Id and task of each row, as far as it was measured or read.
        rates: Pass rates by row, None where no sample has a verdict; empty where none were measured.
    """

    num_rows: int
    kept: Sequence[Query]
    dropped: Mapping[int, Dropped]
    names: Mapping[int, tuple[str, str]]
    rates: Mapping[int, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What was measured of a query.

    Attributes:
        prompt_id: Its name.
        task: Its task.
        pass_rate: The share of its samples that are correct; None where none has a verdict.
    """

    prompt_id: str
    task: str
    pass_rate: float | None


def select(config: SelectConfig, prompts: Prompts) -> Selection:
    """Goes through a set of queries.

    Args:
        config: What is dropped.
        prompts: The set, whole.

    Raises:
        ValueError: A file of pass rates, or an evaluation set, cannot be read, or is of other data.
    """
    rates = read_rates(config.pass_rates, len(prompts), blind=False)
    blind = read_rates(config.blind_pass_rates, len(prompts), blind=True)
    names = {row: (rate.prompt_id, rate.task) for row, rate in (blind | rates).items()}
    dropped: dict[int, Dropped] = {}
    for row in range(len(prompts)):
        if (verdict := _by_rates(row, rates, blind, config)) is not None:
            dropped[row] = verdict
    queries = []
    for query in _looked_at(prompts, [row for row in range(len(prompts)) if row not in dropped], "queries", dropped):
        known, _ = names.setdefault(query.row, (query.prompt_id, query.task))
        if known != query.prompt_id:
            raise ValueError(
                f"row {query.row} is prompt {known!r} in the pass rates and {query.prompt_id!r} in the data: they were measured of "
                "other data, or of other columns"
            )
        queries.append(query)
    judges = [_contamination(config, queries), *([_duplication(config.like)] if config.duplicates else [])]
    for judge in judges:
        verdicts = {query.row: judge(query) for query in queries}
        dropped |= {row: verdict for row, verdict in verdicts.items() if verdict}
        queries = [query for query in queries if query.row not in dropped]
    measured = {row: rate.pass_rate for row, rate in rates.items()}
    return Selection(num_rows=len(prompts), kept=queries, dropped=dropped, names=names, rates=measured)


def read_rates(file: Path | None, num_rows: int, *, blind: bool) -> dict[int, Rate]:
    """Reads what `recipes.measure_pass_rate` wrote.

    Args:
        file: .jsonl or .parquet; None: there is none.
        num_rows: Rows of the data that was measured.
        blind: Whether pictures were to be hidden.

    Returns:
        What was measured of each row; nothing without a file.

    Raises:
        ValueError: The file is not there, is no such file, of other data, or the blind one in place of the other.
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
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{option}: {file} is not what measure_pass_rate writes ({told})") from error
    if not rates:
        raise ValueError(f"{option}: {file} has no pass rates")
    if max(rates) >= num_rows:
        raise ValueError(
            f"{option}: {file} has row {max(rates)}, and the data has {num_rows} rows: it is of other data"
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
    unseen = blind[row].pass_rate if row in blind else None
    if unseen is not None and unseen > config.rate.blind_at_most:
        return Dropped(reason="solved_blind", detail={"blind_pass_rate": unseen})
    return None


def _contamination(config: SelectConfig, queries: Sequence[Query]) -> DropRule:
    """Tells queries that are in an evaluation set; prompts of one that cannot be read are left out, with a warning."""
    found: list[tuple[str, Query]] = []
    for name in config.against:
        prompts = evaluation_set(name, config)
        unreadable: dict[int, Dropped] = {}
        read = list(_looked_at(prompts, range(len(prompts)), name, unreadable))
        if unreadable:
            row, verdict = next(iter(unreadable.items()))
            logger.warning(
                "%d of %d prompts of %s cannot be read, so that queries are not compared with them; row %d: %s",
                len(unreadable), len(prompts), name, row, verdict.detail["error"],
            )  # fmt: skip
        found += [(name, query) for query in read]
    like = config.like
    known = EvaluationPrompts(
        [query.fingerprint for _, query in found],
        common_grams((query.fingerprint.words for query in queries), like.overlap_words),
        num_words=like.overlap_words,
        overlap=like.overlap,
        num_bits=like.picture_bits,
    )

    def judge(query: Query) -> Dropped | None:
        if (match := known.find(query.fingerprint)) is None:
            return None
        name, theirs = found[match.number]
        how = {} if match.picture_bits is None else {"picture_bits": match.picture_bits}
        return Dropped(reason="contaminated", detail={"set": name, **_like(theirs), **how, "overlap": match.overlap})

    return judge


def _duplication(like: SimilarityConfig) -> DropRule:
    """Tells queries that are like one before; called once for each, in order."""
    seen = Duplicates(num_words=like.text_words, similarity=like.text, num_bits=like.picture_bits)
    kept: list[Query] = []

    def judge(query: Query) -> Dropped | None:
        first = seen.first_like(query.fingerprint, query.answer)
        if first is None:
            kept.append(query)
            return None
        return Dropped(reason="duplicate", detail=_like(kept[first]))

    return judge


def _like(query: Query) -> dict[str, Any]:
    return {"like": {"row": query.row, "prompt_id": query.prompt_id}}


def _looked_at(prompts: Prompts, rows: Sequence[int], what: str, unreadable: dict[int, Dropped]) -> Iterator[Query]:
    """Yields queries in order; of those that cannot be read it only notes why."""

    def read(row: int) -> Query | str:
        try:
            prompt = prompts[row]
        except UnreadablePrompt as error:
            return str(error)
        answer = None if prompt.answer is None else normalised(str(prompt.answer))
        return Query(row=row, prompt_id=prompt.id, task=prompt.task, answer=answer, fingerprint=fingerprint_of(prompt))

    with ThreadPoolExecutor(READERS, thread_name_prefix="queries") as readers:
        for row, found in zip(rows, track(readers.map(read, rows), what, len(rows), transient=True), strict=True):
            if isinstance(found, Query):
                yield found
            else:
                unreadable[row] = Dropped(reason="unreadable", detail={"error": found})
