"""Finding the final answer in the text of a response."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is read as one token, and so never counts as a brace


def normalised(text: str) -> str:
    """Returns the text in lower case, without outer white space, every inner run of white space as one blank."""
    return " ".join(text.split()).casefold()


def last_boxed(text: str) -> str | None:
    r"""Returns what the last `\boxed{...}` holds.

    Returns:
        The content; `""` for a box that is not closed (the response was cut inside it); `None` where there is no box.
    """
    start = None
    for match in _BOX.finditer(text):
        start = match.end()
    if start is None:
        return None
    depth = 1
    for token in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return text[start : token.start()].strip()
    return ""
