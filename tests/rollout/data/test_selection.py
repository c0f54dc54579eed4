"""Training on a part of a set, as a file names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rollout.data.mixture import mixture
from rollout.data.prompts import Prompts, prompts_from
from rollout.data.selection import selected
from rollout.data.stream import PromptStream
from rollout.types import Prompt


def prompts(num: int = 10) -> Prompts:
    return prompts_from([Prompt(id=f"p-{i}", messages=[{"role": "user", "content": str(i)}]) for i in range(num)])


def write(file: Path, rows: dict[int, str]) -> Path:
    file.write_text(
        "".join(json.dumps({"row": row, "prompt_id": name, "task": "x"}) + "\n" for row, name in rows.items())
    )
    return file


def test_only_what_is_named_is_drawn_in_every_epoch(tmp_path: Path) -> None:
    chosen = selected(prompts(), write(tmp_path / "s.jsonl", {7: "p-7", 2: "p-2", 5: "p-5"}))
    assert [prompt.id for prompt in chosen] == ["p-2", "p-5", "p-7"]
    stream = PromptStream(chosen, batch_size=3, seed=0)
    for _ in range(4):
        assert {prompt.id for prompt in stream.next_batch()} == {"p-2", "p-5", "p-7"}


def test_a_part_of_a_part_counts_from_its_own_start(tmp_path: Path) -> None:
    tail = prompts()[4:]
    assert [prompt.id for prompt in tail.at([0, 3])] == ["p-4", "p-7"]
    assert [prompt.id for prompt in tail.at([0, 3])[1:]] == ["p-7"]
    assert selected(tail, write(tmp_path / "s.jsonl", {1: "p-5"}))[0].id == "p-5"


def test_a_task_of_a_mixture_may_be_a_selection_and_a_mixture_is_told_so(tmp_path: Path) -> None:
    file = write(tmp_path / "s.jsonl", {1: "p-1"})
    mixed = mixture({"a": (selected(prompts(), file), 1), "b": (prompts(), 1)})
    assert [prompt.id for prompt in mixed.sources["a"]] == ["a/p-1"]
    with pytest.raises(ValueError, match=r"this is a mixture: pass selected\(prompts, '.*s.jsonl'\) to mixture\(\)"):
        selected(mixed, file)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            {3: "p-4"},
            "has prompt 'p-4' in row 3, here it is 'p-3': the selection belongs to another set or another order",
        ),
        ({3: "p-3", 4: "p-8"}, "has prompt 'p-8' in row 4"),
        ({3: "p-3", 10: "p-10"}, "names row 10, but there are 10 prompts: it belongs to another set"),
        ({}, "keeps no prompt: see report.json beside it"),
    ],
)
def test_a_selection_of_another_set_is_told(tmp_path: Path, rows: dict[int, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        selected(prompts(), write(tmp_path / "s.jsonl", rows))


@pytest.mark.parametrize("content", ['{"row": 1}\n', "no json\n", "[1, 2]\n"])
def test_a_file_that_is_no_selection_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "s.jsonl").write_text(content)
    with pytest.raises(ValueError, match="is no selection: each line must have a row and a prompt_id"):
        selected(prompts(), tmp_path / "s.jsonl")
    with pytest.raises(ValueError, match="there is no selection .*none.jsonl: make one by python -m recipes.select"):
        selected(prompts(), tmp_path / "none.jsonl")
