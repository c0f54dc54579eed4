"""Tables, compared cell by cell."""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rewards.text.answer_text import answer_part, last_block, normalised
from rewards.text.latex_table import rows_of_latex
from rewards.text.patterns import Pattern
from rewards.text.typography import plain_number, plain_words
from rewards.text.unreadable import unreadable
from rewards.types import UNREAD, Score
from rollout.types import Completion, Prompt

if TYPE_CHECKING:
    import numpy as np

Table = list[list[str]]

LONGEST = 200_000  # characters after the thoughts; a longer text is no answer
LARGEST = 3_000  # cells, with short rows padded; a larger table is no answer
MIN_SIMILARITY = 0.5  # smallest that counts, as in ANLS: letters that agree by chance earn nothing

_TAG = Pattern(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)([^<>]*)>")
_SPAN = Pattern(r"\b(row|col)span\s*=\s*[\"']?\s*(\d{1,6})", re.IGNORECASE)
_PIPE = Pattern(r"(?<!\\)\|")
_RULE = Pattern(r":?-+:?")
_BREAK = Pattern(r"<br\s*/?>", re.IGNORECASE)
_NUMBER = Pattern(r"[-−+]?[$€£¥]?\s?[\d.,]*\d\s?[%]?")


def table_similarity(prompt: Prompt, completion: Completion) -> float | Score:
    """Rewards a table by its similarity to the reference.

    Rows are aligned with rows, and cells with cells, in order and for the greatest similarity. The reward is twice that similarity
    over the number of cells of both tables: 1 for the same table, less for each missing, different or extra cell. Two texts have
    the similarity 1 − Levenshtein distance / length of the longer one, or 0 if that is below one half. Two numbers have 1 or 0.
    Case, white space, markup, thousands separators, needless zeros (`1200.0`), full-width forms and empty rows do not count.

    The table is the last one in the last fenced block after the thoughts, or in all of that text. It is HTML or LaTeX, with cells
    counted in each row and column that they span, or JSON, as rows, objects or columns. Else it is lines with `|`, as in Markdown,
    or with tabs, semicolons or commas. A table of more than 3,000 cells is no answer.

    `prompt.answer` is such a text, or a list of rows, each a list of cells or an object.

    Returns:
        From 0.0 to 1.0, `UNREAD` where the response has no table; a `Score` with an error where the answer is none.
    """
    wanted = _table(prompt.answer) if isinstance(prompt.answer, str) else _of_lists(prompt.answer)
    if not wanted:
        remedy = f"give Markdown, HTML, LaTeX, CSV, JSON or rows of cells, {LARGEST} cells at most"
        return unreadable("table_similarity", prompt, remedy)
    text = answer_part(completion)
    found = _table(text) if len(text) <= LONGEST else []
    return _similarity(found, wanted) if found else UNREAD


def _table(text: str) -> Table:
    """Returns the comparable rows of the last table in a text; none if there is no table, or it is too large."""
    block = last_block(text)
    if "<table" in block.lower():
        return _comparable(_of_html(block))
    is_latex = block.rfind("\\begin{") > block.rfind("\n|")  # else a formula that stands before a table
    if is_latex and (latex := rows_of_latex(block)) is not None:
        return _comparable(_expanded(latex))
    if block.startswith(("[", "{")) and (listed := _of_json(block)):
        return listed
    if "|" in block:
        return _comparable(_of_markdown(block))
    lines = block.splitlines(keepends=True)
    with_semicolons, with_commas = (sum(mark in line for line in lines) for mark in ";,")
    delimiter = "\t" if "\t" in block else ";" if with_semicolons > with_commas else ","
    try:
        rows = list(csv.reader(lines, delimiter=delimiter))
    except csv.Error:
        return []
    return _comparable(_last_run(row if len(row) > 1 else [] for row in rows))


def _of_json(block: str) -> Table:
    """Returns the comparable rows of JSON; none where it is no table."""
    try:
        value = json.loads(block, parse_int=str, parse_float=str)  # as they are written
        return _of_lists(_rows_of_object(value) if isinstance(value, dict) else value)
    except (ValueError, RecursionError):
        return []


