"""Text read off a picture, compared by edit distance."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Any

from rewards.text.answer_text import TAIL, answer_part, last_block, normalised, short_answer_or_all, stated_answer
from rewards.text.patterns import Pattern
from rewards.text.typography import plain_number, plain_typography, plain_words
from rewards.text.unreadable import unreadable
from rewards.types import UNREAD, Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

SHORT = 4  # words of a text in which a number or a negation makes all the difference

_QUOTE = Pattern(r'[^":\n]{0,100}(?::|\b(?:is|says|reads|states)\b|是|为|写着)\s*"([^"]+)"[\s.!*]*')
_TOLD = Pattern(
    r"[\W_]{0,4}(?:(?:the|all)\s+(?:text|words?|letters|sign|label|title)\b|it\s+(?:says|reads))[^:\n]{0,80}:\s*(\S.*)",
    re.IGNORECASE | re.DOTALL,
)
_NEEDLESS_BLANK = Pattern(  # next to a sign or a Chinese or Japanese letter
    r"(?<![^\W_]) | (?![^\W_])|(?<=[\u3040-\u30ff\u3400-\u9fff]) | (?=[\u3040-\u30ff\u3400-\u9fff])"
)
_CHINESE = Pattern(r"[\u3040-\u30ff\u3400-\u9fff]")
_LETTER = Pattern(r"[^\W\d_]")
_NEGATION = Pattern(r"\b(?:not?|never|non|without|cannot|nor|none)\b|n't\b|[不没未非无]")
_NEGATING = ("un", "in", "im", "il", "ir", "dis", "non", "non-", "anti", "fe")
_OPPOSITE = (
    *(
        ("in", "de"),
        ("in", "ex"),
        ("im", "ex"),
        ("in", "out"),
        ("up", "down"),
        ("over", "under"),
        ("min", "max"),
        ("pre", "post"),
    ),
    *(("as", "des"), ("en", "dis"), ("inter", "intra"), ("hyper", "hypo")),
)
_DISTINCT = tuple(  # words that are alike in letters, of which each means something else
    frozenset(line.split())
    for line in """
    am pm
    north south east west northern southern eastern western
    monday tuesday wednesday thursday friday saturday sunday
    january february march april may june july august september october november december
    one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
    twenty thirty forty fifty sixty seventy eighty ninety
    thousand million billion trillion
    push pull
    he she
    man woman
    men women
    mother father brother
    morning evening
    weekday weekend weekdays weekends
    """.strip().splitlines()
)
_MARK = Pattern(r"[^\W\d_]|\w*\d\w*")  # one letter or a word with a digit, as in `Gate B`, `4A`


@with_options
def text_similarity(*, threshold: float = 0.5) -> Verifier:
    r"""Makes a verifier that rewards text by its similarity to the reference.

    The reward is 1 − Levenshtein distance / length of the longer text, and 0 below `threshold`: ANLS (arXiv 1905.13648), with its
    usual threshold. Case, markup, full-width forms, the kind of quotes and dashes, and blanks next to signs or Chinese letters do
    not count. The text is the last `\boxed{...}` or `<answer>...</answer>`. Without these it is all of the response after its
    thoughts, where further words reduce the similarity. It may also be what ends it after an answer phrase, or a few words
    such as "the text reads".

    Another number or the opposite is no misread letter, and earns nothing. So a reference without letters must be met exactly. In
    one of up to four words the numbers, negations and prefixes must be the same (`Room 12`, `not allowed`, `increase`). So
    must single letters, days, months and number words (`Gate B`, `3 pm`, `Tuesday`).

    `prompt.answer` is the text, a number, or a list of these; the most similar one counts.

    Args:
        threshold: Similarities below it count as 0; random text stays below 0.5 of all but the shortest references.

    Returns:
        The verifier: from 0.0 to 1.0, `UNREAD` for an empty answer; a `Score` with an error where the prompt has no text to
        compare with.

    Raises:
        ValueError: The threshold is not between 0 and 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold of text_similarity must be from 0 to 1, got {threshold}")

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        from rapidfuzz.distance import Levenshtein

        references = _references(prompt)
        if not any(references):
            return unreadable("text_similarity", prompt, "give a text or a list of texts")
        # A text that is cut here is less than 1 % similar.
        texts = {_comparable(text[: 100 * max(map(len, references))]) for text in _answers(answer_part(completion))}
        if not any(texts):
            return UNREAD
        pairs = [(text, wanted) for text in texts for wanted in references if text and wanted]
        best = max((Levenshtein.normalized_similarity(*pair) for pair in pairs if not _is_another(*pair)), default=0.0)
        return float(best) if best >= threshold else 0.0

    return verify


@lru_cache(maxsize=1)  # a group of completions has one prompt
def _references(prompt: Prompt) -> list[str]:
    given = prompt.answer if isinstance(prompt.answer, list | tuple) else [prompt.answer]
    return [_comparable(str(text)) for text in given if _is_text(text)]


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _answers(response: str) -> list[str]:
    """Returns the texts that may be meant as the answer: the marked one, or the whole response and what it ends with."""
    text = short_answer_or_all(response)
    if text != response.strip():
        return [text]
    if text.startswith("```") and text.endswith("```"):
        return [last_block(text)]
    stated = stated_answer(text)
    found = [text]
    if stated is not None and not re.search(r"\w", stated[1]):
        found.append(stated[0])
    plain = plain_typography(text) if len(text) < TAIL else ""
    found.extend(match[1] for each in (_QUOTE, _TOLD) if (match := each.fullmatch(plain)))
    return found


@lru_cache(maxsize=1024)  # a group has one reference, and often equal responses
def _comparable(text: str) -> str:
    """Returns the text as it is read, normalised, with blanks only between words."""
    text = normalised(plain_words(text)).rstrip(". ")
    text = _NEEDLESS_BLANK.sub("", text)
    return plain_number(text) or text


def _is_another(text: str, reference: str) -> bool:
    """Returns whether a text is another one than a short reference, however similar their letters are."""
    if not _LETTER.search(reference):
        return text != reference
    words, others = text.split(), reference.split()
    if len(others) > SHORT or (_CHINESE.search(reference) and len(reference) > 3 * SHORT):
        return False
    if (numbers := re.findall(r"\d+", reference)) and numbers != re.findall(r"\d+", text):
        return True
    if Counter(_NEGATION.findall(text)) != Counter(_NEGATION.findall(reference)):
        return True
    return len(words) == len(others) and any(map(_are_other_words, words, others))


def _are_other_words(one: str, other: str) -> bool:
    """Returns whether two words differ and mean different things, as other marks, days or opposites do."""
    if one == other:
        return False
    are_marks = _MARK.fullmatch(one) and _MARK.fullmatch(other)
    return bool(are_marks) or any({one, other} <= words for words in _DISTINCT) or _are_opposite(one, other)


def _are_opposite(one: str, other: str) -> bool:
    """Returns whether two words differ in a prefix that makes them opposite: `increase` and `decrease`, `locked` and `unlocked`."""
    for a, b in ((one, other), (other, one)):
        if len(b) > 3 and a.endswith(b) and a.removesuffix(b) in _NEGATING:
            return True
        for front, back in _OPPOSITE:
            if (
                a.startswith(front)
                and b.startswith(back)
                and len(a) > len(front) + 3
                and a[len(front) :] == b[len(back) :]
            ):
                return True
    return False
