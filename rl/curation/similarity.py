"""When two questions are the same: their pictures by perceptual hash, their texts by the n-grams of their words.

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
"""n words in a row; the words of a shorter text, all of them."""

NUM_PERMUTATIONS = 128
"""Of a MinHash. Candidates are looked for at 7/10 of the similarity that counts, and then compared exactly: none is made up, and of
pairs right at the threshold less than one in a thousand is missed."""
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
# A word of letters and digits, a letter of a script without spaces, or a sign that changes what a formula says.
_WORD = re.compile(rf"[^\W_{_CJK}]+|[{_CJK}]|[-+*/=<>^|√π]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What similarity is judged by.

    Attributes:
        words: The text's, in lower case.
        pictures: [K] a 64-bit perceptual hash of each image, and of the first, middle and last frame of each video.
    """

    words: tuple[str, ...]
    pictures: tuple[int, ...]


def fingerprint_of(prompt: Prompt) -> Fingerprint:
    """Reads a prompt's text (system messages aside, they are the same everywhere) and hashes its pictures."""
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
    """The words of a text in lower case: punctuation is none, a sign of arithmetic is, and so is each letter of Chinese."""
    return tuple(_WORD.findall(text.casefold()))


def perceptual_hash(image: Image.Image) -> int:
    """64 bits that a picture keeps when it is scaled, compressed or slightly retouched: the signs of its lowest frequencies."""
    import imagehash  # late: it takes a sixth of a second

    return int(str(imagehash.phash(image)), 16)


def grams_of(words: Sequence[str], n: int) -> list[Gram]:
    """Every n words in a row; a shorter text is one gram, an empty one has none."""
    if not words:
        return []
    return [tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]


def jaccard(ours: Set[Gram], theirs: Set[Gram]) -> float:
    """The share of all grams that both have; two empty texts are alike."""
    return len(ours & theirs) / len(ours | theirs) if ours or theirs else 1.0


