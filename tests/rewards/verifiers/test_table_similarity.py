"""Tables, cell by cell."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score
from rewards.verifiers.table_similarity import LARGEST, table_similarity
from rollout import Completion, Prompt
from tests.rewards.hostile import HOSTILE

ROWS = [["Name", "Age"], ["Tom", 31], ["Ann", 27]]
MARKDOWN = "| Name | Age |\n|---|---:|\n| Tom | 31 |\n| Ann | 27 |"
HTML = (
    "<table><tr><th>Name</th><th>Age</th></tr><tr><td>Tom</td><td>31</td></tr><tr><td>Ann</td><td>27</td></tr></table>"
)
CSV = "Name,Age\nTom,31\nAnn,27"
LATEX = r"""\begin{tabular}{|l|p{2cm}|}
\hline
\textbf{Name} & Age \\ \hline
Tom & 31 \\[3pt]
Ann & 27
\end{tabular}"""
JSON_ROWS = '[["Name", "Age"], ["Tom", 31], ["Ann", 27.0]]'
SPANS = "<table><tr><td rowspan=2>a1</td><td colspan='2'>b1</td></tr><tr><td>b2</td><td>c2</td></tr></table>"


def score(answer: object, text: str) -> float | Score:
    return table_similarity(Prompt(id="t-1", messages=[], answer=answer), Completion(text=text))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (ROWS, MARKDOWN),
        (ROWS, HTML),
        (ROWS, CSV),
        (ROWS, CSV.replace(",", "\t")),
        (ROWS, CSV.replace(",", ";")),
        (ROWS, LATEX),
        (LATEX, f"```latex\n\\begin{{table}}\n{LATEX}\n\\end{{table}}\n```"),
        (CSV, f"{LATEX}\n\nNo:\n\n{MARKDOWN}"),
        (ROWS, LATEX.replace("{tabular}{|l|p{2cm}|}", "{tabularx}{5cm}[t]{lX}").replace("{tabular}", "{tabularx}")),
        (ROWS, JSON_ROWS),
        (ROWS, '{"Name": ["Tom", "Ann"], "Age": [31, 27]}'),
        (ROWS, '{"columns": ["Name", "Age"], "data": [["Tom", 31], ["Ann", 27]]}'),
        (ROWS, f'{{"people": {JSON_ROWS}}}'),
        (JSON_ROWS, '```json\n[{"Name": "Tom", "Age": "31"}, {"Name": "Ann", "Age": 27}]\n```'),
        ([{"Name": "Tom", "Age": 31}, {"Name": "Ann", "Age": 27}], CSV),
        (ROWS, "Name,Age\n*Tom*,31.00\n__Ann__,２７"),
        ([["a|b"]], '[["a|b"]]'),
        ([["x_y", "50%"], ["a & b", "$3"]], r"\begin{array}{ll} x\_y & 50\% \\ a \& b & \$3 \end{array}"),
        ([["x_y", "m²"]], r"| x\_y | m^2 |"),
        ([["98,765.0", ".5"]], "| 98 765 | 0.50 |"),
        ([["长（米）", "“好”"]], '| 长(米) | "好" |'),
        (
            SPANS,
            r"\begin{tabular}{ccc}\multirow{2}{*}{a1} & \multicolumn{2}{c}{b1} \\ \cline{2-3} & b2 & c2\end{tabular}",
        ),
        (MARKDOWN, HTML),
        (HTML, CSV),
        (CSV, MARKDOWN),
        (CSV, f"```csv\n{CSV}\n```"),
        (CSV, f"Here it is:\n```markdown\n{MARKDOWN}\n```\nYes, that is it."),
        (CSV, f"Here it is:\n\n{MARKDOWN}\n\nThat is all, I hope."),
        (CSV, f"Here it is: {HTML} That is all | I hope."),
        (CSV, f"<think>a,b</think>{CSV}"),
        (CSV, f"```\n1,2\n```\nNo:\n```\n{CSV}\n```"),
        (CSV, f"| x | y |\n\n{MARKDOWN}"),
        (CSV, f"<table><tr><td>x</td></tr></table>{HTML}"),
        (ROWS, "Name | Age\n--- | ---\nTom | 31\nAnn | 27"),
        (ROWS, "| Name | Age |\n| Tom | 31 |\n| Ann | 27 |"),
        (ROWS, "| **Name** | `Age` |\n|:-:|:-:|\n| TOM | 31 |\n| | |\n| ann | 27 |"),
        (ROWS, 'Name,Age\r\n Tom , 31\r\n"Ann",27\r\n'),
        (ROWS, HTML.replace("</td>", "").replace("</tr>", "").replace("</th>", "")),
        (ROWS, HTML.replace("<table>", "<TABLE border='1'><caption>Who</caption><tbody>").replace("td>", "TD>")),
        (ROWS, HTML.replace("Tom", "<b>T</b>om<!-- <td>x</td> -->")),
        (ROWS, f"```html\n{HTML}\n```"),
        ([["a|b", "x, y"]], r"| a\|b | x, y |"),
        ([["a|b", "x, y"]], 'a|b,"x, y"'.replace("|", "&#124;")),
        ([["a & b", "c d"]], "<table><tr><td>a &amp; b</td><td>c<br>d</td></tr></table>"),
        ([["1234567", "−5"]], "1,234,567|-5"),
        ([["a", None], [None, "b"]], "a,\n,b"),
        ([["a1", "b1", "b1"], ["a1", "b2", "c2"]], SPANS),
        (SPANS, "a1,b1,b1\na1,b2,c2"),
        ([["a"], ["b"]], "<table><tr><td>a<tr><td>b"),
        ([["out in out"]], "<table><tr><td>out <table><tr><td>in</td></tr></table> out</td></tr></table>"),
        ([["a"], ["b"]], "| a |\n|---|\n| b |"),
    ],
)
def test_the_same_table_is_one_in_any_form(answer: object, text: str) -> None:
    assert score(answer, text) == 1.0


@pytest.mark.parametrize(
    ("answer", "text", "reward"),
    [
        (CSV, "Name,Age\nTom,31\nAnn,28", 10 / 12),  # a number is right or wrong
        (CSV, LATEX.replace("31", "3.1"), 10 / 12),
        (CSV, JSON_ROWS.replace("31", "31.5"), 10 / 12),
        ([["$5", "$6"]], "| $5 | $7 |", 2 / 4),
        (CSV, '{"Name": "Tom", "Age": 31}', 0),
        (CSV, "Name,Age\nTim,31\nAnn,27", 2 * (5 + 2 / 3) / 12),
        (CSV, "Name,Age\nEve,31\nAnn,27", 10 / 12),  # below one half in common is nothing
        (CSV, "Name,Age\nTom,31", 8 / 10),
        (CSV, "Name,Age\nAnn,27\nTom,31", 8 / 12),  # of two rows in the wrong order, one
        (CSV, "Age,Name\n31,Tom\n27,Ann", 6 / 12),  # likewise of two columns
        (CSV, "Name,Age\nTom,31\nAnn,27\nTom,31\nAnn,27", 12 / 16),
        (CSV, CSV + "\nx1,y1" * 30, 12 / 72),  # ten times as many rows
        (CSV, CSV + "\nTom,31" * 30, 12 / 72),
        (CSV, "Name,Age,Town\nTom,31,Rome\nAnn,27,Bonn", 12 / 15),
        (CSV, "Name,Tom,Ann\nAge,31,27", 4 / 12),  # transposed: two cells of one row
        (CSV, "Name,Age,Tom,31,Ann,27", 4 / 12),
        (CSV, ",\n,\nName,", 2 / 8),
        (CSV, f"{CSV}\n\nx1,y1", 0),  # the last table counts
        (CSV, f"{MARKDOWN}\n\n| x1 | y1 |", 0),
        (CSV, f"```\n{CSV}\n```\n```\nx1,y1\n```", 0),
        (CSV, f"{HTML}<table><tr><td>x1</td></tr></table>", 0),
        (CSV, f"<think>{CSV}</think>", 0),
        (CSV, f"<think>{CSV}", 0),
        (CSV, "", 0),
        (CSV, "Name Age Tom 31 Ann 27", 0),
        (CSV, "Name\nAge\nTom\n31\nAnn\n27", 0),
        (CSV, "| | |\n|---|---|\n| | |", 0),
        (CSV, "<table></table>", 0),
        (CSV, "<table><tr></tr></table>", 0),
        (CSV, "<table", 0),
        (CSV, "32,28\n33,29", 0),
        ([["a", "", ""]], ",,a", 4 / 6),  # the wrong column: either the letter or the two blanks
        ([["a", ""], ["", "b"]], ",\n,", 0),
        (SPANS, "<table><tr><td>a1</td><td>b1</td></tr><tr><td>b2</td><td>c2</td></tr></table>", 8 / 10),
    ],
)
def test_what_is_missing_other_or_too_much_costs(answer: object, text: str, reward: float) -> None:
    assert score(answer, text) == pytest.approx(reward)


@pytest.mark.parametrize("answer", [None, "", "cats", 5, [], [[]], ["a", "b"], [["", None]], [["x"]] * (LARGEST + 1)])
def test_a_reference_that_is_no_table_is_an_error(answer: object) -> None:
    told = f"table_similarity cannot read the answer {answer!r:.200} of prompt 't-1'"
    told += "; give Markdown, HTML, LaTeX, CSV, JSON or rows of cells, 3000 cells at most"
    assert score(answer, CSV) == Score(reward=0.0, error=told)


HUGE = {
    "cells": "a,b\n" * LARGEST,
    "one cell in each of many rows and many in one": "a,\n" * 1400 + "a," * 1400,
    "columns": "<table><tr>" + "<td colspan=999999>1" * 9000,
    "rows": "<table>" + "<tr><td rowspan=999999>1" * 8000,
    "a grid of spans": "<table>" + "<tr><td rowspan=999999 colspan=2999>1" * 4000,
    "comments": "<table>" + "<!--" * 45_000,
    "tags": "<table>" + "<a " * 60_000,
    "brackets": "<table><td>" + "<" * 150_000,
    "tables": "<table>" * 28_000,
    "quotes": '"' * 190_000,
    "pipes and quotes": '|"' * 90_000,
    "blanks in a fence": "```\n" + " " * 190_000 + "x",
    "a field": 'a,"' + "x" * 190_000,
    "LaTeX cells": "\\begin{tabular}{l}" + "&" * 150_000,
    "LaTeX rows": "\\begin{tabular}{l}" + "& \\\\" * 30_000,
    "LaTeX braces": "\\begin{tabular}" + "{" * 150_000,
    "LaTeX spans": "\\begin{tabular}{l}" + "\\multirow{9}{*}{" * 10_000,
    "JSON lists": "[" * 150_000,
    "JSON objects": '[{"a":' * 30_000,
    "semicolons": ";" * 190_000,
    "null": "a\0,b\0\n" * 20_000,
}


@pytest.mark.parametrize("name", HUGE)
def test_what_is_huge_or_broken_is_read_in_no_time_and_earns_nothing(name: str) -> None:
    assert score(CSV, CSV) == 1.0  # imports
    start = time.process_time()  # other processes of a busy machine do not count
    assert score(CSV, HUGE[name]) == 0.0
    assert time.process_time() - start < 2.0  # a tenth of it is usual


def test_a_large_table_is_compared_in_no_time() -> None:
    table = "\n".join(",".join(f"cell {row} {column}" for column in range(20)) for row in range(LARGEST // 20))
    start = time.perf_counter()
    assert score(table, table) == 1.0
    assert time.perf_counter() - start < 5.0


def test_nothing_hostile_is_rewarded() -> None:
    rewarded = {text[:60]: score("Wombats,Wallabies\nQuokkas,7641", text) for text in HOSTILE}
    assert {text: reward for text, reward in rewarded.items() if reward != 0.0} == {}


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_random_text_is_never_rewarded(text: str) -> None:
    for said in (text, f"|{text}|{text}|", f"<table><tr><td>{text}", f'{text},"{text}\n{text},'):
        assert score("Wombats,Wallabies\nQuokkas,7641", said) == 0.0


cells = st.lists(
    st.lists(st.sampled_from(["", "cat", "cart", "dog", "12", "13"]), min_size=1, max_size=3), min_size=1, max_size=4
)


@given(cells, cells)
@settings(max_examples=50, deadline=None)
def test_it_is_symmetric_and_one_only_for_the_same_table(one: list[list[str]], other: list[list[str]]) -> None:
    def markdown(table: list[list[str]]) -> str:
        return "\n".join("|" + "|".join(row) + "|" for row in table)

    reward, back = score(one, markdown(other)), score(other, markdown(one))
    if isinstance(reward, float) and isinstance(back, float):  # not of empty cells alone
        assert reward == pytest.approx(back)
        assert (reward == 1.0) == ([row for row in one if any(row)] == [row for row in other if any(row)])
