"""The check of a dataset: what it counts, shows and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from recipes import check_data
from rl.cli import main

ROWS = [
    {"question": "<image>How many?", "image": "a.png", "answer": "4", "level": 3},
    {"question": None, "image": None, "answer": "4", "level": 3},
    {"question": "3+2?", "image": None, "answer": "5", "level": 3},
    {"question": "<image>?", "image": None, "answer": "1", "level": 2},
    {"question": "<image>!", "image": None, "answer": "1", "level": 2},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    Image.new("RGB", (96, 64)).save(tmp_path / "a.png")
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["check_data", *map(str, words)])
    monkeypatch.delenv("RL_TRACEBACK", raising=False)
    try:
        main(check_data.run, check_data.CheckData)
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    return status, *capsys.readouterr()


def test_it_shows_what_rows_become_and_counts_those_that_are_skipped(data, monkeypatch, capsys) -> None:
    status, out, _ = printed(monkeypatch, capsys, data, "--reward", "math_answer")
    assert status == 0
    assert "5 rows read: 2 prompts, 3 skipped" in out
    assert "2 × row 3: the text has 1 placeholders <image>, but the row has 0 images" in out
    assert "1 × row 1: a text part holds a NoneType" in out
    assert "images: 96 × 64" in out and "answer: str '4'" in out and "column level: int 3" in out
    assert "<|vision_start|><|image_pad|><|vision_end|>How many?" in out
    # 3 × 2 tokens of 32 × 32 pixels in place of one; the other prompt has no picture
    assert "tokens of a prompt: 9 to " in out
    assert "math_answer: tried on up to 2 reference answers" in out


def test_a_reward_that_accepts_no_reference_is_refused(data, monkeypatch, capsys) -> None:
    status, _, err = printed(monkeypatch, capsys, data, "--reward", "box_iou")
    assert status == 2 and "none of its first 2 reference answers earns a reward" in " ".join(err.split())


def test_data_of_which_no_row_can_be_used_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"question": None, "image": None, "answer": "1"}) + "\n")
    status, out, err = printed(monkeypatch, capsys, path)
    assert (status, "1 rows read: 0 prompts, 1 skipped" in out) == (2, True)
    assert "none of 1 rows can be used: correct the data, --columns or --layout" in " ".join(err.split())
