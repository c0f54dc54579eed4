"""Words behind a pick of an option: a reason leaves it as it is; a denial, a hedge or another pick takes it back."""

from __future__ import annotations

import re

from rewards.text.answer_text import normalised
from rewards.text.option_list import NO, YES, Options, comparable
from rewards.text.patterns import Pattern

LETTER = r"[A-Z]"
REASON = Pattern(r"(?:,\s*)?\b(?:because|since|as|so|due\s+to|given|which|where)\b|因为|由于|所以|理由", re.IGNORECASE)
RETRACTION = Pattern(
    r"\b(?:wait|hmm+|sorry|hold\s+on|scratch\s+that|on\s+second\s+thoughts?|i\s+mean|i\s+was\s+wrong|correction)\b"
    r"|(?:^|[.,;:!?\n]\s?)(?:but\s+|no,?\s+|oh,?\s+)?actually\b|不对|等等|等一下|其实",
    re.IGNORECASE,
)
HEDGE = Pattern(
    r"\b(?:maybe|perhaps|possibly|not\s+sure|unsure|uncertain|(?:could|might|may)\s+(?:also\s+)?be|or\s+so|or\s+not)\b"
    r"|\balso\s+(?:possible|plausible|acceptable|correct|right)\b|或|可能|也许|不确定|还是",
    re.IGNORECASE,
)
NEGATIVE = Pattern(
    r"\b(?:not?|never|nope|wrong|incorrect|false|cannot|excluded|eliminated|ruled\s+out)\b|n't\b|不|错|非|没|否",
    re.IGNORECASE,
)
SENTENCE_END = Pattern(r"[.;!?](?=\s|$)|\n")
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
_CONCLUDES = (  # `%s` is a letter
    r"\b(?:so|thus|hence|therefore|now|then|rather|instead|finally)\b[\s,:]*(?:it\s+is\s+|it['’]s\s+|(?:the\s+)?(?:answer|options?)\s+(?:is\s+)?)?[(\[]?%s[)\]]?(?=\s*(?:$|[.,;!]))"
)
_CLAUSE_END = Pattern(r"[.;:!?,](?=\s|$)|\n|,|[()]")
_CONNECTIVE = Pattern(r"^(?:(?:and|but|or|also|then|rather|even|just)\s+)+")


def supports(rest: str, letter: str, options: Options) -> bool:
    """Returns whether the text behind a pick leaves it as it is: it neither negates it, nor hedges, nor picks another."""
    if not rest.strip(" .!"):
        return True
    if RETRACTION.search(rest) or HEDGE.search(rest) or rest.lstrip().startswith("?"):
        return False
    others = {other: texts for other, texts in options.items() if other != letter}
    other = f"(?!{letter}\\b)(?:{'|'.join(map(str, others)) or LETTER})"
    first, *later = SENTENCE_END.split(rest)
    reason = REASON.search(first)
    claim = normalised(first[: reason.start()] if reason else first)
    if Pattern(
        r"(?:all|none|both)\s+of\s+(?:the\s+above|them|these)" if options else r"\bor\b| / ", re.IGNORECASE
    ).search(first):
        return False
    if Pattern(_CONCLUDES % other).search(rest):
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
    if any(NEGATIVE.search(text) for text in options.get(letter, ())):
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
    if not NEGATIVE.search(clause):
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
