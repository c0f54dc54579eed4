"""Picks: which option a response names, by its letter, its text or both. Hedges and negations pick nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from rewards.text.answer_text import TAIL, boxed_answers, marked_answer, normalised, stated_answer
from rewards.text.choice_doubt import HEDGE, LETTER, NEGATIVE, REASON, RETRACTION, SENTENCE_END, supports
from rewards.text.option_list import Options, bare, comparable
from rewards.text.patterns import Pattern
from rewards.text.typography import plain_typography

Pick = TypeVar("Pick")
LONGEST = 20_000  # characters of a response that begins with its answer
_LEAD = Pattern(  # words before a pick that change nothing about it
    r"""(?:(?:
        (?:so|thus|therefore|hence|okay|ok|then|clearly|definitely|certainly|finally|overall|in\s+conclusion|i\s+(?:think|believe|say))\b,?:?
        |(?:i|we)(?:\s+would|\s+will|\s+am|'d|'ll|'m)?\s+(?:choose|chose|pick|select|going\s+with|go\s+(?:with|for))\b
        |(?:it|that|this)(?:\s+is|'s|\s+must\s+be)\b|(?:the|this|that)\s+(?:statement|claim|sentence)\s+is\b
        |(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:options?|choices?|answers?|letters?)\b(?:\s+(?:is|are)\b)?\s?[:\#]?
        |which\s+(?:is|matches|corresponds\s+to)\b|its\b|[,;]
        |所以|因此|故|应该|应|我|答案|选项|选择|选|是|为|:
    )\s*)+""",
    re.IGNORECASE | re.VERBOSE,
)
_NUMBER = r"\d{1,2}"
_SINGLE = {
    key: Pattern(
        rf"[(\[{{<]?\s*({key})\s*[)\]}}>]?\s*(?:选项|项)?(?:\s+here|です|だ|である|입니다|이다|예요)?[\s.,:;!)]*",
        re.IGNORECASE,
    )
    for key in (LETTER, _NUMBER)
}
_IS_RIGHT = {
    key: Pattern(
        rf"[(\[]?({key})[)\]]?\s*(?:选项|项)?,?\s*(?:(?:is|seems|would\s+be|must\s+be)\s+(?:clearly\s+|definitely\s+)?(?:the\s+)?"
        r"(?:(?:only\s+)?(?:most\s+)?(?:correct|right|best|final|true|answer)\b(?:\s+(?:answer|option|choice|one))?"
        r"|only\s+(?:option|choice|one)\b)|fits\b|是?(?:正确|对)的?(?:答案|选项)?|符合(?:题意|要求|条件)?)"
    )
    for key in (LETTER, _NUMBER)
}
_LETTER_AND_MARK = {
    key: Pattern(
        rf"[(\[]?({key})(?:(\)[.:,]?|\][.:,]?|[.:,;])(\s*)|(\s+[-–—]\s+(?=[^\W\d])|\s+(?=\()|(?=\([^\x00-\x7f]))|\s+)",
        re.IGNORECASE,
    )
    for key in (LETTER, _NUMBER)
}
_DIGIT = Pattern(r"\d")
_CALLED_RIGHT = Pattern(
    r"^both\s+|\s+(?:are|is)\s+(?:both\s+|all\s+)?(?:the\s+)?(?:right|correct|true)(?:\s+(?:answers?|options?|choices?|ones))?[.!]?$"
    r"|是?(?:正确|对)的?(?:选项|答案)?$",
    re.IGNORECASE,
)
_NOT_OTHERS = Pattern(r",?\s+(?:but|and)\s+not\s+[A-Z](?:(?:\s*,\s*|\s+(?:or|and|nor)\s+)[A-Z]){0,9}[.!]?$")
_ITEM = Pattern(
    r"\s*(?:[-*•]\s+|\d{1,2}[.)]\s+)?([(\[*]{0,3}[A-Z](?:[)\]*.]{0,4}|[)\]*]{0,3}[.:)]\*{0,2}\s.{1,200}))\s*"
)
_STATEMENT = Pattern(
    r"is\s+the\s+(?:correct\s+|right\s+)?answer\b|(?:it|there|they|he|she|this)\s+(?:is|are|does|do|has|have|was|were|can)\b"
)
_CONCLUSION = Pattern(
    r".*[.!?;,]\s+((?:so|thus|therefore|hence|i\s+(?:would\s+)?(?:choose|pick|select|go\s+with))\b[^.!?;]{1,200}[.!]?)\s*",
    re.IGNORECASE | re.DOTALL,
)
_DESCRIPTION = Pattern(
    r"((?:the|this|that|it)\b[^,.;:!?\n]{0,80}?)\s(?:is|are|was|were|shows?|depicts?)\s+([^\n]{1,200})", re.IGNORECASE
)
_UNLIKELY = Pattern(
    r"\b(?:least|unlikely|except|other|rejected|distractors?|traps?|question|if|whether)\b", re.IGNORECASE
)
_GOES_ON = Pattern(r"[\^_/*+=%°]|[.,:]\d|-\w")  # `7.5` and `x^2` are not the options `7` and `x`
_WORD = Pattern(r"(?<![\\A-Za-z])[^\W\d_]{2}|[\u3040-\u30ff\u3400-\u9fff]")


def picked(text: str, read: Callable[[str], Pick | None], *, boxed: bool = False) -> Pick | None:
    r"""Returns the pick of a response without its thoughts.

    The last `\boxed{...}` or `<answer>` counts. Where it holds no pick, as a formula, an answer behind it counts. Without one, it
    is the text after the last answer phrase; else the last line; else the first line, if the others do not take it back.

    Args:
        text: The response.
        read: Returns the pick of a short text; `None` if there is none, or a hedge.
        boxed: Only a box counts.
    """
    tail = text[-TAIL:]
    if boxed:
        boxes = boxed_answers(tail)
        return read(", ".join(boxes)) if boxes else None
    marked = marked_answer(tail)
    if marked is not None:
        content, behind = marked
        pick = read(content)
        if pick is not None:
            return None if RETRACTION.search(behind) else pick
        if _is_letters(content) or not behind.strip():
            return None
        tail = text = behind
    stated = stated_answer(tail)
    if stated is not None:
        return None if RETRACTION.search(stated[1]) else read(stated[0])
    lines = [line for line in tail.splitlines() if line.strip()]
    if not lines:
        return None
    pick = read(lines[-1])
    if pick is None and (concluded := _CONCLUSION.fullmatch(plain_typography(lines[-1]))):
        pick = read(concluded[1])
    return pick if pick is not None else _first(text.strip(), read)


def _first(text: str, read: Callable[[str], Pick | None]) -> Pick | None:
    """Returns the pick of the first line, where no later line picks another, hedges or takes it back."""
    first, _, rest = text[:LONGEST].partition("\n")
    stated = stated_answer(first[:TAIL])
    pick = read(first[:TAIL]) if stated is None else read(stated[0])
    rest = plain_typography(rest)
    if pick is None or len(text) > LONGEST or RETRACTION.search(rest) or HEDGE.search(rest):
        return None
    lines = [line for line in rest.splitlines() if line.strip() and len(line) < 300]  # a longer line is no pick
    return pick if len(lines) < 200 and all(read(line) in (None, pick) for line in lines) else None


def _is_letters(text: str) -> bool:
    """Returns whether a text is made of letters of options and words between them: `A or B`, `B, C`."""
    return (
        Pattern(
            r"(?:[A-Z]|or|and|not|either|[\s,;/&()\[\].?])*[A-Z](?![A-Za-z])(?:or|and|[\s,;/&()\[\].?])*"
        ).fullmatch(bare(text))
        is not None
    )


def read_pick(text: str, options: Options) -> str | None:
    """Returns the letter of the option that a short text picks; `None` if it picks none, or more than one."""
    text = bare(text)
    lead = _LEAD.match(text)
    forms = [text, text[lead.end() :].strip(" *\"'")] if lead else [text]
    return next((pick for form in forms if (pick := _read(form, options)) is not None), None)


def read_picks(text: str, options: Options) -> frozenset[str] | None:
    """Returns the letters of all options that a short text picks: `A, C`, `ACD`, `A. a dog and C. a horse`."""
    text = bare(text).replace(")(", ") (")
    lead = _LEAD.match(text)
    text = _CALLED_RIGHT.sub("", _NOT_OTHERS.sub("", text[lead.end() :] if lead else text))
    together = Pattern(r"([A-Z]{2,26}|[a-z]{2,26})[.!]?").fullmatch(text)
    if together and (text.isupper() or list(together[1]) == sorted(set(together[1]))):  # `bad` is a word
        items = list(together[1].upper())
    else:
        items = Pattern(r"\s*(?:[,;/&+\n]|\band\b|和|与|及)\s*").split(text)
        if all(
            Pattern(r"[(\[]?[A-Za-z][)\]]?(?:\s+[(\[]?[A-Za-z][)\]]?)*[.!]?").fullmatch(item) for item in items if item
        ):
            items = " ".join(items).split()
    picks = [read_pick(item, options) for item in items if item.strip()]
    found = frozenset(pick for pick in picks if pick is not None)
    return found if found and len(found) == len(picks) else None


def lists_in_lines(text: str) -> str:
    """Returns the text with each list of letters, one a line, as one line: `- A`, `- C. a horse` as `A, C. a horse`."""
    lines: list[str] = []
    is_open = False
    for line in text.split("\n"):
        item = _ITEM.fullmatch(line)
        if is_open and not line.strip():
            continue
        if item and is_open:
            lines[-1] += f", {item[1].rstrip('.')}"
        else:
            lines.append(item[1].rstrip(".") if item else line)
        is_open = bool(item)
    return "\n".join(lines)


def _read(text: str, options: Options) -> str | None:
    key = _NUMBER if options and all(each.isdigit() for each in options) else LETTER
    single = _SINGLE[key].fullmatch(text)
    if single and (not options or single[1].upper() in options):
        return single[1].upper()
    for form in _forms(comparable(text)):
        same = [letter for letter, texts in options.items() if form in texts]
        if not same and " " not in form:
            same = [letter for letter, texts in options.items() if any(form == own.replace(" ", "") for own in texts)]
        if same:
            return same[0] if len(same) == 1 else None
    return (
        _lettered(text, key, options)
        or _text_and_letter(text, key, options)
        or _told(text, options)
        or _described(text, options)
    )


def _forms(text: str) -> Iterable[str]:
    """Yields a comparable text, and this without its article and without blanks, as far as they differ."""
    yield text
    if text != (noun := Pattern(r"(?:an?|the)\s+").sub("", text, 1)):
        yield noun
    if _DIGIT.search(text):
        yield text.replace(" ", "")


def _lettered(text: str, key: str, options: Options) -> str | None:
    """Returns the letter that a text begins with, before a mark, the option's own text, or words that call it right."""
    is_right = _IS_RIGHT[key].match(text)
    if is_right and (not options or is_right[1] in options):
        rest = text[is_right.end() :]
        return is_right[1] if supports(rest, is_right[1], options) else None
    match = _LETTER_AND_MARK[key].match(text)
    if not match:
        return None
    letter, rest = match[1].upper(), text[match.end() :].strip()
    own = _after_own_text(rest, options.get(letter, ()), articles=True)
    is_marked = bool(match[2] or match[4] is not None) and (not match[1].islower() or (match[2] or " ")[0] in ").]:")
    is_apart = bool(match[3] or match[4] is not None or (match[2] or " ")[0] in ")]" or not rest[:1].isascii())
    is_of_another = any(comparable(rest) in texts for other, texts in options.items() if other != letter)
    if is_of_another or (options and letter not in options):
        return None
    if own is None:
        if Pattern(r"\W*[A-Za-z]\W*").fullmatch(rest):
            return None
        if not (is_marked and is_apart) and not (match[1].isupper() and REASON.match(rest)):
            return None
        if options and not _WORD.search(SENTENCE_END.split(rest)[0]):
            return None  # a number or formula that is not the option's
    return letter if supports(rest if own is None else own, letter, options) else None


def _text_and_letter(text: str, key: str, options: Options) -> str | None:
    """Returns the letter of `a cat (B)`."""
    match = Pattern(rf"(.{{1,300}}?)(?:\s+|(?<=[^\x00-\x7f]))[(\[]({key})[)\]][\s.!]*").fullmatch(text)
    if not match:
        return None
    before, letter = match[1], match[2]
    if options:
        return letter if comparable(before) in _with_bare_nouns(options.get(letter, ())) else None
    is_doubtful = (
        any(each.search(before) for each in (NEGATIVE, HEDGE, RETRACTION)) or "(" in before or " or " in before
    )
    return None if is_doubtful else letter


def _told(text: str, options: Options) -> str | None:
    """Returns the letter of the option whose text stands in front of a mark or a reason: `Yes, the picture shows one.`"""
    found = {}
    for letter, texts in options.items():
        rest = _after_own_text(text, texts)
        if rest is not None and (rest[:1] in tuple(".,;:!-") or REASON.match(rest) or _STATEMENT.match(rest)):
            found[letter] = rest
    if len(found) != 1:
        return None
    ((letter, rest),) = found.items()
    return letter if supports(rest, letter, options) else None


def _described(text: str, options: Options) -> str | None:
    """Returns the letter of the option whose text ends a sentence that says nothing else: `The picture shows a cat.`"""
    sentence = _DESCRIPTION.fullmatch(text)
    if not sentence or any(each.search(sentence[1]) for each in (NEGATIVE, HEDGE, _UNLIKELY)):
        return None
    told = _with_bare_nouns([comparable(sentence[2])])
    same = [letter for letter, texts in options.items() if not set(told).isdisjoint(_with_bare_nouns(texts))]
    return same[0] if len(same) == 1 else None


def _with_bare_nouns(texts: Iterable[str]) -> list[str]:
    """Returns the texts, and those without their article."""
    return [each for text in texts for each in (text, Pattern(r"(?:an?|the)\s+").sub("", text, 1)) if each]


def _after_own_text(text: str, texts: Iterable[str], *, articles: bool = False) -> str | None:
    """Returns what follows one of the texts at the beginning of a text; `None` if none is there."""
    given = normalised(text).lstrip("(\"'*")
    for own in sorted(_with_bare_nouns(texts) if articles else texts, key=len, reverse=True):
        rest = given[len(own) :]
        if (
            own
            and given.startswith(own)
            and not (rest[:1].isalnum() and own[-1:].isascii())
            and not _GOES_ON.match(rest)
        ):
            return rest.lstrip(")\"'* ")
    return None
