"""Messages as datasets of the field write them, and rows that must not end a run."""

import base64
import io
import logging
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rollout import Prompt
from rollout.data.media import UnreadablePrompt, open_images
from rollout.data.prompts import Prompts, column_mapping, prompts_from, readable
from rollout.data.stream import PromptStream

RED, BLUE = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (4, 2), "blue")


def png(image: Image.Image = RED) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def asked(text: str, *images: Any) -> Prompt:
    [prompt] = prompts_from([{"question": text, "image": list(images), "answer": "1"}], column_mapping())
    return prompt


def kinds(prompt: Prompt) -> list[str]:
    """The text of each text part, and the kind of each other part."""
    return [part.get("text", part["type"]) for part in prompt.messages[0]["content"]]


def test_placeholders_of_a_question_are_the_places_of_its_images() -> None:
    assert kinds(asked("<image>First. <image>Second.", RED, BLUE)) == ["image", "First. ", "image", "Second."]
    assert kinds(asked("Which? <image>", RED)) == ["Which? ", "image"]
    assert kinds(asked("Which?", RED, BLUE)) == ["image", "image", "Which?"]  # without placeholders they come first
    assert kinds(asked("")) == [""]


@pytest.mark.parametrize(("text", "images"), [("<image> and <image>?", [RED]), ("<image>?", []), ("<video>?", [RED])])
def test_another_number_of_placeholders_than_of_images_is_refused(text: str, images: list[Any]) -> None:
    lazy = Prompts([{"q": text, "i": images}], column_mapping(question="q", image="i", answer=None), [0], None)  # type: ignore[arg-type]
    with pytest.raises(UnreadablePrompt, match=r"row 0: the text has \d placeholders <\w+>, but the row has \d \w+s"):
        lazy[0]


def message(*content: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": list(content)}


TEXT = {"type": "text", "text": "Which?"}


def drawn(messages: Any, **media: Any) -> Prompt:
    good = Prompt(id="good", messages=[message(TEXT)])
    return prompts_from([good, Prompt(id="a", messages=messages, **media)])[1]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([message(TEXT), message(TEXT, role="assistant")], "the messages end with the assistant's answer"),
        (
            [message(TEXT, {"type": "audio", "audio": "a.wav"})],
            "a part has the type 'audio': the policy reads text, image",
        ),
        ([message("a text")], "a part of a message is a str"),
        ([message(None)], "a part of a message is a NoneType"),
        (["hello"], "a message is a str: give it a role and a content"),
        ("hello", "its messages are a str: give a list of messages"),
        ([message({"type": "text", "text": 3})], "a text part holds a int"),
        (
            [message({"type": "image", "image": RED}, {"type": "image"})],
            "some images are in the messages, and some are not",
        ),
    ],
)
def test_a_message_that_a_template_would_misread_is_refused_by_name(messages: Any, told: str) -> None:
    with pytest.raises(UnreadablePrompt, match=f"row 1: {told}"):
        drawn(messages)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": RED},
        {"type": "image", "image": png()},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(png()).decode()}},
        {"type": "image_url", "image_url": "data:image/png;base64," + base64.b64encode(png()).decode()},
    ],
)
def test_parts_may_hold_their_image(part: dict[str, Any]) -> None:
    prompt = drawn([message(part, TEXT)])
    assert prompt.messages == [message({"type": "image"}, TEXT)]
    [image] = prompt.images
    assert image.size == (4, 2) and image.getpixel((0, 0)) == (255, 0, 0)


def test_a_text_with_placeholders_takes_the_images_of_the_row() -> None:
    prompt = drawn([{"role": "user", "content": "<image>Left, <image>right?"}], images=[RED, BLUE])
    assert kinds(prompt) == ["image", "Left, ", "image", "right?"]


