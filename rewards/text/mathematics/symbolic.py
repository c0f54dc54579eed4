"""Formulas as SymPy objects, compared by math-verify without its alarm, and numbers relatively."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from math import ceil, log10
from typing import Any

from rewards.text.mathematics.sizes import is_computable
from rewards.text.patterns import Pattern

LONGEST_FORMULA = 300  # characters; the LaTeX parser spends up to a second on 300 hostile ones, and 8 s on 2,000

_SCIENTIFIC = Pattern(r"(\d)e([+-]?\d+)\b", re.IGNORECASE)
_THOUSANDS = Pattern(r"(?<=\d)\s(?=\d{3}\b)")
_MIXED = Pattern(r"\b(\d+)\s+(\d+)\s*/\s*(\d+)\b")
_BY_NAME = Pattern(r"(?<![\\A-Za-z])(pi|oo|infty|inf)(?![A-Za-z])")
_MEMBER = Pattern(r"^\s*[A-Za-z]\s*\\in(?![A-Za-z])\s*")
_RELATION = Pattern(r"[<>]|\\(?:le|ge|leq|geq|lt|gt|ne|neq)(?![A-Za-z])")
_PLUS_MINUS = Pattern(r"\\pm(?![a-z])")
_OR = Pattern(r"\s*,?\s*\bor\b\s*")
_ROOT_BY_SLASH = Pattern(r"\\sqrt\s*\{\s*([^{}/]{1,40})\s*/\s*([^{}/]{1,40})\s*\}")
_OPERATIONS = Pattern(
    r"\\(?:sum|prod|int|oint|lim|binom|gcd|lcm|max|min|det|log|ln|lg|sin|cos|tan|cot|sec|csc|arc[a-z]+|exp|lceil|lfloor|mod|bmod|pmod"
    r"|div|Gamma|Re|Im|arg|operatorname)(?![A-Za-z])|\\begin\{vmatrix\}|!|\||(?<![A-Za-z\\])(?:max|min|gcd|lcm|det|log|ln|sin|cos|tan)"
)
_NEVER_FINISHED = Pattern(
    r"\\(?:sum|prod|int|oint|lim|gcd|lcm|det)(?![A-Za-z])|\\begin\{vmatrix\}|(?<![A-Za-z\\])(?:gcd|lcm|det)"
)
_BASED = Pattern(r"(?<![A-Za-z\d_])\d{1,100}\)?\s*_\s*\{?\s*\d")  # math-verify drops the base
_SAMPLES = (1.25, 2.375, 0.4375, 3.8125, -0.625, -1.8125, -2.4375)


def operations(formula: str, *, of_constant: bool) -> set[str]:
    r"""Returns the operations that an answer holds only if its reference does: `\int`; for numbers also `\log`, `!`."""
    names = {"ln": "log", "lg": "log"}
    found = (each.lstrip("\\") for each in (_OPERATIONS if of_constant else _NEVER_FINISHED).findall(formula))
    return {names.get(each, each) for each in found}


@lru_cache(maxsize=4096)
def parse_formula(formula: str) -> Any | None:
    """Returns the SymPy object of a formula, `None` where it has none, is too long or would compute too large a number.

    Inequalities joined by "or" are one set, and so are the values of `\\pm`.
    """
    if len(formula) > LONGEST_FORMULA or not is_computable(formula) or _BASED.search(formula):
        return None
    formula = _MEMBER.sub("", formula)
    if len(_PLUS_MINUS.findall(formula)) == 1 and "," not in formula:
        return _both_signs(formula)
    parts = _OR.split(formula)
    if len(parts) > 1 and all(_RELATION.search(part) for part in parts):
        return _union(parts)
    found = _math_verify()[0](_boxed(formula))  # [object, text], or the text alone
    return None if not found or isinstance(found[0], str) else found[0]


def _both_signs(formula: str) -> Any | None:
    r"""Returns the set of the two values of a formula with `\pm`, which math-verify reads in front of a formula only."""
    from sympy import Equality, FiniteSet

    signs = (("+", "-"), ("-", "+"))
    values = [parse_formula(_PLUS_MINUS.sub(plus, formula).replace(r"\mp", minus)) for plus, minus in signs]
    if None in values:
        return None
    return FiniteSet(*(value.rhs if isinstance(value, Equality) else value for value in values))


def _union(parts: list[str]) -> Any | None:
    from sympy import Union

    sets = [_as_set(parse_formula(part)) for part in parts]
    return None if None in sets else Union(*sets)


def _boxed(formula: str) -> str:
    """Returns the formula in a box, the only delimiter in which math-verify reads all of it, with numbers in its forms."""
    formula = _ROOT_BY_SLASH.sub(r"\\sqrt{\\frac{\1}{\2}}", formula.strip().lstrip("$").rstrip(". "))
    formula = _MIXED.sub(r"\1\\frac{\2}{\3}", _THOUSANDS.sub("", formula)).replace("°", r"^\circ ")
    formula = _BY_NAME.sub(lambda name: r"\pi" if name[1] == "pi" else r"\infty", formula)
    return r"\boxed{" + _SCIENTIFIC.sub(r"\1\\times10^{\2}", formula) + "}"


def is_same(wanted: Any, found: Any) -> bool:
    """Returns whether two objects are equal as mathematics; numbers exactly, or relatively where one is a decimal."""
    from sympy import nan, zoo

    try:
        if _is_number(wanted) or _is_number(found):
            both = _is_number(wanted) and _is_number(found)
            if both or not (_elements(wanted) or _elements(found) or _is_relation(wanted) or _is_relation(found)):
                return both and _is_same_number(wanted, found)
        if wanted == found:
            return not wanted.has(zoo, nan)
        if (sampled := _by_samples(wanted, found)) is not None:
            return sampled
        sets = _both_sets(wanted, found)
        if sets is not None:
            return _is_same_set(*sets)
        if _is_relation(wanted) or _is_relation(found):
            multiple = _is_multiple(wanted, found)
            if multiple is not None:
                return multiple
            if not (_is_simple(wanted) and _is_simple(found)):
                return bool(wanted == found)
        elif (wanted.has(*_unbounded()) or found.has(*_unbounded())) and not (_is_simple(wanted) and _is_simple(found)):
            return bool(wanted == found)
        digits = _digits(wanted, found)
        return bool(
            _math_verify()[1](
                wanted, found, float_rounding=6 + digits, numeric_precision=15 + digits, timeout_seconds=None
            )
        )
    except Exception:  # SymPy raises errors of many types over formulas that make no sense
        return False


def is_constant(formula: Any) -> bool:
    """Returns whether an object is one number, rational or not."""
    return _is_number(formula)


def _is_number(formula: Any) -> bool:
    from sympy import Expr

    return isinstance(formula, Expr) and not formula.free_symbols and formula.is_number is True


def _is_relation(formula: Any) -> bool:
    from sympy.logic.boolalg import Boolean

    return isinstance(formula, Boolean)


def _is_same_number(wanted: Any, found: Any) -> bool:
    from sympy import Float, Rational, UnevaluatedExpr, nan, zoo

    if found.has(UnevaluatedExpr) and not found.has(*_unbounded()):
        found = found.doit()
    if wanted.has(zoo, nan) or found.has(zoo, nan):
        return False
    if wanted == found:
        return True
    if isinstance(wanted, Rational) and isinstance(found, Rational):
        return False
    has_float = bool(wanted.atoms(Float) or found.atoms(Float))
    first, second = wanted.evalf(60), found.evalf(60)
    if not (first.is_finite and second.is_finite):
        return bool(first == second)
    largest = max(abs(first), abs(second))
    return bool(largest == 0 or abs(first - second) <= largest * Float("1e-12" if has_float else "1e-40", 60))


def _by_samples(wanted: Any, found: Any) -> bool | None:
    """Returns whether two expressions have the same values wherever both are real; `None` where they cannot be computed.

    SymPy's `simplify` takes seconds on some, and holds `\\sqrt{1/m}` and `1/\\sqrt{m}` for different.
    """
    from sympy import Expr, Float, Rational, S
    from sympy.core.function import AppliedUndef

    if not isinstance(wanted, Expr) or not isinstance(found, Expr):
        return None
    precision = S(10) ** (-12 if wanted.has(Float) or found.has(Float) else -35)
    symbols = sorted(wanted.free_symbols | found.free_symbols, key=str)
    if wanted.has(AppliedUndef) or found.has(AppliedUndef) or not 1 <= len(symbols) <= 8:
        return None
    if any(formula.has(*_unbounded()) for formula in (wanted, found)):
        return None
    equal = 0
    for point, sample in enumerate(_SAMPLES):
        values = {
            symbol: Rational(sample) + Rational(place * (point + 3), 17) * (-1 if sample < 0 else 1)
            for place, symbol in enumerate(symbols)
        }
        first, second = (formula.subs(values).evalf(50) for formula in (wanted, found))
        if not (first.is_real and second.is_real and first.is_finite and second.is_finite):
            continue
        if abs(first - second) > max(abs(first), abs(second), S(10) ** -10) * precision:
            return False
        equal += 1
    return True if equal >= 3 else None


def _is_multiple(wanted: Any, found: Any) -> bool | None:
    """Returns whether one equation of several symbols is a multiple of another; `None` for what cannot be computed."""
    from sympy import Equality, Expr, Rational
    from sympy.core.function import AppliedUndef

    if not isinstance(wanted, Equality) or not isinstance(found, Equality):
        return None
    if not all(isinstance(side, Expr) for side in (*wanted.args, *found.args)):
        return None
    symbols = sorted(wanted.free_symbols | found.free_symbols, key=str)
    if not 2 <= len(symbols) <= 8 or wanted.has(AppliedUndef, *_unbounded()) or found.has(AppliedUndef, *_unbounded()):
        return None
    ratios = []
    for point, sample in enumerate(_SAMPLES):
        values = {
            symbol: abs(Rational(sample)) + Rational(place * (point + 3), 17) for place, symbol in enumerate(symbols)
        }
        first, second = ((each.lhs - each.rhs).subs(values).evalf(30) for each in (wanted, found))
        if first.is_real and second.is_real and abs(first) > 1e-20 and abs(second) > 1e-20:
            ratios.append(first / second)
    return len(ratios) >= 3 and all(abs(ratio / ratios[0] - 1) < 1e-12 for ratio in ratios)


def _is_simple(formula: Any) -> bool:
    """Returns whether SymPy solves a relation soon: small powers, and no function but two absolute values."""
    from sympy import Abs, Function, Pow, preorder_traversal
    from sympy.core.function import AppliedUndef

    absolute = count = 0
    for node in preorder_traversal(formula):
        count += 1
        if isinstance(node, Pow):
            exponent = node.exp
            if exponent.is_number and (not exponent.is_Rational or abs(exponent) > 6 or exponent.q > 3):
                return False
        if isinstance(node, Abs):
            absolute += 1
        elif isinstance(node, Function) and not isinstance(node, AppliedUndef):
            return False
    return absolute <= 2 and count <= 80


def _unbounded() -> tuple[Any, ...]:
    from sympy import Derivative, Integral, Limit, MatrixSymbol, Product, Sum

    return Derivative, Integral, Limit, MatrixSymbol, Product, Sum


def _as_set(formula: Any) -> Any | None:
    """Returns an interval or another infinite set, also of an inequality with one symbol; `None` for what is neither."""
    from sympy import Complement, Interval, Union, nsimplify
    from sympy.core.relational import Equality
    from sympy.logic.boolalg import Boolean

    if isinstance(formula, Boolean) and not isinstance(formula, Equality) and len(formula.free_symbols) == 1:
        if not _is_simple(formula):
            return None
        if any(isinstance(part, Equality) for part in formula.args):
            return None
        formula = formula.as_set()
    return nsimplify(formula, rational=True) if isinstance(formula, Interval | Union | Complement) else None


def _both_sets(wanted: Any, found: Any) -> tuple[Any, Any] | None:
    """Returns both as sets, where one is an interval, a union, or a chain of inequalities."""
    from sympy.core.relational import Relational

    if _is_relation(wanted) and _is_relation(found):
        is_chain = not isinstance(wanted, Relational) or not isinstance(found, Relational)
        if not is_chain or wanted.free_symbols != found.free_symbols:
            return None
    first = _as_set(wanted)
    second = None if first is None else _as_set(found)
    return None if first is None or second is None else (first, second)


def _is_same_set(wanted: Any, found: Any) -> bool:
    return bool(wanted == found or wanted.symmetric_difference(found).is_empty)


def _elements(formula: Any) -> list[Any]:
    """Returns the parts of a set, tuple, interval or matrix."""
    from sympy import FiniteSet, Interval, MatrixBase, Tuple, Union

    if isinstance(formula, MatrixBase):
        return list(formula.flat())
    if isinstance(formula, FiniteSet | Tuple | Interval | Union):
        return list(formula.args)
    return []


def _digits(*formulas: Any) -> int:
    """Returns the decimals before the first digit of the smallest number, as math-verify compares absolutely."""
    smallest = 1.0
    for formula in formulas:
        for number in _numbers(formula):
            size = abs(number.evalf(5))
            if size.is_finite and size != 0:
                smallest = min(smallest, float(size) or 1e-300)
    return ceil(-log10(smallest))


def _numbers(formula: Any) -> Iterator[Any]:
    from sympy import Number, preorder_traversal

    if parts := _elements(formula):
        for part in parts:
            yield from _numbers(part)
    elif _is_number(formula):
        yield formula
    else:
        for node in preorder_traversal(formula):
            if isinstance(node, Number) or (getattr(node, "is_Pow", False) and _is_number(node)):
                yield node


def is_worked_out(formula: Any) -> bool:
    """Returns whether a number has no unfinished arithmetic between rational parts, as `2 + 3` or `2·3√5` have."""
    from sympy import Add, Integer, Mul, Rational, preorder_traversal

    for node in preorder_traversal(formula):
        if isinstance(node, Add) and sum(isinstance(part, Rational) for part in node.args) > 1:
            return False
        if isinstance(node, Mul) and sum(isinstance(part, Integer) and abs(int(part)) > 1 for part in node.args) > 1:
            return False
    return True


@lru_cache(maxsize=1)
def _math_verify() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Imports math-verify (half a second) and silences its warning that the alarm is off.

    Units are left in the formula: it takes any last letter for one, and would read `\\pi r^2 h` as `\\pi r^2`.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    latex = LatexExtractionConfig(
        normalization_config=replace(LatexExtractionConfig().normalization_config, units=False)
    )
    return partial(parse, extraction_config=[latex, ExprExtractionConfig()], parsing_timeout=None), verify
