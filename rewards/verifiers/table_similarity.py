"""Tables, compared cell by cell."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rewards.text.answer_text import after_thinking, last_block, normalised
from rewards.text.patterns import Pattern
from rewards.types import Score
from rewards.verifiers.unreadable import unreadable
from rollout.types import Completion, Prompt

if TYPE_CHECKING:
    import numpy as np

Table = list[list[str]]

LONGEST = 200_000  # characters behind the thoughts, and
LARGEST = 3_000  # cells, shorter rows filled up: what is more is no answer
LIKENESS = 0.5  # what two texts must share at least, as in ANLS; letters that happen to be the same earn nothing

_TAG = Pattern(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)([^<>]*)>")
_SPAN = Pattern(r"\b(row|col)span\s*=\s*[\"']?\s*(\d{1,6})", re.IGNORECASE)
_PIPE = Pattern(r"(?<!\\)\|")
_RULE = Pattern(r":?-+:?")
_BREAK = Pattern(r"<br\s*/?>", re.IGNORECASE)
_THOUSANDS = Pattern(r",(?=\d{3}(?!\d))")
_NUMBER = Pattern(r"[-−+]?[$€£¥]?\s?[\d.,]*\d\s?[%]?")


def table_similarity(prompt: Prompt, completion: Completion) -> float | Score:
    """Rewards a table by how much of it is in the reference, and of the reference in it, in the same order.

    Rows are aligned with rows, and cells with cells, so that their likeness is greatest while both keep their order; the reward
    is twice that likeness over the number of cells of both: 1 for the same table, and less for every cell that is missing, other,
    or too much. Of two texts the likeness is 1 − Levenshtein distance / length of the longer, 0 below one half; of numbers it is
    1 or 0. Case, white space, bold type, thousands separators and empty rows do not count.

    The table is the last one in the last fenced block of the response, or in all of it where there is none: HTML, whose cells count
    in each row and column that they span; else lines with `|`, as in Markdown; else lines with tabs or commas. A table of more than
    3,000 cells is no answer.

    `prompt.answer` is such a text, or a list of rows, each a list of cells.

    Returns:
        From 0.0 to 1.0; a `Score` with an error where the answer is no table.
    """
    wanted = _table(prompt.answer) if isinstance(prompt.answer, str) else _of_lists(prompt.answer)
    if not wanted:
        remedy = f"give Markdown, HTML, CSV or rows of cells, {LARGEST} cells at most"
        return unreadable("table_similarity", prompt, remedy)
    text = after_thinking(completion.text)
    found = _table(text) if len(text) <= LONGEST else []
    return _similarity(found, wanted) if found else 0.0


def _table(text: str) -> Table:
    """Returns the rows of the last table in a text, as they are compared; none where there is no table, or too large a one."""
    block = last_block(text)
    if "<table" in block.lower():
        return _comparable(_of_html(block))
    if "|" in block:
        return _comparable(_of_markdown(block))
    try:
        rows = list(csv.reader(block.splitlines(keepends=True), delimiter="\t" if "\t" in block else ","))
    except csv.Error:
        return []
    return _comparable(_last_run(row if len(row) > 1 else [] for row in rows))


def _of_lists(rows: Any) -> Table:
    """Returns a reference that is given as rows of cells, as it is compared; none where it is something else."""
    if not isinstance(rows, list | tuple) or not all(isinstance(row, list | tuple) for row in rows):
        return []
    return _comparable([["" if cell is None else str(cell) for cell in row] for row in rows])


def _of_markdown(block: str) -> Table:
    lines = [line.strip() for line in block.splitlines()]
    bare = [
        line.removeprefix("|") if line.endswith("\\|") else line.removeprefix("|").removesuffix("|") for line in lines
    ]
    rows = _last_run(_PIPE.split(inner) if "|" in line else [] for line, inner in zip(lines, bare, strict=True))
    if len(rows) > 1 and all(_RULE.fullmatch(cell.strip()) for cell in rows[1]):
        del rows[1]
    return [[cell.replace("\\|", "|") for cell in row] for row in rows]


def _of_html(block: str) -> Table:
    """Returns the last table. `html.parser` takes quadratic time over `<!--<!--<!--`, and so is not used."""
    opening, *comments = block.split("<!--")
    block = opening + "".join(comment.partition("-->")[2] for comment in comments)
    rows: list[list[tuple[list[str], int, int]]] = []  # of cells: pieces of text, rows and columns that it spans
    depth, end, in_cell = 0, 0, False
    for tag in _TAG.finditer(block):
        name, is_end = tag[2].lower(), bool(tag[1])
        if in_cell:
            rows[-1][-1][0].append(block[end : tag.start()] + " " * (name in ("br", "p", "div", "li")))
        end = tag.end()
        if name == "table":
            depth = max(depth - 1, 0) if is_end else depth + 1
            if depth == 1 and not is_end:
                rows = []
            in_cell = in_cell and depth > 0
        elif depth == 1 and name in ("tr", "td", "th"):  # the text of a table inside a cell is the cell's
            in_cell = name != "tr" and not is_end
            if not is_end and (name == "tr" or not rows):
                rows.append([])
            if in_cell:
                spans = {side.lower(): int(count) for side, count in _SPAN.findall(tag[3])}
                rows[-1].append(([], spans.get("row", 1), spans.get("col", 1)))
    if in_cell:
        rows[-1][-1][0].append(block[end:])
    return _expanded([[("".join(pieces), down, across) for pieces, down, across in row] for row in rows])


def _expanded(rows: Iterable[Sequence[tuple[str, int, int]]]) -> Table:
    """Returns rows of texts, each in all the rows and columns that it spans; no rows at all where these are too many cells."""
    table: Table = []
    held: dict[int, tuple[str, int]] = {}  # by column, a text from above and how many more rows it spans
    cells = 0
    for row in rows:
        line = {column: text for column, (text, _) in held.items()}
        held = {column: (text, left - 1) for column, (text, left) in held.items() if left > 1}
        column = 0
        for text, down, across in row:
            while column in line:
                column += 1
            if column + across > LARGEST:
                return []
            spanned = range(column, column + max(across, 1))
            line |= dict.fromkeys(spanned, text)
            held |= dict.fromkeys(spanned, (text, down - 1)) if down > 1 else {}
        table.append([line.get(column, "") for column in range(max(line, default=-1) + 1)])
        cells += len(table[-1])
        if cells > LARGEST:
            return []
    return table


def _last_run(rows: Iterable[list[str]]) -> Table:
    """Returns the last rows that stand together, with no empty one in between."""
    run: Table = []
    for row in reversed(list(rows)):
        if row:
            run.append(row)
        elif run:
            break
    return run[::-1]


def _comparable(rows: Table) -> Table:
    """Returns the rows that say something, their cells normalised; none where the table is too large."""
    rows = [[_cell(cell) for cell in row] for row in rows]
    rows = [row for row in rows if any(row)]
    return rows if len(rows) * max(map(len, rows), default=0) <= LARGEST else []


def _cell(text: str) -> str:
    text = normalised(html.unescape(_BREAK.sub(" ", text)).replace("**", "").replace("`", "")).replace("−", "-")
    return _THOUSANDS.sub("", text) if _NUMBER.fullmatch(text) else text


def _similarity(found: Table, wanted: Table) -> float:
    """Returns twice the likeness of the best alignment over the number of cells of both tables."""
    import numpy as np
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    texts, others = (_distinct(cell for row in table for cell in row) for table in (found, wanted))
    likeness = cdist(
        list(texts), list(others), scorer=Levenshtein.normalized_similarity, score_cutoff=LIKENESS, dtype=np.float32
    )
    is_number, is_other_number = (
        np.array([bool(_NUMBER.fullmatch(text)) for text in each]) for each in (texts, others)
    )
    likeness[(is_number[:, None] | is_other_number) & (likeness < 1)] = 0
    likeness = np.pad(likeness, (0, 1))  # what a short row is filled up with is like nothing
    found_RC, wanted_SD = _places(found, texts), _places(wanted, others)
    rows_RS = np.stack([_aligned(likeness[row_C[None, :, None], wanted_SD[:, None, :]]) for row_C in found_RC])
    return 2 * float(_aligned(rows_RS)) / sum(len(row) for table in (found, wanted) for row in table)


def _distinct(texts: Iterable[str]) -> dict[str, int]:
    """Returns the texts, each once, with their numbers."""
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}


def _places(table: Table, texts: dict[str, int]) -> np.ndarray:
    """Returns [rows, cells] the place of each cell among the texts, the last one where the row is short."""
    import numpy as np

    places = np.full((len(table), max(map(len, table))), len(texts))
    for row, cells in enumerate(table):
        places[row, : len(cells)] = [texts[cell] for cell in cells]
    return places


def _aligned(worth: np.ndarray) -> np.ndarray:
    """Returns [...], the greatest sum over [..., N, M] of pairs whose N and M both rise: `best[m]` is that of the first m."""
    import numpy as np

    best = np.zeros((*worth.shape[:-2], worth.shape[-1] + 1), np.float32)
    for n in range(worth.shape[-2]):
        best[..., 1:] = np.maximum(best[..., 1:], best[..., :-1] + worth[..., n, :])
        best = np.maximum.accumulate(best, axis=-1)
    return best[..., -1]
