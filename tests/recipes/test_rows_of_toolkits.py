"""Recipes read rows of other toolkits by --layout chat_rows, or by the names of their columns."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro
from PIL import Image

from policies.small.qwen3_vl import small_processor
from recipes import check_data
from recipes.cold_start import ColdStart, data
from rl.cli import main
from rl.sft.demonstrations import encode_demonstration, reference_answer

VERL = {
    "data_source": "my/fruit",
    "prompt": [{"role": "user", "content": "<image>Which fruit?"}],
    "images": ["pear.png"],
    "reward_model": {"style": "rule", "ground_truth": "a pear"},
}
LLAVA = {
    "id": "17",
    "image": "pear.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhich fruit?"},
        {"from": "gpt", "value": "A pear."},
        {"from": "human", "value": "Ripe?"},
        {"from": "gpt", "value": "Yes."},
    ],
}


def file_of(folder: Path, row: dict[str, Any]) -> Path:
    Image.new("RGB", (64, 32), "green").save(folder / "pear.png")
    path = folder / "rows.jsonl"
    path.write_text(3 * (json.dumps(row) + "\n"))
    return path


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(row: dict[str, Any], *words: str) -> str:
        """The output of the check, and its error."""
        monkeypatch.setattr(sys, "argv", ["check_data", str(file_of(tmp_path, row)), *words])
        try:
            main(check_data.run, check_data.CheckData)
        except SystemExit as ended:
            assert ended.code == 2
        return " ".join("".join(capsys.readouterr()).split())

    return run


@pytest.mark.parametrize(
    "words",
    [
        "--layout chat_rows",
        "--columns.messages prompt --columns.image images --columns.answer reward_model.ground_truth --columns.task data_source",
    ],
)
def test_the_check_shows_a_conversation_its_picture_and_its_nested_answer(check: Any, words: str) -> None:
    out = check(VERL, *words.split())
    for shown in (
        "3 prompts, 0 skipped",
        "task: my/fruit",
        "messages: user",
        "answer: str 'a pear'",
        "images: 64 × 32",
    ):
        assert shown in out
    assert "<|im_start|>u<|vision_start|><|image_pad|><|vision_end|>Which fruit?<|im_end|>" in out


def test_the_check_reads_demonstrations_as_the_cold_start_does(check: Any) -> None:
    assert "3 × row 0: the messages end with the assistant's answer" in check(LLAVA, "--layout", "chat_rows")
    out = check(LLAVA, "--layout", "chat_rows", "--demonstrations")
    assert "messages: user, assistant, user" in out and "answer: str 'Yes.'" in out


def test_a_missing_column_is_named_by_its_option(check: Any) -> None:
    out = check(VERL, "--columns.messages", "prompt")
    assert (
        "asks for column 'image', but the dataset has 'data_source', 'prompt', 'images', 'reward_model': name one of"
        in out
    )
    assert "by --columns.image, None if there is none; chat_rows (--layout chat_rows) reads the columns of TRL" in out


@pytest.mark.parametrize(
    ("row", "words", "learned"),
    [
        (LLAVA, "--layout chat_rows", "Yes."),
        (LLAVA, "--messages conversations --image image", "Yes."),
        (VERL, "--messages prompt --image images --answer reward_model.ground_truth", "a pear"),
        ({"instruction": "Name a fruit.", "input": "", "output": "Pear."}, "--layout chat_rows", "Pear."),
    ],
)
def test_a_cold_start_learns_the_last_answer(tmp_path: Path, row: dict[str, Any], words: str, learned: str) -> None:
    options = ["--data", str(file_of(tmp_path, row)), "--held-out", "1", *words.split()]
    trained, held_out = data(tyro.cli(ColdStart, args=options))
    assert (len(trained), len(held_out)) == (2, 1)
    processor = small_processor()
    sample = encode_demonstration(processor, trained[0], reference_answer(trained[0]))
    assert processor.tokenizer.decode(sample.token_ids[sample.loss_mask]) == learned + "<|im_end|>"


def test_options_of_a_cold_start_are_named_where_a_column_is_missing(tmp_path: Path) -> None:
    options = ["--data", str(file_of(tmp_path, LLAVA)), "--messages", "turns"]
    with pytest.raises(ValueError, match="asks for column 'turns', .* by --messages"):
        data(tyro.cli(ColdStart, args=options))
    with pytest.raises(ValueError, match="layout must be one of geometry3k, .*, chat_rows, got 'llava'"):
        data(tyro.cli(ColdStart, args=[*options, "--layout", "llava"]))
