"""What is worth training on: a small set with one query for each reason to drop one, and the files that come of it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from rl.curation.config import RateConfig, SelectConfig, SimilarityConfig, check_selection
from rl.curation.report import counts, require_rows, write_rows, write_selection
from rl.curation.select import Dropped, Selection, read_rates, select
from rl.data import DataColumns, prompts_of, rows_of
from rollout.data.datasets import read_rows

COLUMNS = DataColumns(id="name", task="kind")
RATES = (0.5, None, 0.0, 15 / 16, 0.5, 0.5, 0.5, 0.5, 14 / 16, 1 / 16)
BLIND = {0: 0.0, 4: 0.75, 5: 0.5}
NAMES = ("kept", "no_verdict", "never", "known", "blind", "broken", "taken", "twin", "high", "low", "late")


def picture(seed: int) -> Image.Image:
    """A pattern of large blotches, of which two seeds have nothing in common."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven queries of two tasks, their pass rates, and an evaluation set."""
    folder = tmp_path_factory.mktemp("data")
    seeds = {name: seed for seed, name in enumerate(NAMES)} | {"twin": 0}
    for name, seed in seeds.items():
        picture(seed).resize((64, 64) if name == "twin" else (96, 96)).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    rows = [
        {
            "name": name,
            "kind": "odd" if row % 2 else "even",
            "question": "How many?",
            "image": f"{name}.png",
            "answer": " SEVEN" if name == "twin" else "seven",
        }
        for row, name in enumerate(NAMES)
    ]
    write(folder / "train.jsonl", rows)
    rates = [rate_line(row, rate) for row, rate in enumerate(RATES)]
    write(folder / "rates.jsonl", rates)
    write(folder / "blind.jsonl", [{**rate_line(row, rate), "blind": True} for row, rate in BLIND.items()])
    from datasets import Dataset

    Dataset.from_list(rates).to_parquet(folder / "rates.parquet")
    buffer = io.BytesIO()
    picture(seeds["taken"]).resize((60, 60)).save(buffer, "JPEG", quality=50)
    image = {"bytes": buffer.getvalue(), "path": None}
    asked = [{"name": "e-0", "kind": "x", "question": "Of what colour?", "image": image, "answer": "red"}]
    Dataset.from_list(asked).to_parquet(folder / "test.parquet")
    return folder


def rate_line(row: int, rate: float | None) -> dict[str, Any]:
    return {
        "row": row,
        "prompt_id": NAMES[row],
        "task": "odd" if row % 2 else "even",
        "pass_rate": rate,
        "blind": False,
    }


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def config(folder: Path) -> SelectConfig:
    return SelectConfig(
        data=str(folder / "train.jsonl"),
        columns=COLUMNS,
        pass_rates=folder / "rates.jsonl",
        blind_pass_rates=folder / "blind.jsonl",
        against=(str(folder / "test.parquet"),),
    )


def selection_of(config: SelectConfig) -> Selection:
    return select(config, prompts_of(config))


def kept(config: SelectConfig) -> list[str]:
    return [query.prompt_id for query in selection_of(config).kept]


def test_each_query_goes_for_its_reason(config: SelectConfig, folder: Path) -> None:
    selection = selection_of(config)
    assert [query.prompt_id for query in selection.kept] == ["kept", "high", "low"]
    error, bits = selection.dropped[5].detail["error"], selection.dropped[6].detail["picture_bits"]
    assert "broken.png" in error and bits <= 4
    assert selection.dropped == {
        1: Dropped(reason="no_verdict"),
        2: Dropped(reason="never_solved", detail={"pass_rate": 0.0}),
        3: Dropped(reason="known", detail={"pass_rate": 15 / 16}),
        4: Dropped(reason="solved_blind", detail={"blind_pass_rate": 0.75}),
        5: Dropped(reason="unreadable", detail={"error": error}),
        6: Dropped(
            reason="contaminated",
            detail={
                "set": str(folder / "test.parquet"),
                "like": {"row": 0, "prompt_id": "e-0"},
                "picture_bits": bits,
                "overlap": 0.0,
            },
        ),
        7: Dropped(reason="duplicate", detail={"like": {"row": 0, "prompt_id": "kept"}}),
        10: Dropped(reason="not_measured"),
    }


@pytest.mark.parametrize(
    ("change", "also"),
    [
        ({"rate": RateConfig(above=1 / 16, at_most=0.95)}, {"known"} - {"low"}),
        ({"rate": RateConfig(blind_at_most=0.75)}, {"blind"}),
        ({"duplicates": False}, {"twin"}),
        ({"against": ()}, {"taken"}),
        ({"pass_rates": None}, {"never", "known", "no_verdict", "late"}),
        ({"blind_pass_rates": None}, {"blind"}),
    ],
)
def test_a_rule_that_is_relaxed_lets_its_queries_through(
    config: SelectConfig, change: dict[str, Any], also: set[str]
) -> None:
    lost = {"low"} if "rate" in change and change["rate"].above else set()
    assert set(kept(replace(config, **change))) == {"kept", "high", "low"} - lost | also


