"""Regular expressions that are compiled at their first use."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any


class Pattern:
    """A compiled expression, made at its first use: compiling all of them would double the time of `import rewards`."""

    def __new__(cls, source: str, flags: int = 0) -> Pattern:
        return _pattern(source, int(flags))

    def __init__(self, source: str, flags: int = 0) -> None:
        self._source, self._flags = source, flags

    def __getattr__(self, name: str) -> Any:
        value = getattr(re.compile(self._source, self._flags), name)
        setattr(self, name, value)  # found without this function from now on
        return value


@lru_cache(maxsize=1024)  # a pattern that is made in a call is the same in the next one
def _pattern(source: str, flags: int) -> Pattern:
    return object.__new__(Pattern)
