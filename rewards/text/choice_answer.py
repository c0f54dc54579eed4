"""Picks: which option a response names, by its letter, its text or both. Hedges and negations pick nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from rewards.text.answer_text import TAIL, boxed_answers, marked_answer, normalised, stated_answer
from rewards.text.patterns import Pattern
from rewards.text.typography import plain_typography, without_markup

Options = Mapping[str, tuple[str, ...]]
"""The comparable texts of each option by its letter; empty where the options are not known."""

Pick = TypeVar("Pick")

LONGEST = 20_000  # characters of a response that begins with its answer

NO: tuple[str, ...] = (
    *(
        "no",
        "nope",
        "false",
        "not true",
        "incorrect",
        "wrong",
        "不",
        "不是",
        "不是的",
        "否",
        "没有",
        "没",
        "不对",
        "错",
        "错误",
    ),
    *("错的", "错误的", "不正确", "假", "不能", "不可以", "不会", "不存在", "无", "不行"),
)
YES = (
    "yes",
    "yeah",
    "yep",
    "true",
    "correct",
    "是",
    "是的",
    "有",
    "有的",
    "对",
    "对的",
    "正确",
    "正确的",
    "真",
    "能",
    "可以",
    "会",
    "存在",
)

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
_LETTER = r"[A-Z]"
_NUMBER = r"\d{1,2}"
_REASON = Pattern(r"(?:,\s*)?\b(?:because|since|as|so|due\s+to|given|which|where)\b|因为|由于|所以|理由", re.IGNORECASE)
_RETRACTION = Pattern(
    r"\b(?:wait|hmm+|sorry|hold\s+on|scratch\s+that|on\s+second\s+thoughts?|i\s+mean|i\s+was\s+wrong|correction)\b"
    r"|(?:^|[.,;:!?\n]\s?)(?:but\s+|no,?\s+|oh,?\s+)?actually\b|不对|等等|等一下|其实",
    re.IGNORECASE,
)
_HEDGE = Pattern(
    r"\b(?:maybe|perhaps|possibly|not\s+sure|unsure|uncertain|(?:could|might|may)\s+(?:also\s+)?be|or\s+so|or\s+not)\b"
    r"|或|可能|也许|不确定|还是",
    re.IGNORECASE,
)
_NEGATIVE = Pattern(
    r"\b(?:not?|never|nope|wrong|incorrect|false|cannot|excluded|eliminated|ruled\s+out)\b|n't\b|不|错|非|没|否",
    re.IGNORECASE,
)
_ABOUT_PICK = Pattern(  # the beginning of a clause that has a pick as its subject, or is an exclamation
    r"(?:but\s+|and\s+|so\s+)?(?:no|not|never|nope|wrong|incorrect|false|is|isn't|was|wasn't|are|cannot|can't"
    r"|(?:that|this|it|which|the\s+(?:above|answer|option))\b(?:\s+(?:one|option|choice|answer))?"
    r"(?:'s|\s+(?:is|isn't|was|wasn't|can|cannot|does|doesn't|seems)))\b|\W*(?:这|那|它|是)?(?:不|错|非|没)",
    re.IGNORECASE,
)
_IS_WRONG = Pattern(
    r"\b(?:is|are|was|were)\s+(?:\w{1,20}\s+)?(?:wrong|incorrect|false)\b|\b(?:is|are)\s+not\s+(?:correct|right|it)\b",
    re.IGNORECASE,
)
_OTHERS = Pattern(r"\b(?:others?|rest|remaining|distractors?)\b|其他|其余|其它", re.IGNORECASE)
_IS_RIGHT_TOO = (  # `%s` is a letter
    r"\b%s\b[)\]]?\s+(?:is|are|could|would|seems)\s+"
    r"(?:also|likewise|equally|just\s+as|both|the\s+correct|correct|right)\b"
)
_STATEMENT = Pattern(
    r"is\s+the\s+(?:correct\s+|right\s+)?answer\b|(?:it|there|they|he|she|this)\s+(?:is|are|does|do|has|have|was|were|can)\b"
)
_CONCLUSION = Pattern(
    r"[.!?;]\s+((?:so|thus|therefore|hence|i\s+(?:would\s+)?(?:choose|pick|select|go\s+with))\b[^.!?;]{1,200}[.!]?)\s*$",
    re.IGNORECASE,
)
_SYMBOL = Pattern("[\u2600-\u27bf\ufe0f\U0001f000-\U0001faff]")
_GOES_ON = Pattern(r"[\^_/*+=%°]|[.,:]\d|-\w")  # `7.5` and `x^2` are not the options `7` and `x`
_SENTENCE_END = Pattern(r"[.;!?](?=\s|$)|\n")
_CLAUSE_END = Pattern(r"[.;:!?,](?=\s|$)|\n|,|[()]")
_CONNECTIVE = Pattern(r"^(?:(?:and|but|or|also|then|rather|even|just)\s+)+")
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
            return None if _RETRACTION.search(behind) else pick
        if _is_letters(content) or not behind.strip():
            return None
        tail = text = behind
    stated = stated_answer(tail)
    if stated is not None:
        return None if _RETRACTION.search(stated[1]) else read(stated[0])
    lines = [line for line in tail.splitlines() if line.strip()]
    if not lines:
        return None
    pick = read(lines[-1])
    if pick is None and (concluded := _CONCLUSION.search(plain_typography(lines[-1]))):
        pick = read(concluded[1])
    return pick if pick is not None else _first(text.strip(), read)


def _first(text: str, read: Callable[[str], Pick | None]) -> Pick | None:
    """Returns the pick of the first line, where no later line picks another, hedges or takes it back."""
    first, _, rest = text[:LONGEST].partition("\n")
    stated = stated_answer(first[:TAIL])
    pick = read(first[:TAIL]) if stated is None else read(stated[0])
    rest = plain_typography(rest)
    if pick is None or len(text) > LONGEST or _RETRACTION.search(rest) or _HEDGE.search(rest):
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


def bare(text: str) -> str:
    """Returns the text in plain typography, without markup, quotes and braces around it."""
    text = without_markup(plain_typography(text)).strip(" \t\n`*_\"'")
    text = text if text.isascii() else _SYMBOL.sub("", text).strip()
    return text[1:-1].strip() if text[:1] == "{" and text[-1:] == "}" else text


def comparable(text: str) -> str:
    """Returns the text bare and normalised, without a full stop at its end."""
    return normalised(bare(text)).rstrip(". ").strip("\"'")


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
    text = text[lead.end() :] if lead else text
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


def _read(text: str, options: Options) -> str | None:
    key = _NUMBER if options and all(each.isdigit() for each in options) else _LETTER
    single = Pattern(rf"[(\[{{<]?\s*({key})\s*[)\]}}>]?\s*(?:选项|项)?[\s.,:;!)]*", re.IGNORECASE).fullmatch(text)
    if single and (not options or single[1].upper() in options):
        return single[1].upper()
    for form in _forms(comparable(text)):
        same = [
            letter for letter, texts in options.items() if any(form in (own, own.replace(" ", "")) for own in texts)
        ]
        if same:
            return same[0] if len(same) == 1 else None
    return _lettered(text, key, options) or _text_and_letter(text, key, options) or _told(text, options)


def _forms(text: str) -> Iterable[str]:
    """Yields a comparable text, and this without its article and without blanks, as far as they differ."""
    yield text
    if text != (noun := Pattern(r"(?:an?|the)\s+").sub("", text, 1)):
        yield noun
    if any(letter.isdigit() for letter in text):
        yield text.replace(" ", "")


def _lettered(text: str, key: str, options: Options) -> str | None:
    """Returns the letter that a text begins with, before a mark, the option's own text, or words that call it right."""
    is_right = Pattern(
        rf"[(\[]?({key})[)\]]?\s*(?:选项|项)?,?\s*(?:(?:is|would\s+be|must\s+be)\s+(?:clearly\s+|definitely\s+)?(?:the\s+)?(?:only\s+)?(?:most\s+)?"
        r"(?:correct|right|best|final|true|answer)\b(?:\s+(?:answer|option|choice|one))?|是?(?:正确|对)的?(?:答案|选项)?)"
    ).match(text)
    if is_right and (not options or is_right[1] in options):
        rest = text[is_right.end() :]
        return is_right[1] if _supports(rest, is_right[1], options) else None
    match = Pattern(
        rf"[(\[]?({key})(?:(\)[.:,]?|\][.:,]?|[.:,;])(\s*)|(\s+[-–—]\s+(?=[^\W\d])|\s+(?=\()|(?=\([^\x00-\x7f]))|\s+)",
        re.IGNORECASE,
    ).match(text)
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
        if not (is_marked and is_apart) and not (match[1].isupper() and _REASON.match(rest)):
            return None
        if options and not _WORD.search(_SENTENCE_END.split(rest)[0]):
            return None  # a number or formula that is not the option's
    return letter if _supports(rest if own is None else own, letter, options) else None


