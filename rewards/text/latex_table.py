r"""Tables in LaTeX: `\begin{tabular}{lr} a & b \\ c & d \end{tabular}`."""

from __future__ import annotations

import re

from rewards.text.patterns import Pattern

MOST = 3_000  # cells, and columns that one cell may span; a larger table has no rows

_BEGIN = Pattern(r"\\begin\{(tabular[xy*]?|array|longtable)\}")
_BRACE = Pattern(r"\\.|[{}]", re.DOTALL)
_ROW_END = Pattern(r"\\\\(?:\[[^\]\n]{0,20}\])?|\\tabularnewline\b")
_RULE = Pattern(
    r"\\(?:[hv]line|(?:top|mid|bottom)rule|end(?:first)?head|end(?:last)?foot|(?:c|cmid)(?:line|rule)(?:\([lr]{1,2}\))?\{[^{}]{0,20}\})"
)
_SEPARATOR = Pattern(r"(?<!\\)&")
_ESCAPED = Pattern(r"\\([&%$#_{}])")
_MULTI = Pattern(r"\\multi(column|row)\s*(?=\{)")


Row = list[tuple[str, int, int]]
"""Cells: each has its text, and the numbers of rows and of columns that it spans."""


def rows_of_latex(text: str) -> list[Row] | None:
    """Returns the rows of the last table in a text; `None` if there is none.

    LaTeX wants empty cells below one that spans rows; these are left out.
    """
    begins = list(_BEGIN.finditer(text))
    if not begins:
        return None
    begin = begins[-1]
    body, _, _ = text[begin.end() :].partition(rf"\end{{{begin[1]}}}")
    wanted = 2 if begin[1] in ("tabular*", "tabularx", "tabulary") else 1  # a width before the columns
    for _ in range(wanted):
        body = _after_options(body)
        _, body = _braced(body)
    if body.count("&") + body.count("\\\\") > MOST:
        return []
    lines = [_RULE.sub("", row).strip() for row in _ROW_END.split(body)]
    return _without_cells_below([[_cell(cell) for cell in _SEPARATOR.split(line)] for line in lines if line])


def _without_cells_below(rows: list[Row]) -> list[Row]:
    """Returns the rows without the empty cells below one that spans rows, as HTML has them."""
    left: dict[int, int] = {}  # by column: the number of further rows that a cell spans
    kept: list[Row] = []
    for row in rows:
        kept.append([])
        column = 0
        for text, down, across in row:
            is_below = left.get(column, 0) > 0
            left[column] = left.get(column, 0) - 1 if is_below else down - 1
            if not is_below or text:
                kept[-1].append((text, down, across))
            column += across
    return kept


def _after_options(text: str) -> str:
    text = text.lstrip()
    return text.partition("]")[2] if text.startswith("[") else text


def _braced(text: str) -> tuple[str, str]:
    """Returns the content of the braces at the beginning of a text, and the rest; `""` and the text if it begins otherwise."""
    text = text.lstrip()
    if not text.startswith("{"):
        return "", text
    depth = 0
    for token in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return text[1 : token.start()], text[token.end() :]
    return text[1:], ""


def _cell(text: str) -> tuple[str, int, int]:
    spans = {"row": 1, "column": 1}
    for _ in range(2):  # a cell may span rows and columns
        multi = _MULTI.match(text.strip())
        if not multi:
            break
        count, rest = _braced(text.strip()[multi.end() :])
        _, rest = _braced(rest)
        text, _ = _braced(rest)
        spans[multi[1]] = min(int(count), MOST) if count.strip().isdecimal() and len(count) < 7 else 1
    return _ESCAPED.sub(r"\1", text).strip(), spans["row"], spans["column"]
