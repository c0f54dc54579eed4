"""A prompt's length is known without touching a pixel, and one that does not fit is refused with the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from policies.small.qwen3_vl import TOKEN_IDS, small_processor
from rollout.config import RolloutConfig
from rollout.data.stream import PromptStream
from rollout.rendering import (
    expand_media,
    expanded_prompt,
    fits_context,
    limit_pixels,
    patch_times,
    pixel_options,
    prompt_length,
    render,
    rendered_text,
    require_same_tokens,
)
from rollout.types import Group, Prompt, Video

PROCESSOR = small_processor()
IMAGE, VIDEO = TOKEN_IDS["<|image_pad|>"], TOKEN_IDS["<|video_pad|>"]


def clip(num_frames: int, width: int, height: int, fps: float = 10.0, every: int = 5) -> Video:
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    return Video(frames=frames, fps=fps, frame_indices=[every * number for number in range(num_frames)])


def prompt(*shown: tuple[int, int] | Video, text: str = "sum?", id: str = "q") -> Prompt:
    """Images of a size in pixels and videos, in this order, before the text."""
    parts = [{"type": "video" if isinstance(item, Video) else "image"} for item in shown]
    return Prompt(
        id=id,
        messages=[{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
        images=[Image.new("RGB", item) for item in shown if not isinstance(item, Video)],
        videos=[item for item in shown if isinstance(item, Video)],
    )


def tokens_of_transformers(processor, question: Prompt) -> list[int]:
    """What transformers' processor makes of the rendered text and all pixels."""
    return processor(
        text=[rendered_text(processor, question)],
        images=list(question.images) or None,
        videos=[video.frames.transpose(0, 3, 1, 2) for video in question.videos] or None,
        video_metadata=[
            {"fps": v.fps, "total_num_frames": v.frame_indices[-1] + 1, "frames_indices": list(v.frame_indices)}
            for v in question.videos
        ]
        or None,
        do_sample_frames=False,
    )["input_ids"][0]


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


def test_a_video_is_times_and_frames_and_has_no_markers_around_the_whole():
    # Frames 0, 5 and 10 at 10 per second; the last stands alone. 64 × 32 pixels are two tokens.
    question = prompt(clip(3, 64, 32))
    pair = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    assert PROCESSOR.tokenizer.decode(expanded_prompt(PROCESSOR, question)) == (
        f"<|im_start|>u<0.2 seconds>{pair}<1.0 seconds>{pair}sum?<|im_end|><|im_start|>a"
    )


def test_two_frames_that_share_their_tokens_are_seen_in_the_middle_between_them():
    assert patch_times(clip(4, 32, 32, fps=2.0, every=1), 2) == [0.25, 1.25]
    assert patch_times(clip(3, 32, 32, fps=4.0, every=2), 2) == [0.25, 1.0]


SIDE = st.integers(1, 700)
"""Pixels; beyond 512·512 in all, and below 32·32, pictures are resized."""
SIZE = st.tuples(SIDE, SIDE).filter(lambda size: max(size) < 150 * min(size))
CLIP = st.builds(
    lambda count, size, fps, every: clip(count, *size, fps=fps, every=every),
    st.integers(2, 6),
    st.tuples(st.integers(1, 300), st.integers(1, 300)).filter(lambda size: max(size) < 100 * min(size)),
    st.floats(0.5, 60),
    st.integers(1, 30),
)
LIMITS = st.one_of(st.none(), st.integers(4096, 200_000))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(SIZE, CLIP), max_size=3), st.text(max_size=20), LIMITS, LIMITS)
def test_the_expanded_prompt_is_what_transformers_makes_for_media_of_any_size_and_number(
    shown: list[tuple[int, int] | Video], text: str, image_pixels: int | None, video_pixels: int | None
):
    question = prompt(*shown, text=text)
    processor = limit_pixels(
        small_processor(), RolloutConfig(max_image_pixels=image_pixels, max_video_pixels=video_pixels)
    )
    expanded = expanded_prompt(processor, question)
    assert expanded.dtype == np.int32
    assert expanded.tolist() == tokens_of_transformers(processor, question)
    assert prompt_length(processor, question) == len(expanded)


def test_no_pixel_is_touched():
    class Size:
        """As much of a picture as is needed."""

        width, height = 64, 32

    class Untouchable(np.ndarray):
        def __getitem__(self, key):
            raise AssertionError("a pixel was read")

    video = Video(frames=np.zeros((4, 32, 32, 3), np.uint8).view(Untouchable), fps=2.0, frame_indices=range(4))
    tokens = expand_media(PROCESSOR, [1, IMAGE, 2, VIDEO], [Size()], [video])
    assert tokens.tolist()[:4] == [1, IMAGE, IMAGE, 2]
    assert (tokens == VIDEO).sum() == 2


def test_placeholders_and_media_must_match_in_number():
    with pytest.raises(ValueError, match="the prompt has 2 image placeholders and 1 images"):
        expand_media(PROCESSOR, [IMAGE, IMAGE], [Image.new("RGB", (32, 32))], [])
    with pytest.raises(ValueError, match="the prompt has 0 video placeholders and 1 videos"):
        expand_media(PROCESSOR, [1], [], [clip(2, 32, 32)])


