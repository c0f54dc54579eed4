"""Questions with options, answered by letter, text or both, and questions answered by yes or no."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from rewards.text.answer_text import answer_part
from rewards.text.choice_answer import lists_in_lines, picked, read_pick, read_picks
from rewards.text.option_list import NO, YES, Options, bare, comparable, options_of
from rewards.text.patterns import Pattern
from rewards.text.unreadable import unreadable
from rewards.types import UNREAD, Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

_OWN_LETTER = Pattern(r"[(\[]?([A-Za-z0-9]{1,2})(?:[)\]][.:]?\s*|[.:]\s+)(.+)", re.DOTALL)
_LETTER_FIRST = Pattern(r"\W*[A-Za-z]\W*|\W*[A-Z](?:[)\]][.:]?|[.:](?=\s)).+", re.DOTALL)
_SEVERAL = Pattern(r"(?:[(\[]?[A-Z][)\]]?(?:\s*[,;/&]\s*|\s+and\s+|\s+|(?=[A-Z(\[]))){1,25}[(\[]?[A-Z][)\]]?\.?")
_YES_AND_NO: Options = {"yes": YES, "no": NO}


@with_options
def multiple_choice(*, several: bool = False, boxed: bool = False) -> Verifier:
    r"""Makes a verifier that rewards a response that picks the right option, or exactly the right ones.

    The pick is in the last `\boxed{...}` or `<answer>...</answer>`, else after the last phrase such as "answer is", else in the
    last line, else in the first. It may be the letter (`B`, `b`, `(B)`, `B.`, `Option B`), the letter with the text of its option
    (`B. a cat`), or the text of one option (`a cat`). A reason may follow (`B. Note that A is smaller.`). Text that takes the pick
    back, doubts it or picks another earns nothing (`B is wrong`, `A or B`, `B. a dog` where that is the text of A).

    `prompt.columns["options"]` holds the options, as a list of texts, a mapping from letters to texts, or one text that lists them
    (`A. a dog B. a cat`). Without options, any text may follow a letter and a mark (`B. a cat`, but not `A cat`, as `A` is also a
    word). `prompt.answer` is a letter, the text of an option, or, as a whole number, the place of an option from 0.

    Several letters (`ACD`, `A, C`, a list) are all right ones, if they are among the options. The response must name these and no
    others, in any order.

    Args:
        several: Any number of options may be right. The column `several` sets it for one prompt. It is needed where the row has no
            options.
        boxed: Only a `\boxed{...}` counts.

    Returns:
        The verifier: 1.0 or 0.0, `UNREAD` where the response picks nothing; a `Score` with an error where the reference names no
        option, or the options cannot be read.
    """

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        try:
            options = _options(prompt)
        except ValueError as error:
            return unreadable("multiple_choice", prompt, str(error))
        correct = _correct(prompt.answer, options, several or bool(prompt.columns.get("several")))
        if correct is None:
            known = (
                f"one of {list(options)} or the text of an option" if options else "a letter, or add a column 'options'"
            )
            return unreadable("multiple_choice", prompt, f"give {known}")
        text = answer_part(completion)
        found: str | frozenset[str] | None
        if isinstance(correct, str):
            found = picked(text, lambda each: read_pick(each, options), boxed=boxed)
        else:
            found = picked(lists_in_lines(text), lambda each: read_picks(each, options), boxed=boxed)
        return UNREAD if found is None else float(found == correct)

    return verify


@with_options
def yes_no(*, boxed: bool = False) -> Verifier:
    r"""Makes a verifier that rewards the right one of yes and no, in English or Chinese.

    `true` and `correct` are a yes, `false` and `incorrect` a no. The word is searched as `multiple_choice` searches a pick. A
    reason may follow it (`Yes, there is one.`). Hedges earn nothing (`yes and no`, `maybe`, `yes or no`).

    `prompt.answer` is such a word, or a boolean.

    Args:
        boxed: Only a `\boxed{...}` counts.

    Returns:
        The verifier: 1.0 or 0.0, `UNREAD` where the response says neither; a `Score` with an error where the reference does not.
    """

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        answer = {True: "yes", False: "no"}[prompt.answer] if isinstance(prompt.answer, bool) else str(prompt.answer)
        correct = read_pick(answer, _YES_AND_NO)
        if correct is None:
            return unreadable("yes_no", prompt, "give yes or no, true or false, 是 or 否")
        found = picked(answer_part(completion), lambda text: read_pick(text, _YES_AND_NO), boxed=boxed)
        return UNREAD if found is None else float(found == correct)

    return verify


def _options(prompt: Prompt) -> Options:
    """Returns the comparable text of each option by its letter; empty where the row has no options."""
    given = prompt.columns.get("options")
    if isinstance(given, list) and all(type(text) is str for text in given):
        return _of_texts(tuple(given))
    return _in_comparable_form(given)


@lru_cache(maxsize=1024)  # a group of completions has one prompt
def _of_texts(given: tuple[str, ...]) -> Options:
    return _in_comparable_form(given)


def _in_comparable_form(given: Any) -> Options:
    return {letter: (_without_letter(text, letter),) for letter, text in options_of(given).items()}


def _without_letter(text: str, letter: str) -> str:
    """Returns an option's text without its letter in front: `(B) a cat` is `a cat`."""
    match = _OWN_LETTER.fullmatch(bare(text))
    return comparable(match[2] if match and match[1].upper() == letter else text)


@lru_cache(maxsize=1024)  # a group of completions has one reference
def _pick_of(answer: str, options: tuple[tuple[str, tuple[str, ...]], ...]) -> str | None:
    return read_pick(answer, dict(options))


def _correct(answer: Any, options: Options, several: bool) -> str | frozenset[str] | None:
    """Returns the right letter, or the set of right letters; `None` if the answer names no option."""
    if isinstance(answer, list | tuple):
        picks = [read_pick(str(each), options) for each in answer] if options or several else []
        return frozenset(pick for pick in picks if pick) if picks and None not in picks else None
    text = str(answer)
    is_readable = options or _LETTER_FIRST.fullmatch(
        bare(text)
    )  # `C - 5` and `P(A)` may be the reference of another verifier
    pick = _pick_of(text, tuple(options.items())) if is_readable else None
    if pick is None and isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        pick = list(options)[answer]
    if pick is None and (options or several) and _SEVERAL.fullmatch(bare(text)):
        letters = read_picks(text, options)
        return letters if letters and len(letters) > 1 else None
    return frozenset([pick]) if pick and several else pick
