"""Numbers and formulas are compared by what they mean, and only the final one counts."""

import signal
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score, math_answer
from rewards.text.mathematics.symbolic import LONGEST_FORMULA
from rewards.types import UNREAD
from rollout import Completion, Prompt


def score(answer: object, text: str) -> float | Score:
    return math_answer(Prompt(id="digits-12", messages=[], answer=answer), Completion(text=text))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("17", "3+5+9=17"),
        (17, "17.0"),
        ("17", "The answer is 17."),
        ("17", "It is 17"),
        ("17", r"first \boxed{16}, then \boxed{3+5+9=17}, more or less"),
        ("17", "so $x = 17$."),
        ("1/2", "0.5"),
        (0.5, r"\boxed{\frac{1}{2}}"),
        (1e-3, "10^{-3}"),
        ("1,000", "1000"),
        (300000, r"3\times10^5"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        ("x^2+1", "$1+x^2$"),
        ("x=17", "17"),
        ("(1,2)", "(1, 2)"),
        (r"\text{east}", r"\boxed{\text{east}}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"),
        ("17 apples", "17"),
        ("#### 17", "17"),
        ("17", "<think>It is 18.</think>17"),
        ("17", "١٧"),
        ("17", "The answer is １７."),
        ("17", r"\boxed{१७}"),
        ("1,234.5", "١٬٢٣٤٫٥"),
        ("50%", "0.5"),
        ("50%", r"\boxed{50\%}"),
        ("5", r"\boxed{5\text{ cm}}"),
        ("5 cm", "5"),
        ("90", r"90^\circ"),
        ("$5", "5 dollars"),
        ("3.5", "3 1/2"),
        ("3.5", r"3\frac{1}{2}"),
        ("-3", "−3"),
        (r"\frac{\pi}{2}", "pi/2"),
        (r"(-\infty, 3)", "(-oo, 3)"),
        (r"(-\infty, 3)", "(-∞,3)"),
        ("[1,2)", r"\boxed{[1,2)}"),
        ("x>3", r"\boxed{(3,\infty)}"),
        (r"\{1,2\}", r"\boxed{\{2,1\}}"),
        ("1,2", r"\boxed{x=1\text{ or }x=2}"),
        ("1,2", r"\boxed{2} and \boxed{1}"),
        ("1,2", r"\(\boxed{1}\) and \(\boxed{2}\)"),
        ("x=1, y=2", r"$x = \boxed{1}$ and $y = \boxed{2}$"),
        ("1,2", r"\(x_1 = \boxed{1}\), \(x_{2} = \boxed{2}\)"),
        ("$1$ and $2$ and $3$", r"\boxed{1,2,3}"),  # the reference is all three, and not 3
        ("$21,16$ or $11$", "$21,16,11$"),
        ("1,2", r"The answers are $1$ and $2$, as said above."),
        ("1,2", r"So it is \(1\) or \(2\)."),
        ("17", r"With $x=3$ and $y=14$ the sum is $17$."),
        ("17", "$3+5=8$\n$8+9=17$"),
        ("17", r"$2\times4=8$, \(\frac{8}{1}+9=17\)"),
        ("17", "so $3+5=8$ and $8+9=17$."),
        (r"\alpha=1, \beta=2", r"$\alpha=1$, $\beta=2$"),
        (r"1-\frac{1}{\mathrm{e}}", r"$1-\frac{1}{e}$"),
        ("e^2", r"\boxed{\mathrm{e}^2}"),
        ("1+2i", r"\boxed{2\mathrm{i}+1}"),
        ("y=2x+1", r"\boxed{y = 1+2x}"),
        ("1234567", r"\boxed{1{,}234{,}567}"),
        ("1e5", "10^5"),
        ("10455", "$10,200 + $255 = $10,455. The final answer is $10,455$. I hope it is correct."),
        ("17", "He pays $8.00 + $9.00 = $17.00 in all.\n#### 17"),
    ],
)
def test_equal_answers_in_another_form_are_right(answer: object, text: str) -> None:
    assert score(answer, text) == 1.0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("17", ""),
        ("17", "3+5+9=18"),
        ("17", "17=18"),
        ("17", r"\boxed{16}, or is it 17"),
        ("17", r"\boxed{17} no, \boxed{16}"),
        ("17", r"\boxed{17"),
        ("17", r"\boxed{16, 17}"),
        ("17", r"\boxed{17} or \boxed{18}"),
        ("17", r"\boxed{17} \boxed{}"),
        ("17", r"$x=\boxed{16}$, $y=\boxed{17}$"),
        ("17", "so it is $16$ or $17$"),
        ("17", "so $8+9=17$ or $16$"),
        ("17", "so $x=16$ or $x=17$"),
        ("17", r"so it is \(16\), \(17\)."),
        ("16", "The answer is $16$ or $17$, I think."),
        ("3", "$1$ and $2$"),
        ("$1$ and $2$ and $3$", "3"),
        (r"1-\frac{1}{\mathrm{e}}", r"1+\frac{1}{\mathrm{e}}"),
        ("17", "<think>17</think>18"),
        ("17", "<think>It must be 17"),
        ("17", "It is not 17 but 18"),
        ("[1,2]", r"\boxed{(1,2)}"),
        ("(1,2)", r"\boxed{(2,1)}"),
        ("1,2", r"\boxed{1}"),
        ("1,2", r"\boxed{1,2,3}"),
        ("50%", "50.5%"),
        ("x>3", r"\boxed{x \ge 3}"),
        ("y=2x+1", r"\boxed{y=2x-1}"),
        ("3.5", "31/2"),
        ("1.234", "1,234"),
        ("17", "The answer is $16$, although 17 is near."),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
        ("17", "16 or 17"),
        ("17", "there are 17 apples, not 18"),
        ("-3", "3"),
        ("1", "x^2 + 1"),
        ("(1,2)", "(1,3)"),
        ("1,2,3", "3"),
        (r"\text{east}", r"\boxed{\text{west}}"),
    ],
)
def test_other_answers_are_wrong(answer: object, text: str) -> None:
    assert score(answer, text) == 0.0