def test_pass_rates_may_be_parquet(config: SelectConfig, folder: Path) -> None:
    assert kept(replace(config, pass_rates=folder / "rates.parquet")) == ["kept", "high", "low"]


def test_a_copy_of_what_was_dropped_for_another_reason_is_no_copy(
    config: SelectConfig, folder: Path, tmp_path: Path
) -> None:
    lines = [rate_line(row, 0.0 if row == 0 else rate) for row, rate in enumerate(RATES)]
    write(tmp_path / "rates.jsonl", lines)
    assert kept(replace(config, pass_rates=tmp_path / "rates.jsonl")) == ["twin", "high", "low"]


def test_text_alone_is_compared_by_its_words(tmp_path: Path) -> None:
    ask = "A farmer has {} sheep and buys {} more on Monday and sells nine on Friday how many sheep has he now"
    write(
        tmp_path / "train.jsonl",
        [{"question": ask.format(a, b), "answer": str(a + b - 9)} for a, b in [(17, 25), (30, 9), (17, 25)]],
    )
    write(tmp_path / "test.jsonl", [{"question": "On Sunday " + ask.format(30, 9), "answer": "30"}])
    config = SelectConfig(
        data=str(tmp_path / "train.jsonl"), columns=DataColumns(image=None), against=(str(tmp_path / "test.jsonl"),)
    )
    dropped = selection_of(config).dropped
    # All three share the last eleven words with the evaluation prompt's 22: that is half, which counts as found.
    assert {row: each.reason for row, each in dropped.items()} == dict.fromkeys(range(3), "contaminated")
    strict = replace(config, like=SimilarityConfig(overlap=0.9))
    assert {row: each.reason for row, each in selection_of(strict).dropped.items()} == {
        1: "contaminated",
        2: "duplicate",
    }


def test_the_files_say_what_went_and_why(config: SelectConfig, tmp_path: Path) -> None:
    console = Console(record=True, width=100, file=io.StringIO())
    file = write_selection(config, selection_of(config), tmp_path / "run", console)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [
        {"row": row, "prompt_id": NAMES[row], "task": "even" if row % 2 == 0 else "odd", "pass_rate": RATES[row]}
        for row in (0, 8, 9)
    ]
    dropped = [json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()]
    assert [line["row"] for line in dropped] == [1, 2, 3, 4, 5, 6, 7, 10]
    assert dropped[1] == {"row": 2, "prompt_id": "never", "task": "even", "reason": "never_solved", "pass_rate": 0.0}
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["choices"]["rate"] == {"above": 0.0, "at_most": 0.9, "blind_at_most": 0.5}
    everything = report["all"]
    assert (everything["queries"], everything["kept"], sum(everything["dropped"].values())) == (11, 3, 8)
    # Ten were asked, of which one has no verdict; the mean of nine, and of .5, .875 and .0625.
    assert everything["pass_rate"] == pytest.approx((0 + 15 / 16 + 5 * 0.5 + 14 / 16 + 1 / 16) / 9)
    assert everything["pass_rate_kept"] == pytest.approx((0.5 + 14 / 16 + 1 / 16) / 3)
    assert report["tasks"]["odd"]["dropped"] == {"no_verdict": 1, "known": 1, "unreadable": 1, "duplicate": 1}
    told = console.export_text()
    assert "− in an evaluation set" in told and "mean pass rate" in told
    assert next(line.split() for line in told.splitlines() if "kept" in line) == ["kept", "2", "1", "3"]


def test_a_table_has_no_columns_for_many_tasks_and_none_for_one(config: SelectConfig, tmp_path: Path) -> None:
    console = Console(record=True, width=100, file=io.StringIO())
    one = replace(config, columns=DataColumns(id="name"), pass_rates=None, blind_pass_rates=None)
    selection = selection_of(one)
    assert list(counts(selection)["tasks"]) == ["default"]  # the picture that cannot be read has none
    assert counts(selection)["all"]["queries"] == 11
    write_selection(one, selection, tmp_path, console)
    told = console.export_text()
    assert "queries" in told and "default" not in told
    # Row 5 could not be read and has no task: seven are left, which are too many, then six.
    many = {row: (name, f"task {row % 8}") for row, (name, _) in selection.names.items()}
    write_selection(one, replace(selection, names=many), tmp_path, console)
    told = console.export_text()
    assert "queries" in told and "task 3" not in told
    few = {row: (name, f"task {row % 7}") for row, (name, _) in selection.names.items()}
    write_selection(one, replace(selection, names=few), tmp_path, console)
    assert "task 3" in console.export_text()


