"""math_answer reads references whole, and pays nothing for a part, for work to be done, hedges and numbers without end."""

import time

import pytest

from rewards import Score, Verifier, math_answer
from rewards.text.mathematics.sizes import is_computable
from rollout import Completion, Prompt


def score(answer: object, text: str, question: str = "", verifier: Verifier = math_answer) -> float | Score:
    messages = [{"role": "user", "content": question}]
    found = verifier(Prompt(id="digits-12", messages=messages, answer=answer), Completion(text=text))
    assert isinstance(found, float | Score)
    return found


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("23", "答案是23。"),
        ("23", "答：一共有23只鸟。"),
        ("23", "所以答案为：$23$。"),
        ("23", "因此最终答案是 **23**。"),
        ("(5,8)", r"\boxed{（5，8）}"),
        ("-6", r"\boxed{－6}"),
        ("-6", r"\boxed{–6}"),
        ("60°", r"\boxed{60^\circ}"),
        ("x^2-3", r"\boxed{x²-3}"),
        (r"\sqrt{7}", r"\boxed{√7}"),
        ("3/4", r"\boxed{¾}"),
        ("6.5", "6½"),
        ("25%", r"\boxed{25％}"),
        ("9", r"\boxed{\boldsymbol{9}}"),
        ("9", r"\boxed{\text{The answer is } 9}"),
        ("7654321", r"\boxed{7\,654\,321}"),
        (r"\frac{5}{9}", r"\boxed{0.\overline{5}}"),
        (r"\frac{2}{\sqrt{k}}", r"\boxed{2\sqrt{1/k}}"),
        ("(4,-1)", r"\boxed{\langle 4,-1\rangle}"),
        (r"\varnothing", r"\boxed{\emptyset}"),
        (r"\emptyset", r"\boxed{\text{no solution}}"),
    ],
)
def test_typography_and_wrappers_do_not_count(answer: str, text: str) -> None:
    assert score(answer, text) == 1.0


@pytest.mark.parametrize(
    ("answer", "whole", "part"),
    [
        ("4, 9, and 25", "4, 9, 25", "25"),
        ("216 and 343", "343, 216", "343"),
        ("x=4 and x=-1", "x=-1, x=4", "-1"),
        ("8 and -8", r"\pm 8", "8"),
        ("1 3 5", "1, 3, 5", "9"),
        ("2 hours 45 minutes", "165 minutes", "45"),
        ("5 feet 4 inches", r"5\text{ feet }4\text{ inches}", "4"),
        ("2 3/4 cups", "2.75", "3/4"),
        ("4.5 million", "4{,}500{,}000", "4.5"),
        ("6.4k", "6400", "6.4"),
        ("3万", "30000", "3"),
        ("13 remainder 5", r"13\text{ R }5", "5"),
        ("at least 9", r"n \ge 9", "9"),
        ("less than 4", r"(-\infty,4)", "4"),
        ("all real numbers except 6", r"x \ne 6", "6"),
        ("between 3 and 8", "[3,8]", "8"),
        ("Eve: 4, Bob: 6", r"\text{Bob: }6, \text{Eve: }4", "6"),
        ("P = 4 and Q = 6", "P=4, Q=6", "6"),
        ("21st", "21", "1"),
        ("9 pm", r"9\text{ p.m.}", r"9\text{ a.m.}"),
        ("10:45 pm", r"10:45\text{ PM}", "45"),
        ("Room 31", r"\text{Room 31}", "31"),
        ("May 2013", r"\text{May 2013}", "2013"),
        (r"2, 4, \ldots, 2n", r"2, 4, \dots, 2n", r"1, 2, \ldots, n"),
        ("3:8", "3:8", "8"),
        ("2:3:7", "2:3:7", "2:3:5"),
        ("West", r"\text{west}", r"\text{east}"),
    ],
)
def test_a_reference_is_read_whole(answer: str, whole: str, part: str) -> None:
    assert score(answer, rf"\boxed{{{whole}}}") == 1.0
    assert score(answer, rf"\boxed{{{part}}}") == 0.0


