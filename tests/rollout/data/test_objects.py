"""Names and boxes that stand beside a conversation come into its text, in thousandths of the picture."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from PIL import Image

from rl.sft.demonstrations import demonstrated
from rollout.data.chat_rows import chat_rows
from rollout.data.media import UnreadablePrompt
from rollout.data.prompts import prompts_from

WIDE = Image.new("RGB", (200, 100))
ASKED = {"role": "user", "content": "<image>Find the <ref-object>."}
SAID = {"role": "assistant", "content": "It is <bbox>, beside <bbox>."}
# 20 of 200 are 100 thousandths, 20 of 100 are 200.
OBJECTS = {"ref": ["goat"], "bbox": [[20, 20, 100, 50], [100, 50, 20, 80]]}
BOXES = [[100.0, 200.0, 500.0, 500.0], [100.0, 500.0, 500.0, 800.0]]


def row(*messages: dict[str, Any], **objects: Any) -> dict[str, Any]:
    return {"messages": list(messages), "images": [WIDE], "objects": {**OBJECTS, **objects}}


def test_boxes_without_a_place_are_the_answer() -> None:
    [prompt] = prompts_from([row(ASKED)], chat_rows)
    assert prompt.messages[0]["content"][1] == {"type": "text", "text": "Find the goat."}
    assert prompt.answer == BOXES
    assert prompts_from([row(ASKED, bbox=[[100, 50]])], chat_rows)[0].answer == [500.0, 500.0]
    assert prompts_from([{**row(ASKED), "solution": "left"}], chat_rows)[0].answer == "left"


def test_boxes_in_the_answer_are_learned() -> None:
    [prompt] = prompts_from([row(ASKED, SAID)], demonstrated(partial(chat_rows, demonstrated=True)))
    assert prompt.answer == f"It is {BOXES[0]}, beside {BOXES[1]}."


def test_boxes_from_0_to_1_need_no_picture_and_others_are_of_the_image_that_they_name() -> None:
    scaled = row(ASKED, bbox=[[0.1, 0.2, 0.5, 0.5]], bbox_type="norm1")
    assert prompts_from([scaled], chat_rows)[0].answer == BOXES[0]
    second = {**row(ASKED, bbox=[[20, 20, 100, 50]], image_id=[1]), "images": [Image.new("RGB", (9, 9)), WIDE]}
    second["messages"] = [{"role": "user", "content": "<image><image>Find the <ref-object>."}]
    assert prompts_from([second], chat_rows)[0].answer == BOXES[0]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (row(ASKED, ASKED), "more places <ref-object> than objects"),
        (row(ASKED, bbox=[[1, 2, 3]]), r"a box must be \[x, y\] or \[left, top, right, bottom\], got \[1, 2, 3\]"),
        (row(ASKED, bbox=[[0, 0, 640, 480]]), r"the box \[0, 0, 640, 480\] is outside of its picture of 200 × 100"),
        (row(ASKED, image_id=[0, 1]), r"the boxes are of the images \[0, 1\], but the row has 1"),
        ({**row(ASKED), "objects": "goat"}, "its objects are a str"),
    ],
)
def test_objects_that_do_not_fit_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnreadablePrompt, match=reason):
        prompts_from([given], chat_rows)[0]