def test_media_without_places_come_before_the_users_first_text() -> None:
    clip = {"frames": [RED] * 4, "fps": 2.0}
    turns = [{"role": "system", "content": "Look."}, {"role": "user", "content": "Which?"}, message(TEXT)]
    prompt = drawn(turns, images=[RED], videos=[clip])
    assert prompt.messages[1] == message({"type": "image"}, {"type": "video"}, TEXT)
    assert prompt.messages[::2] == turns[::2]
    in_parts = drawn([message({"type": "text", "text": "<image>Left, <image>right?"})], images=[RED, BLUE])
    assert kinds(in_parts) == ["image", "Left, ", "image", "right?"]


@pytest.mark.parametrize("images", [None, RED, "a.png"])
def test_images_that_are_no_list_are_refused(images: Any) -> None:
    with pytest.raises(UnreadablePrompt, match=r"row 1: its images are a \w+: give a list"):
        drawn([message(TEXT)], images=images)


def test_files_are_named_by_file_uris_and_held_by_base64(tmp_path) -> None:
    (tmp_path / "a b.png").write_bytes(png())
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    raw = base64.b64encode(png(noise)).decode()
    uri = (tmp_path / "a b.png").as_uri()
    assert "%20" in uri
    sizes = [image.size for image in open_images([uri, raw, {"bytes": None, "path": None, "url": uri}])]
    assert sizes == [(4, 2), (64, 64), (4, 2)]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("https://example.org/a.png", r"it is an address \(https://…\): download the files first"),
        ("s3://bucket/a.png", r"it is an address \(s3://…\)"),
        ("", "it is an empty text"),
        (b"", "it is an empty file"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "it is an SVG drawing"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "it is an HTML page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "it is a HEIC or AVIF picture"),
        (b"\x1aE\xdf\xa3\x01\x00", "it is a video"),
    ],
)
def test_what_is_no_picture_says_what_it_is(source: Any, told: str) -> None:
    with pytest.raises(UnreadablePrompt, match=f"image 0 cannot be read: ValueError: {told}"):
        open_images([source])


def test_twelve_bits_in_a_file_of_sixteen_are_bright() -> None:
    [scan] = open_images([Image.fromarray(np.full((2, 2), 4095, np.uint16))])
    [full] = open_images([Image.fromarray(np.full((2, 2), 65535, np.uint16))])
    assert scan.getpixel((0, 0)) == full.getpixel((0, 0)) == (255, 255, 255)


def test_whatever_a_row_raises_is_a_skipped_row_and_the_log_stays_short(caplog: pytest.LogCaptureFixture) -> None:
    def to_prompt(row: dict[str, Any]) -> Prompt:
        if row["n"] % 2:
            raise TypeError("x" * 100_000)
        return Prompt(id=str(row["n"]), messages=[message(TEXT)])

    rows = [{"n": n} for n in range(200)]
    with caplog.at_level(logging.WARNING):
        assert len(list(readable(prompts_from(rows, to_prompt)))) == 100
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 7  # the first five, the tenth and the hundredth
    assert told[0].startswith("skipped row 1: to_prompt raised TypeError: xxx") and max(map(len, told)) < 300
    assert told[-1].startswith("skipped 100 prompts; the last: row 199: ")


def test_a_check_that_raises_is_a_skipped_row(caplog: pytest.LogCaptureFixture) -> None:
    def accept(prompt: Prompt) -> str | None:
        if prompt.id == "bad":
            "\ud800".encode()
        return None

    stream = PromptStream(
        [Prompt(id=name, messages=[message(TEXT)]) for name in ("good", "bad")], batch_size=2, seed=0, accept=accept
    )
    assert {prompt.id for prompt in stream.next_batch()} == {"good"}
    assert "prompt 'bad': it cannot be rendered: UnicodeEncodeError" in caplog.text


def test_a_function_that_fits_no_row_is_refused_at_the_start() -> None:
    rows = [{"n": n} for n in range(1000)]
    seen = []

    def to_prompt(row: dict[str, Any]) -> Prompt:
        seen.append(row)
        return row["n"].upper()

    with pytest.raises(ValueError, match="^to_prompt raised AttributeError: 'int' object has no attribute 'upper'$"):
        prompts_from(rows, to_prompt)
    assert len(seen) == 20
