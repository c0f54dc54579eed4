"""Names of things in a picture: `a black cat`, `cat on the left` and `cat` name the same, `dog` does not."""

from __future__ import annotations

from collections.abc import Collection

from rewards.text.answer_text import normalised
from rewards.text.patterns import Pattern

LONGEST = 300  # characters that are read

_WORDS = Pattern(r"[^\W_]+")
_NUMBERS = Pattern(r"\d{1,9}")
_NEGATIONS = ("no", "not", "non", "without")
_SENTENCE = Pattern(r"[\n.!?。！？]")
_SCRIPTS_WITHOUT_BLANKS = Pattern(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_ARTICLES = frozenset("a an the this that these those one some my his her its their our your".split())
_AFTER_NOUN = frozenset(  # begin what follows a noun: "the cat on the sofa", "the man who waves"
    "of on in at with without by near next behind under below above over between beside to from for and or is are that which"
    " who whose wearing holding sitting standing lying riding walking running looking facing sleeping eating playing parked"
    " closest nearest located left right while inside outside".split()
)
_IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "feet": "foot"}


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3 else word


def _noun_phrase(label: str) -> list[str]:
    """Returns the words of a name up to its noun, articles excluded: `a black cat on the sofa` gives `black`, `cat`."""
    words = [word for word in _WORDS.findall(label[:LONGEST].casefold()) if word not in _ARTICLES]
    words = [word for word in words if not word.isdecimal()] or words
    for place, word in enumerate(words):
        # A first word is an adjective, as in "left hand" and "standing woman".
        if place and word in _AFTER_NOUN:
            return [_singular(word) for word in words[:place]]
    return [_singular(word) for word in words]


def agreement(label: str, wanted: str) -> float:
    """Returns the similarity of two names: 0 for different things, more for more words in common, and most for the same name."""
    label, wanted = normalised(label).strip(" .。'\"*`"), normalised(wanted).strip(" .。'\"*`")
    if label == wanted:
        return float(LONGEST)
    if not label or not wanted:
        return 0.0
    if _SCRIPTS_WITHOUT_BLANKS.search(wanted):
        return float(min(len(label), len(wanted)) if label.endswith(wanted) or wanted.endswith(label) else 0)
    numbers = set(_NUMBERS.findall(label)), set(_NUMBERS.findall(wanted))
    said, meant = _noun_phrase(label), _noun_phrase(wanted)
    if all(numbers) and numbers[0] != numbers[1]:
        return 0.0  # `player 1` is not `player 2`
    if not said or not meant or (said[0] in _NEGATIONS) != (meant[0] in _NEGATIONS) or said[-1] != meant[-1]:
        return 0.0
    if said[:-1] and meant[:-1] and not set(said[:-1]) & set(meant[:-1]):
        return 0.0  # a white cat is no black cat
    return float(len(set(_WORDS.findall(label)) & set(_WORDS.findall(wanted))) or 1)


def named_by(label: str, names: Collection[str]) -> str | None:
    """Returns the one of some names that a label means; `None` if it means none of them, or several alike."""
    worth = {name: agreement(label, name) for name in names}
    best = max(worth.values(), default=0.0)
    meant = [name for name, value in worth.items() if value == best]
    return meant[0] if best and len(meant) == 1 else None


def first_named_in(text: str, names: Collection[str]) -> str | None:
    """Returns the one of some names that the last sentence with any of them mentions first."""
    for sentence in reversed(_SENTENCE.split(text)):
        words = normalised(sentence)
        places = {name: place for name in names if (place := _place(words, normalised(name))) is not None}
        if places:
            return min(places, key=lambda name: (places[name], -len(name)))
    return None


def _place(text: str, name: str) -> int | None:
    if _SCRIPTS_WITHOUT_BLANKS.search(name):
        place = text.find(name)
        return place if place >= 0 else None
    phrase = _noun_phrase(name)
    words = [(match.start(), _singular(match.group())) for match in _WORDS.finditer(text)]
    for i in range(len(words) - len(phrase) + 1):
        if phrase and [word for _, word in words[i : i + len(phrase)]] == phrase:
            return words[i][0]
    return None
