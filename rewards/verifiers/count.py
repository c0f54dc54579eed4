"""Counts: a whole number, in digits or words."""

from __future__ import annotations

import re
from functools import lru_cache

from rewards.text.answer_text import answer_part, final_answer
from rewards.text.numbers.amounts import LONGEST, WORD_SCALES, plain_quantities
from rewards.text.numbers.claims import (
    BOUND,
    BOUND_BEHIND,
    HEDGE,
    HEDGE_BEHIND,
    NEGATION,
    REJECTED_BEHIND,
    WORK_BEFORE,
    WORK_BEHIND,
    behind_reasons,
    result_of,
)
from rewards.text.numbers.number_words import HAN, WORDS, number_of_han, number_of_words
from rewards.text.patterns import Pattern
from rewards.text.unreadable import unreadable
from rewards.types import UNREAD, Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

_NONE = Pattern(  # words for zero
    r"\bnot\s+(?:a\s+single|even\s+(?:a\s+single|one)|one|any)\b(?:\s+one\b)?|(?:n['’]t|\bnot|\bcannot)\s+(?:(?:see|find|spot|detect|count)\s+)?(?:any|a)\b|\bnone\b(?:\s+at\s+all\b)?"
    r"|\b(?:nothing(?!\s+but)|nobody|no\s+one|not\s+any)\b"
    r"|(?:^|(?<=\bis)|(?<=\bare)|(?<=\bwas)|(?<=\bwere)|(?<=there['’]s)|(?<=\bsee)|(?<=\bhas)|(?<=\bhave)|(?<=\bshows)|(?<=\bcontains))"
    r"\s*\bno\s+(?!(?:more|fewer|less|doubt|longer|other|way|later|greater|matter|need|question|single|number|answer)\b)(?=[a-z])"
    r"|一[个個只隻条張张本位名辆匹件块]?(?:[^\W\d_]{0,4})[都也][没沒不](?:有)?|[没沒]有|(?<!\w)[无無](?!\w)",
    re.IGNORECASE,
)
_NONE_WORDS = ("no", "n't", "n’t", "没", "沒", "不", "无", "無")  # `_NONE` needs one, for which `in` is far quicker
_ONE = Pattern(
    r"\b(?:a|one)\s+(?:single|lone|solitary)\b(?:\s+one\b)?|(?:(?<=\bthere\sis\s)(?:just\s|only\s)?|^(?=an?\s[a-z]+\W*$))an?\s"
    r"(?!\s*(?:few|lot|group|number|bunch|crowd|pair|couple|dozen|hundred|thousand|million|handful|herd|flock|total|large|great|good"
    r"|big|huge|small|set|row|stack|pile|bit|maximum|minimum|chance|possibility)\b)(?!.*(?:\band\b|,))",
    re.IGNORECASE,
)
_TWO = Pattern(r"\b(?:a|one)\s+(?:couple|pair)\b(?:\s+of\b)?", re.IGNORECASE)
_NO_NUMBER = Pattern(  # ordinals, labels, and Chinese words that contain 一, such as 一共 "in total"
    rf"\d+(?:st|nd|rd|th)\b|第\s?(?:\d+|{HAN}+)|一[共起些下样樣定般直旁边邊]|[唯统統]一|[图圖]\s?\d+(?=\W|中|里)"
    r"|\b(?:image|picture|photo|figure|fig\.|frame|panel|scene|question|step|view)\s*#?\d+\b|^\s*(?:yes|no)\s*[,.](?=\s*\S)",
    re.IGNORECASE,
)
_WORK = Pattern(r"\d\s*(?:[-+*/×÷·x]|\\(?:times|cdot|div)\b)\s*[({]?\d|\^|\\(?:[dt]?frac|sqrt|binom)\b")
_BOUND = Pattern(
    rf"(?:{BOUND}|{HEDGE}|n['’]t|\bnot)\s*(?:,\s*)?(?:(?:only|just|an?|the)\s+)?$|{WORK_BEFORE}", re.IGNORECASE
)
_REACH = 40  # characters before a number in which its bound stands
_NUMBER = Pattern(
    r"(?:(?<![a-z\d_])(?P<digits>[1-9]\d{0,2}(?: \d{3}){1,5}(?!\d)|-?\d+(?:[.,:]\d+)*)"
    r"(?P<scale>\s?(?:dozen|hundred|thousand|million)s?\b|\s?[百千万萬亿億])?(?P<letter>\s?(?:[%°‰π]|percent\b|ppm\b)|-?[a-z])?"
    rf"|\b(?=[a-fhmn-tz])(?P<words>{WORDS})\b(?P<part>-[a-z]|(?<=one)\s+of\b|\s+(?:half\b|third\b|quarter\b|percent\b|point\b))?|(?P<han>(?:{HAN}|[半几幾数])+)"
    r"|\b(?=[bdhmqst])(?P<other>hundreds?|thousands?|millions?|billions?|dozens?|half|halves|thirds|quarters|several)\b)"
    rf"(?P<behind>(?:\s+(?!(?:or|and|at|if|to|not|plus)\b)[a-z]+){{0,2}}(?:{BOUND_BEHIND}|{HEDGE_BEHIND}|{WORK_BEHIND}))?",
    re.IGNORECASE,
)
_WHOLE = Pattern(r"(\d{1,18}|[1-9]\d{0,2}(?:[, ]\d{3}){1,5})(?:\.0+)?")
_TAKEN_BACK_BEFORE = Pattern(
    rf"{NEGATION}|\b(?:maybe|perhaps|probably|possibly|guess|estimate|(?:could|might|may)\b)|可能|也许|估计|大概",
    re.IGNORECASE,
)
_TAKEN_BACK_BEHIND = Pattern(
    rf"{REJECTED_BEHIND}|^(?:\s+[^\s.,]+){{0,2}}\s+(?:is|are|was|were|can|could)(?:n['’]t|\s?not)\b|^\s*,?\s*not\b|不是",
    re.IGNORECASE,
)
_PARTS_FOLLOW = Pattern(r"(?!.*\b(?:and|or|of)\s*$)(?=.*(?:[^\W\d_]|[:(]))", re.DOTALL)
_TOTAL_FOLLOWS = Pattern(
    r"\b(?:so|total|altogether|all|makes?|making|thus|therefore|hence|sum)\b|[=:]|共|总|總", re.IGNORECASE
)
_SENTENCE_END = Pattern(r"(?<=[.!?])\s+|(?<=[。！？])")
_LONGEST_LIST = 20_000  # characters; a longer response has no list behind its answer
_LIST_ITEM = Pattern(r"\s*(?:[-*•+]|\d{1,3}[.)])\s")


