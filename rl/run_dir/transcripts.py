"""Groups as JSON rows with image files beside them: for people, for `rewards.check` and for evaluation.

Lists: G completions of a group.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rewards.types import Score
from rollout.types import Completion, Group, Video, observed_images

EXACT_PIXELS = 512 * 512
"""Most pixels of a picture that is saved as PNG. A PNG of a photo of 12 megapixels takes seconds."""
MAX_PIXELS = 1024 * 1024
"""Most pixels of any copy."""


def transcript(
    folder: Path, stem: str, group: Group, scores: Sequence[Score], *, with_pictures: bool = True
) -> dict[str, Any]:
    """One group with its scores as a JSON object; saves copies of its images, and film strips of its videos.

    A copy has at most a megapixel. `image_sizes` then has the size of the image, so that verifiers that work in pixels can read it.

    Args:
        folder: Folder for the image files.
        stem: First part of their names.
        group: A prompt and its completions.
        scores: [G] the completions' scores.
        with_pictures: False saves no image files.
    """

    def saved(pictures: Sequence[Any], name: str = "") -> list[str]:
        if not with_pictures:
            return []
        names = _save_pictures(folder, stem + name, pictures)
        sizes.update(_other_sizes(folder, names, pictures))
        return names

    sizes: dict[str, dict[str, list[int]]] = {}
    strips = [film_strip(video) for video in group.prompt.videos] if with_pictures else []
    files = {"images": saved(group.prompt.images), "videos": saved(strips, "_video")}
    observed = [saved(observed_images(done), f"_seen_{index}") for index, done in enumerate(group.completions)]
    prompt = group.prompt
    return {
        "prompt_id": prompt.id,
        "task": prompt.task,
        "messages": list(prompt.messages),
        **files,
        **({"image_sizes": sizes} if sizes else {}),
        "answer": prompt.answer,
        "columns": {name: value for name, value in prompt.columns.items() if _is_json(value)},
        **({"template": dict(prompt.template)} if prompt.template else {}),
        "completions": [
            {
                "text": completion.text,
                **_turns(completion, pictures),
                "reward": score.reward,
                "parts": dict(score.parts),
                "error": score.error,
                **({} if score.timeout is None else {"timeout": score.timeout}),
                "failed": score.failed,
                "finish_reason": completion.finish_reason,
                **({"thinking": True} if completion.thinking else {}),
                "num_tokens": len(completion.token_ids),
                "policy_version": completion.policy_version,
            }
            for completion, score, pictures in zip(group.completions, scores, observed, strict=True)
        ],
    }


def film_strip(video: Video, num_frames: int = 5, height: int = 128) -> Image.Image:
    """Evenly spaced frames of a video side by side, first and last included; `height` pixels high."""
    chosen = sorted(set(np.linspace(0, len(video.frames) - 1, num_frames).round().astype(int).tolist()))
    width = max(1, round(video.frames.shape[2] * height / video.frames.shape[1]))
    strip = Image.new("RGB", (width * len(chosen), height))
    for place, index in enumerate(chosen):
        strip.paste(Image.fromarray(video.frames[index]).resize((width, height)), (place * width, 0))
    return strip


def _save_pictures(folder: Path, stem: str, pictures: Sequence[Any]) -> list[str]:
    """Saves small pictures exactly, and large ones as JPEGs of at most a megapixel, in which small print can still be read."""
    names = []
    for number, picture in enumerate(pictures):
        if picture.width * picture.height <= EXACT_PIXELS:
            names.append(f"{stem}_{number}.png")
            picture.save(folder / names[-1], compress_level=1)
            continue
        scale = min(1.0, math.sqrt(MAX_PIXELS / (picture.width * picture.height)))
        size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
        names.append(f"{stem}_{number}.jpg")
        smaller = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        smaller.save(folder / names[-1], quality=90, subsampling=0)
    return names


def _other_sizes(folder: Path, names: Sequence[str], pictures: Sequence[Any]) -> dict[str, dict[str, list[int]]]:
    """Returns the sizes of pictures that are larger than their copies, or were larger before they were opened."""
    sizes = {}
    for name, picture in zip(names, pictures, strict=True):
        original = picture.info.get("original_size", picture.size)
        with Image.open(folder / name) as copy:
            if not copy.size == picture.size == original:
                sizes[name] = {"size": list(picture.size), "original_size": list(original)}
    return sizes


def _turns(completion: Completion, pictures: Sequence[str]) -> dict[str, Any]:
    """The turns of an episode with their token ranges, observations and image files; empty for a single turn."""
    if completion.turns is None:
        return {}
    turns, files = [], iter(pictures)
    for turn in completion.turns:
        row: dict[str, Any] = {"text": turn.text, "start": turn.start, "stop": turn.stop}
        if (observation := turn.observation) is not None:
            row |= {"observation": observation.text, "images": list(islice(files, len(observation.images)))}
        turns.append(row)
    return {"turns": turns, "outcome": dict(completion.outcome)}


def _is_json(value: object) -> bool:
    """Returns False for the images of a dataset's row, which are files of their own."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
