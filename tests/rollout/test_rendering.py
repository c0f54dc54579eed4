"""A prompt's length is known without touching a pixel, and one that does not fit is refused with the numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from policies.inputs import encode_images, expand_image_tokens
from policies.small import TOKEN_IDS, small_processor
from rollout.prompts import PromptStream
from rollout.rendering import fits_context, prompt_length, render
from rollout.types import Prompt

PROCESSOR = small_processor()
IMAGE = TOKEN_IDS["<|image_pad|>"]


def prompt(*sizes: tuple[int, int], text: str = "sum?", id: str = "q") -> Prompt:
    content = [*({"type": "image"} for _ in sizes), {"type": "text", "text": text}]
    return Prompt(
        id=id, messages=[{"role": "user", "content": content}], images=[Image.new("RGB", size) for size in sizes]
    )


def test_a_rendered_prompt_has_one_placeholder_for_each_image_and_asks_for_an_answer():
    assert PROCESSOR.tokenizer.decode(render(PROCESSOR, prompt((64, 64), (32, 32)))) == (
        "<|im_start|>u"
        "<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>sum?<|im_end|>"
        "<|im_start|>a"
    )


def test_text_has_as_many_tokens_as_bytes_and_turns():
    # start, u, s u m ?, end, start, a
    assert prompt_length(PROCESSOR, prompt()) == 9


def test_a_picture_of_192_by_64_pixels_is_twelve_tokens():
    # 6·2 of 32×32 pixels, and a start and an end beside them
    assert prompt_length(PROCESSOR, prompt((192, 64))) == 9 + 12 + 2


SIDE = st.integers(1, 700)
"""Pixels; beyond 512·512 in all, and below 32·32, pictures are resized."""


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(SIDE, SIDE).filter(lambda size: max(size) < 150 * min(size)), max_size=3), st.text(max_size=20)
)
def test_length_is_that_of_the_expanded_prompt_for_pictures_of_any_size(sizes: list[tuple[int, int]], text: str):
    question = prompt(*sizes, text=text)
    encoded = encode_images(PROCESSOR, question.images)
    grid_N3 = [] if encoded is None else encoded.grid_N3.numpy()
    assert prompt_length(PROCESSOR, question) == len(
        expand_image_tokens(render(PROCESSOR, question), grid_N3, IMAGE, 2)
    )


def test_a_prompt_that_leaves_no_room_for_a_whole_response_is_refused_with_the_numbers():
    question = prompt((192, 64))  # 23 tokens
    assert fits_context(PROCESSOR, max_model_len=39, max_tokens=16)(question) is None
    assert fits_context(PROCESSOR, max_model_len=38, max_tokens=16)(question) == (
        "23 prompt tokens and rollout.max_tokens = 16 exceed rollout.max_model_len = 38: "
        "raise max_model_len, lower max_tokens, or shorten the prompt"
    )


def test_a_prompt_with_more_images_than_the_engines_take_is_refused():
    accept = fits_context(PROCESSOR, max_model_len=64, max_tokens=16, max_images=1)
    assert accept(prompt((32, 32))) is None
    assert accept(prompt((32, 32), (32, 32))) == "2 images exceed rollout.max_images = 1: raise max_images"


def test_a_stream_skips_and_counts_prompts_that_are_too_long_and_names_them(caplog: pytest.LogCaptureFixture):
    questions = [prompt(id="short"), prompt(id="long", text="x" * 100)]
    accept = fits_context(PROCESSOR, max_model_len=64, max_tokens=16)
    stream = PromptStream(questions, batch_size=2, seed=0, accept=accept)
    assert [q.id for q in stream.next_batch()] == ["short", "short"]
    assert stream.skipped >= 1
    assert (
        "prompt 'long': 105 prompt tokens and rollout.max_tokens = 16 exceed rollout.max_model_len = 64" in caplog.text
    )