def _rows_of_object(value: dict[str, Any]) -> Any:
    """Returns the rows of an object of columns, of one with the names of columns and the rows, or of one around a list."""
    lists = {name: each for name, each in value.items() if isinstance(each, list)}
    if len(lists) == 1:
        return next(iter(lists.values()))
    names = next((lists[name] for name in ("columns", "headers", "header") if name in lists), None)
    rows = next((lists[name] for name in ("rows", "data") if name in lists), None)
    if names is not None and rows is not None:
        return [names, *rows]
    same_length = len({len(each) for each in lists.values()}) == 1 and len(lists) == len(value)
    return [list(lists), *map(list, zip(*lists.values(), strict=True))] if same_length else None


def _of_lists(rows: Any) -> Table:
    """Returns the comparable rows of lists, or of objects with the names of columns; none for anything else."""
    if not isinstance(rows, list | tuple):
        return []
    if rows and all(isinstance(row, Mapping) for row in rows):
        names = list(dict.fromkeys(name for row in rows for name in row))
        rows = (
            [names, *([row.get(name) for name in names] for row in rows)] if len(names) * len(rows) <= LARGEST else []
        )
    if not all(isinstance(row, list | tuple) for row in rows):
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
    """Returns the last table; does not use `html.parser`, which takes quadratic time for `<!--<!--<!--`."""
    opening, *comments = block.split("<!--")
    block = opening + "".join(comment.partition("-->")[2] for comment in comments)
    rows: list[list[tuple[list[str], int, int]]] = []  # each cell: pieces of text, number of rows, number of columns
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
        elif depth == 1 and name in ("tr", "td", "th"):  # the text of an inner table belongs to its cell
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
    """Returns rows of texts, each in all the rows and columns that its cell spans; no rows if there are too many cells."""
    table: Table = []
    held: dict[int, tuple[str, int]] = {}  # by column: a text from above, and the number of further rows that it spans
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
    """Returns the last rows without an empty one between them."""
    run: Table = []
    for row in reversed(list(rows)):
        if row:
            run.append(row)
        elif run:
            break
    return run[::-1]


def _comparable(rows: Table) -> Table:
    """Returns the rows that say something, their cells normalised; none where the table is too large."""
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if len(rows) * max(map(len, rows), default=0) > LARGEST:
        return []
    rows = [[_cell(cell) for cell in row] for row in rows]
    return [row for row in rows if any(row)]


def _cell(text: str) -> str:
    text = normalised(plain_words(html.unescape(_BREAK.sub(" ", text))))
    return plain_number(text) or text


def _similarity(found: Table, wanted: Table) -> float:
    """Returns twice the similarity of the best alignment over the number of cells of both tables."""
    import numpy as np
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    texts, others = (_distinct(cell for row in table for cell in row) for table in (found, wanted))
    similarity = cdist(
        list(texts),
        list(others),
        scorer=Levenshtein.normalized_similarity,
        score_cutoff=MIN_SIMILARITY,
        dtype=np.float32,
    )
    is_number, is_other_number = (
        np.array([bool(_NUMBER.fullmatch(text)) for text in each]) for each in (texts, others)
    )
    similarity[(is_number[:, None] | is_other_number) & (similarity < 1)] = 0
    similarity = np.pad(similarity, (0, 1))  # padding of short rows is similar to nothing
    found_RC, wanted_SD = _places(found, texts), _places(wanted, others)
    rows_RS = np.stack([_aligned(similarity[row_C[None, :, None], wanted_SD[:, None, :]]) for row_C in found_RC])
    return 2 * float(_aligned(rows_RS)) / sum(len(row) for table in (found, wanted) for row in table)


def _distinct(texts: Iterable[str]) -> dict[str, int]:
    """Returns the distinct texts, numbered."""
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}


def _places(table: Table, texts: dict[str, int]) -> np.ndarray:
    """Returns [rows, cells] the number of each cell's text; padding of short rows has the number after the last."""
    import numpy as np

    places = np.full((len(table), max(map(len, table))), len(texts))
    for row, cells in enumerate(table):
        places[row, : len(cells)] = [texts[cell] for cell in cells]
    return places


def _aligned(worth: np.ndarray) -> np.ndarray:
    """Returns [...] the greatest sum of pairs of worth [..., N, M] with rising n and m; `best[m]` is that of the first m."""
    import numpy as np

    best = np.zeros((*worth.shape[:-2], worth.shape[-1] + 1), np.float32)
    for n in range(worth.shape[-2]):
        best[..., 1:] = np.maximum(best[..., 1:], best[..., :-1] + worth[..., n, :])
        best = np.maximum.accumulate(best, axis=-1)
    return best[..., -1]
