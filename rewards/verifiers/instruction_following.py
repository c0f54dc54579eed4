"""Instructions that a program can check: lengths, keywords, case, language, lists, and others of IFEval's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rewards.text.answer_text import answer_part
from rewards.text.counting import bullets, numbered, occurrences, paragraphs, sentences, words
from rewards.text.languages import foreign_share, is_written_as, known_language, prose_of
from rewards.text.patterns import Pattern
from rewards.types import Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

LONGEST = 200_000  # characters
QUOTED = 0.1  # share of a text that may be in another language than the one that is asked for

_COMMA = Pattern("[,،٬՝、⸲﹐﹑，､]")
_TITLE = Pattern(r"<<[^<>\n]{1,300}>>")
_PLACEHOLDER = Pattern(r"\[[^\[\]\n]{1,100}\]")
_AROUND = "\"'“”‘’«»„「」*_` \n\t"  # quotation marks and markup around a text


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number is needed, got {value!r}")
    return int(value) if value == int(value) else _no("a whole number", value)


def _no(wanted: str, value: Any) -> Any:
    raise TypeError(f"{wanted} is needed, got {value!r}")


def _list(value: Any) -> Iterable[str]:
    return _no("a list of words", value) if isinstance(value, str) else value


def _has_case(text: str, case: str) -> bool:
    return {"upper": text.upper(), "lower": text.lower()}[case] == text and text.upper() != text.lower()


def _is_in(text: str, language: Any) -> bool:
    language, prose = known_language(language), prose_of(text)
    return any(map(str.isalpha, prose)) and is_written_as(prose, language) and foreign_share(prose, language) <= QUOTED


def _begins(text: str, start: str) -> bool:
    return text.startswith(start) or text.lstrip(_AROUND).replace("*", "").startswith(start.lstrip(_AROUND))


def _ends(text: str, end: str) -> bool:
    return text.endswith(end) or text.rstrip(_AROUND).replace("*", "").endswith(end.rstrip(_AROUND))


def _sections(text: str, counts: Mapping[str, int]) -> bool:
    lines = [line.strip(" \t*#_").casefold() for line in text.split("\n")]
    found = {name: [line for line in lines if re.match(rf"{re.escape(name.casefold())}\s+\w", line)] for name in counts}
    return all(len(found[name]) == _number(count) for name, count in counts.items())


def _titled(text: str, is_asked: bool) -> bool:
    return not is_asked or any(any(map(str.isalnum, title)) for title in _TITLE.findall(text))


def _postscript(text: str, mark: str) -> bool:
    _, found, rest = text.casefold().rpartition(mark.casefold())
    return bool(found) and any(map(str.isalnum, rest))


def _placeholders(text: str, least: int) -> bool:
    return sum(any(map(str.isalpha, place)) for place in _PLACEHOLDER.findall(text)) >= _number(least)


def _quoted(text: str, is_asked: bool) -> bool:
    return not is_asked or (len(text) > 2 and text[0] in '"“«„「' and text[-1] in '"”»“」')


def _letters(text: str, letter: str) -> int:
    return text.casefold().count(letter.casefold())


INSTRUCTIONS: Mapping[str, Callable[[str, Any], bool]] = {
    "min_words": lambda text, least: words(text) >= _number(least),
    "max_words": lambda text, most: words(text) <= _number(most),
    "min_sentences": lambda text, least: sentences(text) >= _number(least),
    "max_sentences": lambda text, most: sentences(text) <= _number(most),
    "paragraphs": lambda text, number: paragraphs(text) == _number(number),
    "max_characters": lambda text, most: len(text) <= _number(most),
    "keywords": lambda text, wanted: all([occurrences(text, word, alike=False) for word in _list(wanted)]),
    "forbidden": lambda text, unwanted: not any([occurrences(text, word, alike=True) for word in _list(unwanted)]),
    "keyword_counts": lambda text, counts: all(
        occurrences(text, word, alike=True) == _number(count) for word, count in counts.items()
    ),
    "case": _has_case,
    "language": _is_in,
    "bullets": lambda text, number: bullets(text) == _number(number),
    "numbered": lambda text, number: numbered(text) == _number(number),
    "starts_with": _begins,
    "ends_with": _ends,
    "no_commas": lambda text, is_asked: not is_asked or not _COMMA.search(text),
    "title": _titled,
    "postscript": _postscript,
    "placeholders": _placeholders,
    "sections": _sections,
    "min_letters": lambda text, counts: all(_letters(text, letter) >= _number(n) for letter, n in counts.items()),
    "max_letters": lambda text, counts: all(_letters(text, letter) <= _number(n) for letter, n in counts.items()),
    "quoted": _quoted,
    "repeats": lambda text, asked: text.startswith(asked.strip()) and len(text) > len(asked.strip()) + 1,
}
"""Checks by the names of `prompt.columns["instructions"]`: each maps the response and the value to True or False."""


@with_options
def instruction_following(*, partial: bool = False) -> Verifier:
    """Makes a verifier of a prompt's column `instructions`: `{"max_words": 50, "keywords": ["red"], "bullets": 3}`.

    Thoughts do not count. Keywords are whole words in any case, or parts of texts in scripts without blanks; in Korean, Arabic and
    Hebrew with their particles. A forbidden word stays one with markup, full-width letters, or letters that look alike. A Han
    letter counts as a word. Words, sentences, list items and cased texts need letters: `- - -` is none of these.

    Of IFEval's kinds there are, too: `title` (`<<...>>`), `postscript` (`"P.S."`), `placeholders` (at least so many `[...]`),
    `sections` (`{"Section": 3}`), `min_letters` and `max_letters` (`{"e": 5}`), `quoted`, and `repeats` (the text before the
    answer).

    Args:
        partial: Rewards the share of fulfilled instructions; else all must be fulfilled.

    Returns:
        The verifier: from 0.0 to 1.0, with each instruction in `Score.parts`; an empty response has 0.0 and is unread. A `Score`
        with an error where the column is missing, or has a name that is not in `INSTRUCTIONS`.
    """

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        instructions = prompt.columns.get("instructions")
        if not isinstance(instructions, Mapping) or not instructions or not instructions.keys() <= INSTRUCTIONS.keys():
            message = (
                f"instruction_following cannot read the column 'instructions' of prompt {prompt.id!r}, {instructions!r}"
            )
            return Score(reward=0.0, error=f"{message}; give a mapping with some of {', '.join(INSTRUCTIONS)}")
        text = answer_part(completion).strip()
        is_answer = 0 < len(text) <= LONGEST
        try:
            parts = {name: float(is_answer and INSTRUCTIONS[name](text, value)) for name, value in instructions.items()}
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            message = (
                f"prompt {prompt.id!r} has an instruction whose value does not fit its name: {dict(instructions)!r}"
            )
            return Score(reward=0.0, error=f"{message} ({type(error).__name__}: {error})")
        share = sum(parts.values()) / len(parts)
        return Score(reward=share if partial else float(share == 1), parts=parts, unread=not text)

    return verify
