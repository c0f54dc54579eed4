"""Places of coordinates in a response: lists, mappings, pairs in parentheses, `x=..., y=...`, tags, and lines of bare numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rewards.text.answer_text import TAIL, boxed_answers
from rewards.text.lenient import Unreadable, number_of, value_at
from rewards.text.patterns import Pattern
from rewards.text.typography import without_markup

APART = 160  # characters between two shapes of one answer
READ = 200  # characters before a shape that may name it

_FULL_WIDTH = str.maketrans("（），：［］｛｝、【】", "(),:[]{},[]")
_ESCAPED = Pattern(r"\\(?:left|right)(?![a-z])|\\[,;!:]")
_ESCAPED_BRACKET = Pattern(r"\\([{}\[\]()_])")
_NUMBER = r"-?\d{1,9}(?:\.\d{0,9})?"
_START = Pattern(
    rf"(?P<xy>(?<![^\W\d_])x\d?[\"']?\s{{0,3}}[=:]\s{{0,3}}[\"']?(?P<x>{_NUMBER})[\"']?[\s,;]{{0,5}}[\"']?y\d?[\"']?\s{{0,3}}[=:]"
    rf"\s{{0,3}}[\"']?(?P<y>{_NUMBER}))"
    rf"|(?P<tuple>\(\s{{0,9}}{_NUMBER}\s{{0,9}}(?:,\s{{0,9}}{_NUMBER}\s{{0,9}}){{1,3}},?\s{{0,9}}\))"
    r"|(?P<tag><[a-z_|]{1,20}>[\s\d.,()\[\]-]{3,200}<)"
    rf"|(?P<sides>(?<![^\W_])(?:x_?min|left)\s{{0,3}}[=:]\s{{0,3}}{_NUMBER}[\s,;]{{0,5}}(?:y_?min|top)\s{{0,3}}[=:]\s{{0,3}}{_NUMBER}"
    rf"[\s,;]{{0,5}}(?:x_?max|right)\s{{0,3}}[=:]\s{{0,3}}{_NUMBER}[\s,;]{{0,5}}(?:y_?max|bottom)\s{{0,3}}[=:]\s{{0,3}}{_NUMBER})"
    r"|(?P<open>[\[{])|(?P<close>[\]}])",
    2,  # re.IGNORECASE
)
_DIGITS = Pattern(_NUMBER)
_TAG = Pattern(r"<[^<>]{0,40}>")
_LABELLED_LINE = (
    r"^[^\S\n]*(?:[-*•][^\S\n]+|\d{1,3}[.)][^\S\n]+)?(?P<context>[^\d\n()\[\]{}]{0,80}?)"
    r"(?P<numbers>NUMBERS)[^\S\n]*[.;,]?[^\S\n]*$"
)
_LINES = {
    size: Pattern(
        _LABELLED_LINE.replace("NUMBERS", rf"(?<![\d.-]){_NUMBER}(?:{between}{_NUMBER}){{{size - 1}}}"), 8
    )  # MULTILINE
    for size, between in ((4, r"(?:[^\S\n]*[,;][^\S\n]*|[^\S\n]+)"), (2, r"[^\S\n]*,[^\S\n]*"))
}
# Words after which a new answer begins: corrections, alternatives and conclusions.
_ANEW = Pattern(
    r"\b(?:or|not|no|nope|but|wait|instead|rather|actually|correct\w*|refin\w*|adjust\w*|better|hmm+|oops|sorry|however|otherwise"
    r"|alternativ\w*|maybe|perhaps|final\w*|answer\w*|so|therefore|thus|hence|scal\w*|convert\w*|normali[sz]\w*|pixels?|centre|center"
    r"|means?|oder|nein|nicht|also|ou|mais|non|pero)\b|->|=>|[→⇒/≈]|不|而是|或|所以|因此|答案|最终|应该",
    2,
)
_WITHDRAWN = Pattern(
    r"\b(?:wait|hmm+|on second thought|scratch that|let me (?:re-?)?(?:check|look|think|verify|consider))\b|等等|再看|重新",
    2,
)
_DENIED_BEFORE = Pattern(r"(?:\b(?:not|never|isn['’]t|aren['’]t)\s+(?:at\s+|in\s+|on\s+)?|不[是在]\s*)$", 2)
_DENIED_BEHIND = Pattern(
    r"[\s`*\"']*(?:is|are|was|were|would\s+be)\s+(?:\w{1,20}\s+)?(?:wrong|incorrect|false|not\s+(?:it|right|correct|the))\b"
    r"|\s*(?:是错|不对|不正确)",
    2,
)
_NONE = Pattern(
    r"^\W*(?:none|null|nothing|empty|n/?a|absent|no|无|無|没有|沒有|不存在|なし|nada|nichts|rien|нет)\W*$"
    r"|\bno(?:ne)?\s+(?:[\w'-]+\s+){0,5}[\w'-]+|\b(?:not|n't|cannot|can't)\s+(?:[\w'-]+\s+){0,4}(?:contain|present|visible|found|appear"
    r"|exist|shown?|depicted|there|in|see|find|detect|any|include)|\b(?:absent|missing|nothing)\b|\bnot\b.{0,20}\bin\s+(?:the|this)\b"
    r"|n't\s+(?:a|an|any|contain|appear|exist|show|have|include)\b|没有|沒有|不存在|未(?:发现|检测|找到|出现)|不在|いません|ありません|없"
    r"|\bkeine?n?\s+\w|\baucune?\s+\w|\bning[uú]n\w*\s+\w|\bno\s+hay\b|\bнет\s+\w",
    2,
)
_UNSURE = Pattern(
    r"\b(?:know\w*|sure|certain\w*|determin\w*|unclear|doubt|problem|question|idea|unable|sorry|maybe|perhaps|but|however|except"
    r"|only|other than|just)\b|不知道|不确定|但",
    2,
)
_LISTS = Pattern(r"\[\s*\]|\A\s*\{\s*\}\s*\Z|\b(?:null|none)\b", 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A value in a text."""

    start: int
    end: int
    value: Any
    context: str = ""
    """The text before it."""
    behind: str = ""
    """The text behind it."""


