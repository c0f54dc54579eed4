"""Verifiers with options, which work with and without a call that sets them."""

from __future__ import annotations

from collections.abc import Callable
from functools import WRAPPER_ASSIGNMENTS, cache
from typing import Any, Generic, ParamSpec, overload

from rewards.types import Score, Verifier
from rollout.types import Completion, Prompt

P = ParamSpec("P")


class WithOptions(Generic[P]):
    """A verifier with options: `count(tolerance=1)` is a verifier, and `count` itself works like `count()`.

    Args:
        make: Makes the verifier from its options, all of which have defaults.
    """

    def __init__(self, make: Callable[P, Verifier]) -> None:
        for name in WRAPPER_ASSIGNMENTS:  # without the `__wrapped__` of `wraps`, as the signature differs
            setattr(self, name, getattr(make, name, None))
        self.__name__: str = make.__name__
        self._make = make
        self._default = cache(lambda: make())  # type: ignore[call-arg]

    @overload
    def __call__(self, prompt: Prompt, completion: Completion, /) -> float | Score: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, *args: P.args, **options: P.kwargs) -> Verifier: ...
    def __call__(self, *args: Any, **options: Any) -> Any:
        if args:
            return self._default()(*args, **options)
        verifier = self._make(**options)  # type: ignore[call-arg]
        verifier.__name__ = self.__name__
        return verifier

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
    """
    return WithOptions(make)
