"""Language identification of prose, without formulas and programs."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any

from rewards.text.language_names import language_code
from rewards.text.patterns import Pattern

READ = 8000  # characters that are read: half of them at the beginning, half at the end
SURE = 0.8  # from this probability on, a text is surely in a language
PIECE = 24  # characters of a piece of a text; the language of shorter ones cannot be identified
GUESS = 0.5  # from this probability of related languages on, a text is in none that had no probability
POSSIBLE = 0.1  # from this probability on, a text may be in a language

_NO_LANGUAGE = Pattern(
    r"(?P<code>```.*?(?:```|\Z)|`[^`]{0,400}`|\$\$.{0,800}?\$\$|\$[^$]{0,400}\$|\\\(.{0,800}?\\\)|\\\[.{0,800}?\\\])|https?://[^\s\u3000-\u9fff]+"
    r"|</?[A-Za-z|!][\w|-]{0,30}(?:\s+[\w-]{1,30}\s*=[^<>]{0,60})?/?>"
    r"|\\[A-Za-z]+|[A-Za-z0-9.-]*[\d_=/\\@#{}\[\]^][^\s\u3000-\u9fff]*",
    re.DOTALL,
)
_COMMAND = Pattern(r"\\[A-Za-z]+")
_COMMENT = Pattern(r"\s*(?:#|//|--|/?\*|%)")
_CODE_LINE = Pattern(r".*[=;<>|\[\]{}()].*|\A```[^\n]*")
_PROSE = Pattern(  # six words, or eight letters of a script without blanks
    r"[^\W\d_]{1,40}(?:[ ,.'’;:!?-]{1,2}[^\W\d_]{1,40}){5,}|[\u0e00-\u0eff\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uff20]{8,}"
)
_QUOTED = Pattern(
    r"\"[^\"\n]{1,60}\"|“[^”\n]{1,60}”|「[^」\n]{1,60}」|『[^』\n]{1,60}』|《[^》\n]{1,60}》|«[^»\n]{1,60}»"
)
_UNIT = Pattern(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[A-Za-z\u00c0-\u052f\u0590-\u0dff]+")
_OTHER_LETTERS = Pattern(r"[\u0400-\u052f\u0590-\u10ff\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_LATIN = Pattern(r"[A-Za-z\u00c0-\u024f]{1,40}(?:[ ,.'’;:!?\n-]{1,2}[A-Za-z\u00c0-\u024f]{1,40}){3,}")
_RELATED = (  # languages that short texts do not tell apart
    "zh yue wuu",
    "id ms jv ace",
    "no nb nn da sv fo",
    "ar ary arz",
    "fa ps ur ug sdh",
    "ru uk be bg mk",
    "kk ky tt ba tg mn",
    "hr sr bs sl",
    "cs sk",
    "es ext an gl ca oc",
    "pt gl",
    "it lij vec la",
    "fr wa oc gcr gcf",
    "de lb nl af fy",
    "en pcm",
    "hi mr ne sa",
    "tr az crh tk",
    "fi et",
)
_SCRIPTS = (
    ("zh yue wuu", "CJK"),
    ("ja", "CJK HIRAGANA KATAKANA"),
    ("ko", "HANGUL CJK"),
    ("ru uk be bg mk kk ky tt ba mn", "CYRILLIC"),
    ("ar ary arz fa ps ur ug", "ARABIC"),
    ("he", "HEBREW"),
    ("hi mr ne sa", "DEVANAGARI"),
    ("th", "THAI"),
    ("el", "GREEK"),
)
_SAME = ("zh yue wuu", "no nb nn", "ar ary arz", "hr sr bs", "id ms", "en pcm")  # written alike, or by the same people
_ANYWHERE = frozenset("LATIN GREEK MATHEMATICAL FULLWIDTH MODIFIER SUPERSCRIPT SUBSCRIPT DOUBLE-STRUCK SCRIPT".split())
"""Alphabets of formulas and names, which occur in texts of every language."""


def prose_of(text: str) -> str:
    """Returns the text without formulas, programs, addresses, tags and numbers; sentences inside formulas and programs stay."""
    if len(text) > READ:
        text = text[: READ // 2] + "\n" + text[-READ // 2 :]
    return _NO_LANGUAGE.sub(lambda match: f" {_hidden_prose(match['code'])} " if match["code"] else " ", text)


def _hidden_prose(code: str) -> str:
    """Returns the sentences of a formula or program. In programs, lines with signs of code are none, nor are comments in English.

    In scripts without blanks, long texts are sentences even there.
    """
    if not code.startswith("```"):
        return ". ".join(_PROSE.findall(_COMMAND.sub(" ", code).strip("`$\\()[]")))
    found, comments = [], []
    for line in code.strip("`").split("\n")[1:]:
        runs = _PROSE.findall(line)
        if _COMMENT.match(line):
            comments += runs
        else:
            found += [run for run in runs if not _CODE_LINE.fullmatch(line) or len(run.split()) == 1]
    if comments and likely_languages(". ".join(comments)).get("en", 0.0) < POSSIBLE:
        found += comments
    return ". ".join(found)


def without_quotations(prose: str) -> str:
    """Returns prose without what it quotes, unless it does little else."""
    rest = _QUOTED.sub(" ", prose)
    return rest if 3 * len(_UNIT.findall(rest)) >= len(_UNIT.findall(prose)) else prose


def known_language(name: Any) -> str:
    """Returns a language's code as the identifier has it, see `language_names.language_code`.

    Raises:
        ValueError: It is no known language; the message says what to give.
    """
    code = language_code(name)
    if code is None:
        forms = "its code of ISO 639 ('de'), a tag ('de-AT'), or its name in English or in itself ('German', 'Deutsch')"
        raise ValueError(f"{name!r:.100} is no known language: give {forms}")
    return code


def likely_languages(prose: str) -> dict[str, float]:
    """Returns the languages (ISO 639-1 codes, where they exist) with a probability above 1 %, the likeliest first."""
    if not any(map(str.isalpha, prose)):
        return {}
    # The identifier encodes the text, and lone surrogates cannot be encoded.
    ranked = _identifier().rank(prose.encode(errors="replace").decode())
    return {language: float(probability) for language, probability in ranked[:20] if probability > 0.01}


def possible_languages(prose: str) -> frozenset[str]:
    """Returns the languages that a text may be in; empty if none is likely.

    Related languages share the probability of a short text, so they are added up: `图中有几只狗？` is in one of three.
    """
    likely = likely_languages(prose)
    for language, probability in likely.items():
        if probability >= SURE:
            return _relatives(language, _SAME)
    sums = {language: sum(likely.get(other, 0.0) for other in _relatives(language, _RELATED)) for language in likely}
    best = max(sums, key=lambda language: sums[language], default=None)
    if best is None or sums[best] < GUESS:
        return frozenset()
    if sums[best] < SURE:
        return frozenset(likely)
    related = [other for other in _relatives(best, _RELATED) if likely.get(other, 0.0) >= POSSIBLE]
    return frozenset(same for other in related for same in _relatives(other, _SAME))


def is_in(prose: str, language: str | frozenset[str]) -> bool:
    """Returns whether prose may be in one of some languages, which is so unless it is surely in another one."""
    wanted = _relatives(language, _SAME) if isinstance(language, str) else language
    likely = likely_languages(prose)
    if sum(likely.get(each, 0.0) for each in wanted) >= POSSIBLE:
        return True
    surest = max((sum(likely.get(other, 0.0) for other in _relatives(each, _SAME)) for each in likely), default=0.0)
    return surest < SURE


def _relatives(language: str, groups: tuple[str, ...]) -> frozenset[str]:
    return frozenset([language, *(other for group in groups if language in group.split() for other in group.split())])


def foreign_share(prose: str, language: str | frozenset[str]) -> float:
    """Returns the share of the pieces of prose that are surely in another language than one of some."""
    pieces = _pieces(prose)
    foreign = sum(len(piece) for piece in pieces if not is_in(piece, language))
    return foreign / max(1, sum(map(len, pieces)))


def _pieces(prose: str) -> list[str]:
    """Splits prose after sentences and lines, into pieces that are long enough to identify their language."""
    latin = _LATIN.findall(prose) if _OTHER_LETTERS.search(prose) else []
    if latin:  # between other letters, Latin words would be identified by these
        prose = _LATIN.sub(" ", prose)
    pieces = [""]
    for sentence in re.split(r"(?<=[.!?。！？\n])\s*", prose):
        pieces[-1] += f" {sentence}"
        if len(pieces[-1]) >= PIECE:
            pieces.append("")
    if len(pieces) > 1 and len(pieces[-1]) < PIECE:
        rest = pieces.pop()
        pieces[-1] += rest
    return pieces + latin


def is_written_as(prose: str, language: str) -> bool:
    """Returns whether most letters of a text are of the language's script; True for scripts that are not known here."""
    scripts = next((scripts.split() for names, scripts in _SCRIPTS if language in names.split()), None)
    counts = alphabets(prose)
    return scripts is None or 2 * sum(counts[name] for name in scripts) >= counts.total() > 0


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
