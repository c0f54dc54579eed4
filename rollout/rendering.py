"""Token ids of prompts: with one placeholder per image for the engine, and expanded as the engine reads them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from rollout.config import RolloutConfig
from rollout.types import Group, Observation, Prompt, Video

if TYPE_CHECKING:
    from transformers import ProcessorMixin

T = TypeVar("T")

THOUGHT_HEAD = 12
"""Tokens at a prompt's end that hold `<think>` and white space, even for a tokenizer of bytes."""
_MARK = "⟨the policy's turn⟩"
"""Stands for the policy's turn, to find the text that a chat template puts after it."""


def render(processor: ProcessorMixin, prompt: Prompt) -> list[int]:
    """Returns the prompt's token ids with the chat template, and one placeholder per image and video, which the engine expands."""
    return processor.tokenizer.encode(rendered_text(processor, prompt), add_special_tokens=False)


def rendered_text(processor: ProcessorMixin, prompt: Prompt) -> str:
    """Applies the chat template with the prompt's variables, and removes its markers around videos.

    Special tokens in the prompt's own text and variables are broken up: a question must not end a message, or show a picture.

    Qwen3-VL was trained with markers around the frames alone, because its processor replaced the template's. Since transformers
    5.10 it keeps them, and every video would begin and end with one too many.

    Raises:
        ValueError: If the chat template does not read a variable, or an assistant's `tool_calls`.
    """
    messages, variables = as_text(processor, list(prompt.messages)), _variables(processor, prompt.template)
    if any(message.get("tool_calls") for message in messages):
        _require_read(processor, "tool_calls")
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
    video = processor.video_token
    return text.replace(f"{processor.vision_start_token}{video}{processor.vision_end_token}", video)


def opens_thought(processor: ProcessorMixin, token_ids: Sequence[int]) -> bool:
    """Returns True if rendered tokens end with an open thought, as thinking models' templates do: the response begins inside it."""
    return processor.tokenizer.decode(token_ids[-THOUGHT_HEAD:]).rstrip().endswith("<think>")


def observation_tokens(
    processor: ProcessorMixin, observation: Observation, template: Mapping[str, Any] | None = None
) -> list[int]:
    """Returns the tokens between two turns of the policy: end of its message, observation, head of its next message.

    Each image is one placeholder. The policy's tokens before and after are not changed. Special tokens in the observation's text
    are broken up: a tool that repeats the policy's text must not end a message, or show a picture.

    Args:
        processor: The policy's processor.
        observation: The observation.
        template: The prompt's variables for the chat template.

    Raises:
        ValueError: If the chat template does not end the policy's messages with the tokenizer's end token.
    """
    if not isinstance(observation.text, str):
        raise TypeError(f"its text is a {type(observation.text).__name__}")
    text = as_text(processor, observation.text)
    content = [*({"type": "image"} for _ in observation.images), {"type": "text", "text": text}]
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": _MARK},
        {"role": observation.role, "content": content},
    ]
    variables = _variables(processor, template or {})
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
    end = processor.tokenizer.eos_token
    _, found, between = text.partition(_MARK + end)
    if not found:
        raise ValueError(
            f"the chat template does not end an assistant's message with the end token {end!r}, so an episode cannot go on "
            "after it: set the tokenizer's eos_token to the token that ends a message"
        )
    return processor.tokenizer.encode(between, add_special_tokens=False)