def answer_of(text: str) -> str:
    r"""Returns the part of a response without thoughts that holds the answer.

    It is the content of the last `\boxed{...}` or `<answer>...</answer>`, or else all of the text. If that has fenced blocks, it is
    the last of them with those right before it; the words between blocks stay, without digits and brackets.
    """
    if boxes := boxed_answers(text[-TAIL:]):
        text = ", ".join(boxes)
    else:
        before, tag, rest = text.rpartition("<answer>")
        text = rest.partition("</answer>")[0] if tag else before + rest
    text = text.translate(_FULL_WIDTH)
    if "\\" in text:
        text = _ESCAPED_BRACKET.sub(r"\1", _ESCAPED.sub("", text))
    return _blocks(text).strip()


def _blocks(text: str) -> str:
    pieces = text.split("```")
    if len(pieces) == 1:
        return text
    last = len(pieces) - 1 if len(pieces) % 2 == 0 else len(pieces) - 2
    region = _without_language(pieces[last])
    for place in range(last - 2, -1, -2):
        words = pieces[place + 1]
        if len(words) > APART or _ANEW.search(words):
            break
        region = f"{_without_language(pieces[place])}\n{_words_only(words)}\n{region}"
        last = place
    return f"{_words_only(pieces[last - 1])[-READ:]}\n{region}"


def _without_language(block: str) -> str:
    language, line_end, rest = block.partition("\n")
    return rest if line_end and len(language.split()) <= 1 else block


def _words_only(text: str) -> str:
    return "".join(" " if letter in "[]{}()=:<>" or letter.isdigit() else letter for letter in text)


