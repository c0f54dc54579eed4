"""Equal answers have one key, however they are written."""

import pytest

from rewards.text.answer_key import answer_key


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (
            (
                r"So \boxed{17}",
                "the answer is 17.",
                "3+5+9=17",
                "<think>12</think>17",
                "$17$",
                "１７",
                "17.0",
                "x = 17",
            ),
            "17",
        ),
        ((r"\boxed{\frac{1}{2}}", "0.5", "1/2", r"\dfrac{2}{4}", ".50"), "1/2"),
        ((r"\boxed{-1,234.5}", "−1234.50", r"-\frac{2469}{2}"), "-2469/2"),
        ((r"\boxed{\text{Blue}}", "blue", " BLUE. ", "**Blue**", r"\boxed{\mathbf{blue}}", "答案：ｂｌｕｅ。"), "blue"),
        (("x=1, y=2",), "x=1, y=2"),
        ((r"\boxed{2^3}",), "2^3"),
        (("x <= 3",), "x <= 3"),
        (("1/0",), "1/0"),
        (('```json\n[{"bbox_2d": [1, 2]}]\n```', '[{"bbox_2d":  [1, 2]}]'), '[{"bbox_2d": [1, 2]}]'),
        (('[\n{"a": 1}\n]',), '[ {"a": 1} ]'),
        (("", "<think>17, I think", "  "), ""),
    ],
)
def test_the_same_answer_is_the_same_text(texts: tuple[str, ...], expected: str) -> None:
    assert {answer_key(text) for text in texts} == {expected}
