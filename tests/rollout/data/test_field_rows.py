"""Rows as public reports have them: each becomes a prompt or is skipped with a reason, and the rows beside it stay."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from policies.small.qwen3_vl import small_processor
from rollout.data.datasets import read_rows
from rollout.data.layouts import chartqa, gsm8k, mathvista, refcoco
from rollout.data.media import UnreadablePrompt
from rollout.data.prompts import column_mapping, prompts_from, readable
from rollout.rendering import fits_context
from rollout.types import Prompt

ACCEPT = fits_context(small_processor(), max_model_len=512, max_tokens=16)
GOOD = {"question": "How many?", "image": "good.png", "answer": "4"}


def lines(folder: Path, *rows: Mapping[str, Any]) -> Path:
    Image.new("RGB", (64, 32), "red").save(folder / "good.png")
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "d.jsonl"


def kept(path: Path, caplog: pytest.LogCaptureFixture) -> tuple[list[str], list[str]]:
    """Returns the ids of the usable prompts, and what was logged."""
    prompts = prompts_from(read_rows(path), column_mapping())
    return [prompt.id for prompt in readable(prompts, ACCEPT)], caplog.messages


BAD = {
    "a long text that ends as a picture does": ({"image": "x" * 300 + ".png"}, "File name too long"),
    "an empty text for a picture": ({"image": ""}, "it is an empty text"),
    "a lone surrogate": ({"question": "\ud800"}, "it cannot be rendered: "),
    "a number for a question": ({"question": 7}, "a text part holds a int"),
    "a picture in a list in a list": ({"image": [["good.png"]]}, "expected a PIL image, .*got list"),
    "an unknown ending": ({"image": "gone.heic"}, "no such file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_with_the_reason_and_the_others_stay(kind: str, tmp_path: Path, caplog):
    changed, reason = BAD[kind]
    ids, told = kept(lines(tmp_path, GOOD, GOOD | changed, GOOD), caplog)
    assert ids == ["row-0", "row-2"]
    assert len(told) == 1
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(told[0])
    assert "row" in told[0] and len(told[0]) < 400


def test_messages_without_a_message_are_skipped_and_named(caplog):
    good = Prompt(id="good", messages=[{"role": "user", "content": "?"}])
    assert [prompt.id for prompt in readable([good, Prompt(id="none", messages=[])], ACCEPT)] == ["good"]
    assert len(caplog.messages) == 1 and "skipped prompt 'none': it cannot be rendered: " in caplog.text


@pytest.mark.parametrize(
    ("layout", "row"),
    [
        (gsm8k, {"question": None, "answer": "#### 3"}),
        (gsm8k, {"question": "How many?", "answer": math.nan}),
        (chartqa, {"image": None, "query": None, "label": None, "human_or_machine": 0}),
        (mathvista, {"question": math.nan, "decoded_image": None, "answer": None, "choices": None}),
        (refcoco, {"image": None, "answer": None, "bbox": None}),
    ],
)
def test_a_layouts_row_of_nothing_is_skipped_and_named(layout, row: dict[str, Any]):
    lazy = prompts_from([{"question": "?"}], lambda row: Prompt(id="", messages=[{"role": "user", "content": "?"}]))
    lazy._rows, lazy._to_prompt = [row], layout
    with pytest.raises(UnreadablePrompt, match="^row 0: "):
        lazy[0]


def test_three_thousand_bad_rows_are_told_in_eight_lines(tmp_path: Path, caplog):
    path = lines(tmp_path, GOOD, *[GOOD | {"image": f"gone{number}.png"} for number in range(3000)])
    ids, told = kept(path, caplog)
    # The first five, the tenth, the hundredth, the thousandth.
    assert ids == ["row-0"] and len(told) == 8 and told[-1].startswith("skipped 1000 prompts; the last: row 1000: ")


def test_a_column_may_have_texts_lists_and_nothing(tmp_path: Path, caplog):
    rows = [GOOD, GOOD | {"image": ["good.png", "good.png"]}, GOOD | {"image": None}, GOOD | {"image": []}]
    path = lines(tmp_path, *rows)
    prompts = prompts_from(read_rows(path), column_mapping())
    assert [len(prompt.images) for prompt in prompts] == [1, 2, 0, 0]


def test_the_first_picture_may_come_after_twenty_thousand_rows_without(tmp_path: Path):
    path = lines(tmp_path, *[{"question": "?", "image": None, "answer": None}] * 20_000, GOOD)
    prompts = prompts_from(read_rows(path), column_mapping())
    assert len(prompts) == 20_001
    assert (prompts[0].images, prompts[0].answer) == ([], None)
    assert (len(prompts[20_000].images), prompts[20_000].answer) == (1, "4")


@pytest.mark.parametrize("name", ["a.jfif", "a.JPG", "noending", "ü b.png", "4:3.webp", "a:b/t.jpg"])
def test_a_picture_may_have_any_name_in_a_file_of_rows(name: str, tmp_path: Path):
    path = lines(tmp_path, GOOD, GOOD | {"image": name})
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 4)).save(tmp_path / name, "PNG")
    prompts = prompts_from(read_rows(path), column_mapping())
    assert [prompt.images[0].size for prompt in prompts] == [(64, 32), (8, 4)]


def test_a_column_of_paths_may_have_addresses_and_pictures_themselves(tmp_path: Path, caplog):
    content = base64.b64encode(picture_file(Image.new("RGB", (8, 4)), "PNG")).decode()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    others = [
        f"data:image/png;base64,{content}",
        base64.b64encode(picture_file(noise, "PNG")).decode(),
        (tmp_path / "good.png").as_uri(),
        str(tmp_path / "good.png"),
        "https://example.org/b.png",
    ]
    ids, told = kept(lines(tmp_path, GOOD, *[GOOD | {"image": image} for image in others]), caplog)
    assert ids == ["row-0", "row-1", "row-2", "row-3", "row-4"]
    assert len(told) == 1 and "row 5: image 0 cannot be read: ValueError: it is an address (https://…)" in told[0]


def test_a_file_of_rows_may_be_in_a_folder_with_a_colon(tmp_path: Path):
    (tmp_path / "a:b").mkdir()
    assert list(read_rows(lines(tmp_path / "a:b", {"question": "?"}))) == [{"question": "?"}]


@pytest.mark.parametrize("source", ["s3://bucket/train.jsonl", "https://example.org/d/train.parquet"])
def test_data_in_the_network_are_refused_in_one_sentence(source: str):
    with pytest.raises(ValueError, match="there is no file or folder"):
        read_rows(source)


@pytest.mark.parametrize(("name", "content"), [("d.jsonl", ""), ("d.json", "[]"), ("d.json", "{}"), ("d.parquet", "")])
def test_a_file_without_rows_says_so(name: str, content: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as \w+: "):
        read_rows(tmp_path / name)


def picture_file(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_pictures_of_every_kind_are_seen_in_their_colours():
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    files = {
        "palette": picture_file(red.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        "CMYK": picture_file(red.convert("CMYK"), "JPEG", quality=95),
        "animation": picture_file(red, "GIF", save_all=True, append_images=[blue], duration=100),
        "two pages": picture_file(red, "TIFF", save_all=True, append_images=[blue]),
        "transparent": picture_file(red.convert("RGBA"), "WEBP", lossless=True),
    }
    rows = [{"question": "?", "image": content, "answer": "1"} for content in files.values()]
    for kind, prompt in zip(files, prompts_from(rows, column_mapping()), strict=True):
        colour = np.asarray(prompt.images[0]).reshape(-1, 3).mean(0)
        assert np.abs(colour - [255, 0, 0]).max() < 6, kind


def test_a_truncated_file_and_one_of_too_many_pixels_are_named(monkeypatch):
    whole = picture_file(Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8)), "PNG")
    rows = [{"question": "?", "image": content, "answer": "1"} for content in (whole, whole[:9000], whole)]
    prompts = prompts_from(rows, column_mapping())
    with pytest.raises(UnreadablePrompt, match="row 1: image 0 cannot be read: .*truncated"):
        prompts[1]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadablePrompt, match="row 2: image 0 cannot be read: DecompressionBomb"):
        prompts[2]
