"""Numbers and formulas, compared as mathematics: numbers by exact arithmetic, formulas by math-verify, without its alarm."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from numbers import Real

from rewards.text.answer_text import answer_part
from rewards.text.mathematics.formulas import final_formula, plain_formula, plain_text
from rewards.text.mathematics.quantities import is_same_quantity, read_quantity
from rewards.text.mathematics.readings import Reading, read_answer
from rewards.text.mathematics.symbolic import (
    LONGEST_FORMULA,
    is_constant,
    is_same,
    is_worked_out,
    operations,
    parse_formula,
)
from rewards.text.patterns import Pattern
from rewards.text.unreadable import unreadable
from rewards.types import UNREAD, Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

TAIL = 1000  # characters that are read from the end; the regular expressions are quadratic in it

_CLOSED_BOX = Pattern(r"\\(?:boxed|fbox)\s*\{")
_PHRASE = Pattern(r"\banswers?\b(?:\s+(?:is|are)\b|\s*:)|答案", re.IGNORECASE)
_DELIMITER = Pattern(r"(?<!\\)\$|\\[()\[\]]")
_EQUALS = Pattern(r"(?<![<>!:\\])=")
_SEVERAL = Pattern(r"[,;](?!\d{3}\b)|\b(?:and|or)\b")
_IN_TEXT = Pattern(r"\$*\s*\\(?:text|mathrm|mbox)\{[^{}]*\}\s*\$*")
_OPERATOR = Pattern(r"[-+*/^(=]|\\[a-z]+")
_MULTIPLE_DIGITS = 10  # digits of a decimal reference from which on it is taken for an irrational number, rounded
_FACTOR = Pattern(r"\bfactor(?:i[sz]e)?\b|因式分解|分解因式", re.IGNORECASE)
_EXPAND = Pattern(r"\bexpand\b|\bmultiply out\b|展开", re.IGNORECASE)


@with_options
def math_answer(*, expressions: bool = False) -> Verifier:
    r"""Makes a verifier of a final answer that equals `prompt.answer` as mathematics: `\boxed{\frac{17}{2}}` is 8.5.

    Only the final answer after the thoughts counts. It is the last `\boxed{...}`, with other boxes right before it. Without a box
    it is the content of `<answer>`, the text after `####`, or what follows "the answer is" or `答案是`. Else it is the formula that
    ends the response, or the last number of its last sentence. A number that is denied or in doubt (`not 7`, `below 7`, `maybe 7`)
    is no answer, and numbers that follow each other are a list.

    Typography does not count: digits of any script, `½`, `x²`, `√2`, `（3，4）`, `\text{}`, `\,`. Units agree or are absent on a
    side, and scales apply: `2.5 million`, `5.2k`, `3万`. Rational numbers are compared exactly, decimals and irrational numbers
    relatively. Lists and sets have no order; an interval equals its inequality. Quantities are read as `numeric` reads them, and
    besides numbers with a base (`1011_2`) and decimals that repeat.

    Where the reference is a number, the answer must be one in lowest form: `3+5+9`, `\frac{6}{4}`, `\binom{10}{3}` are work still
    to be done, and so is an expression of the question. Powers, factorials and the like beyond 20,000 digits are refused unread.

    `prompt.answer` is a number, LaTeX, or a word. It is read whole or not at all: `3, 5, and 7`, `3 hours 20 minutes`, `at least
    5`. A label such as `Room 12` equals itself only.

    Args:
        expressions: Whether an answer may be an expression of the right value, such as `3+5+9`.

    Returns:
        The verifier: 1.0 or 0.0, `UNREAD` where the response has no formula; a `Score` with an error where the reference cannot
        be read.
    """

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        is_text_or_number = isinstance(prompt.answer, str | Real) and not isinstance(prompt.answer, bool)
        reference = _reference(str(prompt.answer)) if is_text_or_number else None
        if reference is None:
            return unreadable("math_answer", prompt, "give a number, LaTeX or one word")
        formula = final_formula(plain_text(answer_part(completion)[-TAIL:]))
        answer = read_answer(formula) if formula and len(formula) <= LONGEST_FORMULA else None
        if answer is None:
            return 0.0 if formula == "" else UNREAD
        if not answer.quantity and _is_of_question(answer, reference, prompt):
            return 0.0
        if _is_answer(answer, reference, expressions=expressions):
            return 1.0
        return 0.0 if _is_mathematics(answer) or reference.has_words else UNREAD

    return verify


def _is_mathematics(answer: Reading) -> bool:
    """Returns whether an answer is anything but words and signs."""
    is_read = answer.quantity or answer.items or answer.named or answer.ratio or answer.is_verbatim
    return bool(is_read) or (not answer.has_words and any(map(str.isalnum, answer.formula)))


@lru_cache(maxsize=4096)
def _reference(answer: str) -> Reading | None:
    """Returns the reading of a reference, `None` where any of it cannot be read; cached, as a group shares its reference."""
    text = plain_text(answer)
    if _CLOSED_BOX.search(text) or "####" in text or (_PHRASE.search(text) and len(text) > 20):
        text = final_formula(text) or ""
    elif text.count("$") > 1 or "\\(" in text or "\\[" in text:
        text = _DELIMITER.sub(" ", text)
    reading = read_answer(text)
    if reading is not None and reading.is_equation:
        reading = replace(reading, quantity=None)
    if reading is None or reading.is_verbatim or reading.quantity or reading.items or reading.named:
        return reading
    if reading.ratio:
        return reading if all(reading.ratio) else None
    if reading.has_words:
        return reading if _is_label(reading.text, text) else None
    formula = parse_formula(reading.formula)
    return reading if formula is not None and is_same(formula, formula) else None


def _is_label(text: str, written: str) -> bool:
    """Returns whether a text is a word, a short label with a number in it, or wholly in `\\text{}`."""
    words = text.split()
    if _IN_TEXT.fullmatch(written.strip()):
        return True
    return len(words) == 1 or (len(words) <= 4 and any(character.isdigit() for character in text))


def _is_of_question(answer: Reading, reference: Reading, prompt: Prompt) -> bool:
    """Returns whether an answer is an expression of the question, or has the form that the question asks to leave."""
    question = plain_formula(plain_text(_question(prompt)))
    if not question or answer.key == reference.key:
        return False
    said = re.sub(r"[\s$]", "", answer.text)
    if len(said) > 2 and _OPERATOR.search(said) and said in re.sub(r"[\s$]", "", question):
        return True
    for pattern, is_product in ((_FACTOR, True), (_EXPAND, False)):
        if pattern.search(question):
            wanted, found = parse_formula(reference.formula), parse_formula(answer.formula)
            return _is_product(wanted) == is_product and _is_product(found) != is_product
    return False


def _question(prompt: Prompt) -> str:
    """Returns the text of the last message of the user."""
    for message in reversed(prompt.messages):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content[-4000:]
            parts = content if isinstance(content, list) else []
            return " ".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))[-4000:]
    return ""


def _is_product(formula: object) -> bool:
    return bool(getattr(formula, "is_Mul", False) or getattr(formula, "is_Pow", False))


def _is_answer(answer: Reading, reference: Reading, *, expressions: bool) -> bool:
    """Returns whether an answer equals the reference, in the most exact form that both have."""
    if answer.key == reference.key and not (answer.quantity and answer.quantity.units):  # Gb are no GB
        return True
    if answer.about is not None:
        is_near = _is_rounded(answer)
        if is_near and _is_answer(answer.about, reference, expressions=expressions):
            return True
        if not is_near and not answer.name:
            return False
    if answer.is_verbatim or reference.is_verbatim:
        return False
    if reference.ratio or answer.ratio:
        return _is_same_ratio(answer, reference)
    if reference.quantity is not None:
        return _is_quantity(answer, reference, expressions=expressions)
    if reference.named and (answer.named or answer.items or answer.formula.startswith("(")):
        return _is_named(answer, reference)
    if reference.items and (answer.items or answer.quantity):
        return _is_list(answer, reference, expressions=expressions)
    if reference.units and answer.units and not any(unit in answer.units for unit in reference.units):
        return False
    return not reference.has_words and not answer.has_words and _is_formula(answer, reference, expressions=expressions)


def _is_rounded(answer: Reading) -> bool:
    """Returns whether the value after `\\approx` is near the one before it, as far as both are numbers."""
    exact, about = answer.quantity, answer.about.quantity if answer.about else None
    return exact is None or about is None or abs(exact.value - about.value) * 20 <= abs(exact.value)


def _is_quantity(answer: Reading, reference: Reading, *, expressions: bool) -> bool:
    wanted, found = reference.quantity, answer.quantity
    if wanted is None or (reference.name and answer.name and reference.name != answer.name):
        return False
    if found is not None:
        return is_same_quantity(wanted, found) and (found.is_lowest or expressions)
    if answer.items or answer.named or answer.has_words:
        return False
    digits = sum(character.isdigit() for character in reference.text)
    if not expressions and not (wanted.is_decimal and digits >= _MULTIPLE_DIGITS):
        return False
    return _is_formula(answer, reference, expressions=expressions)


def _is_same_ratio(answer: Reading, reference: Reading) -> bool:
    """Returns whether two ratios are proportional and the answer is in lowest form; of two parts, also a quotient."""
    wanted, found = reference.ratio, answer.ratio
    if len(wanted) == 2 and answer.quantity is not None and wanted[1]:
        return wanted[0] / wanted[1] == answer.quantity.value and answer.quantity.is_lowest
    if len(found) == 2 and reference.quantity is not None and found[1]:
        return reference.quantity.value == found[0] / found[1]
    if not wanted and found and _EQUALS.search(reference.text):
        return _is_formula(answer, reference, expressions=False)
    return len(wanted) == len(found) and all(
        first * found[0] == second * wanted[0] for first, second in zip(wanted, found, strict=True)
    )


def _is_named(answer: Reading, reference: Reading) -> bool:
    """Returns whether the values are those of the same names; without names, those in the same order."""
    if answer.named:
        wanted, found = dict(reference.named), dict(answer.named)
        return wanted.keys() == found.keys() and all(
            is_same_quantity(value, found[name]) for name, value in wanted.items()
        )
    said = answer.items or tuple(filter(None, map(read_quantity, answer.formula.strip("()").split(","))))
    values = [value for _, value in reference.named]
    return len(values) == len(said) and all(map(is_same_quantity, values, said))


def _is_list(answer: Reading, reference: Reading, *, expressions: bool) -> bool:
    """Returns whether two lists hold the same numbers, in any order and however often."""
    found = answer.items or ((answer.quantity,) if answer.quantity else ())
    if not expressions and not all(each.is_lowest for each in found):
        return False
    return all(any(is_same_quantity(each, other) for other in found) for each in reference.items) and all(
        any(is_same_quantity(each, other) for each in reference.items) for other in found
    )


def _is_formula(answer: Reading, reference: Reading, *, expressions: bool) -> bool:
    """Returns whether two formulas are the same by SymPy, and the answer's operations are done as in the reference."""
    from sympy.logic.boolalg import Boolean

    wanted = parse_formula(reference.formula)
    if wanted is None:
        return False
    is_number = is_constant(wanted) or reference.quantity is not None
    undone = operations(answer.formula, of_constant=is_number) - operations(reference.formula, of_constant=is_number)
    if undone and not expressions:
        return False
    formula = answer.formula if isinstance(wanted, Boolean) else _right_hand_side(answer.formula)
    if "'" in formula and "'" not in reference.formula:  # a derivative, whose sign math-verify drops
        return False
    found = parse_formula(formula)
    if found is None or (is_number and not expressions and is_worked_out(wanted) and not is_worked_out(found)):
        return False
    return is_same(wanted, found)


def _right_hand_side(formula: str) -> str:
    """Returns the text after the last equals sign; a list of equations (`x=1, y=2`) stays whole."""
    return formula if _SEVERAL.search(formula) else _EQUALS.split(formula)[-1]
