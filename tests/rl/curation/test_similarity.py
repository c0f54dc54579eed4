"""When two questions are the same, by words and by pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from rl.curation.similarity import (
    Duplicates,
    EvaluationPrompts,
    Fingerprint,
    common_grams,
    fingerprint_of,
    grams_of,
    jaccard,
    perceptual_hash,
    words_of,
)
from rollout.types import Prompt, Video

LONG = "A farmer has 17 sheep and buys 25 more on Monday and sells 9 on Friday how many sheep has he"


def fp(text: str = "", *pictures: int) -> Fingerprint:
    return Fingerprint(words=words_of(text), pictures=pictures)


def photo(name: str = "china.jpg") -> Image.Image:
    return Image.fromarray(load_sample_image(name))


def compressed(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=40)
    return Image.open(stream)


def bits(one: Image.Image, other: Image.Image) -> int:
    return (perceptual_hash(one) ^ perceptual_hash(other)).bit_count()


def test_words_are_without_case_and_punctuation_and_keep_the_signs_of_formulas() -> None:
    assert words_of('What is "x", if 3x + 5 = 11?') == ("what", "is", "x", "if", "3x", "+", "5", "=", "11")
    assert words_of("Straße, STRASSE") == ("strasse", "strasse")
    assert words_of("求x的值") == ("求", "x", "的", "值")
    assert words_of(" ?! ") == ()


def test_grams_are_runs_of_words_and_a_short_text_is_one() -> None:
    assert grams_of("a b c d".split(), 3) == [("a", "b", "c"), ("b", "c", "d")]
    assert grams_of(["a", "b"], 3) == [("a", "b")]
    assert grams_of([], 3) == []


def test_jaccard_is_the_shared_among_all() -> None:
    ours, theirs = (set(grams_of(text.split(), 2)) for text in ("a b c d", "a b c e"))
    assert jaccard(ours, theirs) == 0.5  # ab and bc are shared; cd and ce are not
    assert jaccard(set(), set()) == 1.0 and jaccard(ours, set()) == 0.0


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((200, 133)),
        compressed,
        lambda image: image.convert("L"),
        lambda image: image.point(lambda value: min(255, value + 12)),
        lambda image: image.crop((2, 2, image.width - 2, image.height - 2)),
    ],
    ids=["scaled", "compressed", "grey", "brighter", "cropped by two pixels"],
)
@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_a_picture_keeps_its_hash(name: str, change: Callable[[Image.Image], Image.Image]) -> None:
    assert bits(photo(name), change(photo(name))) <= 4


def test_another_picture_has_another_hash() -> None:
    china, flower = photo("china.jpg"), photo("flower.jpg")
    assert bits(china, flower) > 16
    assert bits(china, china.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > 16


def test_a_prompt_is_all_its_text_but_the_system_message_and_all_its_pictures() -> None:
    frames = np.stack([np.asarray(photo(name).resize((64, 64))) for name in ("china.jpg", "flower.jpg", "china.jpg")])
    prompt = Prompt(
        id="a",
        messages=[
            {"role": "system", "content": "You are helpful."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}, {"type": "video"}]},
            {"role": "assistant", "content": None, "tool_calls": [{}]},
            {"role": "user", "content": "And when?"},
        ],
        images=[photo("flower.jpg")],
        videos=[Video(frames=frames, fps=1.0, frame_indices=(0, 1, 2))],
    )
    seen = fingerprint_of(prompt)
    assert seen.words == ("where", "and", "when")
    flower, first, middle, last = seen.pictures
    assert first == last != middle and (flower ^ middle).bit_count() <= 4


def first_like(prompts: Sequence[tuple[Fingerprint, str | None]], *, num_bits: int = 4) -> list[int | None]:
    seen = Duplicates(num_words=3, similarity=0.8, num_bits=num_bits)
    return [seen.first_like(*prompt) for prompt in prompts]


def test_of_like_texts_with_the_same_answer_the_first_is_kept() -> None:
    # 20 words have 18 grams of three; another last word changes one of them: 17 of 19 are shared, .89.
    assert first_like([(fp(LONG), "33"), (fp(LONG[:-2] + "she"), "33"), (fp(LONG.upper() + "?!"), "33")]) == [
        None,
        0,
        0,
    ]


def test_the_number_is_that_among_the_kept() -> None:
    others = [(fp(f"question number {i} of quite another kind {i * i}"), "1") for i in range(3)]
    assert first_like([others[0], others[0], others[1], (fp(LONG), "2"), (fp(LONG), "2"), others[2]]) == [
        None, 0, None, None, 2, None,
    ]  # fmt: skip


def test_another_answer_makes_another_question() -> None:
    assert first_like([(fp(LONG), "33"), (fp(LONG), "34"), (fp(LONG), None), (fp(LONG), "34")]) == [
        None,
        None,
        None,
        1,
    ]


def test_fewer_shared_runs_than_asked_are_not_alike() -> None:
    # A word in the middle changes three grams: 15 of 21 are shared, .71.
    assert first_like([(fp(LONG), "33"), (fp(LONG.replace("Monday", "Sunday")), "33")]) == [
        None,
        None,
    ]


def test_pictures_and_text_must_both_be_alike() -> None:
    prompts = [
        (fp("how many red?", 0b1111), "3"),
        (fp("how many red?", 0b0000), "3"),  # four bits away
        (fp("how many red?", 0b1111 << 8), "3"),  # eight bits away
        (fp("how many blue?", 0b1111), "3"),
        (fp("how many red?"), "3"),  # no picture
        (fp("how many red?", 0b1111, 0), "3"),  # one more
        (fp("how many red?", 0b1110, 1), "3"),
    ]
    assert first_like(prompts) == [None, 0, None, None, None, None, 4]
    assert first_like(prompts[:2], num_bits=3) == [None, None]


def test_many_pictures_are_compared_beyond_the_first_array() -> None:
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(0, 2**63, 200)]
    prompts = [(fp("what?", each), "1") for each in [*hashes, *(each ^ 1 for each in hashes)]]
    assert first_like(prompts) == [None] * 200 + list(range(200))


def test_like_texts_are_found_among_many() -> None:
    rng = np.random.default_rng(1)
    texts = [" ".join(map(str, rng.integers(0, 1000, 30))) for _ in range(300)]
    copies = [text + " indeed" for text in texts]  # 28 of 29 grams are shared
    assert first_like([(fp(text), None) for text in [*texts, *copies]]) == [None] * 300 + list(range(300))


def found(ours: Fingerprint, *theirs: Fingerprint, common: Sequence[str] = ()) -> tuple[int, int | None, float] | None:
    grams = {gram for text in common for gram in grams_of(words_of(text), 3)}
    match = EvaluationPrompts(theirs, grams, num_words=3, overlap=0.5, num_bits=4).find(ours)
    return None if match is None else (match.number, match.picture_bits, match.overlap)


def test_a_picture_of_an_evaluation_set_gives_a_query_away_whatever_is_asked() -> None:
    theirs = [fp("what is shown?", 0xFF00), fp("which is larger?", 0, 0xF0F0)]
    assert found(fp("how many windows are open?", 0xF0F1), *theirs) == (1, 1, 0.0)
    assert found(fp("how many windows are open?", 0xFFFF), *theirs) is None


def test_half_of_an_evaluation_text_gives_a_query_away() -> None:
    # Of the ten words, "a b c d e" lies in three shared runs: five of ten.
    assert found(fp("so a b c d e then"), fp("a b c d e f g h i j")) == (0, None, 0.5)
    assert found(fp("so a b c d then"), fp("a b c d e f g h i j")) is None


def test_wording_is_no_content() -> None:
    ending = "answer with one word"
    ours, theirs = fp(f"where is it {ending}"), fp(f"who has come {ending}")
    assert found(ours, theirs) == (0, None, pytest.approx(4 / 7))
    # Without "answer with one" and "with one word", content are the first five words, of which none is in a shared run.
    assert found(ours, theirs, common=[ending]) is None
    assert found(ours, theirs, common=[f"who has come {ending}"]) is None


def test_a_short_text_gives_away_only_where_a_picture_is_missing() -> None:
    assert found(fp("find x", 1 << 40), fp("find x", 0xFFFF)) is None
    assert found(fp("find x"), fp("find x", 0xFFFF)) == (0, None, 1.0)
    assert found(fp("find x"), fp("find y")) is None
    assert found(fp(""), fp("")) is None


def test_the_prompt_with_the_most_shared_runs_is_named() -> None:
    assert found(fp("a b c d e"), fp("a b c x y z"), fp("a b c d e")) == (1, None, 1.0)


def test_common_grams_are_in_more_than_ten_different_texts() -> None:
    texts = [["answer", "in", "words", str(i)] for i in range(11)]
    assert common_grams(texts, 3) == {("answer", "in", "words")}
    assert common_grams(texts[:10], 3) == set()
    assert common_grams([["a", "test", "question"]] * 50, 3) == set()  # copies of one text make no wording
