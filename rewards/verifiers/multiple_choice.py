"""Questions with lettered options, answered by letter, text or both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase

from rewards.text.answer_text import answer_part, final_answer, normalised
from rewards.text.patterns import Pattern
from rewards.text.unreadable import unreadable
from rewards.types import Score
from rollout.types import Completion, Prompt

_MARKUP = Pattern(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}|\*\*")
_LETTER = Pattern(r"[(\[]?([A-Za-z])[)\]]?[.:]?")
_LETTER_AND_TEXT = Pattern(r"[(\[]?([A-Z])(?:([)\]][.:]?)\s*|([.:])\s+|\s+)(.+)", re.DOTALL)
_ANOTHER_LETTER = Pattern(r"(?!^)\b[A-Z]\b|^[A-Z]\W*$")  # an article at the front (`B. A cat`) is not another letter


def multiple_choice(prompt: Prompt, completion: Completion) -> float | Score:
    r"""Rewards a response that picks the right option.

    The pick is the response's `answer_text.final_answer`. It may be the letter (`B`, `b`, `(B)`, `B.`), the letter with the text
    of its option (`B. a cat`), or the text of one option (`a cat`).

    `prompt.columns["options"]` holds the options, as a list of texts or a mapping from letters to texts. Without options, any
    text may follow a letter and a mark (`B. a cat`, but not `A cat`, as `A` is also a word). `prompt.answer` is a letter or the
    text of an option.

    Returns:
        1.0 or 0.0; a `Score` with an error where the reference names no option.
    """
    options = _options(prompt)
    correct = _pick(str(prompt.answer), options)
    if correct is None:
        known = f"one of {list(options)} or the text of an option" if options else "a letter, or add a column 'options'"
        return unreadable("multiple_choice", prompt, f"give {known}")
    return float(_pick(final_answer(answer_part(completion)), options) == correct)


def _options(prompt: Prompt) -> dict[str, str]:
    """Returns the normalised text of each option by its letter; empty where the row has no options."""
    given = prompt.columns.get("options")
    if given is None:
        return {}
    lettered = given.items() if isinstance(given, Mapping) else zip(ascii_uppercase, given, strict=False)
    return {str(letter).upper(): _bare(str(text), str(letter).upper()) for letter, text in lettered}


def _bare(text: str, letter: str) -> str:
    """Returns an option's text without its letter in front: `(B) a cat` is `a cat`."""
    first, is_marked, rest = _split(_unwrapped(text))
    return _comparable(rest if is_marked and first == letter else text)


def _pick(answer: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter of an answer; `None` if it names no option, or more than one."""
    answer = _unwrapped(answer)
    single = _LETTER.fullmatch(answer)
    if single and (not options or single[1].upper() in options):
        return single[1].upper()
    same_text = [letter for letter, text in options.items() if text and text == _comparable(answer)]
    if same_text:
        return same_text[0] if len(same_text) == 1 else None
    letter, marked, rest = _split(answer)
    if options:
        return letter if letter and _comparable(rest) == options.get(letter) else None
    return letter if marked and not _ANOTHER_LETTER.search(rest) else None


def _split(answer: str) -> tuple[str | None, bool, str]:
    """Splits `(B) a cat` into the letter, whether a mark follows it, and the text."""
    match = _LETTER_AND_TEXT.fullmatch(answer)
    return (match[1], bool(match[2] or match[3]), match[4]) if match else (None, False, answer)


def _unwrapped(text: str) -> str:
    """Returns the text without quotes, dollars and bold type around it."""
    return _MARKUP.sub(lambda match: match[1] or "", text).strip(" \t\n$`*\"'")


def _comparable(text: str) -> str:
    """Returns the text normalised, without markup around it and a full stop at its end."""
    return normalised(_unwrapped(text)).rstrip(".")
