"""Language identification of prose, without formulas and programs."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any

from rewards.text.patterns import Pattern

READ = 8000  # characters that are read: half of them at the beginning, half at the end
SURE = 0.8  # from this probability on, a text is surely in a language
POSSIBLE = 0.1  # from this probability on, a text may be in a language

_NO_LANGUAGE = Pattern(
    r"```.*?```|`[^`]{0,200}`|\$\$.{0,500}?\$\$|\$[^$]{0,200}\$|\\\(.{0,500}?\\\)|\\\[.{0,500}?\\\]|https?://\S+|<[^<>]{0,40}>"
    r"|\\[A-Za-z]+|[\w.-]*[\d_=/\\@#{}\[\]^][^\s\u3000-\u9fff]*",
    re.DOTALL,
)
_ANYWHERE = frozenset("LATIN GREEK MATHEMATICAL FULLWIDTH MODIFIER SUPERSCRIPT SUBSCRIPT DOUBLE-STRUCK SCRIPT".split())
"""Alphabets of formulas and names, which occur in texts of every language."""


def prose_of(text: str) -> str:
    """Returns the text without formulas, programs, addresses, tags and numbers."""
    if len(text) > READ:
        text = text[: READ // 2] + "\n" + text[-READ // 2 :]
    return _NO_LANGUAGE.sub(" ", text)


def likely_languages(prose: str) -> dict[str, float]:
    """Returns the languages (ISO 639-1 codes, where they exist) with a probability above 1 %, the likeliest first."""
    if not any(map(str.isalpha, prose)):
        return {}
    # The identifier encodes the text, and lone surrogates cannot be encoded.
    ranked = _identifier().rank(prose.encode(errors="replace").decode())
    return {language: float(probability) for language, probability in ranked[:20] if probability > 0.01}


def is_in(prose: str, language: str) -> bool:
    """Returns whether prose may be in a language, which is so unless it is surely in another one."""
    likely = likely_languages(prose)
    return max(likely.values(), default=0.0) < SURE or likely.get(language, 0.0) >= POSSIBLE


def alphabets(text: str) -> Counter[str]:
    """Returns the number of letters of each alphabet (`LATIN`, `CYRILLIC`, `CJK`, `HIRAGANA`, …)."""
    names = (unicodedata.name(letter, "") for letter in text if letter.isalpha())
    return Counter(name.split(" ")[0].split("-")[0] for name in names if name)


def foreign_alphabets(text: str, like: str) -> float:
    """Returns the share of letters in alphabets that the text `like` does not have; alphabets of formulas do not count."""
    counts, known = alphabets(text), _ANYWHERE | alphabets(like).keys()
    return sum(count for name, count in counts.items() if name not in known) / max(1, counts.total())


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
