"""Similarity of prompts: pictures are compared by perceptual hash, texts by word n-grams.

Shape suffixes: N prompts, K pictures of each.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from rollout.types import Prompt

if TYPE_CHECKING:
    from datasketch import MinHash

Gram: TypeAlias = tuple[str, ...]
"""n words in a row, or all words of a shorter text."""

NUM_PERMUTATIONS = 128
"""Permutations of a MinHash. Candidates are found at 7/10 of the threshold and then compared exactly. There are no false
matches, and fewer than one in a thousand pairs right at the threshold is missed."""
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
# A word of letters and digits, a letter of a script without spaces, or a sign that changes what a formula says.
_WORD = re.compile(rf"[^\W_{_CJK}]+|[{_CJK}]|[-+*/=<>^|√π]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """The features of a prompt that are compared."""

    words: tuple[str, ...]
    """Words of the text, in lower case."""
    pictures: tuple[int, ...]
    """[K] 64-bit perceptual hashes of each image, and of the first, middle and last frame of each video."""


def fingerprint_of(prompt: Prompt) -> Fingerprint:
    """Returns the words of a prompt's text and the hashes of its pictures; system messages, always the same, are left out."""
    text = " ".join(_texts(prompt))
    frames = [video.frames[i] for video in prompt.videos for i in (0, len(video.frames) // 2, -1)]
    pictures = (*prompt.images, *map(Image.fromarray, frames))
    return Fingerprint(words=words_of(text), pictures=tuple(map(perceptual_hash, pictures)))


def _texts(prompt: Prompt) -> Iterator[str]:
    for message in prompt.messages:
        content = message.get("content")
        if message["role"] != "system" and content:
            yield from [content] if isinstance(content, str) else [part.get("text") or "" for part in content]


def words_of(text: str) -> tuple[str, ...]:
    """Returns the words of a text in lower case. Arithmetic signs and single CJK letters are words, punctuation is not."""
    return tuple(_WORD.findall(text.casefold()))


def perceptual_hash(image: Image.Image) -> int:
    """Returns 64 signs of a picture's lowest frequencies, which scaling, compression and small edits preserve."""
    import imagehash  # late: importing it takes a sixth of a second

    return int(str(imagehash.phash(image)), 16)


def grams_of(words: Sequence[str], n: int) -> list[Gram]:
    """Returns every n words in a row. A shorter text is one gram; an empty text has none."""
    if not words:
        return []
    return [tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]


def jaccard(first: Set[Gram], second: Set[Gram]) -> float:
    """Returns the share of all grams that both have; 1 for two empty texts."""
    return len(first & second) / len(first | second) if first or second else 1.0


def common_grams(texts: Iterable[Sequence[str]], n: int) -> set[Gram]:
    """Returns boilerplate grams: those in more than 10 different texts and in more than a hundredth of them."""
    different = set(map(tuple, texts))
    counts = Counter(gram for words in different for gram in set(grams_of(words, n)))
    return {gram for gram, count in counts.items() if count > max(10, len(different) // 100)}


class Duplicates:
    """The prompts kept so far; each new one is compared with them."""

    def __init__(self, num_words: int, similarity: float, num_bits: int) -> None:
        """Starts without prompts.

        Args:
            num_words: Words of a gram.
            similarity: Smallest share of common grams (Jaccard) of equal texts.
            num_bits: Most of 64 bits in which equal pictures differ.
        """
        from datasketch import MinHashLSH  # late: importing it takes half a second

        self._num_words, self._similarity, self._num_bits = num_words, similarity, num_bits
        self._kept: list[tuple[frozenset[Gram], str | None]] = []
        self._texts = MinHashLSH(threshold=0.7 * similarity, num_perm=NUM_PERMUTATIONS)
        self._pictures: dict[int, _PictureList] = {}

    def first_like(self, fingerprint: Fingerprint, answer: str | None) -> int | None:
        """Finds the first kept prompt with equal text, equal pictures and the same answer; keeps the new prompt if there is none.

        Prompts with different answers are never duplicates: such similar pairs train attention to detail.

        Returns:
            The kept prompt's number, counted from 0 in order of keeping; None if the new prompt is kept.
        """
        grams = frozenset(grams_of(fingerprint.words, self._num_words))
        if fingerprint.pictures:
            hashes = self._pictures.setdefault(len(fingerprint.pictures), _PictureList(len(fingerprint.pictures)))
            candidates = hashes.near(fingerprint.pictures, self._num_bits)
            keep = partial(hashes.append, fingerprint.pictures)
        else:
            sketch = _sketch(grams)
            candidates = sorted(self._texts.query(sketch))
            keep = partial(self._texts.insert, minhash=sketch)
        for number in candidates:
            kept_grams, kept_answer = self._kept[number]
            if answer == kept_answer and jaccard(grams, kept_grams) >= self._similarity:
                return number
        keep(len(self._kept))
        self._kept.append((grams, answer))
        return None


def _sketch(grams: Iterable[Gram]) -> MinHash:
    from datasketch import MinHash

    sketch = MinHash(NUM_PERMUTATIONS)
    sketch.update_batch([" ".join(gram).encode() for gram in grams])
    return sketch


class _PictureList:
    """The hashes of all prompts with K pictures, in a growing array."""

    def __init__(self, num_pictures: int) -> None:
        self._numbers: list[int] = []
        self._hashes_NK = np.zeros((64, num_pictures), np.uint64)

    def append(self, pictures: Sequence[int], number: int) -> None:
        if len(self._numbers) == len(self._hashes_NK):
            self._hashes_NK = np.concatenate([self._hashes_NK, np.zeros_like(self._hashes_NK)])
        self._hashes_NK[len(self._numbers)] = pictures
        self._numbers.append(number)

    def near(self, pictures: Sequence[int], num_bits: int) -> list[int]:
        """Returns the numbers of prompts whose pictures all differ by at most `num_bits` from those at the same place."""
        differing = np.bitwise_count(self._hashes_NK[: len(self._numbers)] ^ np.array(pictures, np.uint64))
        return [self._numbers[i] for i in np.flatnonzero((differing <= num_bits).all(1))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """An evaluation prompt that matches a query."""

    number: int
    """Number of the evaluation prompt."""
    picture_bits: int | None
    """Bits of 64 in which the matching pictures differ; None if the text matched."""
    overlap: float
    """Share of the evaluation prompt's text, without boilerplate, that is in the query's text."""


class EvaluationPrompts:
    """Index of evaluation prompts, which must not be trained on."""

    def __init__(
        self, fingerprints: Sequence[Fingerprint], common: Set[Gram], *, num_words: int, overlap: float, num_bits: int
    ) -> None:
        """Builds the index.

        Args:
            fingerprints: One for each evaluation prompt.
            common: Boilerplate grams of num_words words.
            num_words: Words of a gram.
            overlap: Smallest share of an evaluation prompt's words that must be found.
            num_bits: Most of 64 bits in which equal pictures differ.
        """
        self._fingerprints, self._common = fingerprints, common
        self._num_words, self._overlap, self._num_bits = num_words, overlap, num_bits
        self._prompts_with: dict[Gram, list[int]] = defaultdict(list)
        for number, fingerprint in enumerate(fingerprints):
            for gram in set(grams_of(fingerprint.words, num_words)) - common:
                self._prompts_with[gram].append(number)
        hashes = [(hash_, number) for number, fingerprint in enumerate(fingerprints) for hash_ in fingerprint.pictures]
        self._pictures = np.array([hash_ for hash_, _ in hashes], np.uint64)
        self._prompt_of_picture = [number for _, number in hashes]

    def find(self, fingerprint: Fingerprint) -> Match | None:
        """Finds a match by any picture, with any text, or by text.

        A text of fewer than num_words words does not match if both prompts have pictures: many pictures have the question "what is
        x?".
        """
        return self._by_picture(fingerprint) or self._by_text(fingerprint)

    def _by_picture(self, fingerprint: Fingerprint) -> Match | None:
        for picture in fingerprint.pictures if len(self._pictures) else ():
            differing = np.bitwise_count(self._pictures ^ np.uint64(picture))
            if (bits := int(differing.min())) <= self._num_bits:
                number = self._prompt_of_picture[int(differing.argmin())]
                return Match(number=number, picture_bits=bits, overlap=self._overlap_with(number, fingerprint))
        return None

    def _by_text(self, fingerprint: Fingerprint) -> Match | None:
        grams = set(grams_of(fingerprint.words, self._num_words))
        shared = Counter(number for gram in grams for number in self._prompts_with.get(gram, ()))
        for number, _ in shared.most_common():
            is_short = len(fingerprint.words) < self._num_words
            if is_short and fingerprint.pictures and self._fingerprints[number].pictures:
                continue
            if (overlap := self._overlap_with(number, fingerprint)) >= self._overlap:
                return Match(number=number, picture_bits=None, overlap=overlap)
        return None

    def _overlap_with(self, number: int, fingerprint: Fingerprint) -> float:
        """Returns the share of an evaluation prompt's words, without boilerplate grams, that lie in grams of the query."""
        grams = set(grams_of(fingerprint.words, self._num_words))
        content, shared = set[int](), set[int]()
        for place, gram in enumerate(grams_of(self._fingerprints[number].words, self._num_words)):
            if gram not in self._common:
                content.update(range(place, place + len(gram)))
                if gram in grams:
                    shared.update(range(place, place + len(gram)))
        return len(shared) / len(content) if content else 0.0