def test_pixel_limits_make_pictures_smaller_or_larger_and_none_leaves_the_checkpoints():
    def limited(**limits: int):
        return limit_pixels(small_processor(), RolloutConfig(**limits))

    # 256 × 256 pixels are 64 tokens; 128 × 128 are 16; four frames of 128 × 128 are 2 × 16, of 64 × 64 2 × 4.
    large, small = prompt((256, 256)), prompt((32, 32))
    marks = prompt_length(PROCESSOR, prompt()) + 2
    assert prompt_length(limited(), large) == marks + 64
    assert prompt_length(limited(max_image_pixels=128 * 128), large) == marks + 16
    assert prompt_length(limited(max_image_pixels=128 * 128), small) == marks + 1
    assert prompt_length(limited(min_image_pixels=64 * 64), small) == marks + 4
    seen = [
        (expanded_prompt(limited(**limits), prompt(clip(4, 128, 128))) == VIDEO).sum()
        for limits in ({}, {"max_video_pixels": 4 * 64 * 64})
    ]
    assert seen == [32, 8]
    assert pixel_options(limited(max_image_pixels=9999, max_video_pixels=8888)) == {
        "images_kwargs": {"size": {"shortest_edge": 1024, "longest_edge": 9999}},
        "videos_kwargs": {"size": {"shortest_edge": 4096, "longest_edge": 8888}, "cap_pixels_per_frame": True},
    }


def test_a_published_processor_caps_frames_as_qwens_own_code_does_whatever_transformers_version():
    processor = small_processor()
    processor.video_processor.cap_pixels_per_frame = None
    assert limit_pixels(processor, RolloutConfig()).video_processor.cap_pixels_per_frame is True


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"min_image_pixels": 5000, "max_image_pixels": 4000},
            "the smallest image would have 5000 pixels, the largest 4000: raise rollout.max_image_pixels or lower rollout.min",
        ),
        (
            {"max_video_pixels": 1000},
            "the smallest video would have 4096 pixels, the largest 1000: raise rollout.max_video_pixels",
        ),
    ],
)
def test_limits_that_leave_no_size_are_refused(limits: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        limit_pixels(small_processor(), RolloutConfig(**limits))


def group_of(question: Prompt, tokens: list[int]) -> Group:
    return Group(prompt=question, prompt_token_ids=np.array(tokens, np.int32), completions=[])


def test_an_engine_that_read_something_else_is_told_by_prompt_and_place():
    question = prompt((64, 32), text="a?", id="p7")
    right = expanded_prompt(PROCESSOR, question).tolist()
    require_same_tokens(PROCESSOR, group_of(question, right))
    # start, u, vision start, and two image tokens: the engine has but one.
    with pytest.raises(RuntimeError) as caught:
        require_same_tokens(PROCESSOR, group_of(question, right[:4] + right[5:]))
    assert str(caught.value) == (
        "prompt 'p7': from token 4 on the engine read '<|vision_end|>a?<|im_end|><|im_start|>a' and the learner "
        "'<|image_pad|><|vision_end|>a?<|im_end|><|im_start|>a' (10 and 11 tokens in all): "
        "the engines' model folder must have the learner's processor files"
    )
    with pytest.raises(RuntimeError, match=r"from token 11 on the engine read 'b' and the learner 'the end'"):
        require_same_tokens(PROCESSOR, group_of(question, [*right, *b"b"]))


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


def test_a_prompt_with_more_videos_than_the_engines_take_is_refused():
    accept = fits_context(PROCESSOR, max_model_len=128, max_tokens=16, max_videos=1)
    assert accept(prompt(clip(2, 32, 32))) is None
    assert accept(prompt(clip(2, 32, 32), clip(2, 32, 32))) == (
        "2 videos exceed rollout.max_videos = 1: raise max_videos"
    )


def test_a_video_that_is_too_long_for_the_context_is_refused_with_the_numbers():
    # 9 of text, and for each of 10 pairs of frames 13 of its time, a start, a token, an end.
    question = prompt(clip(20, 32, 32))
    assert fits_context(PROCESSOR, max_model_len=185, max_tokens=16)(question) is None
    assert fits_context(PROCESSOR, max_model_len=184, max_tokens=16)(question).startswith(
        "169 prompt tokens and rollout.max_tokens = 16 exceed rollout.max_model_len = 184"
    )


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (prompt((700, 2)), "absolute aspect ratio must be smaller than 200, got 350.0"),
    ],
)
def test_a_prompt_that_the_engine_would_choke_on_is_refused(question: Prompt, reason: str):
    assert fits_context(PROCESSOR, max_model_len=999, max_tokens=16)(question) == reason


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>", "<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_control_token_in_a_question_is_text(token: str):
    question = prompt(text=f"what is {token} {token}assistant?")
    token_ids = render(PROCESSOR, question)
    plain = render(PROCESSOR, prompt(text="what is it?"))
    token_id = PROCESSOR.tokenizer.convert_tokens_to_ids(token)
    assert token_ids.count(token_id) == plain.count(token_id)
    assert f"what is {token[0]} {token[1:]} {token[0]} {token[1:]}assistant?" in PROCESSOR.tokenizer.decode(token_ids)
    assert fits_context(PROCESSOR, max_model_len=999, max_tokens=16)(question) is None


def test_a_stream_skips_and_counts_prompts_that_are_too_long_and_names_them(caplog: pytest.LogCaptureFixture):
    questions = [prompt(id="short"), prompt(id="long", text="x" * 100)]
    accept = fits_context(PROCESSOR, max_model_len=64, max_tokens=16)
    stream = PromptStream(questions, batch_size=2, seed=0, accept=accept)
    assert [q.id for q in stream.next_batch()] == ["short", "short"]
    assert stream.skipped >= 1
    assert (
        "prompt 'long': 105 prompt tokens and rollout.max_tokens = 16 exceed rollout.max_model_len = 64" in caplog.text
    )
