"""Lists and mappings in a response as models write them: JSON, Python, JSON5, tuples, trailing commas."""

from __future__ import annotations

from typing import Any

from rewards.text.patterns import Pattern

DEEPEST = 60  # nested brackets
LONGEST_WORD = 60  # characters of a number or a word without quotes

_CLOSING = {"[": "]", "{": "}", "(": ")"}
_BLANK = Pattern(r"[\s,;:=]*")
_BLANK_ONLY = Pattern(r"\s*")
_WORD = Pattern(r"[^\s,;:=\[\]{}()\"“”]+")
_NUMBER = Pattern(r"[+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,3})?")
_STRING_END = Pattern(r"(?=\s*[,;:=\]})]|\s*\Z)")


class Unreadable(ValueError):
    """A text with a bracket or quotation mark that has no partner, a key that occurs twice, or a number without end."""


def number_of(value: Any) -> float | None:
    """Returns a number, given as one or in quotation marks; `None` for all else."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) else None
    return float(value) if type(value) in (int, float) else None


def value_at(text: str, start: int) -> tuple[Any, int]:
    """Reads the list, tuple or mapping that begins at `start`.

    Commas may be left out or trail, quotation marks may be single, and keys have none or any. Keys come in lower case.

    Args:
        text: The text.
        start: Place of an opening bracket.

    Returns:
        The value, of lists, dictionaries, texts, numbers and `None`; and the place behind it.

    Raises:
        Unreadable: The value has no end, or is ambiguous.
    """
    return _Reader(text).bracket(start, 0)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text

    def bracket(self, start: int, depth: int) -> tuple[Any, int]:
        """Reads from an opening bracket to its partner, `depth` brackets deep."""
        if depth > DEEPEST:
            raise Unreadable("too deep")
        closing = _CLOSING[self.text[start]]
        items: list[Any] = []
        named: dict[str, Any] = {}
        place = start + 1
        while True:
            place = _BLANK.match(self.text, place).end()
            letter = self.text[place : place + 1]
            if letter == closing:
                return self._value(closing, items, named), place + 1
            if letter in ("", "]", "}", ")"):
                raise Unreadable("a bracket has no partner")
            item, place = self._item(place, depth)
            after = _BLANK_ONLY.match(self.text, place).end()
            if closing == "}" and isinstance(item, str) and self.text[after : after + 1] in (":", "="):
                key, place = item.strip().casefold(), after + 1
                place = _BLANK.match(self.text, place).end()
                if key in named:
                    raise Unreadable("a key occurs twice")
                named[key], place = self._item(place, depth)
            else:
                items.append(item)

    def _value(self, closing: str, items: list[Any], named: dict[str, Any]) -> Any:
        if closing == "}" and (named or not items):
            # Values without a key, as in `{"label": "cat", [1, 2, 3, 4]}`, must not vanish.
            return named | ({"": items} if items else {})
        return items

    def _item(self, place: int, depth: int) -> tuple[Any, int]:
        letter = self.text[place : place + 1]
        if letter in ("[", "{", "("):
            return self.bracket(place, depth + 1)
        if letter in ("'", '"', "“", "”"):
            return self._string(place, letter)
        word = _WORD.match(self.text, place)
        if not word or word.end() - place > LONGEST_WORD:
            raise Unreadable("neither a value nor a word")
        plain = word.group()
        if plain in ("null", "None", "none"):
            return None, word.end()
        number = float(plain) if _NUMBER.fullmatch(plain) else None
        return (plain if number is None else number), word.end()

    def _string(self, start: int, quote: str) -> tuple[str, int]:
        """Reads to the first quotation mark with a separator behind it, so that one inside a text does no harm."""
        ends = "“”" if quote in "“”" else quote
        place = start + 1
        while place < len(self.text):
            letter = self.text[place]
            if letter == "\\":
                place += 1
            elif letter in ends and _STRING_END.match(self.text, place + 1):
                return self.text[start + 1 : place].replace('\\"', '"').replace("\\'", "'"), place + 1
            place += 1
        raise Unreadable("a quotation mark has no partner")
