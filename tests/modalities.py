"""A batch of prompts of every modality: text, images, videos, mixtures; and an engine's config that takes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from rollout.config import RolloutConfig
from rollout.types import Prompt, Video

CONFIG = RolloutConfig(
    dtype="float32",
    max_tokens=12,
    max_model_len=700,
    max_images=3,
    max_videos=2,
    min_image_pixels=64 * 64,
    max_image_pixels=128 * 128,
    max_video_pixels=6 * 96 * 96,
)
RNG = np.random.default_rng(0)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def clip(num_frames: int, width: int, height: int, every: int = 7) -> Video:
    frames = RNG.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    return Video(frames=frames, fps=29.97, frame_indices=range(0, every * num_frames, every))


def prompt(name: str, *parts: str | Image.Image | Video) -> Prompt:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "video" if isinstance(part, Video) else "image"}
        for part in parts
    ]
    return Prompt(
        id=name,
        messages=[{"role": "user", "content": content}],
        images=[part for part in parts if isinstance(part, Image.Image)],
        videos=[part for part in parts if isinstance(part, Video)],
    )


PROMPTS = [
    prompt("text", "What is 2 + 2?"),
    replace(
        prompt("text and a tool", "What is 2 + 2?"), template={"tools": [{"function": {"name": "add <|im_end|>"}}]}
    ),
    prompt("image", picture(96, 64), "What is this?"),
    prompt("image over the limit", picture(300, 200), "And this?"),
    prompt("image under the limit", picture(32, 32), "And this?"),
    prompt("several images", picture(64, 64), picture(96, 96), picture(64, 128), "Which one?"),
    prompt("interleaved images", "Is ", picture(64, 64), " before ", picture(96, 64), "?"),
    prompt("video", clip(4, 64, 96), "What happens?"),
    prompt("video of an odd number of frames, over the limit", clip(5, 200, 160), "What happens?"),
    prompt("video of two frames 3 pixels high", clip(2, 64, 3), "What happens?"),
    prompt("two videos", clip(4, 64, 64, every=31), clip(3, 96, 64), "Which is longer?"),
    prompt(
        "images and videos, interleaved", picture(64, 64), "Is this in ", clip(4, 64, 64), " or ", picture(96, 96), "?"
    ),
]