@pytest.mark.parametrize(
    ("answer", "same", "other"),
    [
        ("12 m", "12", "12 s"),
        ("12 m", "1200 cm", "12 cm"),
        ("30 m/s", r"30\,\mathrm{m/s}", "30 km/h"),
        ("6 cm^2", r"6\text{ square centimeters}", r"6\text{ cm}^3"),
        ("$7", r"\$7", "7 cents"),
        ("8 apples", "8", r"8\text{ pears}"),
        ("7.5", "7.5", "7.5k"),
        ("7.5", "7.5", "7.5亿"),
        ("7.5", "7.5", "7.5‰"),
        ("6 million", r"6\text{ million}", r"6\text{ billion}"),
        ("1201_3", "(1201)_3", "1201_4"),
        (r"\frac{1}{2^{62}}", "2^{-62}", r"\frac{1}{2^{63}}"),
        (r"\frac{1}{1201!}", r"\frac{1}{1201!}", r"\frac{1}{1203!}"),
        ("9.1e-31", r"9.1\times10^{-31}", "1e-31"),
        ("e^{-45}", r"\frac{1}{e^{45}}", "e^{-46}"),
        ("0.000031", r"3.1\cdot10^{-5}", "0.0000312"),
        ("90000000001", "90000000001", "90000000001.4"),
        ("y + 10^{-25}", "10^{-25} + y", "y + 10^{-26}"),
        ("8 GB", "8000 MB", "8 Gb"),
        ("4 kWh", "4 kilowatt-hours", "4 kW"),
        ("7 V", "7 volts", "7 W"),
        ("3 μm", r"3\,\mu\mathrm{m}", "3 mm"),
        ("3 m/s^2", r"3\,\mathrm{m\,s^{-2}}", r"3\,\mathrm{m\,s^{-1}}"),
        ("5'8\"", "68 inches", "58"),
        ("6元5角", "6.5元", "65元"),
        ("4 red pens", "4 pens", "4 blue pens"),
        ("9 pm", "9:00 p.m.", "9:30 p.m."),
        ("30%", r"\frac{3}{10}", r"0.3\%"),
        ("twelve", "12", "11"),
        (r"\{10^{-20}, 1\}", r"\{1, 10^{-20}\}", r"\{1, 10^{-21}\}"),
    ],
)
def test_units_scales_bases_and_small_numbers_count(answer: str, same: str, other: str) -> None:
    assert score(answer, rf"\boxed{{{same}}}") == 1.0
    assert score(answer, rf"\boxed{{{other}}}") == 0.0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("21", "42/2"),
        ("21", r"\frac{63}{3}"),
        ("0.5", r"\frac{2}{4}"),
        ("720", "6!"),
        ("15", r"\binom{6}{2}"),
        ("7", r"\gcd(21,28)"),
        ("7", r"\sqrt{49}"),
        ("7", r"\text{max}(3, 7)"),
        ("7", r"\lceil 6.5 \rceil"),
        ("7", r"3 \cdot 2.0 + 1"),
        ("14", r"7 \cdot 2.0"),
        ("3", r"15 \mod 4"),
        (r"\frac{1}{4}", r"\int_0^1 x^3 dx"),
        ("-5", r"\begin{vmatrix}1&2\\3&1\end{vmatrix}"),
        ("3", r"\log_3 27"),
        ("4", "16^{1/2}"),
        ("-1", r"\cos\pi"),
        ("1", "x/x"),
        (r"\frac{\sqrt{3}}{2}", r"\cos 30^\circ"),
        (r"\frac{x^3}{3}", r"\int x^2 dx"),
    ],
)
def test_work_that_is_still_to_be_done_earns_nothing(answer: str, text: str) -> None:
    assert score(answer, rf"\boxed{{{text}}}") == 0.0


@pytest.mark.parametrize(
    ("answer", "same", "other"),
    [
        (r"\pi r^2 h", r"h\pi r^2", r"\pi r^2"),
        ("2vt", "2tv", "2v"),
        ("4s", "4 s", "4"),
        (r"\frac{1}{2}gt^2", r"\frac{1}{2}g t^2", r"\frac{1}{2}gt"),
        ("1+ab", "ba+1", "ab-1"),
        (r"\frac{3 \pm \sqrt{7}}{2}", r"\frac{3+\sqrt{7}}{2}, \frac{3-\sqrt{7}}{2}", r"\frac{3+\sqrt{7}}{2}"),
        ("x=3, y=8", "(3,8)", "(8,3)"),
    ],
)
def test_last_letters_both_signs_and_the_order_of_coordinates_count(answer: str, same: str, other: str) -> None:
    assert score(answer, rf"\boxed{{{same}}}") == 1.0
    assert score(answer, rf"\boxed{{{other}}}") == 0.0


@pytest.mark.parametrize(
    ("answer", "text", "verdict"),
    [
        ("21", "42/2", 1.0),
        ("21", "3+5+13", 1.0),
        ("7", r"\gcd(21,28)", 1.0),
        ("24", r"8/(3-8/3)", 1.0),
        ("21", "43/2", 0.0),
        ("21", r"9^{9^{9^9}}", 0.0),
    ],
)
def test_expressions_are_paid_on_request(answer: str, text: str, verdict: float) -> None:
    assert score(answer, rf"\boxed{{{text}}}", verifier=math_answer(expressions=True)) == verdict


