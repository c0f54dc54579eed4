r"""Size of the numbers that a formula would compute, estimated on its text: `9^{9^{9}}` is refused before a parser evaluates it."""

from __future__ import annotations

from math import log10

from rewards.text.patterns import Pattern

DIGITS = 20_000
"""Most digits of a number that is computed."""
DEGREE = 100
"""Largest exponent of a symbol or of a sum with symbols; SymPy expands the power."""
_DEEPEST = 40
_TOKEN = Pattern(r"\\[A-Za-z]+|\\.|\d+(?:\.\d+)?|\*\*|[^\s]")
_OPEN = {"{": "}", "(": ")", "[": "]"}
_CLOSE = frozenset(_OPEN.values())
_LIMITS = frozenset({r"\sum", r"\prod", r"\int", r"\lim", r"\bigcup", r"\bigcap"})  # their `^` is a bound and no power
_FACTORIAL_LIKE = frozenset({r"\binom", r"\dbinom", r"\tbinom", r"\Gamma", r"\gamma"})
_SKIPPED = frozenset({r"\left", r"\right", r"\,", r"\;", r"\!", r"\:", r"\quad"})


class TooLarge(Exception):
    """The formula holds a number too large to compute."""


def is_computable(formula: str) -> bool:
    r"""Returns whether each power, factorial and binomial of a formula has at most `DIGITS` digits.

    The estimate is an upper bound: a product for each sum, two for each symbol. Powers of symbols end at `DEGREE`.
    """
    tokens = [token for token in _TOKEN.findall(formula) if token not in _SKIPPED]
    try:
        _Estimate(tokens).group(None, 0)
    except TooLarge:
        return False
    return True


class _Estimate:
    """A walk through the tokens of a formula; sizes are decimal logarithms, with a mark where a symbol is inside."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self._place = tokens, 0

    def _peek(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def group(self, close: str | None, depth: int) -> tuple[float, bool]:
        """Returns size and mark of the tokens up to the closing bracket."""
        if depth > _DEEPEST:
            raise TooLarge
        size, symbolic = 0.0, False
        while token := self._peek():
            if token in _CLOSE:
                self._place += 1
                if close is not None:
                    break
                continue
            of_atom, has_symbol = self._power(depth)
            size, symbolic = size + of_atom, symbolic or has_symbol
            if size > DIGITS:
                raise TooLarge
        return size, symbolic

    def _power(self, depth: int) -> tuple[float, bool]:
        limits = self._peek() in _LIMITS
        size, symbolic = self._atom(depth)
        while (token := self._peek()) in ("^", "**", "!", "_"):
            self._place += 1
            if token == "!":
                size = _factorial(size)
                continue
            above, exponent_symbolic = self._exponent(depth, is_power=token != "_" and not limits)
            if token == "_" or limits:
                if token == "_" and size > 1:
                    size = _factorial(size)  # math-verify reads `(n)_{k}` as a number of permutations
                continue
            if above > 6:
                raise TooLarge
            exponent = 10**above
            if symbolic and not exponent_symbolic and exponent > DEGREE:
                raise TooLarge
            size *= exponent
            if size > DIGITS:
                raise TooLarge
        return size, symbolic

    def _exponent(self, depth: int, *, is_power: bool) -> tuple[float, bool]:
        """Returns the size of an exponent, which may have a sign and be raised in turn (`9^9^9`), or of an index."""
        while self._peek() in ("-", "+"):
            self._place += 1
        return self._power(depth + 1) if is_power else self._atom(depth + 1)

    def _atom(self, depth: int) -> tuple[float, bool]:
        if depth > _DEEPEST:
            raise TooLarge
        token = self._peek()
        self._place += 1
        if token in _OPEN:
            return self.group(_OPEN[token], depth + 1)
        if token in _FACTORIAL_LIKE:
            if self._peek() not in _OPEN:
                return 0.3, True
            return _factorial(self._atom(depth + 1)[0]), False
        if token[:1].isdigit():
            return (log10(max(float(token), 2.0)) if len(token) < 300 else float(len(token))), False
        if token.isalpha():
            return 0.3, token != "e"
        return 0.0, False


def _factorial(size: float) -> float:
    if size > 4:
        raise TooLarge
    number = 10**size
    size = number * log10(max(number, 2.0))
    if size > DIGITS:
        raise TooLarge
    return size
