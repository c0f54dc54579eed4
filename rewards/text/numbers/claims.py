"""The part of an answer that claims something, and words that take a claim back: negations, bounds, hedges."""

from __future__ import annotations

import re

from rewards.text.patterns import Pattern

NEGATION = (
    r"(?:\b(?:not|never|cannot|no|neither|nor|wrong|incorrect|false|except|without|hardly|rather\s+than|instead\s+of"
    r"|(?:anything|nothing)\s+but|other\s+than|far\s+from)\b|n['’]t\b|[不没沒非无無未]|错|否|除了)"
)
"""Matches a word that may take a number back."""

BOUND = (
    r"(?:\b(?:at\s+(?:the\s+)?(?:very\s+)?(?:least|most|minimum|maximum)|up\s+to|(?:more|less|fewer|greater|larger|smaller|higher|lower|later"
    r"|earlier|better|worse)\s+than|(?:min|max)(?:imum)?\.?\s+of|(?:upwards|excess|short)\s+of|as\s+(?:many|much|few|little|high|low)\s+as|under|over|above|below|beyond"
    r"|past|exceed(?:s|ing|ed)?|surpass(?:es|ing|ed)?|between|within|either|until|before|after)\b|[<>≤≥≠±√]"
    r"|\\(?:[lg]eq?|neq?|pm)(?![a-z])|至少|至多|最多|最少|超过|超過|高于|低于|不足|不到|不止|少于|多于|大于|小于|[近逾])有?"
)
"""Matches a word that makes a number behind it a bound, when it stands right before the number."""

BOUND_BEHIND = (
    r"(?:\s*\+(?!\s*\d)|\s*(?:or|and|if\s+not)\s+(?:so|up(?:wards?)?|more|less|fewer|over|under|above|below|beyond|older|younger|higher|lower|later|earlier"
    r"|counting|some|a\s+half)\b|\s*,?\s*(?:at\s+(?:the\s+)?(?:least|most|minimum|maximum|latest|earliest)|upwards?|plus|minimum|maximum|max|min"
    r"|tops|give\s+or\s+take)\b|\s*[个個只隻人名张張]?(?:以上|以下|以内|左右|上下|出头)|[个個]?[多余餘](?![边邊])|[几幾]|来(?!自))"
)
"""Matches what makes a number before it a bound or an estimate, when it stands right behind the number and its unit."""

HEDGE = (
    r"(?:\b(?:about|around|approximately|approx\.?|roughly|nearly|almost|circa|ca\.|some|maybe|perhaps|probably|possibly|close\s+to"
    r"|near|(?:could|might|may)\s+be|(?:looks|seems)\s+like|an\s+estimated|barely|scarcely|something\s+like|in\s+the\s+region\s+of|on\s+the\s+order\s+of|an\s+average\s+of)(?!\w)|[~≈]"
    r"|(?:大约|大約|大概|约|約|差不多|可能|也许|也許|或许|接近|将近|几乎)[有是]?)"
)
"""Matches a word that makes a number behind it an estimate, when it stands right before the number."""

HEDGE_BEHIND = r"(?:\s*[,(]?\s*(?:approximately|approx|roughly|about|or\s+thereabouts|estimated)\b|\s?-?ish\b)"
"""Matches what makes a number before it an estimate, when it stands right behind the number."""

DOUBT = (
    r"(?:\b(?:maybe|perhaps|probably|possibly|(?:could|might|may)\s+(?:it\s+)?be|(?:un)?likely(?:\s+to\s+be)?|close\s+to|unsure|guess(?:es)?)\b"
    r"|可能|也许|也許|或许|估计|不确定)"
)
"""Matches a word that leaves open whether a number behind it is the answer."""

WORK_BEFORE = (
    r"(?:\b(?:(?:divided|multiplied|divisible|times|raised)\s+(?:by|to)|(?:root|half|thirds?|quarters?|multiple|power|log|logarithm|square"
    r"|cube|twice|double|triple|out|top|one|factor)\s+of|twice|double|triple|half|plus|minus|times)\s+$)"
)
"""Matches what makes a number right behind it a part of a calculation."""

