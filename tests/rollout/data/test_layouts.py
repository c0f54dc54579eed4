"""Public layouts, on small files that are laid out as they are published: what is asked, and which verifier takes the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features
from PIL import Image

from rollout import Completion, Prompt
from rollout.data import layouts
from rollout.data.datasets import read_rows
from rollout.data.prompts import UnreadablePrompt, prompts_from
from tests.published_layouts import LAYOUTS, Layout, image

names = pytest.mark.parametrize("name", LAYOUTS)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def published(layout: Layout, folder: Path) -> Any:
    """The rows, as parquet with embedded images, read."""
    features = Features(layout.features)
    table = pa.table({column: [row[column] for row in layout.rows] for column in features})
    table = table.cast(
        pa.schema([(field.name, features.arrow_schema.field(field.name).type) for field in table.schema])
    )
    told = json.dumps({"info": {"features": features.to_dict()}})
    pq.write_table(table.replace_schema_metadata({"huggingface": told}), folder / "test-00000-of-00001.parquet")
    return read_rows(folder, "test")


def said(prompt: Prompt) -> str:
    return "".join(part.get("text", "") for part in prompt.messages[0]["content"])


def kinds(prompt: Prompt) -> str:
    """The parts of the turn: i for an image, t for a text."""
    return "".join(part["type"][0] for part in prompt.messages[0]["content"])


@names
def test_a_published_row_asks_its_question_and_has_the_answer(name: str, tmp_path: Path):
    layout = LAYOUTS[name]
    prompts = list(prompts_from(published(layout, tmp_path), layout.to_prompt))
    assert [prompt.answer for prompt in prompts] == layout.answers
    for prompt, told in zip(prompts, layout.told, strict=True):
        assert told in said(prompt) and prompt.task == name
        assert kinds(prompt).count("i") == len(prompt.images)
        assert not any(isinstance(value, Image.Image) for value in prompt.columns.values())


@names
def test_its_verifier_takes_a_right_response_and_no_wrong_one(name: str, tmp_path: Path):
    layout = LAYOUTS[name]
    for prompt, (right, wrong) in zip(
        prompts_from(published(layout, tmp_path), layout.to_prompt), layout.said, strict=True
    ):
        assert layout.verifier(prompt, Completion(text=right)) == 1.0
        assert layout.verifier(prompt, Completion(text=wrong)) == 0.0


NEEDED = {
    "geometry3k": "images problem answer",
    "mathvista": "question choices answer answer_type",
    "mathvision": "question options answer",
    "mmmu": "question options answer image_1",
    "chartqa": "image query label",
    "countbench": "image question number",
    "refcoco": "image bbox answer",
    "ocrbench": "image question answer",
    "gsm8k": "question answer",
    "aime": "problem answer",
    "reasoning_gym": "question answer metadata",
}


@pytest.mark.parametrize(("name", "column"), [(name, column) for name in NEEDED for column in NEEDED[name].split()])
def test_a_missing_column_is_told_with_those_there_are(name: str, column: str):
    row = {other: value for other, value in LAYOUTS[name].rows[0].items() if other != column}
    there = ", ".join(map(repr, row))
    with pytest.raises(
        ValueError, match=rf"asks for column '{column}', but the dataset has {there}: name one of these"
    ):
        prompts_from([row], LAYOUTS[name].to_prompt)


@pytest.mark.parametrize("name", ["mathvista", "mathvision"])
def test_a_picture_that_is_not_decoded_may_be_in_the_column_image(name: str):
    row = {**LAYOUTS[name].rows[0], "image": image("blue")}
    red, blue = (LAYOUTS[name].to_prompt(each).images for each in (row, {**row, "decoded_image": None}))
    assert (red, blue) == ([row["decoded_image"]], [row["image"]])
    del row["image"], row["decoded_image"]
    with pytest.raises(ValueError, match="asks for column 'decoded_image', but the dataset has"):
        prompts_from([row], LAYOUTS[name].to_prompt)


@names
def test_json_lines_with_paths_make_the_same_prompts(name: str, tmp_path: Path):
    layout = LAYOUTS[name]
    (tmp_path / "published").mkdir()
    (tmp_path / "lines" / "images").mkdir(parents=True)
    written = 0

    def plain(value: Any) -> Any:
        nonlocal written
        if isinstance(value, dict) and "bytes" in value:
            written += 1
            (tmp_path / "lines" / "images" / f"{written}.png").write_bytes(value["bytes"])
            return f"images/{written}.png"
        return [plain(item) for item in value] if isinstance(value, list) else value

    rows = [{column: plain(value) for column, value in row.items()} for row in layout.rows]
    (tmp_path / "lines" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    embedded = prompts_from(published(layout, tmp_path / "published"), layout.to_prompt)
    by_path = prompts_from(read_rows(tmp_path / "lines"), layout.to_prompt)
    for one, other in zip(embedded, by_path, strict=True):
        assert (one.id, one.messages, one.answer) == (other.id, other.messages, other.answer)
        assert [a.tobytes() for a in one.images] == [b.tobytes() for b in other.images]


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("geometry3k", ["7", "8"]),
        ("mathvista", ["1", "2", "3"]),
        ("mmmu", ["validation_Art_1", "validation_Math_2"]),
        ("refcoco", ["469306"]),
        ("reasoning_gym", ["leg_counting-5"]),
        ("gsm8k", [""]),
    ],
)
def test_rows_keep_their_names(name: str, ids: list[str]):
    assert [LAYOUTS[name].to_prompt(row).id for row in LAYOUTS[name].rows] == ids


# --- images


def test_images_stand_where_the_question_names_them():
    placed, unnamed = (layouts.geometry3k(row) for row in LAYOUTS["geometry3k"].rows)
    assert (kinds(placed), kinds(unnamed)) == ("it", "it")
    one, two = (layouts.mmmu(row) for row in LAYOUTS["mmmu"].rows)
    assert (kinds(one), kinds(two)) == ("it", "titit")
    blue, red = (image(color)["bytes"] for color in ("blue", "red"))
    assert [each["bytes"] for each in two.images] == [blue, red]
    question, options = (layouts.mathvision(row) for row in LAYOUTS["mathvision"].rows)
    assert (kinds(question), kinds(options)) == ("tit", "tit")


def test_an_image_that_is_named_twice_is_seen_twice_and_one_that_is_not_there_stays_a_word():
    row = {
        **LAYOUTS["mmmu"].rows[0],
        "question": "<image 1>, <image1> and <image 3>?",
        "options": "['<image 1>', 'no']",
    }
    prompt = layouts.mmmu(row)
    assert kinds(prompt) == "ititit" and len(prompt.images) == 3
    assert said(prompt).startswith(",  and <image 3>?\nA. \nB. no\n")


def test_an_image_that_is_not_named_comes_first():
    row = {**LAYOUTS["mmmu"].rows[1], "question": "Compare with <image 2>."}
    prompt = layouts.mmmu(row)
    assert kinds(prompt) == "itit"
    assert [each["bytes"] for each in prompt.images] == [image("red")["bytes"], image("blue")["bytes"]]


def test_a_box_that_reaches_over_the_edge_ends_there():
    row = {**LAYOUTS["refcoco"].rows[0], "bbox": [150.0, -5.0, 80.0, 50.0]}
    assert layouts.refcoco(row).answer == [750.0, 0.0, 1000.0, 450.0]


# --- rows that cannot be used


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("mathvista", {"answer": ""}, "has no answer: some splits are published without"),
        ("mmmu", {"answer": "?"}, "has no answer"),
        ("reasoning_gym", {"answer": None}, "has no answer"),
        ("mmmu", {"options": "Monet or Manet"}, "its options are not a list: 'Monet or Manet'"),
        ("gsm8k", {"answer": "seventy-two"}, "does not end in '#### NUMBER': 'seventy-two'"),
        ("refcoco", {"answer": []}, "has no expression to look for"),
        (
            "refcoco",
            {"bbox": [20.0, 10.0, 0.0, 80.0]},
            r"its box \[20.0, 10.0, 0.0, 80.0\] has no area in a picture of 200 × 100",
        ),
        ("refcoco", {"image": Image.new("RGB", (0, 0))}, "image 0 cannot be read: ValueError: it has 0 × 0 pixels"),
    ],
)
def test_a_row_that_makes_no_prompt_is_named_with_the_reason(name: str, change: dict[str, Any], told: str):
    row = {**LAYOUTS[name].rows[0], **change}
    with pytest.raises(UnreadablePrompt, match=f"row 0: {told}" if name == "refcoco" and "image" in change else told):
        prompts_from([row], LAYOUTS[name].to_prompt)[0]


def test_aime_is_read_with_capitals_too():
    prompt = layouts.aime({"ID": "2024-I-1", "Problem": "Find m+n.", "Solution": "...", "Answer": 204})
    assert (prompt.id, prompt.answer, prompt.columns["Solution"]) == ("2024-I-1", "204", "...")


def test_the_whole_solution_of_gsm8k_stays_a_column():
    prompt = layouts.gsm8k(LAYOUTS["gsm8k"].rows[0])
    assert prompt.columns == {"solution": LAYOUTS["gsm8k"].rows[0]["answer"]}
