"""Options of a question, in any form in which datasets have them, and their texts in a comparable form."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from numbers import Real
from string import ascii_uppercase
from typing import Any

from rewards.text.answer_text import normalised
from rewards.text.patterns import Pattern
from rewards.text.typography import plain_typography, without_markup

Options = Mapping[str, tuple[str, ...]]
"""The comparable texts of each option by its letter; empty where the options are not known."""

LONGEST = 20_000  # characters of options that are one text

_KEY = Pattern(r"\s*[(\[]?([A-Za-z]|\d{1,2})[)\].:]?\s*")
_MARK = Pattern(r"(?:^|(?<=[\s,;|]))[(（\[]?([A-Z]|[1-9]\d?)\s?[)）\].:、．：]\s*")
_BULLET = Pattern(r"^\s*[-*•]\s+")
_SYMBOL = Pattern("[\u2600-\u27bf\ufe0f\U0001f000-\U0001faff]")

NO = (
    *("not true", "not at all", "not really", "absolutely not", "certainly not", "definitely not", "of course not"),
    *"no nope false incorrect wrong".split(),
    *"不 不是 不是的 否 没有 没 不对 错 错误 错的 错误的 不正确 假 不能 不可以 不会 不存在 无 不行".split(),
)
YES = tuple("yes yeah yep true correct 是 是的 有 有的 对 对的 正确 正确的 真 能 可以 会 存在".split())


def options_of(given: Any) -> dict[str, str]:
    """Returns the text of each option by its letter or number; empty where there are none.

    Args:
        given: `None`; a list of texts; a mapping from letters to texts; `{"label": letters, "text": texts}`; or one text: such a
            list or mapping as JSON or Python, `A. a cat B. a dog`, or an option a line.

    Raises:
        ValueError: It has another form; the message lists the valid ones.
    """
    found = _read(given)
    if found is None or not all(isinstance(text, str | Real) for text in found.values()):
        raise ValueError("give a column 'options' that is a list of texts, or a mapping from letters to texts")
    return {key: str(text) for key, text in found.items()}


def _read(given: Any) -> dict[str, Any] | None:
    if given is None:
        return {}
    if isinstance(given, str):
        return _of_text(given.strip())
    if isinstance(given, Mapping):
        return _of_mapping(given)
    return dict(zip(ascii_uppercase, given, strict=False)) if isinstance(given, Iterable) else None


def _of_mapping(given: Mapping[Any, Any]) -> dict[str, Any] | None:
    if set(given) == {"label", "text"} and not isinstance(given["label"], str):
        return _of_mapping(dict(zip(given["label"], given["text"], strict=False)))
    keys = {key: _KEY.fullmatch(str(key)) for key, text in given.items() if text is not None}
    if not all(keys.values()):
        return None
    return {match[1].upper(): given[key] for key, match in keys.items() if match}


def _of_text(given: str) -> dict[str, Any] | None:
    if not given:
        return {}
    if len(given) > LONGEST:
        return None
    if given[0] in "[{(":
        for load in (json.loads, ast.literal_eval):
            try:
                loaded = load(given)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            return None if isinstance(loaded, str) else _read(loaded)
    if len(lettered := _lettered(given)) > 1:
        return lettered
    lines = [_BULLET.sub("", line).strip() for line in given.splitlines() if line.strip()]
    return dict(zip(ascii_uppercase, lines, strict=False)) if len(lines) > 1 else None


def _lettered(given: str) -> dict[str, str]:
    """Returns the texts behind `A.`, `B.` and so on, or `1.`, `2.` and so on, where the first stands at the beginning."""
    starts: list[tuple[str, int, int]] = []
    for mark in _MARK.finditer(given):
        key = mark[1]
        wanted = str(len(starts) + 1) if starts and starts[0][0] == "1" else ascii_uppercase[len(starts) % 26]
        if key == wanted or (not starts and key == "1" and mark.start() == 0):
            starts.append((key, mark.start(), mark.end()))
    if not starts or starts[0][1]:
        return {}
    ends = [start for _, start, _ in starts[1:]] + [len(given)]
    return {
        key: given[begin:end].strip().rstrip(",;|").strip() for (key, _, begin), end in zip(starts, ends, strict=True)
    }


def bare(text: str) -> str:
    """Returns the text in plain typography, without markup, quotes and braces around it."""
    text = without_markup(plain_typography(text)).strip(" \t\n`*_\"'")
    text = text if text.isascii() else _SYMBOL.sub("", text).strip()
    return text[1:-1].strip() if text[:1] == "{" and text[-1:] == "}" else text


def comparable(text: str) -> str:
    """Returns the text bare and normalised, without a full stop at its end."""
    return normalised(bare(text)).rstrip(". ").strip("\"'")
