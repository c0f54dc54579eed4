"""Which language a text is in, formulas and programs aside."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any

from rewards.text.patterns import Pattern

READ = 8000  # characters that are looked at: half of them at the beginning, half at the end
SURE = 0.8  # a probability from which on a text counts as being in a language
POSSIBLE = 0.1  # and down to which it may be

_NO_LANGUAGE = Pattern(
    r"```.*?```|`[^`]{0,200}`|\$\$.{0,500}?\$\$|\$[^$]{0,200}\$|\\\(.{0,500}?\\\)|\\\[.{0,500}?\\\]|https?://\S+|<[^<>]{0,40}>"
    r"|\\[A-Za-z]+|[\w.-]*[\d_=/\\@#{}\[\]^][^\s\u3000-\u9fff]*",
    re.DOTALL,
)
_ANYWHERE = frozenset("LATIN GREEK MATHEMATICAL FULLWIDTH MODIFIER SUPERSCRIPT SUBSCRIPT DOUBLE-STRUCK SCRIPT".split())
"""Alphabets of formulas and names, which stand in texts of every language."""


def prose_of(text: str) -> str:
    """Returns what is left of a text without formulas, programs, addresses, tags and numbers."""
    if len(text) > READ:
        text = text[: READ // 2] + "\n" + text[-READ // 2 :]
    return _NO_LANGUAGE.sub(" ", text)


def likely_languages(prose: str) -> dict[str, float]:
    """Returns the probability of each language (ISO 639-1 where there is one) that has more than 1 %, the likeliest first."""
    if not any(map(str.isalpha, prose)):
        return {}
    # Lone halves of surrogate pairs cannot be encoded, which is what the identifier does first.
    ranked = _identifier().rank(prose.encode(errors="replace").decode())
    return {language: float(probability) for language, probability in ranked[:20] if probability > 0.01}


def is_in(prose: str, language: str) -> bool:
    """Says whether a piece of prose may be in a language: unless it is surely in another one."""
    likely = likely_languages(prose)
    return max(likely.values(), default=0.0) < SURE or likely.get(language, 0.0) >= POSSIBLE


def alphabets(text: str) -> Counter[str]:
    """Returns how many letters of each alphabet (`LATIN`, `CYRILLIC`, `CJK`, `HIRAGANA`, …) a text has."""
    names = (unicodedata.name(letter, "") for letter in text if letter.isalpha())
    return Counter(name.split(" ")[0].split("-")[0] for name in names if name)


def foreign_alphabets(text: str, like: str) -> float:
    """Returns the share of a text's letters that are of alphabets which another text has not, those of formulas aside."""
    counts, known = alphabets(text), _ANYWHERE | alphabets(like).keys()
    return sum(count for name, count in counts.items() if name not in known) / max(1, counts.total())


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