def common_grams(texts: Iterable[Sequence[str]], n: int) -> set[Gram]:
    """Grams that are wording, not content: those in more than 10 different texts, and in more than a hundredth of them."""
    different = set(map(tuple, texts))
    counts = Counter(gram for words in different for gram in set(grams_of(words, n)))
    return {gram for gram, count in counts.items() if count > max(10, len(different) // 100)}


class Duplicates:
    """Prompts one after the other, of which each is compared with those that were kept before it."""

    def __init__(self, num_words: int, similarity: float, num_bits: int) -> None:
        """Starts with none.

        Args:
            num_words: Words of a gram.
            similarity: From this share of common grams on (Jaccard) two texts are alike.
            num_bits: Two pictures are alike that differ in so many of 64 bits at most.
        """
        from datasketch import MinHashLSH  # late: it takes half a second

        self._num_words, self._similarity, self._num_bits = num_words, similarity, num_bits
        self._kept: list[tuple[frozenset[Gram], str | None]] = []
        self._texts = MinHashLSH(threshold=0.7 * similarity, num_perm=NUM_PERMUTATIONS)
        self._pictures: dict[int, _PictureList] = {}

    def first_like(self, fingerprint: Fingerprint, answer: str | None) -> int | None:
        """Finds the first prompt that is the same: alike in text, alike in every picture, and of the same answer.

        With another answer it is another question, however like the rest: such pairs teach to look closely.

        Returns:
            Its number, counted from 0 in the order in which prompts were kept. None where there is none; this one is then kept.
        """
        grams = frozenset(grams_of(fingerprint.words, self._num_words))
        if fingerprint.pictures:
            shown = self._pictures.setdefault(len(fingerprint.pictures), _PictureList(len(fingerprint.pictures)))
            candidates = shown.near(fingerprint.pictures, self._num_bits)
            keep = partial(shown.append, fingerprint.pictures)
        else:
            sketch = _sketch(grams)
            candidates = sorted(self._texts.query(sketch))
            keep = partial(self._texts.insert, minhash=sketch)
        for number in candidates:
            theirs, their_answer = self._kept[number]
            if answer == their_answer and jaccard(grams, theirs) >= self._similarity:
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
    """The hashes of prompts that have equally many pictures, in an array that grows."""

    def __init__(self, num_pictures: int) -> None:
        self._numbers: list[int] = []
        self._hashes_NK = np.zeros((64, num_pictures), np.uint64)

    def append(self, pictures: Sequence[int], number: int) -> None:
        if len(self._numbers) == len(self._hashes_NK):
            self._hashes_NK = np.concatenate([self._hashes_NK, np.zeros_like(self._hashes_NK)])
        self._hashes_NK[len(self._numbers)] = pictures
        self._numbers.append(number)

    def near(self, pictures: Sequence[int], num_bits: int) -> list[int]:
        """The numbers of those whose every picture is within some bits of the one in its place."""
        differing = np.bitwise_count(self._hashes_NK[: len(self._numbers)] ^ np.array(pictures, np.uint64))
        return [self._numbers[i] for i in np.flatnonzero((differing <= num_bits).all(1))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A prompt that is in an evaluation set.

    Attributes:
        number: Of the evaluation prompt.
        picture_bits: In how many of 64 bits the pictures differ that gave it away; None where the text did.
        overlap: The share of the evaluation prompt's text, wording aside, that is in this one's.
    """

    number: int
    picture_bits: int | None
    overlap: float


class EvaluationPrompts:
    """Prompts that nothing may be trained on."""

    def __init__(
        self, fingerprints: Sequence[Fingerprint], common: Set[Gram], *, num_words: int, overlap: float, num_bits: int
    ) -> None:
        """Indexes them.

        Args:
            fingerprints: Of each evaluation prompt.
            common: Grams of num_words that are wording.
            num_words: Words of a gram: so many in a row are no coincidence.
            overlap: From this share of its words on an evaluation prompt's text counts as found.
            num_bits: Two pictures are the same that differ in so many of 64 bits at most.
        """
        self._fingerprints, self._common = fingerprints, common
        self._num_words, self._overlap, self._num_bits = num_words, overlap, num_bits
        self._having: dict[Gram, list[int]] = defaultdict(list)
        for number, fingerprint in enumerate(fingerprints):
            for gram in set(grams_of(fingerprint.words, num_words)) - common:
                self._having[gram].append(number)
        shown = [
            (picture, number) for number, fingerprint in enumerate(fingerprints) for picture in fingerprint.pictures
        ]
        self._pictures = np.array([picture for picture, _ in shown], np.uint64)
        self._of_picture = [number for _, number in shown]

    def find(self, fingerprint: Fingerprint) -> Match | None:
        """Finds a prompt: by any of its pictures, whatever is asked of it, or by its text.

        A text of fewer than num_words words gives a prompt with pictures away only to one without: "what is x?" is asked of many
        pictures.
        """
        return self._by_picture(fingerprint) or self._by_text(fingerprint)

    def _by_picture(self, fingerprint: Fingerprint) -> Match | None:
        for picture in fingerprint.pictures if len(self._pictures) else ():
            differing = np.bitwise_count(self._pictures ^ np.uint64(picture))
            if (bits := int(differing.min())) <= self._num_bits:
                number = self._of_picture[int(differing.argmin())]
                return Match(number=number, picture_bits=bits, overlap=self._overlap_with(number, fingerprint))
        return None

    def _by_text(self, fingerprint: Fingerprint) -> Match | None:
        grams = set(grams_of(fingerprint.words, self._num_words))
        shared = Counter(number for gram in grams for number in self._having.get(gram, ()))
        for number, _ in shared.most_common():
            is_short = len(fingerprint.words) < self._num_words
            if is_short and fingerprint.pictures and self._fingerprints[number].pictures:
                continue
            if (overlap := self._overlap_with(number, fingerprint)) >= self._overlap:
                return Match(number=number, picture_bits=None, overlap=overlap)
        return None

    def _overlap_with(self, number: int, fingerprint: Fingerprint) -> float:
        """Of the evaluation prompt's words that lie in grams of content: the share that lies in grams that both have."""
        ours = set(grams_of(fingerprint.words, self._num_words))
        content, shared = set[int](), set[int]()
        for place, gram in enumerate(grams_of(self._fingerprints[number].words, self._num_words)):
            if gram not in self._common:
                content.update(range(place, place + len(gram)))
                if gram in ours:
                    shared.update(range(place, place + len(gram)))
        return len(shared) / len(content) if content else 0.0