WORK_BEHIND = (
    r"(?:\s*(?:squared|cubed|plus|minus|divided|multiplied|factorial|modulo|(?:more|less|fewer|greater|smaller|larger)\s+than)\b"
    r"|\s*times\s+(?:the|as|more|less|larger|smaller|bigger|greater|higher|lower|\d|\$|\\))"
)
"""Matches what makes a number right before it a part of a calculation."""

REJECTED_BEHIND = (
    r"(?:\b(?:wrong|incorrect|false|impossible|mistaken?|too\s+(?:many|much|few|little|large|small|big|high|low)|(?:cannot|can['’]t)\s+be"
    r"|but\s+(?:fewer|less|more|not))\b|不对|错|\?\s*$|\bof\s+(?:the\s+)?\d)"
)
"""Matches what takes a number before it back, anywhere behind it: `23 is too many`, `23?`, `23 out of 30`."""

ABOUT = r"(?:about|around|approximately|approx\.?|roughly|nearly|almost|circa|only|just|exactly|precisely|[≈~约約])"
"""Matches a word that may stand before a number which is the answer all the same."""

_RESULT = Pattern(
    r"(?:^|[\s,.;:(])(?:so(?!\s+(?:far|that|many|much)\b)|thus|therefore|hence|consequently|i\.e\.|that\s+is|which\s+(?:is|gives|means|makes))\b[\s,:]*"
    r"|→|⇒|=>|因此|所以|因而|那么|故(?=[为是有共])",
    re.IGNORECASE,
)
_TAKEN_BACK = Pattern(
    r"\s*[,;(]\s*(?:(?:and\s+)?not|rather\s+than|instead\s+of|而不是|不是)\s?[^,;()]{1,40}\)?\s*[.!]?\s*$",
    re.IGNORECASE,
)
_CONTEXT = Pattern(
    r"^\s*(?:in|on|for|at|by|during|from|as\s+of|with|since|after|before|between)\b(?![^,]{0,60}\b(?:not?|never|least|most|minimum|maximum)\b)[^,:;.]{1,60},\s+",
    re.IGNORECASE,
)
_CONTEXT_BEHIND = Pattern(
    r"\s+(?:in|as\s+of|during|by|for)\s+(?:the\s+year\s+)?(?:1[5-9]|20)\d\d\s*[.!]?\s*$", re.IGNORECASE
)
_REASON_BEHIND = Pattern(
    r"(?<=\w)[\s,]+(?:because|since|given\s+that|as\s+the)\b.*$|(?<=\w)[\s,]*因为.*$", re.IGNORECASE | re.DOTALL
)
_MAY_STATE_MORE = Pattern(  # quick: each pattern of `result_of` needs one of these
    r"[,;(→⇒]|=>|\b(?:so|thus|therefore|hence|consequently|i\.e|that|which|because|since|given|as|in|on|for|at|by|during|from|with|after"
    r"|before|between)\b|因|所以|那么|故",
    re.IGNORECASE,
)


def result_of(text: str) -> str:
    """Returns the part of an answer that states its result: without reasons and without what it rejects.

    `3 + 2.2, so 5.2` and `5.2 because 3 + 2.2 = 5.2` and `5.2, not 5.3` and `In 2020, it was 5.2` state 5.2.
    """
    if not _MAY_STATE_MORE.search(text):
        return text
    text = behind_reasons(text)
    for pattern in (_REASON_BEHIND, _TAKEN_BACK, _CONTEXT, _CONTEXT_BEHIND):
        text = pattern.sub("", text)
    return text


def behind_reasons(text: str) -> str:
    """Returns the text behind the last `so`, `therefore` or `所以`; all of it where nothing stands there."""
    reasons = list(_RESULT.finditer(text))
    rest = text[reasons[-1].end() :] if reasons else ""
    return rest if rest.strip(" .,;:!?") else text