@pytest.mark.parametrize(
    ("question", "answer", "asked", "done"),
    [
        ("Factor $x^2+7x+12$.", "(x+3)(x+4)", "x^2+7x+12", "(x+4)(x+3)"),
        ("Factor $x^2+7x+12$.", "(x+3)(x+4)", "12+7x+x^2", "(3+x)(4+x)"),
        ("因式分解：x²−9", "(x-3)(x+3)", "x^2-9", "(x+3)(x-3)"),
        ("Expand $(a+2)(a-2)$.", "a^2-4", "(a-2)(a+2)", "-4+a^2"),
        (r"Simplify $\sqrt{98}$.", r"7\sqrt{2}", r"\sqrt{98}", r"7\sqrt2"),
        (r"Simplify $\frac{x^2-4}{x-2}$.", "x+2", r"\dfrac{x^2-4}{x-2}", "2+x"),
    ],
)
def test_the_expression_of_the_question_is_no_answer(question: str, answer: str, asked: str, done: str) -> None:
    assert score(answer, rf"\boxed{{{asked}}}", question) == 0.0
    assert score(answer, rf"\boxed{{{done}}}", question) == 1.0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("(0, 7.5)", "0 < x < 7.5"),
        ("0 < x < 7.5", "(0, 7.5)"),
        (r"t \in [\sqrt{5}, +\infty)", r"t \ge \sqrt{5}"),
        (r"(-\infty,-2)\cup(3,\infty)", r"x<-2 \text{ or } x>3"),
        (r"x<-2 \text{ or } x>3", r"(3,\infty)\cup(-\infty,-2)"),
        ("2<x<6", "6>x>2"),
        (r"\mathbb{R}", r"(-\infty,\infty)"),
        (r"\{3, 8\}", "8, 3"),
    ],
)
def test_sets_intervals_and_inequalities_are_equal_either_way(answer: str, text: str) -> None:
    assert score(answer, rf"\boxed{{{text}}}") == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "It is never 17.",
        "The value is below 17.",
        "The answer is not 17.",
        "The answer is at most 17",
        "17 or more",
        "17 is wrong.",
        "答案不是17。",
        "答案可能是17。",
        "不到17",
        "The wrong answer is 17.",
        "The answer is anything but 17.",
        "The answer is unlikely to be 17.",
        "The answer is twice 17.",
        "The answer is 17 squared.",
        "The answer is 17 times larger.",
        "The answer is 17 out of 20.",
        "The answer is 17. No, it is 18.",
        "17, which is incorrect.",
        "17 would be too many.",
        "Could it be 17?",
        r"\boxed{17}. Wait, that is not right",
        "Maybe $16$, maybe $17$",
        "I thought of 16 and also of 17, and cannot decide",
        "15, 16 and 17",
        "from 1 to 17",
        "15\n16\n17",
        "18\n17",
        r"\boxed{15}. \boxed{16}. \boxed{17}.",
        r"\boxed{16} / \boxed{17}",
        r"\boxed{17 \text{ (or 18)}}",
        r"\boxed{\text{below } 17}",
        r"\boxed{\ne 17}",
        r"\boxed{16-18}",
        r"It may be \boxed{17}.",
        r"\boxed{17}. But wait, the sum is larger",
        r"\boxed{17x}",
        "#### 16\n#### 17",
    ],
)
def test_hedges_and_denials_earn_nothing(text: str) -> None:
    assert score("17", text) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9",
        "9^{9^{9}}",
        "10^{10^{10}}",
        "2^{99999999}",
        "10^{-99999999}",
        "((3^{100})^{100})^{100}",
        "(10^{9})!",
        "12345678!",
        "((5!)!)!",
        r"\binom{10^{8}}{5}",
        r"\Gamma(10^{9})",
        "e^{9^{9^{9}}}",
        r"\exp(9^{9^{9}})",
        "(x+1)^{9999}",
        "x^{9^{9}}",
        r"\sqrt[3]{9^{9^{9}}}",
        "(99999999)_{99999}",
    ],
)
@pytest.mark.parametrize("answer", ["17", r"\pi^{17}", "x^2+17"])
def test_numbers_too_large_to_compute_are_refused_at_once(answer: str, text: str) -> None:
    score(answer, "17")  # imports
    start = time.process_time()
    assert score(answer, rf"\boxed{{{text}}}") == 0.0
    assert score(answer, rf"\boxed{{{text}}}", verifier=math_answer(expressions=True)) == 0.0
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    "formula", [r"\frac{1}{1503!}", "2^{300}", "10^{-45}", "x^{2n+1}", r"\sum_{k=1}^{5000} k", r"\pi^{17}"]
)
def test_numbers_of_textbooks_are_computed(formula: str) -> None:
    assert is_computable(formula)


@pytest.mark.parametrize("answer", [None, True, "", "a cat", "see the figure", "1012_2", "red or blue", r"\frac{1}{0}"])
def test_what_is_no_mathematics_is_an_error(answer: object) -> None:
    found = score(answer, "17")
    assert isinstance(found, Score) and found.error is not None