def spans_of(text: str, size: int) -> list[Span]:
    """Returns the last value of coordinates in a text and those before it that belong to the same answer; none if it is withdrawn.

    Args:
        text: The part of a response that holds the answer.
        size: The number of coordinates, 4 or 2, in a line of bare numbers.

    Raises:
        ValueError: A bracket has no partner, as in a list that was cut off.
    """
    if text[:1] in ('"', "'") and text[-1:] == text[:1]:
        return []  # a text, and no list
    spans = _all_spans(text)
    if len(spans) > 1:
        spans = [span for span in spans if not _is_prose(span.value)] or spans[-1:]
    if not spans:
        spans = _lines(text, size)
    if spans and _WITHDRAWN.search(text, spans[-1].end):
        return []
    while spans and _is_denied(text[: spans[-1].start], text[spans[-1].end :]):
        spans.pop()
    first = len(spans) - 1
    while first > 0 and _belong_together(text[spans[first - 1].end : spans[first].start]):
        first -= 1
    return _with_contexts(text, spans, max(first, 0))


def _is_denied(before: str, behind: str) -> bool:
    """Returns whether the words around a place say that it is not the answer: `not at [1, 2, 3, 4]`."""
    return bool(_DENIED_BEFORE.search(before[-20:]) or _DENIED_BEHIND.match(behind[:80]))


def _all_spans(text: str) -> list[Span]:
    spans: list[Span] = []
    place = 0
    while found := _START.search(text, place):
        start, place = found.span()
        if found["close"]:
            raise Unreadable("a bracket has no partner")
        value: Any
        if found["open"]:
            value, place = value_at(text, start)
        elif found["xy"]:
            value = [float(found["x"]), float(found["y"])]
        else:
            value = [float(number) for number in _DIGITS.findall(found.group())]
            if found["tag"]:
                place -= 1
                if len(value) % 4 and len(value) != 2:
                    continue
                value = value if len(value) <= 4 else [value[i : i + 4] for i in range(0, len(value), 4)]
        spans.append(Span(start=start, end=place, value=value))
    return spans


def _lines(text: str, size: int) -> list[Span]:
    """Returns the numbers of lines that hold nothing else, but for words before them."""
    for number in (size, 4):
        lines = [
            Span(
                start=line.start(),
                end=line.end(),
                value=[float(n) for n in _DIGITS.findall(line["numbers"])],
                context=line["context"],
            )
            for line in _LINES[number].finditer(text)
        ]
        if lines:
            return lines
    return []


def _is_prose(value: Any) -> bool:
    """Returns whether brackets hold words or the number of a footnote."""
    if isinstance(value, dict):
        return False
    return (
        not value
        or all(isinstance(item, str) and number_of(item) is None for item in value)
        or (len(value) == 1 and number_of(value[0]) is not None)
    )


def _belong_together(between: str) -> bool:
    words = _TAG.sub(" ", between)
    return len(words) <= APART and not _ANEW.search(words)


def _with_contexts(text: str, spans: list[Span], first: int) -> list[Span]:
    chosen = spans[first:]
    if not chosen or any(span.context for span in chosen):
        return chosen
    starts = [spans[first - 1].end if first else 0] + [span.end for span in chosen]
    ends = [span.start for span in chosen[1:]] + [len(text)]
    return [
        replace(
            span,
            context=_bare(text[max(start, span.start - READ) : span.start]),
            behind=_bare(text[span.end : min(end, span.end + READ)]),
        )
        for start, span, end in zip(starts, chosen, ends, strict=False)
    ]


def _bare(text: str) -> str:
    return _TAG.sub(" ", text)


def says_none(text: str) -> bool:
    """Returns whether a response without thoughts says that there is nothing to be found, by an empty list or in words."""
    answer = without_markup(answer_of(text))
    if len(answer) > 1000 or not answer.strip():
        return False
    if _LISTS.search(answer) and answer.lstrip()[:1] in ("[", "{"):
        return not any(map(str.isdigit, answer.replace("bbox_2d", "").replace("point_2d", "")))
    last = [part for part in answer.replace("\n", ". ").split(". ") if part.strip()]
    return any(bool(_NONE.search(part)) and not _UNSURE.search(part) for part in last[-3:]) and not _LINES[4].search(
        answer
    )