@with_options
def count(*, tolerance: int = 0) -> Verifier:
    """Makes a verifier of a count, which is a whole number.

    The final answer must state one number: in digits of any script (`1,204`), in English words (`twelve`, `a hundred and five`,
    `two dozen`, `a pair`) or Chinese ones (两, 一百零五). `There are no cats.`, `none` and 没有 are 0, `There is a dog.` is 1.
    Of several numbers, the total of the others counts (`7 apples: 3 red and 4 green`), else what stands behind `so`, else the
    last sentence. Where the response ends in a list, its first line counts.

    `3 or 4`, `3 of the 5`, `5%`, `2 + 3`, `7½` and `-5` are no counts, nor are bounds (`more than 5`, `7 at least`), estimates
    (`about 7`) and negations (`never 7`); ordinals (`the 2nd`) and labels (`image 1`) are ignored.

    `prompt.answer` is a whole number, as a number or as a text that begins with it in one of these forms.

    Args:
        tolerance: A count that is off by n ≤ tolerance earns 1 − n / (tolerance + 1), others earn nothing.

    Returns:
        The verifier: from 0.0 to 1.0, `UNREAD` where the response has no number; a `Score` with an error where the answer is no
        whole number >= 0.

    Raises:
        ValueError: The tolerance is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance of count must be >= 0, got {tolerance}")

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        wanted = None if prompt.answer is None else _reference(str(prompt.answer))
        if wanted is None:
            return unreadable("count", prompt, "give a whole number >= 0")
        text = answer_part(completion)
        found = _stated(text)
        if found is None:
            return 0.0 if _NUMBER.search(_plain(final_answer(text))) else UNREAD
        return max(0.0, 1 - abs(found - wanted) / (tolerance + 1))

    return verify


@lru_cache(maxsize=1024)  # a group of completions has one reference
def _reference(text: str) -> int | None:
    """Returns the number with which a reference begins; `None` where words stand before it, as in `Room 12`."""
    text = _plain(text)
    first = _NUMBER.search(text)
    return None if first and text[: first.start()].strip() else _one_number(text)


def _stated(text: str) -> int | None:
    """Returns the count that a response states, thoughts excluded."""
    answer = final_answer(text)
    lines = [line for line in text.strip().splitlines() if line.strip()] if len(text) <= _LONGEST_LIST else []
    if (
        len(lines) > 1
        and answer == lines[-1].strip()
        and _LIST_ITEM.match(lines[-1])
        and not _LIST_ITEM.match(lines[0])
    ):
        found = _one_number(_plain(lines[0]))  # the answer, and then the list of what has been counted
        if found is not None:
            return found
    if (found := _one_number(_plain(answer))) is not None:
        return found
    parts = dict.fromkeys((behind_reasons(answer), _SENTENCE_END.split(answer.strip())[-1]))
    numbers = (_one_number(_plain(part)) for part in parts if part != answer)
    return next((number for number in numbers if number is not None), None)


def _plain(text: str) -> str:
    """Returns the text in plain characters, with words for what says zero, one and two without a number."""
    if len(text) > LONGEST:
        return ""
    text = re.sub(r"(?<!\S)~(?=\s?\d)", "≈", text)  # in LaTeX, ~ is a blank
    text = result_of(plain_quantities(text)).replace("一共", "共")
    if any(map(text.casefold().__contains__, _NONE_WORDS)):
        text = _NONE.sub(" zero ", text)
    for pattern, word in ((_ONE, " one "), (_TWO, " two "), (_NO_NUMBER, " ")):
        text = pattern.sub(word, text)
    return text


def _one_number(text: str) -> int | None:
    """Returns the number that a `_plain` text states; `None` if there is none, a second one, or one that is not whole."""
    matches = list(_NUMBER.finditer(text))
    numbers = [_value(match) for match in matches]
    if not matches or _WORK.search(text) or None in numbers:
        return None
    if _TAKEN_BACK_BEFORE.search(text[: matches[0].start()]) or _TAKEN_BACK_BEHIND.search(text[matches[-1].end() :]):
        return None
    if len(set(numbers)) == 1:
        return numbers[0]
    return _total(text, matches, [number for number in numbers if number is not None])


def _total(text: str, matches: list[re.Match[str]], numbers: list[int]) -> int | None:
    """Returns the number that is announced as the sum of all others; `None` without one."""
    first, *others, last = numbers
    if others and first == sum(others) + last and _PARTS_FOLLOW.match(text[matches[0].end() : matches[1].start()]):
        return first
    if others and last == first + sum(others) and _TOTAL_FOLLOWS.search(text[matches[-2].end() :]):
        return last
    return None


def _value(match: re.Match[str]) -> int | None:
    """Returns the number of a match; `None` where it is a bound, an estimate, a share, or no whole number."""
    if match["behind"] or match["letter"] or match["part"] or match["other"]:
        return None
    if _BOUND.search(match.string, max(0, match.start() - _REACH), match.start()):
        return None
    if match["digits"]:
        whole = _WHOLE.fullmatch(match["digits"])
        scale = WORD_SCALES[match["scale"].strip().casefold().removesuffix("s")] if match["scale"] else 1
        return scale * int(whole[1].replace(",", "").replace(" ", "")) if whole else None
    return number_of_words(match["words"]) if match["words"] else number_of_han(match["han"])
