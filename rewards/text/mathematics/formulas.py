r"""The final formula of a response, in one plain form of LaTeX: `½` as `1/2`, `\dfrac` as `\frac`, `\text{cm}` as `cm`."""

from __future__ import annotations

import re

from rewards.text.answer_text import boxed_answers
from rewards.text.mathematics.quantities import read_quantity
from rewards.text.numbers.amounts import kind_end, plain_quantities
from rewards.text.numbers.amounts import read_quantity as first_quantity
from rewards.text.numbers.claims import BOUND, BOUND_BEHIND, DOUBT, REJECTED_BEHIND, WORK_BEFORE, WORK_BEHIND
from rewards.text.numbers.measures import is_unit
from rewards.text.patterns import Pattern
from rewards.text.typography import plain_typography

_SYMBOLS = str.maketrans(
    {
        **{"∞": r"\infty ", "π": r"\pi ", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "±": r"\pm "},
        **{"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset "},
        **{"≈": r"\approx ", "θ": r"\theta ", "ℝ": r"\mathbb{R}", "⟨": "(", "⟩": ")", "″": '"'},
    }
)
_SHORT_DASH = Pattern(r"(?<![\w.)}\]])\s*–\s*(?=[\d.\\a-zA-Z(])")
_PLAIN = (
    (Pattern(r"\\(?:left|right|big|Big|bigg|Bigg)[lr]?(?![A-Za-z])\.?"), ""),
    (Pattern(r"(?<!\\)\\!\s*|\\displaystyle(?![A-Za-z])|\\(?:limits|nolimits)(?![A-Za-z])"), ""),
    (Pattern(r"(?<!\\)\\[,;: >]|\\(?:quad|qquad|enspace|thinspace)(?![A-Za-z])|(?<!\\)~"), " "),
    (Pattern(r"(?<![a-z])\{\s*,\s*\}\s*"), ","),
    (Pattern(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (Pattern(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (Pattern(r"\\frac\s*\{(\d{1,20})\}\s*(\d)"), r"\\frac{\1}{\2}"),
    (Pattern(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (Pattern(r"\^\s*\{?\s*\\circ(?![A-Za-z])\s*\}?|\\(?:degree|textdegree)(?![A-Za-z])"), "°"),
    (Pattern(r"\\(?:varnothing|O)(?![A-Za-z])"), r"\\emptyset "),
    (Pattern(r"\\(?:langle|lparen)(?![A-Za-z])"), "("),
    (Pattern(r"\\(?:rangle|rparen)(?![A-Za-z])"), ")"),
    (Pattern(r"\\(?:lor|vee)(?![A-Za-z])"), " or "),
    (Pattern(r"\\(?:land|wedge)(?![A-Za-z])"), " and "),
    (Pattern(r"\\geqslant(?![A-Za-z])"), r"\\ge "),
    (Pattern(r"\\leqslant(?![A-Za-z])"), r"\\le "),
    (Pattern(r"\+\s*\\infty"), r"\\infty"),
    (Pattern(r"\\dots(?![A-Za-z])|\\[lc]dots(?![A-Za-z])|…|\.\.\."), r"\\ldots "),
)
_BOLD = Pattern(
    r"\\(?:boldsymbol|bm|pmb|mathbf|mathit|mathsf|mathtt|textbf|textit|textnormal|text|mathrm|mbox|hbox|operatorname\*?|emph|underline)"
    r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_MARKS = Pattern(r"\*\*|__(?=\S)|`")

_FORMULA = r"(?:\$\$(?:[^$\\]|\\.)+\$\$|\$(?:[^$\\]|\\.)+\$(?!\d)|\\\((?:(?!\\\)).)+\\\)|\\\[(?:(?!\\\]).)+\\\])"
_FORMULAS = rf"({_FORMULA}(?:(?:\s*(?:[,;]|\band\b|\bor\b|和|或))*\s*{_FORMULA})*)"
_EACH = Pattern(_FORMULA, re.DOTALL)
_STEP = Pattern(r"(?:\\(?:[dt]?frac|sqrt|times|cdot|div)|[^a-z\\=])*=", re.IGNORECASE)
_CLOSING_MATH = Pattern(
    rf"(.*?){_FORMULAS}\s*(\\?%|percent\b|pct\b|[a-z]+\b|[\u4e00-\u9fff]{{1,4}})?[\s.*。]*$", re.DOTALL | re.IGNORECASE
)
_ANSWER_IS = Pattern(
    r"\b(?:answers?|solutions?|result|value)\b(?:\s+(?:is|are|equals))?\s*(?::|\bis\b|\bare\b|\bequals\b)\s*"
    r"|\banswers?\s+(?=[$\\\d-])"
    r"|(?:答案|结果|答)\s*(?:是|为|[:=])\s*|故选\s*:?\s*|故答案\s*(?:是|为)\s*"
    r"|\b(?:respuesta|réponse|antwort)\b\s*(?:es|est|ist)?\s*:?\s*|उत्तर\s*:?\s*|الجواب\s*(?:هو)?\s*:?\s*|ответ\s*:?\s*",
    re.IGNORECASE,
)
_ANSWER_TAG = Pattern(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_CHAT_MARK = Pattern(r"<\|[a-z_]{1,20}\|>(?:\s*(?:user|assistant)\s*$)?")
_BOX_BY_BOX = Pattern(r"\}[\s$./|;,]{0,12}(?=\\(?:boxed|fbox))")
_OPERATORS = frozenset("+-*/^=(")  # a number behind them is out of a step, as 9 in `9 * $2 = $18`
_BARE_BOX = Pattern(r"\\(?:boxed|fbox)\s*(?=[\d-])(-?\d{1,40}(?:\.\d{1,40})?)")
_SENTENCE = Pattern(r"(?<=[.!?])\s+(?=[A-Z\[<(\"$\\]|$)|\n+|(?<=[\u4e00-\u9fff])\. ?")
_HEDGE = Pattern(
    r"\b(?:maybe|perhaps|possibly|not sure|unsure|uncertain|(?:cannot|can't) (?:decide|tell|say)"
    r"|do(?:n't| not) know|guess(?:es)?|either)\b"
    r"|可能|也许|大概|不确定|不知道|之间",
    re.IGNORECASE,
)
_NEGATION = Pattern(
    rf"(?:{BOUND}|{DOUBT}|\b(?:not|never|no|nor|neither|without|except|excluding|unlike|than|least|most|wrong|hardly|barely"
    r"|anything but|instead of|from|(?:cannot|can't) be)\b|n't|\\(?:ne|neq|not)|[≠<>]|不是|不等于|并非|不|除了|第)"
    rf"(?:\W+[a-z]+){{0,1}}\W*$|{WORK_BEFORE}",
    re.IGNORECASE,
)
_DENIED_AFTER = Pattern(
    rf"{WORK_BEHIND}|{BOUND_BEHIND}|[^.]{{0,60}}{REJECTED_BEHIND}|\s*(?:(?:is|was)\s+(?:not|wrong|incorrect|false)|isn't)\b|\s*(?:不是|是错|不对)",
    re.IGNORECASE,
)
_DOUBT_BEFORE = Pattern(
    rf"(?:\b(?:not|never|n't|(?:cannot|can't) be|anything but)|{DOUBT}是?|不是|不等于)\s*:?\s*[$\\(\[]*$",
    re.IGNORECASE,
)
_SECOND_THOUGHT = Pattern(
    r"\b(?:but\s+wait\b|wait,|hold on\b|let me (?:re)?check\b|no, (?:that|it|this|the)\b|I made a mistake\b)|等等|等一下",
    re.IGNORECASE,
)
_REJECTED = Pattern(r"\b(?:wrong|incorrect|not (?:the|an)|isn't (?:the|an)|false)\s+$|不是\s*$", re.IGNORECASE)
_LIST_JOIN = Pattern(
    r"[\s,;/*]*(?:\b(?:and|or|also|but|maybe|to)\b|和|或|或者|及|到|至)?[\s,;/*]*(?:\b(?:also|maybe|even|possibly|perhaps)\b)?\s*",
    re.IGNORECASE,
)
_RUN = Pattern(
    r"[$€£¥₹]?(?<![A-Za-z0-9_.^])[-+]?(?:\\[A-Za-z]+\s*|\\?%|\d|[.,](?=\d)|,\s?(?=[-\d\\(])|(?<![A-Za-z'])[b-hj-zB-HJ-Z](?![A-Za-z])|pi(?![A-Za-z])"
    r"|[-+*/^_=(){}\[\]!|°<>≤≥]|\s(?=[-+*/^=<>≤≥({\d\\])|(?<=[-+*/^=<>≤≥)}\d])\s(?=[-+*/^=<>≤≥()\d\\]|[b-hj-zB-HJ-Z](?![A-Za-z])))+"
)
_RATE = Pattern(r"([-+]?[\d.,]{1,60})\s?[a-z]/", re.IGNORECASE)  # 3 g/cm^3, of which a run ends before `cm`
_NUMBER_AND_UNIT = Pattern(r"([-+$€£¥₹]?[\d.,]{0,60}\d)([a-z]{1,5}(?:\^?\{?[23]\}?)?)")
_TEXT_COMMAND = Pattern(r"\\(?:begin|end)\{[^{}]*\}|\\[A-Za-z]+")
_WORD = Pattern(
    r"(?<![\\A-Za-z])(?:[a-z]{3,}|(?:it|is|so|no|we)\b)|[\u0400-\u04ff\u0600-\u06ff\u0900-\u097f\u4e00-\u9fff]",
    re.IGNORECASE,
)
_BLANKS = Pattern(r"\s{0,3}")
_HALF_OR_NOUN = Pattern(r"[ap]\.?m\b\.?|[a-z]{3,30}(?=[.\s]*$)|[\u4e00-\u9fff]{0,4}", re.IGNORECASE)


def plain_text(text: str) -> str:
    """Returns a text in plain typography, with signs of mathematics as LaTeX commands."""
    return _SHORT_DASH.sub(" -", plain_typography(text)).translate(_SYMBOLS)


def plain_formula(formula: str) -> str:
    r"""Returns a formula without wrappers and sizes: `\text{ cm}` as ` cm`, `\left(` as `(`, `\tfrac12` as `\frac{1}{2}`."""
    for pattern, plain in _PLAIN:
        formula = pattern.sub(plain, formula)
    for _ in range(4):
        formula, count = _BOLD.subn(lambda wrapped: _unwrapped(wrapped), formula)
        if not count:
            break
    return _MARKS.sub("", formula).strip(" \n*")


def _unwrapped(match: re.Match[str]) -> str:
    if match[1] in ("i", "e"):
        return match[1]
    before = match.string[: match.start()][-1:]
    apart = " " if before.isalnum() or before in (")", "}") else ""
    behind = " " if match.string[match.end() :][:1].isalnum() else ""
    return apart + match[1] + behind


def final_formula(text: str) -> str | None:
    """Returns the final answer of a response in plain typography; `""` if it is denied or in doubt, `None` if there is none."""
    text = _CHAT_MARK.sub("", _BARE_BOX.sub(r"\\boxed{\1}", text)).rstrip()
    if boxes := boxed_answers(_BOX_BY_BOX.sub("}, ", text)):
        if boxes[-1] == "":  # a cut response, or an empty box after the answer
            return None
        return "" if _is_doubted(text) else ", ".join(dict.fromkeys(filter(None, boxes)))
    if tagged := _ANSWER_TAG.findall(text):
        return final_formula(tagged[-1])
    marks = text.split("####")[1:]
    if marks:
        return ", ".join(dict.fromkeys(mark.strip().split("\n")[0].strip() for mark in marks))
    phrases = list(_ANSWER_IS.finditer(text))
    if phrases and (found := _after_phrase(text[phrases[-1].end() :])) is not None:
        is_denied = _REJECTED.search(text[: phrases[-1].start()]) or _SECOND_THOUGHT.search(text[phrases[-1].end() :])
        return "" if is_denied else found
    closing = _CLOSING_MATH.match(text)
    if closing is not None and not _is_in_prose_doubt(closing[1]):
        behind = closing[3] or ""
        return _inside(closing[2]) + (
            f" {behind}" if "%" in behind or behind in ("percent", "pct") or is_unit(behind) else ""
        )
    if not _WORD.search(_TEXT_COMMAND.sub("", text)):
        return _lines(text) or None
    return _in_prose(text)


def _is_doubted(text: str) -> bool:
    """Returns whether the last box is denied or in doubt right before it, or taken back after it."""
    before, _, after = text.rpartition(r"\boxed")
    return bool(_DOUBT_BEFORE.search(before) or _SECOND_THOUGHT.search(after))


def _is_in_prose_doubt(before: str) -> bool:
    sentence = _SENTENCE.split(before)[-1]
    return bool(_HEDGE.search(sentence) or _NEGATION.search(sentence))


def _lines(text: str) -> str:
    """Returns the last line; all lines where each is one number, as they are several answers."""
    lines = [line.strip().lstrip("*•#").strip() for line in text.strip().splitlines() if line.strip()]
    bare = [re.sub(r"^-\s+", "", line) for line in lines]
    if len(bare) > 1 and all(re.fullmatch(r"-?[\d.,/]{1,40}", line) for line in bare):
        return ", ".join(dict.fromkeys(bare))
    return bare[-1] if bare else ""


def _inside(formulas: str) -> str:
    """Returns formulas without their delimiters: `1, 2` of `$1$ and $2$`, which are one answer, as two boxes are.

    Equations of arithmetic before the last formula, as in `$3+5=8$, $8+9=17$`, are steps and left out.
    """
    *first, last = (_bare(formula) for formula in _EACH.findall(formulas))
    return ", ".join([*(formula for formula in first if not _STEP.match(formula)), last])


def _bare(formula: str) -> str:
    return formula.strip("$").strip() if formula[0] == "$" else formula[2:-2].strip()


def _after_phrase(text: str) -> str | None:
    """Returns the answer behind "answer is"; `""` where it is denied or in doubt, `None` where nothing is said."""
    text = text.lstrip(" *_:\n")
    formulas = re.match(_FORMULAS, text, re.DOTALL)
    if formulas is not None:
        percent = re.match(r"\s*(\\?%|percent\b)", text[formulas.end() :])
        return _inside(formulas[1]) + (percent[1] if percent else "")
    pieces = [piece for piece in _SENTENCE.split(text) if piece and piece.strip()]
    if not pieces:
        return None
    if len(pieces) > 1 and re.match(r"\W*(?:or|and)\b", pieces[1], re.IGNORECASE):
        return ""
    if not _WORD.search(_TEXT_COMMAND.sub("", pieces[0])):
        return pieces[0].strip()
    if any(character.isdigit() for character in pieces[0]) or "$" in pieces[0]:
        return _in_sentence(pieces[0], leads=True) or ""
    return pieces[0].strip(" .*_") if len(pieces[0]) < 40 else None


def _in_prose(text: str) -> str | None:
    """Returns the answer in the last sentence with a number; short words without one as they are."""
    pieces = [piece for piece in _SENTENCE.split(text) if piece and piece.strip()]
    for piece in reversed(pieces):
        if any(character.isdigit() for character in piece) or _EACH.search(piece):
            return _in_sentence(piece)
    return pieces[-1].strip(" .*_") if pieces and len(pieces[-1]) < 60 else None


def _balanced(run: str) -> str:
    """Returns a number without a bracket that only begins before it, or ends after it."""
    if run[:1] in "([" and not {")", "]"} & set(run):
        return run[1:].strip()
    return run[:-1].strip() if run[-1:] in ")]" and not {"(", "["} & set(run) else run


def _apart(run: str) -> str:
    """Returns a number with a blank before its unit: `5 m` of `5m`, which would be a product in a formula."""
    parts = _NUMBER_AND_UNIT.fullmatch(run)
    return f"{parts[1]} {parts[2]}" if parts is not None and is_unit(parts[2]) else run


def _in_sentence(sentence: str, *, leads: bool = False) -> str | None:
    """Returns the last number or formula of a sentence, with those that are joined to it by commas or "and".

    With `leads`, a number that begins the sentence is it. A sentence that is a number with its unit is whole: `6 oranges`.
    It is `""` where the sentence denies it or is in doubt.
    """
    if len(sentence) < 80 and read_quantity(plain_formula(sentence).strip(" $")) is not None:
        return sentence.strip()
    found = _candidates(sentence)
    if not found:
        return None
    if _HEDGE.search(sentence) is not None:
        return ""
    if (parts := first_quantity(plain_quantities(sentence))) and parts.quantity.is_sum and not parts.after.strip(" ."):
        return (
            "" if _NEGATION.search(parts.before) else plain_quantities(sentence)[len(parts.before) :]
        )  # 2 hours and 5 minutes
    group = _group(sentence, found, is_first=found[0][0] == 0 and leads)
    start, end = group[0][0], group[-1][1]
    behind = _BLANKS.match(sentence, end).end()
    end = kind_end(sentence, behind)
    if _NEGATION.search(sentence[:start]) or _DENIED_AFTER.match(sentence, end):
        return ""
    unit = sentence[behind : _HALF_OR_NOUN.match(sentence, end).end()]
    return (", ".join(each for _, _, each in group) + " " + unit).rstrip()


def _candidates(sentence: str) -> list[tuple[int, int, str]]:
    """Returns start, end and text of each formula and number in a sentence."""
    found = [(formula.start(), formula.end(), _bare(formula.group())) for formula in _EACH.finditer(sentence)]
    rest = _EACH.sub(lambda formula: "\0" * len(formula.group()), sentence)
    for run in _RUN.finditer(rest):
        text = _balanced(run.group().strip(" .,;:*").removeprefix("=").strip())
        if rate := _RATE.fullmatch(text):
            found.append((run.start(), run.start() + len(rate[1]), rate[1]))
        elif text[-1:] not in _OPERATORS and (any(character.isdigit() for character in text) or "\\" in text):
            found.append((run.start(), run.end(), _apart(text)))
    return sorted(found)


def _group(sentence: str, found: list[tuple[int, int, str]], *, is_first: bool) -> list[tuple[int, int, str]]:
    """Returns the last number, or the first, with those that commas or "and" join to it."""
    if is_first:
        group = [found[0]]
        for each in found[1:]:
            if not _LIST_JOIN.fullmatch(sentence, group[-1][1], each[0]):
                break
            group.append(each)
        return group
    group = [found[-1]]
    for each in reversed(found[:-1]):
        if not _LIST_JOIN.fullmatch(sentence, each[1], group[0][0]):
            break
        group.insert(0, each)
    return group
