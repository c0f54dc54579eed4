"""Pictures are opened upright, no larger than the policy sees them; a file that is none says what it is."""

from __future__ import annotations

import base64
import io
import os
import pickle
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from policies.small.qwen3_vl import small_processor
from rollout.config import RolloutConfig
from rollout.data.images import open_image
from rollout.data.media import FrameSampling, UnreadablePrompt, open_images, open_videos
from rollout.data.mixture import mixture, shrunk
from rollout.data.prompts import Prompts, blind, column_mapping, prompts_from
from rollout.rendering import limit_pixels, prompt_length, size_seen

PROCESSOR = limit_pixels(small_processor(), RolloutConfig(max_image_pixels=64 * 64))
FIT = partial(size_seen, PROCESSOR)


def photo(width: int, height: int, format: str = "JPEG", turn: int = 1) -> bytes:
    """A file of coarse colours, with a camera's note of how it is to be turned."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = turn
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, format, exif=exif)
    return file.getvalue()


def prompts_of(*images: object) -> Prompts:
    return prompts_from([{"question": "?", "image": image, "answer": "1"} for image in images], column_mapping())


def pixels(image: Image.Image) -> np.ndarray:
    return PROCESSOR.image_processor(image, return_tensors="pt")["pixel_values"].numpy() * 127.5


def test_a_picture_above_the_limit_has_the_size_that_the_processor_makes_of_it():
    # 400 × 200 pixels over 4,096 are 19.5; their root is 4.42, and 400 / 4.42 = 90.5, 200 / 4.42 = 45.3: in 32s, 64 × 32.
    for format in ("JPEG", "PNG", "WEBP"):
        image = open_image(photo(400, 200, format), FIT)
        assert (image.size, image.info["original_size"]) == ((64, 32), (400, 200))


def test_other_pictures_keep_their_size():
    for size in ((64, 64), (30, 50), (10, 3)):
        image = open_image(photo(*size), FIT)
        assert image.size == image.info["original_size"] == size


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 40))
def test_a_shrunk_picture_has_the_tokens_of_the_whole_one(width: int, height: int, limit: int):
    if max(width, height) > 200 * min(width, height):
        return  # the processor refuses it
    processor = limit_pixels(small_processor(), RolloutConfig(max_image_pixels=limit * 1024))
    seen = size_seen(processor, (width, height))
    assert seen[0] * seen[1] <= width * height
    patches = processor.image_processor.get_number_of_image_patches
    assert patches(seen[1], seen[0]) == patches(height, width)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_shrunk_picture_has_the_pixels_that_the_processor_would_have_made(format: str):
    for size in ((96, 88), (300, 260), (800, 900)):
        file = photo(*size, format)
        error = np.abs(pixels(open_image(file, FIT)) - pixels(open_image(file)))
        assert error.mean() < (0.1 if format == "PNG" else 2.0), (
            "levels of 255; a JPEG is decoded at a lower resolution"
        )


def test_a_photo_that_is_stored_on_its_side_is_turned_first():
    whole, small = open_image(photo(400, 200, turn=6)), open_image(photo(400, 200, turn=6), FIT)
    assert (whole.size, small.size, small.info["original_size"]) == ((200, 400), (32, 64), (200, 400))
    assert np.abs(np.asarray(small, float) - np.asarray(whole.resize((32, 64), Image.Resampling.BICUBIC))).mean() < 4


def test_shrunk_prompts_are_those_of_every_form_and_stay_so_in_slices_tasks_and_mixtures(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(photo(400, 200))
    rows = [str(tmp_path / "a.jpg"), photo(400, 200), Image.open(tmp_path / "a.jpg"), {"bytes": photo(400, 200)}]
    small = shrunk(prompts_of(*rows), FIT)
    for prompts in (small, small[1:], small.at([3, 0]), small.of_task("t"), shrunk(mixture({"m": (small, 1)}), FIT)):
        for number in range(len(prompts)):
            [image] = prompts[number].images
            assert (image.size, image.info["original_size"]) == ((64, 32), (400, 200))
    assert rows[2].size == (400, 200), "the dataset's own picture is as it was"


def test_a_datasets_embedded_pictures_are_shrunk(tmp_path: Path):
    columns = {"question": ["?"], "image": [{"bytes": photo(400, 200), "path": None}], "answer": ["1"]}
    features = Features({"question": Value("string"), "image": ImageFeature(), "answer": Value("string")})
    [image] = shrunk(prompts_from(Dataset.from_dict(columns, features=features), column_mapping()), FIT)[0].images
    assert (image.size, image.info["original_size"]) == ((64, 32), (400, 200))


def test_the_original_size_reaches_a_reward_in_another_process_and_a_blind_prompt():
    prompt = shrunk(prompts_of(photo(400, 200)), FIT)[0]
    for reached in (pickle.loads(pickle.dumps(prompt)), blind(prompt)):
        assert reached.images[0].info["original_size"] == (400, 200)
    assert prompt_length(PROCESSOR, blind(prompt)) == prompt_length(PROCESSOR, prompts_of(photo(400, 200))[0])


def test_a_very_narrow_picture_that_would_be_shrunk_twice_is_left_alone():
    # 6400 × 32 over 4,096 pixels would be 896 × 32, which is above the limit as well.
    assert open_image(photo(6400, 32, "PNG"), FIT).size == (6400, 32)


UNREADABLE = {
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC or AVIF picture, or a video"),
    "SVG": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    "HTML": (b"\n<!DOCTYPE html><title>404</title>", "an HTML page"),
    "nothing": (b"", "an empty file"),
    "MP4": (b"\0\0\0\x18ftypisom\0\0\2\0isomavc1", "an MP4 video"),
    "text": (b"version https://git-lfs", r"a file that begins with b'version '"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_that_is_no_picture_says_what_it_is(kind: str, tmp_path: Path):
    content, named = UNREADABLE[kind]
    (tmp_path / "a.jpg").write_bytes(content)
    for source, who in ((content, "it"), (str(tmp_path / "a.jpg"), re.escape(str(tmp_path / "a.jpg")))):
        with pytest.raises(UnreadablePrompt, match=f"image 0 cannot be read: ValueError: {who} is {named}"):
            open_images([source])
        with pytest.raises(UnreadablePrompt, match=f"video 0 cannot be read: ValueError: .*: it is {named}"):
            open_videos([source], FrameSampling())


@pytest.mark.parametrize("open_media", [open_images, lambda sources: open_videos(sources, FrameSampling())])
def test_what_is_no_file_says_so_and_never_waits(open_media, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.png").mkdir()
    reasons = {
        str(tmp_path / "pipe.mp4"): "is a pipe, not a file",
        str(tmp_path / "folder.png"): "is a folder, not a file",
        "/dev/zero": "is a device or a socket, not a file",
        str(tmp_path / "gone.png"): "no such file: ",
        "https://example.org/a.png": "it is an address .*download the files first",
        "s3://bucket/clip.mp4": "it is an address .*download the files first",
        "  ": "it is an empty text",
        "data:image/png;base64,!!!!": "its base64 text cannot be decoded",
    }
    for source, reason in reasons.items():
        with pytest.raises(UnreadablePrompt, match=rf"\w+ 0 cannot be read: \w+: .*{reason}") as caught:
            open_media([source])
        assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(photo(8, 8, "PNG"))
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(UnreadablePrompt, match="Permission denied"):
        open_images([tmp_path / "a.png"])


def test_the_content_decides_and_not_the_name(tmp_path: Path):
    (tmp_path / "a:b").mkdir()
    for name in ("a.jfif", "noending", "a.png", "a:b/t.jpg", "a.bin", "50%.jpg"):
        (tmp_path / name).write_bytes(photo(8, 4))
        assert open_image(str(tmp_path / name)).size == open_image((tmp_path / name).as_uri()).size == (8, 4)


def test_base64_may_be_broken_into_lines():
    text = base64.encodebytes(photo(8, 4, "PNG")).decode()
    assert "\n" in text and open_image("data:image/png;base64," + text).size == (8, 4)


def test_twelve_bits_in_sixteen_are_scaled_to_their_own_white():
    for white, unit in ((4095, 16), (65535, 257)):
        values = np.array([[0, white // 2, white]], np.uint16)
        file = io.BytesIO()
        Image.fromarray(values).save(file, "PNG")
        grey = np.asarray(open_image(file.getvalue()))[0, :, 0]
        assert grey.tolist() == [0, white // 2 // unit, 255]
