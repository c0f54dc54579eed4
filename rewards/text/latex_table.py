r"""Tables in LaTeX: `\begin{tabular}{lr} a & b \\ c & d \end{tabular}`."""

from __future__ import annotations

import re

from rewards.text.patterns import Pattern

MOST = 3_000  # columns that one cell may span

_BEGIN = Pattern(r"\\begin\{(tabular[xy*]?|array|longtable)\}")
_BRACE = Pattern(r"\\.|[{}]", re.DOTALL)
_ROW_END = Pattern(r"\\\\(?:\[[^\]\n]{0,20}\])?|\\tabularnewline\b")
_RULE = Pattern(
    r"\\(?:[hv]line|(?:top|mid|bottom)rule|end(?:first)?head|end(?:last)?foot|(?:c|cmid)(?:line|rule)(?:\([lr]{1,2}\))?\{[^{}]{0,20}\})"
)
_SEPARATOR = Pattern(r"(?<!\\)&")
_ESCAPED = Pattern(r"\\([&%$#_{}])")
_MULTI = Pattern(r"\\multi(column|row)\s*(?=\{)")


def rows_of_latex(text: str) -> list[list[tuple[str, int, int]]] | None:
    """Returns the rows of the last table in a text; `None` if there is none.

    Each cell is its text, and the numbers of rows and of columns that it spans. The empty cells below one that spans rows are in
    the table, as LaTeX wants them.
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
    return [
        [_cell(cell) for cell in _SEPARATOR.split(line)]
        for row in _ROW_END.split(body)
        if (line := _RULE.sub("", row).strip())
    ]


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