def _text_and_letter(text: str, key: str, options: Options) -> str | None:
    """Returns the letter of `a cat (B)`."""
    match = Pattern(rf"(.{{1,300}}?)(?:\s+|(?<=[^\x00-\x7f]))[(\[]({key})[)\]][\s.!]*").fullmatch(text)
    if not match:
        return None
    before, letter = match[1], match[2]
    if options:
        return letter if comparable(before) in _with_bare_nouns(options.get(letter, ())) else None
    is_doubtful = (
        any(each.search(before) for each in (_NEGATIVE, _HEDGE, _RETRACTION)) or "(" in before or " or " in before
    )
    return None if is_doubtful else letter


def _told(text: str, options: Options) -> str | None:
    """Returns the letter of the option whose text stands in front of a mark or a reason: `Yes, the picture shows one.`"""
    found = {}
    for letter, texts in options.items():
        rest = _after_own_text(text, texts)
        if rest is not None and (rest[:1] in tuple(".,;:!-") or _REASON.match(rest) or _STATEMENT.match(rest)):
            found[letter] = rest
    if len(found) != 1:
        return None
    ((letter, rest),) = found.items()
    return letter if _supports(rest, letter, options) else None


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


def _supports(rest: str, letter: str, options: Options) -> bool:
    """Returns whether the text behind a pick leaves it as it is: it neither negates it, nor hedges, nor picks another."""
    if _RETRACTION.search(rest) or _HEDGE.search(rest) or rest.lstrip().startswith("?"):
        return False
    others = {other: texts for other, texts in options.items() if other != letter}
    other = f"(?!{letter}\\b)(?:{'|'.join(map(str, others)) or _LETTER})"
    first, *later = _SENTENCE_END.split(rest)
    reason = _REASON.search(first)
    claim = normalised(first[: reason.start()] if reason else first)
    if Pattern(
        r"(?:all|none|both)\s+of\s+(?:the\s+above|them|these)" if options else r"\bor\b| / ", re.IGNORECASE
    ).search(first):
        return False
    if _picks_another(first[: reason.start()] if reason else first, other) or Pattern(_IS_RIGHT_TOO % other).search(
        rest
    ):
        return False
    if any(
        Pattern(rf"(?:\s|[,/&(\[)\]]|and|or|{other})*{other}[\s)\]]*").fullmatch(sentence)
        for sentence in later
        if len(sentence) < 60
    ):
        return False
    clauses = [clause.strip() for clause in _CLAUSE_END.split(rest)]
    texts = {text for each in others.values() for text in each}
    if any(_CONNECTIVE.sub("", comparable(clause)) in texts for clause in clauses):
        return False
    if any(_holds(claim, text) for text in texts):
        return False
    if any(_NEGATIVE.search(text) for text in options.get(letter, ())):
        return True
    return not any(_denies(clause, letter, other, texts) for clause in clauses)


