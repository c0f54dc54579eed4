"""Regular expressions that cost nothing until they are used."""

from __future__ import annotations

import re
from typing import Any


class Pattern:
    """What `re.compile` gives, compiled at its first use: the verifiers' expressions would make half of `import rewards`."""

    def __init__(self, source: str, flags: int = 0) -> None:
        self._source, self._flags = source, flags

    def __getattr__(self, name: str) -> Any:
        return getattr(re.compile(self._source, self._flags), name)  # `re` remembers what it has compiled
