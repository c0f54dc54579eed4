"""`python -m recipes.select` from its files to those that it leaves; no engine starts."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
CODE = """
import runpy, sys
sys.argv = ["select", "--help"]
try:
    runpy.run_module("recipes.select", run_name="__main__", alter_sys=True)
finally:
    print("loaded", *{"torch", "ray", "transformers", "datasets", "imagehash", "datasketch"} & set(sys.modules))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four queries with pictures, of which the second is never solved and the fourth is the third anew."""
    rows = []
    for row, color in enumerate(("red", "green", "blue", "blue")):
        picture = Image.new("RGB", (64, 64), "white")
        picture.paste(color, (16 * row, 0, 64, 32) if row < 3 else (32, 0, 64, 32))
        picture.save(tmp_path / f"{row}.png")
        rows.append({"question": "Which colour?", "image": f"{row}.png", "answer": color})
    rates = [
        {"row": row, "prompt_id": f"row-{row}", "task": "default", "pass_rate": float(row != 1) / 2, "blind": False}
        for row in range(4)
    ]
    for name, lines in (("train.jsonl", rows), ("rates.jsonl", rates)):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def select(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["select", *map(str, words)])
    monkeypatch.delitem(sys.modules, "recipes.select", raising=False)
    runpy.run_module("recipes.select", run_name="__main__", alter_sys=True)


def test_help_shows_the_options_and_does_not_wait_for_datasets() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "loaded")
    options = set(re.findall(r"(?<=[ │])--[a-z.-]+", done.stdout))
    assert options >= {
        "--data",
        "--pass-rates",
        "--blind-pass-rates",
        "--against",
        "--output",
        "--run-dir",
        "--rate.at-most",
    }


def test_a_selection_is_written_and_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--run-dir", folder / "run", "--output", folder / "selected.parquet"]
    select(monkeypatch, "--data", folder / "train.jsonl", "--pass-rates", folder / "rates.jsonl", *files)
    kept = [json.loads(line)["row"] for line in (folder / "run" / "selected.jsonl").read_text().splitlines()]
    dropped = [json.loads(line) for line in (folder / "run" / "dropped.jsonl").read_text().splitlines()]
    assert kept == [0, 2] and [line["reason"] for line in dropped] == ["never_solved", "duplicate"]
    assert json.loads((folder / "run" / "report.json").read_text())["all"]["kept"] == 2
    told = capsys.readouterr().out
    assert (
        "never or too rarely solved" in told and f"{folder}/run/selected.jsonl" in told and "selected.parquet" in told
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--data none.jsonl", "there is no file or folder none.jsonl"),
        ("--data {folder}/train.jsonl --pass-rates none.jsonl", "pass_rates: there is no file none.jsonl"),
        ("--data {folder}/train.jsonl --rate.at-most 90", "rate.at_most must be above rate.above = 0.0 and at most 1, got 90"),
        ("--data {folder}/train.jsonl --output out.csv", "output must end in .parquet, got out.csv"),
        ("--data {folder}/train.jsonl --columns.question text", "to_prompt asks for column 'text', but the dataset has"),
        ("--data {folder}/train.jsonl --against {folder}/train.jsonl --run-dir {folder}/run", "nothing is left of 4 queries: "),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: str, told: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        select(monkeypatch, *options.format(folder=folder).split())
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_recipe_refuses_a_selection_that_is_not_there_before_its_cold_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["digit_sums", "--selection", "none.jsonl", "--run-dir", str(tmp_path)])
    monkeypatch.delitem(sys.modules, "recipes.digit_sums", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("recipes.digit_sums", run_name="__main__", alter_sys=True)
    assert ended.value.code == 2
    assert "there is no selection none.jsonl: make one by python -m recipes.select" in capsys.readouterr().err