def as_text(processor: ProcessorMixin, value: T) -> T:
    """Returns a text with a blank inside each special token, so that it is read as text; or a value with all its texts so."""
    if isinstance(value, str):
        return cast(T, _special_tokens(processor.tokenizer).sub(lambda token: f"{token[0][0]} {token[0][1:]}", value))
    if isinstance(value, Mapping):
        return cast(T, {as_text(processor, key): as_text(processor, item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return cast(T, [as_text(processor, item) for item in value])
    return value


def _variables(processor: ProcessorMixin, template: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a prompt's variables for the chat template, which must read each of them: it would drop others in silence."""
    own = (
        inspect.signature(processor.apply_chat_template).parameters.keys() - {"tools", "documents"} if template else ()
    )
    for name in template:
        if name in own or name == "messages" or not name.isidentifier():
            raise ValueError(
                f"{name!r} is no variable that a row may set: remove it from the prompt's template variables"
            )
        _require_read(processor, name)
    return as_text(processor, template)


def _require_read(processor: ProcessorMixin, name: str) -> None:
    template = str(processor.chat_template)
    if not re.search(rf"\b{name}\b", template):
        raise ValueError(
            f"the prompt has {name}, which the model's chat template does not read: remove it from the row, or take a model "
            "that reads it"
        )


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Returns an expression that matches every special token."""
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def expanded_prompt(processor: ProcessorMixin, prompt: Prompt) -> np.ndarray:
    """Returns [P] int32, the prompt as the policy reads it, without reading a pixel.

    Raises:
        ValueError: If placeholders and media do not match in number, or an image is too narrow for the processor.
    """
    return expand_media(processor, render(processor, prompt), prompt.images, prompt.videos)


def expand_media(
    processor: ProcessorMixin, token_ids: Sequence[int], images: Sequence[Any], videos: Sequence[Video]
) -> np.ndarray:
    """Replaces each placeholder by the tokens of its image or video, as Qwen3-VL's processor does.

    Args:
        processor: The policy's processor.
        token_ids: One placeholder per image and per video.
        images: PIL images, in the order of their placeholders.
        videos: Videos, in the order of theirs.

    Returns:
        [P] int32.

    Raises:
        ValueError: As `expanded_prompt`.
    """
    tokens = np.asarray(token_ids, np.int32)
    image_id, video_id = processor.image_token_id, processor.video_token_id
    for kind, token_id, items in (("image", image_id, images), ("video", video_id, videos)):
        if (count := int((tokens == token_id).sum())) != len(items):
            raise ValueError(f"the prompt has {count} {kind} placeholders and {len(items)} {kind}s")
    counts = processor._get_num_multimodal_tokens(
        image_sizes=[(image.height, image.width) for image in images],
        video_sizes=[video.frames.shape[:3] for video in videos],
    )
    pieces = {
        image_id: ([image_id] * count for count in counts["num_image_tokens"]),
        video_id: (
            _video_tokens(processor, video, count)
            for video, count in zip(videos, counts["num_video_tokens"], strict=True)
        ),
    }
    parts, start = [], 0
    for place in np.flatnonzero(np.isin(tokens, list(pieces))):
        parts += [tokens[start:place], next(pieces[int(tokens[place])])]
        start = place + 1
    return np.concatenate([*parts, tokens[start:]]).astype(np.int32)


def collapse_images(processor: ProcessorMixin, token_ids: np.ndarray) -> np.ndarray:
    """Undoes `expand_media` for images, which stand between markers: returns one placeholder for each."""
    is_image = token_ids == processor.image_token_id
    is_first = is_image & ~np.concatenate([[False], is_image[:-1]])
    return token_ids[~is_image | is_first]


def _video_tokens(processor: ProcessorMixin, video: Video, count: int) -> list[int]:
    """Returns for each two frames their time as text, and their tokens between start and end of vision. `count` is their total."""
    times = patch_times(video, processor.video_processor.temporal_patch_size)
    frame = [
        processor.vision_start_token_id,
        *[processor.video_token_id] * (count // len(times)),
        processor.vision_end_token_id,
    ]
    tokens: list[int] = []
    for seconds in times:
        tokens += processor.tokenizer.encode(f"<{seconds:.1f} seconds>", add_special_tokens=False) + frame
    return tokens


def patch_times(video: Video, size: int) -> list[float]:
    """Returns the time of each `size` frames that share their tokens, in seconds: the middle between first and last."""
    indices = [*video.frame_indices, *[video.frame_indices[-1]] * (-len(video.frame_indices) % size)]
    return [
        (first / video.fps + last / video.fps) / 2
        for first, last in zip(indices[::size], indices[size - 1 :: size], strict=True)
    ]


def engine_media(images: Sequence[Any], videos: Sequence[Video]) -> dict[str, list[Any]]:
    """Returns images and videos in vLLM's format."""
    media = {"image": list(images), "video": [_engine_video(video) for video in videos]}
    return {kind: items for kind, items in media.items() if items}


def _engine_video(video: Video) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns frames [F, 3, H, W] and their times. Channels come first, since vLLM would misread a frame 3 pixels high."""
    frames = np.ascontiguousarray(video.frames.transpose(0, 3, 1, 2))
    indices = list(video.frame_indices)
    return frames, {
        "fps": video.fps,
        "frames_indices": indices,
        "total_num_frames": indices[-1] + 1,
        "do_sample_frames": False,
    }


def limit_pixels(processor: ProcessorMixin, config: RolloutConfig) -> ProcessorMixin:
    """Sets a run's pixel limits on a processor, in place. Driver, learner and engines all use this function.

    Raises:
        ValueError: If the largest picture would be smaller than the smallest.
    """
    images, videos = processor.image_processor, processor.video_processor
    images.size = _limited("image", images.size, config.min_image_pixels, config.max_image_pixels)
    videos.size = _limited("video", videos.size, None, config.max_video_pixels)
    if videos.cap_pixels_per_frame is None:
        videos.cap_pixels_per_frame = True  # as Qwen's code does, and transformers only from 5.22 on
    return processor


def size_seen(processor: ProcessorMixin, size: tuple[int, int]) -> tuple[int, int]:
    """Returns the width and height that the processor makes of a picture above its pixel limit. Another size is returned as it is.

    The processor then makes the same tokens of a picture that has this size already.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    images, (width, height) = processor.image_processor, size
    if width * height <= images.size["longest_edge"]:
        return size
    factor = images.patch_size * images.merge_size
    limits = {"min_pixels": images.size["shortest_edge"], "max_pixels": images.size["longest_edge"]}
    smaller = smart_resize(height, width, factor, **limits)
    # The processor would shrink a very narrow picture again.
    return smaller[::-1] if smart_resize(*smaller, factor, **limits) == smaller else size


def _limited(kind: str, size: Any, smallest: int | None, largest: int | None) -> Any:
    smallest = size["shortest_edge"] if smallest is None else smallest
    largest = size["longest_edge"] if largest is None else largest
    if smallest > largest:
        raise ValueError(
            f"the smallest {kind} would have {smallest} pixels, the largest {largest}: "
            f"raise rollout.max_{kind}_pixels" + (" or lower rollout.min_image_pixels" if kind == "image" else "")
        )
    return type(size)(shortest_edge=smallest, longest_edge=largest)


def pixel_options(processor: ProcessorMixin) -> dict[str, Any]:
    """Returns a processor's pixel limits in vLLM's format."""
    parts = {"images_kwargs": processor.image_processor.size, "videos_kwargs": processor.video_processor.size}
    options: dict[str, dict[str, Any]] = {
        part: {"size": {edge: size[edge] for edge in ("shortest_edge", "longest_edge")}} for part, size in parts.items()
    }
    options["videos_kwargs"]["cap_pixels_per_frame"] = processor.video_processor.cap_pixels_per_frame
    return options


def prompt_length(processor: ProcessorMixin, prompt: Prompt) -> int:
    """Returns the number of the prompt's tokens with images and videos expanded, without reading a pixel."""
    return len(expanded_prompt(processor, prompt))


def require_same_tokens(processor: ProcessorMixin, group: Group) -> None:
    """Checks that the engine read the prompt as the learner does.

    Args:
        processor: The learner's processor.
        group: A group with the engine's `prompt_token_ids`.

    Raises:
        RuntimeError: Names the prompt and the first token that differs.
    """
    ours, theirs = expanded_prompt(processor, group.prompt), np.asarray(group.prompt_token_ids)
    if np.array_equal(ours, theirs) or not len(theirs):  # without tokens no episode could begin
        return
    shorter = min(len(ours), len(theirs))
    differs = ours[:shorter] != theirs[:shorter]
    place = int(differs.argmax()) if differs.any() else shorter
    texts = [processor.tokenizer.decode(tokens[place : place + 8].tolist()) or "the end" for tokens in (theirs, ours)]
    raise RuntimeError(
        f"prompt {group.prompt.id!r}: from token {place} on the engine read {texts[0]!r} and the learner {texts[1]!r} "
        f"({len(theirs)} and {len(ours)} tokens in all): the engines' model folder must have the learner's processor files"
    )


def fits_context(
    processor: ProcessorMixin,
    *,
    max_model_len: int,
    max_tokens: int,
    max_images: int | None = None,
    max_videos: int | None = None,
) -> Callable[[Prompt], str | None]:
    """Returns an `accept` for `PromptStream` that refuses prompts without room for a whole response, or with too many images.

    Args:
        processor: The policy's processor.
        max_model_len: Longest prompt plus response, in tokens.
        max_tokens: Longest response, in tokens.
        max_images: Most images of a prompt; None is no limit.
        max_videos: Most videos of a prompt; None is no limit.
    """

    def accept(prompt: Prompt) -> str | None:
        for kind, items, most in (("images", prompt.images, max_images), ("videos", prompt.videos, max_videos)):
            if most is not None and len(items) > most:
                return f"{len(items)} {kind} exceed rollout.max_{kind} = {most}: raise max_{kind}"
        try:
            length = prompt_length(processor, prompt)
        except ValueError as error:
            return str(error)
        if length + max_tokens <= max_model_len:
            return None
        return (
            f"{length} prompt tokens and rollout.max_tokens = {max_tokens} exceed rollout.max_model_len = {max_model_len}: "
            "raise max_model_len, lower max_tokens, or shorten the prompt"
        )

    return accept