@pytest.mark.parametrize(
    "text", ["3+5+9", r"\boxed{3+5+9}", "The answer is 9 + 8.", "9 8", r"\boxed{9 8}", "3+5+9=9+8"]
)
def test_arithmetic_still_to_be_done_is_no_answer(text: str) -> None:
    assert score("17", text) == 0.0


@pytest.mark.parametrize("answer", [None, "", "a cat", ["17"], "12:00", r"\frac{1}{0}", r"\boxed{17"])
def test_a_reference_that_cannot_be_read_is_an_error_and_not_a_zero(answer: object) -> None:
    told = f"math_answer cannot read the answer {answer!r} of prompt 'digits-12'; give a number, LaTeX or one word"
    assert score(answer, "17") == Score(reward=0.0, error=told)


@pytest.mark.parametrize(
    "text", ["", "I cannot tell.", "<think>17", r"\boxed{17", r"\boxed{\text{a big one}}", "!!!", "无法确定"]
)
def test_a_response_without_a_formula_is_unread(text: str) -> None:
    assert score("17", text) is UNREAD


@pytest.mark.parametrize("text", ["16", "not 17", "maybe 17", r"\boxed{x+1}", "8+9", r"\boxed{16, 17}", r"\boxed{3:5}"])
def test_a_wrong_or_doubtful_formula_is_read(text: str) -> None:
    assert score("17", text) == 0.0 and score("17", text) is not UNREAD


def test_another_word_than_the_reference_is_wrong_and_read() -> None:
    assert score(r"\text{east}", r"\boxed{\text{west}}") is not UNREAD


@given(st.text(st.characters(exclude_categories=["N"]), max_size=60))
@settings(max_examples=60, deadline=None)
def test_text_without_a_digit_never_equals_a_number(text: str) -> None:
    assert score(17, text) == 0.0


@given(st.text(r"\{}[]()$^_=+-*/.,!|&%~ 0123456789boxedfracsqrt\n", max_size=60).filter(lambda text: "17" not in text))
@settings(max_examples=40, deadline=None)
def test_strange_text_is_scored_and_never_raises(text: str) -> None:
    assert score(r"\pi^{17}", text) == 0.0


@pytest.mark.parametrize("piece", ["[ ", "$ ", "(", "{", r"\boxed{", r"\frac{", "answer ", "9 ", "-"])
def test_huge_text_takes_no_longer_than_its_end(piece: str) -> None:
    start = time.process_time()
    assert score("17", piece * 500_000) == 0.0
    assert score("17", piece * 500_000 + r"\boxed{17}") == 1.0
    assert time.process_time() - start < 5.0


def test_a_formula_beyond_the_bound_is_wrong() -> None:
    assert score("17", "0" * (LONGEST_FORMULA - 2) + "17") == 1.0
    assert score("17", "0" * (LONGEST_FORMULA - 1) + "17") == 0.0


def test_no_alarm_is_set_so_it_works_in_a_thread_too() -> None:
    before = signal.getsignal(signal.SIGALRM)
    scores: list[float | Score] = []
    thread = threading.Thread(target=lambda: scores.append(score("17", r"\boxed{17}")))
    thread.start()
    thread.join()
    assert scores == [1.0]
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
