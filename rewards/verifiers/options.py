"""Verifiers with options, which work with and without a call that sets them, and the check of these options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import WRAPPER_ASSIGNMENTS, cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Generic, ParamSpec, Union, get_args, get_origin, get_type_hints, overload

from rewards.types import Score, Verifier
from rollout.types import Completion, Prompt

P = ParamSpec("P")

_WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", NoneType: "None"}


class WithOptions(Generic[P]):
    """A verifier with options: `count(tolerance=1)` is a verifier, and `count` itself works like `count()`.

    Args:
        make: Makes the verifier from its options, all of which have defaults and annotations.
    """

    def __init__(self, make: Callable[P, Verifier]) -> None:
        for name in WRAPPER_ASSIGNMENTS:  # without the `__wrapped__` of `wraps`, as the signature differs
            setattr(self, name, getattr(make, name, None))
        self.__name__: str = make.__name__
        self._make = make
        self._default = cache(lambda: make())  # type: ignore[call-arg]
        self._types = cache(lambda: _option_types(make))  # late: it takes longer than the import

    @overload
    def __call__(self, prompt: Prompt, completion: Completion, /) -> float | Score: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, *args: P.args, **options: P.kwargs) -> Verifier: ...
    def __call__(self, *args: Any, **options: Any) -> Any:
        if len(args) == 2 and not options:
            return self._default()(*args)
        if args:
            raise ValueError(
                f"{self.__name__} takes a prompt and a completion, or options by name, got {len(args)} values"
            )
        verifier = self._made(options)
        verifier.__name__ = self.__name__
        return verifier

    def _made(self, options: Mapping[str, Any]) -> Verifier:
        """Returns the verifier with these options. Its own checks come first, as they say more than that of types."""
        try:
            verifier = self._make(**options)  # type: ignore[call-arg]
        except (TypeError, AttributeError):
            self._check(options)
            raise
        self._check(options)
        return verifier

    def _check(self, options: Mapping[str, Any]) -> None:
        types = self._types() if options else {}
        for name, value in options.items():
            if name not in types:
                raise ValueError(f"{self.__name__} has no option {name!r}; {_nearest(name, list(types))}") from None
            if not _fits(value, types[name]):
                wanted = f"{name} of {self.__name__} must be {_in_words(types[name])}"
                raise ValueError(f"{wanted}, got {value!r:.100} ({type(value).__name__})") from None

    def __reduce__(self) -> str:
        return self.__name__  # pickled by reference, as a function is


def with_options(make: Callable[P, Verifier]) -> WithOptions[P]:
    """Decorates a function that makes a verifier, so that it is itself a verifier with the default options.

    ```python
    @with_options
    def count(*, tolerance: int = 0) -> Verifier:
        def verify(prompt, completion): ...
        return verify
    ```

    A call with an unknown option, or with a value that does not fit its annotation, raises a ValueError.
    """
    return WithOptions(make)


def _option_types(make: Callable[..., Any]) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(make).items() if name != "return"}


def _nearest(name: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"give {' or '.join(map(repr, known))}"


def _fits(value: object, hint: Any) -> bool:
    """Returns whether a value fits an annotation: a whole number is a `float`, too; a boolean is no number."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in args)
    if hint is Any:
        return True
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if origin is tuple:
        args = args[:1] * len(value) if args[-1:] == (...,) and isinstance(value, tuple) else args
        return isinstance(value, tuple) and len(value) == len(args) and all(map(_fits, value, args))
    if not isinstance(value, origin or hint):
        return False
    if origin is Mapping:
        return all(_fits(key, args[0]) and _fits(each, args[1]) for key, each in value.items())
    if origin is Sequence:
        return not isinstance(value, str) and all(_fits(each, args[0]) for each in value)
    return True


def _in_words(hint: Any) -> str:
    """Returns an annotation in plain words: `a number or None`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, args))
    if origin is tuple:
        return f"a tuple ({', '.join('...' if each is ... else _in_words(each) for each in args)})"
    if origin is Mapping:
        return f"a mapping from {_in_words(args[0])} to {'anything' if args[1] is Any else _in_words(args[1])}"
    if origin is Sequence:
        return f"a list of which each is {_in_words(args[0])}"
    return _WORDS.get(hint) or f"of type {getattr(hint, '__name__', hint)}"
