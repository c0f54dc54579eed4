"""Data files that somebody else has changed: a sentence or prompts, and nothing executed."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from rollout.data.datasets import read_rows
from rollout.data.mixture import open_stream
from rollout.data.prompts import column_mapping, prompts_from
from rollout.data.selection import read_selection
from tests.mutations import mutate

MUTATIONS = 300


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One set of twenty questions in each format, one of them with pictures, and a selection."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"question": f"What is {number}?", "answer": str(number)} for number in range(20)]
    with_pictures = [{**row, "image": {"bytes": _picture(number), "path": None}} for number, row in enumerate(rows)]
    Dataset.from_list(with_pictures).to_parquet(folder / "pictures.parquet")
    Dataset.from_list(rows).to_csv(folder / "rows.csv")
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = [{"row": number, "prompt_id": f"p{number}"} for number in range(9)]
    (folder / "selected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return sorted(folder.iterdir())


def _picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def read(file: Path) -> None:
    """Does what a run does with the file before its engines start."""
    if file.name == "selected.jsonl":
        read_selection(file)
        return
    image = "image" if file.suffix == ".parquet" else None
    prompts = prompts_from(read_rows(file), column_mapping(question="question", answer="answer", image=image))
    assert len(open_stream(prompts, batch_size=8, seed=0).next_batch()) == 8


def test_each_of_three_hundred_changed_files_is_refused_by_a_sentence_or_read(files: list[Path], tmp_path: Path):
    canary, outcomes = tmp_path / "executed", Counter[str]()
    for file in files:
        read(file)
    for seed in range(MUTATIONS):
        rng = random.Random(seed)
        file = tmp_path / str(seed) / rng.choice(files).name
        file.parent.mkdir()
        shutil.copy(next(each for each in files if each.name == file.name), file)
        kind = mutate(file, rng, canary)
        try:
            read(file)
            outcomes["read"] += 1
        except ValueError as error:
            outcomes["refused"] += 1
            assert str(error).strip(), f"{kind} in {file.name}: no reason"
        assert not canary.exists(), f"{kind} in {file.name}, seed {seed}"
    assert outcomes["refused"] > 0.3 * MUTATIONS, "many changes are found"