def _picks_another(sentence: str, other: str) -> bool:
    between = r"(?:^|[,;/&(]|\band\b|\bor\b|和|与)\s*(?:options?\s+)?"
    return bool(
        Pattern(rf"{between}[(\[]?{other}(?:[)\]]?\s*$|[)\].:]+\s|[)\]])").search(sentence)
        or Pattern(r"\bor\s+(?:options?\s+)?[(\[]?[A-Z][)\]]?(?!\w)").search(sentence)
        or Pattern(r"^\W*or\b", re.IGNORECASE).search(sentence)
    )


def _holds(claim: str, text: str) -> bool:
    """Returns whether a claim names the text of another option, other than to reject it."""
    if text in YES or text in NO or len(text) < 2:
        return False
    place = claim.find(text)
    while place >= 0:
        before, after = claim[:place], claim[place + len(text) :]
        is_word = not (text[:1].isascii() and before[-1:].isalnum()) and not (
            text[-1:].isascii() and after[:1].isalnum()
        )
        if is_word and not Pattern(
            r"\b(?:not|than|unlike|instead\s+of|nor|no)\s+(?:\w{1,20}\s+){0,2}$|(?:不是|而非)$"
        ).search(before[-60:]):
            return True
        place = claim.find(text, place + 1)
    return False


def _denies(clause: str, letter: str, other: str, texts: set[str]) -> bool:
    """Returns whether a clause calls the pick wrong."""
    if not _NEGATIVE.search(clause):
        return False
    rejected = Pattern(
        r"(?:and\s+|but\s+)?(?:not|rather\s+than|不是|而不是|而非|不选)\s*(.*)", re.IGNORECASE | re.DOTALL
    ).match(clause)
    if rejected:
        named = Pattern(rf"(?:options?\s+|the\s+)?[(\[]?{other}[)\]]?(?!\w)").match(rejected[1])
        return not (
            named or _OTHERS.search(rejected[1]) or any(text in normalised(rejected[1]) for text in texts if text)
        )
    if Pattern(rf"(?:options?\s+)?[(\[]?{letter}[)\]]?(?!\w)").match(clause) or _ABOUT_PICK.match(clause):
        return True
    if len(clause.split()) <= 3 and not Pattern(rf"(?:^|\W){other}(?!\w)").search(clause):
        return True  # `definitely not`
    is_other = Pattern(rf"(?:^|\W)[(\[]?{other}[)\]]?(?!\w)").search(clause) or _OTHERS.search(clause)
    return bool(_IS_WRONG.search(clause)) and not is_other and not any(text in normalised(clause) for text in texts)
