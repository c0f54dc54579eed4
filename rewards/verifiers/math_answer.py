"""Numbers and formulas, compared as mathematics by math-verify, without its alarm."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import lru_cache
from numbers import Real
from typing import Any

from rewards.text.answer_text import answer_part, boxed_answers, plain_digits
from rewards.text.patterns import Pattern
from rewards.text.unreadable import unreadable
from rewards.types import Score
from rollout.types import Completion, Prompt

TAIL = 1000  # characters that are read from the end; the regular expressions are quadratic in it
LONGEST_FORMULA = 300  # characters; the LaTeX parser spends up to a second on 300 hostile ones, and 8 s on 2,000

_FORMULA = r"(?:\$[^$]+\$|\\\((?:(?!\\\)).)+\\\)|\\\[(?:(?!\\\]).)+\\\])"
_FORMULAS = rf"({_FORMULA}(?:(?:\s*(?:[,;]|\band\b|\bor\b))+\s*{_FORMULA})*)"
_EACH = Pattern(_FORMULA, re.DOTALL)
_STEP = Pattern(r"(?:\\(?:[dt]?frac|sqrt|times|cdot|div)|[^a-z\\=])*=", re.IGNORECASE)
_CLOSING_MATH = Pattern(rf"{_FORMULAS}[\s.*]*$", re.DOTALL)
_ANSWER_IS = Pattern(rf"\banswers?\b(?:\s+(?:is|are))?\s*:?\s*{_FORMULAS}", re.IGNORECASE | re.DOTALL)
_TEXT_COMMAND = Pattern(r"\\(?:text|mathrm|mbox|begin|end)\{[^{}]*\}")
_WORD = Pattern(r"(?<![\\A-Za-z])(?:[a-z]{3,}|(?:it|is|so|no|we)\b)", re.IGNORECASE)
_EQUALS = Pattern(r"(?<![<>!:\\])=")
_SEVERAL = Pattern(r"[,;](?!\d{3}\b)|\\text|\b(?:and|or)\b")
_SCIENTIFIC = Pattern(r"(\d)e([+-]?\d+)\b", re.IGNORECASE)
_THOUSANDS = Pattern(r"(?<=\d)\s(?=\d{3}\b)")
_SIDE_BY_SIDE = Pattern(r"\d\s+\d")
_UPRIGHT = Pattern(r"\\mathrm\{([ei])\}")  # these two are constants; `\mathrm{m}` is a unit
_MIXED = Pattern(r"\b(\d+)\s+(\d+)\s*/\s*(\d+)\b")
_BY_NAME = Pattern(r"(?<![\\A-Za-z])(pi|oo|infty|inf)(?![A-Za-z])")
_SYMBOLS = str.maketrans({"∞": r"\infty ", "π": r"\pi ", "−": "-", "．": ".", "，": ",", "٫": ".", "٬": ",", "％": "%"})


def math_answer(prompt: Prompt, completion: Completion) -> float | Score:
    r"""Rewards a response whose final answer equals `prompt.answer` as mathematics: `\boxed{\frac{34}{4}}` is 8.5.

    Only the final answer after the thoughts counts. It is the last `\boxed{...}`, with other boxes right before it. Without a box
    it is the formula that ends the response, or the text after its last `####`. In prose it is the formula after the last
    "answer is", or math-verify's choice, the last number or formula. In `3+5+9=17`, the answer is `17`; in `$16$ or $17$` it is
    both. Where the reference is a number, unfinished arithmetic (`3+5+9`, `9 8`) is no answer. Digits may be of any script.

    There is no time limit here, as math-verify's own is a `signal.alarm`, which fails silently outside the main thread. A
    formula such as `9^{9^{9^9}}` runs on until `rewards.workers.runner` stops it.

    Returns:
        1.0 or 0.0; a `Score` with an error where the reference is neither a number nor LaTeX.
    """
    reference = _reference(str(prompt.answer)) if isinstance(prompt.answer, str | Real) else None
    if reference is None:
        return unreadable("math_answer", prompt, "give a number or LaTeX")
    return float(_is_answer(_plain(answer_part(completion)[-TAIL:]), reference))


def _is_answer(text: str, reference: Any) -> bool:
    from sympy import Number
    from sympy.core.relational import Relational

    formula = _final_formula(text)
    if formula is not None and not isinstance(reference, Relational):
        formula = _right_hand_side(formula)
    if formula is not None and len(formula) > LONGEST_FORMULA:
        return False
    answer, written = _read(text if formula is None else _boxed(formula))
    if answer is None or (isinstance(reference, Number) and not _is_worked_out(answer, written)):
        return False
    _, verify = _math_verify()
    return bool(verify(reference, answer, timeout_seconds=None))


@lru_cache(maxsize=4096)
def _reference(answer: str) -> Any | None:
    """Returns the reference as a SymPy object; cached, as a group shares its reference.

    It is `None` where it cannot be read, or does not equal itself, as `12:00`, a division by zero.
    """
    answer = _plain(answer)
    formula = _final_formula(answer)
    reference = _read(answer if formula is None else _boxed(formula))[0]
    _, verify = _math_verify()
    return reference if reference is not None and verify(reference, reference, timeout_seconds=None) else None


def _plain(text: str) -> str:
    """Returns a text with digits, signs and separators of any script in the form of LaTeX."""
    return plain_digits(text).translate(_SYMBOLS)


def _final_formula(text: str) -> str | None:
    """Returns the formula that ends a text; `None` for prose, where math-verify has to search for one."""
    if boxes := boxed_answers(text):
        return ", ".join(boxes)
    text = text.rsplit("####", 1)[-1]  # GSM8K's mark; headings in Markdown do no harm
    closing = _CLOSING_MATH.search(text)
    if closing is not None:
        return _inside(closing[1])
    if _WORD.search(_TEXT_COMMAND.sub("", text)):
        answers = _ANSWER_IS.findall(text)
        return _inside(answers[-1]) if answers else None
    return (text.strip().splitlines() or [""])[-1]


def _inside(formulas: str) -> str:
    """Returns formulas without their delimiters: `1, 2` of `$1$ and $2$`, which are one answer, as two boxes are.

    Equations of arithmetic before the last formula, as in `$3+5=8$, $8+9=17$`, are steps and left out.
    """
    *first, last = (formula[1:-1] if formula[0] == "$" else formula[2:-2] for formula in _EACH.findall(formulas))
    return ", ".join([*(formula for formula in first if not _STEP.match(formula)), last])


def _right_hand_side(formula: str) -> str:
    """Returns the text after the last equals sign; a list of equations (`x=1, y=2`) stays whole."""
    return formula if _SEVERAL.search(formula) else _EQUALS.split(formula)[-1]


def _boxed(formula: str) -> str:
    """Returns the formula in a box, the only delimiter in which math-verify reads all of it, with numbers in its forms."""
    formula = _UPRIGHT.sub(r"\1", formula.strip().lstrip("$").rstrip(". "))
    formula = _MIXED.sub(r"\1\\frac{\2}{\3}", _THOUSANDS.sub("", formula))
    formula = _BY_NAME.sub(lambda name: r"\pi" if name[1] == "pi" else r"\infty", formula)
    return r"\boxed{" + _SCIENTIFIC.sub(r"\1\\times10^{\2}", formula) + "}"


def _read(text: str) -> tuple[Any | None, str]:
    """Returns the SymPy object that math-verify finds in a text, or `None`, and the formula as text."""
    parse, _ = _math_verify()
    found = parse(text, parsing_timeout=None)  # [the object, if the formula could be parsed; the formula as text]
    if not found or isinstance(found[0], str):
        return None, ""
    return found[0], found[-1] if isinstance(found[-1], str) else ""


def _is_worked_out(answer: Any, written: str) -> bool:
    """Returns whether a formula has no unfinished arithmetic; needs its text, as `9 8` is parsed as the mixed number 9 + 8."""
    from sympy import Add, Integer, Mul, preorder_traversal
    from sympy.core.relational import Equality

    for node in preorder_traversal(answer.rhs if isinstance(answer, Equality) else answer):
        if isinstance(node, Add):
            return False
        if isinstance(node, Mul) and sum(isinstance(part, Integer) and abs(int(part)) > 1 for part in node.args) > 1:
            return False
    return not _SIDE_BY_SIDE.search(_THOUSANDS.sub("", written))


@lru_cache(maxsize=1)
def _math_verify() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Imports math-verify (half a second) and silences its warning that the alarm is off."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return parse, verify
