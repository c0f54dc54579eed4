"""Regular expressions that are compiled at their first use."""

from __future__ import annotations

import re
from typing import Any


class Pattern:
    """A compiled expression, made at its first use: compiling all of them would double the time of `import rewards`."""

    def __init__(self, source: str, flags: int = 0) -> None:
        self._source, self._flags = source, flags

    def __getattr__(self, name: str) -> Any:
        value = getattr(re.compile(self._source, self._flags), name)
        setattr(self, name, value)  # found without this function from now on
        return value
