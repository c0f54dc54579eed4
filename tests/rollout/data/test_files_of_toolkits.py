"""Files of other toolkits: paths in columns, messages and lists of frames lead from the file's folder; media in every form."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from rollout.data.chat_rows import chat_rows
from rollout.data.datasets import read_rows
from rollout.data.messages import checked_messages
from rollout.data.prompts import Prompts, prompts_from

RED, BLUE = (255, 0, 0), (0, 0, 255)
Write = Callable[[dict[str, Any]], Any]


def png(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures, which is not the working directory."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "data" / "shots").mkdir(parents=True)
    for name in ("red", "blue"):
        (tmp_path / "data" / "shots" / f"{name}.png").write_bytes(png(name))
    return tmp_path / "data"


@pytest.fixture(params=["jsonl", "parquet"])
def written(request: pytest.FixtureRequest, folder: Path) -> Write:
    """Writes equal rows as a file, and reads one of it."""

    def write(row: dict[str, Any]) -> Any:
        path = folder / f"rows.{request.param}"
        if request.param == "jsonl":
            path.write_text(2 * (json.dumps(row) + "\n"))
        else:
            Dataset.from_list([row, row]).to_parquet(str(path))
        return read_rows(path)[1]

    return write


def colors(prompts: Prompts) -> list[list[Any]]:
    return [[image.getpixel((0, 0)) for image in prompt.images] for prompt in prompts]


def of_part(**part: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part, {"type": "text", "text": "Which colour has red.png?"}]}]


@pytest.mark.parametrize("column", ["messages", "prompt", "conversations"])
@pytest.mark.parametrize("key", ["image", "image_url", "url", "path", "bytes"])
def test_a_part_of_a_message_leads_from_the_files_folder(written: Write, column: str, key: str) -> None:
    held: Any = {"url": "shots/red.png"} if key == "image_url" else "shots/red.png"
    if key == "bytes":
        held, key = {"bytes": None, "path": "shots/red.png"}, "image"
    kind = "image_url" if key == "image_url" else "image"
    prompts = prompts_from([written({column: of_part(type=kind, **{key: held})})], chat_rows)
    assert colors(prompts) == [[RED]]
    assert prompts[0].messages[0]["content"][1]["text"] == "Which colour has red.png?"


@pytest.mark.parametrize("column", ["images", "image"])
@pytest.mark.parametrize("form", ["data URI", "base64", "file URI", "bytes", "verl"])
def test_a_column_of_images_has_any_form(folder: Path, column: str, form: str) -> None:
    raw = base64.b64encode(png("red")).decode()
    image: Any = {
        "data URI": "data:image/png;base64," + raw,
        "base64": base64.b64encode(png("red") + b"\0" * 4096).decode(),  # shorter texts may be paths
        "file URI": (folder / "shots" / "red.png").as_uri(),
        "bytes": {"bytes": png("red"), "path": "gone.png"},
        "verl": {"image": "data:image/png;base64," + raw, "min_pixels": 1},
    }[form]
    [prompt] = prompts_from([{"problem": "<image>Which colour?", column: [image]}], chat_rows)
    assert colors([prompt]) == [[RED]]
    part = (
        {"type": "image_url", "image_url": {"url": image}}
        if isinstance(image, str)
        else {"type": "image", "image": image}
    )
    assert colors(prompts_from([{"messages": of_part(**part)}], chat_rows)) == [[RED]]


@pytest.mark.parametrize("toolkit", ["ms-swift", "verl", "qwen"])
def test_frames_lead_from_the_files_folder(written: Write, folder: Path, toolkit: str) -> None:
    frames = ["shots/red.png", "shots/blue.png"]
    asked = [{"role": "user", "content": "<video>Which colour is last?"}]
    row = {
        "ms-swift": {"messages": asked, "videos": [frames]},
        "verl": {"prompt": asked, "videos": [{"video": frames, "fps": 2.0}]},
        "qwen": {"messages": of_part(type="video", video=frames, fps=2.0)},
    }[toolkit]
    made = checked_messages(chat_rows(written(row), fps=2.0))
    assert made.videos == [{"frames": [str(folder / frame) for frame in frames], "fps": 2.0}]


def test_turns_lead_from_the_files_folder_and_texts_stay(written: Write) -> None:
    turns = [{"from": "human", "value": "<image>Is it red.png?"}, {"from": "gpt", "value": "shots/red.png"}]
    turns.append({"from": "human", "value": "shots/blue.png"})
    [prompt] = prompts_from([written({"image": "shots/red.png", "conversations": turns})], chat_rows)
    assert colors([prompt]) == [[RED]]
    assert [message["content"] for message in prompt.messages[1:]] == ["shots/red.png", "shots/blue.png"]


def test_a_parquet_file_of_verl_is_read_as_it_is_written(folder: Path) -> None:
    features = Features(
        {
            "data_source": Value("string"),
            "prompt": List({"role": Value("string"), "content": Value("string")}),
            "images": List(ImageFeature()),
            "ability": Value("string"),
            "reward_model": {"style": Value("string"), "ground_truth": Value("string")},
            "extra_info": {"index": Value("int64"), "split": Value("string")},
        }
    )
    row = {
        "data_source": "shapes",
        "prompt": [{"role": "user", "content": "<image>One, <image>two: which is blue?"}],
        "images": [{"bytes": png(name), "path": None} for name in ("red", "blue")],
        "ability": "sight",
        "reward_model": {"style": "rule", "ground_truth": "two"},
        "extra_info": {"index": 0, "split": "train"},
    }
    Dataset.from_list([row, {**row, "images": row["images"][::-1]}], features=features).to_parquet(
        str(folder / "train.parquet")
    )
    prompts = prompts_from(read_rows(folder), chat_rows)
    assert colors(prompts) == [[RED, BLUE], [BLUE, RED]]
    assert (prompts[0].answer, prompts[0].task) == ("two", "shapes")
