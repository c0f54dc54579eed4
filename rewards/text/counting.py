"""Words, sentences, list items and occurrences of a word in a text, in scripts with blanks and without."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from rewards.text.patterns import Pattern

_WITHOUT_BLANKS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_BY_LETTER = Pattern(rf"[{_WITHOUT_BLANKS}]")
_HAN = Pattern(r"[\u3005-\u3007\u3400-\u9fff\uf900-\ufaff]")
_KANA = Pattern(r"[\u3040-\u30ff]")
_SYLLABLES = Pattern(
    r"[\u0e01-\u0e2e\u0e81-\u0eae\u1000-\u102a\u1780-\u17a2]"
)  # consonants of Thai, Lao, Burmese, Khmer
_WORD = Pattern(
    rf"https?://\S+|\d+(?:[.,:]\d+)*[^\W\d_]{{0,9}}|(?:[^\W\d_{_WITHOUT_BLANKS}]\.){{2,9}}"
    rf"|[^\W_{_WITHOUT_BLANKS}]+(?:['’][^\W_{_WITHOUT_BLANKS}]+)*"
    rf"(?P<parts>(?:[-‐‑][^\W_{_WITHOUT_BLANKS}]+)*)"
)
_NO_WIDTH = Pattern(r"[\u00ad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]")
_MARKUP = Pattern(r"[*_`~]+|</?(?:b|i|u|em|strong|span|mark|sub|sup|s)>")
_FENCE = Pattern(r"^[ \t]*```.*?(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_BULLET = Pattern(r"^([ \t]*)[-*+•–—·‣◦▪●○■□➤✓✔][ \t]+([^\n]*)$", re.MULTILINE)
_NUMBERED = Pattern(r"^[ \t]*\d{1,4}(?:[.)][ \t]+|、)([^\n]*)$", re.MULTILINE)
_END = Pattern(r"[.!?…]+(?=[\s\"'”’»)\]*_`]|$)|[。！？।॥؟۔։።｡!?]+")
_LAST_WORD = Pattern(r"(?:[^\W\d_]\.)*[^\W\d_]{1,12}\Z")
_LINKS = frozenset("a an and at by de for in la of on or the to up".split())  # in `state-of-the-art`
_TITLES = frozenset("dr mr mrs ms mx prof st sr jr rev gen col capt lt sgt hon vs cf bzw e.g i.e z.b d.h u.a".split())
_ABBREVIATED = frozenset(
    "etc approx inc ltd co corp dept est min max a.m p.m u.s u.k al ca usw no fig eq sec nr".split()
)

# Letters that look like Latin ones.
_ALIKE = str.maketrans(
    "аеіјорсухѕһԁԛԝгкмнтвзᴀʙᴄᴅᴇɡɢʜɪᴊᴋʟᴍɴᴏᴘʀᴛᴜᴠᴡʏᴢαενικορτυχɑορℓıϲ",
    "aeijopcyxshdqwrkmhtb3abcdegghijklmnoprtuvwyzaevikoptuxaoplic",
)
_PARTICLES = (
    "은는이가을를의에도만로와과랑나고며야요들다께",
    "에서|에게|한테|으로|이랑|부터|까지|처럼|보다|마다|조차|밖에|이나|든지|라도|이고|이며|입니다|이다|예요|이에요|이야|였다|이었다|라고|이라",
)
_AFFIXES = (  # by the first letter of a word's script: before and behind the word
    ("HANGUL", "", f"(?:[{_PARTICLES[0]}]|{_PARTICLES[1]}){{0,3}}"),
    ("ARABIC", "(?:[وف]?(?:[بكل]?(?:ال)?|لل))", "(?:ها|هما|هم|هن|ه|نا|ي|كم|ك|ين|ون|ات|ان|ة)?"),
    ("HEBREW", "[והבלמשכ]{0,3}", ""),
)


def words(text: str) -> int:
    """Returns the number of words. A Han letter is a word; kana and consonants of Thai make one by twos and threes.

    Marks without letters or digits are none. A compound (`well-known`, `mother-in-law`) is one word, unless it only joins words
    (`one-two-three`), or compounds are a third of the text.
    """
    number = 0 if text.isascii() else _letters_as_words(text := _NO_WIDTH.sub(" ", text))
    compounds, parts = 0, 0
    for word in _WORD.finditer(text):
        others = re.split("[-‐‑]", word["parts"])[1:] if word["parts"] else []
        is_joined = len(others) > 3 or (len(others) > 1 and _LINKS.isdisjoint(map(str.casefold, others)))
        number += 1 + (len(others) if is_joined else 0)
        if others and not is_joined:
            compounds, parts = compounds + 1, parts + len(others)
    return number + (parts if compounds > 2 and 3 * compounds > number else 0)


def _letters_as_words(text: str) -> int:
    return len(_HAN.findall(text)) + (len(_KANA.findall(text)) + 1) // 2 + (len(_SYLLABLES.findall(text)) + 2) // 3


def sentences(text: str) -> int:
    """Returns the number of sentences: pieces with a letter that end at a stop, or at the end of the text."""
    number, start = 0, 0
    for end in _END.finditer(text):
        if end.group() == "." and _is_abbreviated(
            text[max(start, end.start() - 24) : end.start()], text[end.end() : end.end() + 9]
        ):
            continue
        number += any(map(str.isalpha, text[start : end.start()]))
        start = end.end()
    return number + any(map(str.isalpha, text[start:]))


def _is_abbreviated(before: str, after: str) -> bool:
    """Returns whether a stop ends an abbreviation, as in `Dr. Smith`, `J. Smith`, and `e.g. one`."""
    last = _LAST_WORD.search(before)
    if last is None:
        return False
    word = last.group()
    following = after.lstrip()
    if not following:
        return False
    if word.casefold() in _TITLES or (len(word) == 1 and word.isupper() and word != "I"):
        return True
    is_short = word.casefold() in _ABBREVIATED or "." in word
    return is_short and (following[0].islower() or not following[0].isalpha())


def paragraphs(text: str) -> int:
    """Returns the number of blocks between empty lines that have a letter or a digit."""
    return sum(any(map(str.isalnum, part)) for part in re.split(r"\n[ \t]*\n", text))


def bullets(text: str) -> int:
    """Returns the number of items of bulleted lists, without those inside other items and those in programs."""
    items = [match for match in _BULLET.finditer(_FENCE.sub("", text)) if any(map(str.isalnum, match[2]))]
    outer = min((len(match[1].expandtabs(4)) for match in items), default=0)
    return sum(len(match[1].expandtabs(4)) < outer + 2 for match in items)


def numbered(text: str) -> int:
    """Returns the number of items of numbered lists."""
    return sum(any(map(str.isalnum, match[1])) for match in _NUMBERED.finditer(text))


@lru_cache(maxsize=8)
def without_disguise(text: str) -> str:
    """Returns the text in lower case, without markup, letters without width, and stray accents; full-width letters are plain."""
    if not text.isascii():
        text = _NO_WIDTH.sub("", text)
        plain = unicodedata.normalize("NFKC", text)
        text = plain if len(plain) <= 2 * len(text) else unicodedata.normalize("NFC", text)  # one letter may become 18
    text = _MARKUP.sub("", text)
    if text.isascii():
        return " ".join(text.casefold().split())
    text = "".join(letter for place, letter in enumerate(text) if not _is_stray(letter, text[max(0, place - 1)]))
    return " ".join(text.replace("\u0640", "").casefold().split())


def _is_stray(letter: str, before: str) -> bool:
    """Returns whether a letter is a vowel mark of Arabic, or an accent on a Latin letter that never has it."""
    return bool(unicodedata.combining(letter)) and (before.isascii() or "\u064b" <= letter <= "\u0652")


def occurrences(text: str, word: str, *, alike: bool) -> int:
    """Returns the number of occurrences of a word in any case: a whole word, or part of a text in scripts without blanks.

    In Korean, Arabic and Hebrew it may have particles.

    Args:
        text: The text.
        word: One word or several.
        alike: Letters of other alphabets that look alike count as the same.
    """
    plain, wanted = without_disguise(text), without_disguise(word)
    if not wanted:
        raise TypeError("a word is empty")
    if alike:
        plain, wanted = plain.translate(_ALIKE), wanted.translate(_ALIKE)
    return len(re.findall(_pattern_of(wanted), plain))


@lru_cache(maxsize=1024)  # the words of a prompt's instructions, once for its group
def _pattern_of(word: str) -> str:
    before = "" if _BY_LETTER.match(word[0]) else r"(?<!\w)"
    behind = "" if _BY_LETTER.match(word[-1]) else r"(?!\w)"
    script = unicodedata.name(word[-1], "")
    for name, prefix, suffix in _AFFIXES:
        if script.startswith(name):
            return rf"{before}{prefix}{re.escape(word)}{suffix}{behind}"
    return rf"{before}{re.escape(word)}{behind}"