def test_the_selected_rows_are_written_with_their_pictures(config: SelectConfig, folder: Path, tmp_path: Path) -> None:
    rows, _ = rows_of(config)
    write_rows(rows, selection_of(config), tmp_path / "out" / "selected.parquet")
    written = read_rows(tmp_path / "out" / "selected.parquet")
    assert written.column_names == ["name", "kind", "question", "image", "answer"]
    assert [row["image"] for row in written] == [str(folder / f"{name}.png") for name in ("kept", "high", "low")]
    again = replace(config, data=str(tmp_path / "out" / "selected.parquet"), pass_rates=None, blind_pass_rates=None)
    assert kept(again) == ["kept", "high", "low"]


def test_pictures_that_are_drawn_or_stored_as_files_are_embedded(tmp_path: Path) -> None:
    from rollout.data.prompts import prompts_from
    from rollout.tasks.digit_sums import digit_sums, to_prompt

    rows = digit_sums("train", num_prompts=4)
    selection = select(SelectConfig(data="made here"), prompts_from(rows, to_prompt))
    assert len(selection.kept) == 4
    write_rows(rows, selection, tmp_path / "digits.parquet")
    written = read_rows(tmp_path / "digits.parquet")
    assert set(written.column_names) == {"id", "question", "answer", "digits", "sum", "digit_ids", "image"}
    assert np.array_equal(np.asarray(written[3]["image"]), np.asarray(rows[3]["image"]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pass_rates": Path("none.jsonl")}, "pass_rates: there is no file none.jsonl: python -m recipes.measure_pass_rate"),
        ({"pass_rates": Path("{folder}/train.jsonl")}, r"train.jsonl is not a file of measure_pass_rate \(KeyError: 'row'\)"),
        ({"pass_rates": Path("{folder}/kept.png")}, "kept.png is not a file of measure_pass_rate"),
        ({"pass_rates": Path("{folder}/blind.jsonl")}, "pass_rates: .*blind.jsonl was measured with --blind"),
        ({"blind_pass_rates": Path("{folder}/rates.jsonl")}, "blind_pass_rates: .*rates.jsonl was measured without --blind"),
        ({"data": "{folder}/test.parquet"}, "rates.jsonl has row 9, but the data has 1 rows: it belongs to other data"),
        ({"columns": replace(COLUMNS, id="kind")}, "row 0 is prompt 'kept' in the pass rates and 'even' in the data"),
        ({"against": ("{folder}/none.jsonl",)}, "evaluation set .*none.jsonl: there is no file or folder"),
        ({"against": ("gsm8k={folder}/blind.jsonl",)}, "evaluation set gsm8k=.*to_prompt asks for column 'answer'"),
        ({"against": ("{folder}/test.parquet@dev",)}, "has no split 'dev'"),
        ({"against": ("geometry=x/y@test",)}, "evaluation set geometry=x/y@test: its layout must be one of .*, got 'geometry'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(config: SelectConfig, folder: Path, change: dict[str, Any], told: str) -> None:
    def placed(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(placed, value))
        return type(value)(str(value).replace("{folder}", str(folder))) if isinstance(value, str | Path) else value

    changed = replace(config, **{name: placed(value) for name, value in change.items()})
    with pytest.raises(ValueError, match=told):
        selection_of(changed)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rate": RateConfig(above=0.95)}, "rate.at_most must be above rate.above = 0.95 and at most 1, got 0.9"),
        ({"rate": RateConfig(blind_at_most=50)}, "rate.blind_at_most must be from 0 to 1, got 50"),
        ({"like": SimilarityConfig(picture_bits=40)}, "like.picture_bits must be from 0 to 31: 32 is what chance gives, got 40"),
        ({"like": SimilarityConfig(text=80)}, "like.text must be > 0 and at most 1, got 80"),
        ({"output": Path("out.csv")}, "output must end in .parquet, got out.csv"),
        ({"duplicates": False}, "nothing would be dropped"),
    ],
)  # fmt: skip
def test_choices_that_cannot_work_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_selection(replace(SelectConfig(data="x.jsonl"), **change))


def test_an_empty_file_of_rates_is_told(tmp_path: Path) -> None:
    (tmp_path / "rates.jsonl").write_text("")
    with pytest.raises(ValueError, match="rates.jsonl has no pass rates"):
        read_rates(tmp_path / "rates.jsonl", 3, blind=False)


def test_prompts_are_no_rows_to_be_written(config: SelectConfig) -> None:
    with pytest.raises(ValueError, match="output = out.parquet needs rows of a dataset, but the data are prompts"):
        require_rows(prompts_of(config), Path("out.parquet"))


def test_evaluation_prompts_that_cannot_be_read_are_told(
    config: SelectConfig, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept(replace(config, against=(f"{folder}/train.jsonl",)))
    assert (
        f"1 of 11 prompts of {folder}/train.jsonl cannot be read, so queries are not compared with them; row 5:"
        in caplog.text
    )
