"""Numbers in words: read whole, or not at all."""

import pytest

from rewards.text.numbers.number_words import number_of_han, number_of_words


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("zero", 0),
        ("Seventeen", 17),
        ("forty-two", 42),
        ("a hundred", 100),
        ("one hundred and one", 101),
        ("nineteen hundred", 1900),
        ("two thousand six", 2006),
        ("five hundred thousand", 500_000),
        ("one million two hundred thousand and three", 1_200_003),
        ("half a dozen", 6),
        ("four dozen", 48),
        ("five six", None),
        ("forty twelve", None),
        ("ten five", None),
        ("hundred", None),
        ("two zero", None),
        ("one thousand one million", None),
        ("six and seven", None),
    ],
)
def test_english(words: str, number: int | None) -> None:
    assert number_of_words(words) == number


@pytest.mark.parametrize(
    ("numeral", "number"),
    [
        ("零", 0),
        ("两", 2),
        ("十", 10),
        ("二十三", 23),
        ("一百零五", 105),
        ("两千", 2000),
        ("一千零二十", 1020),
        ("十二万", 120_000),
        ("三億五千萬", 350_000_000),
        ("七八", None),
        ("一百五", None),
        ("百", None),
        ("一零", None),
        ("十" * 30, None),
    ],
)
def test_chinese(numeral: str, number: int | None) -> None:
    assert number_of_han(numeral) == number
