"""One spelling of what text and LaTeX write in several ways."""

import pytest

from rewards.text.typography import plain_typography, without_markup


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("x²+1", "x^{2}+1"),
        ("10⁻³", "10^{-3}"),
        ("H₂O", "H_{2}O"),
        ("5½", "5 1/2"),  # a mixed number, and not 51/2
        ("½", "1/2"),
        ("√2", r"\sqrt{2}"),
        ("√(x+1)", r"\sqrt{x+1}"),
        ("−5", "-5"),
        ("１７", "17"),
        ("٣", "3"),
        ("（３，４）", "(3, 4)"),  # two values, and not 3.4
        ("１，２３４", "1,234"),
        ("ﬁne", "fine"),
        ("a\u200bb", "ab"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_typography_is_plain(text: str, plain: str) -> None:
    assert plain_typography(text) == plain


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        (r"\text{knight}", "knight"),
        (r"\text{a \mathbf{B}}", "a B"),
        ("**Paris**", "Paris"),
        (r"$17$", "17"),
        (r"\(17\,000\)", "17 000"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_wrappers_vanish_and_commands_with_a_meaning_stay(text: str, bare: str) -> None:
    assert without_markup(text) == bare


def test_digits_of_every_script_are_digits() -> None:
    assert plain_typography("١٧ १७ １７ 17") == "17 17 17 17"
