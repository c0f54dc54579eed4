"""Groups as JSON rows with image files beside them: for people, for `rewards.check` and for evaluation.

Lists: G completions of a group.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rewards.types import Score
from rollout.types import Completion, Group, Video, observed_images


def transcript(
    folder: Path, stem: str, group: Group, scores: Sequence[Score], *, with_pictures: bool = True
) -> dict[str, Any]:
    """One group with its scores as a JSON object; saves its images, and film strips of its videos.

    Args:
        folder: Folder for the image files.
        stem: First part of their names.
        group: A prompt and its completions.
        scores: [G] the completions' scores.
        with_pictures: False saves no image files.
    """

    def saved(pictures: Sequence[Any], name: str = "") -> list[str]:
        return _save_pictures(folder, stem + name, pictures) if with_pictures else []

    strips = [film_strip(video) for video in group.prompt.videos] if with_pictures else []
    files = {"images": saved(group.prompt.images), "videos": saved(strips, "_video")}
    observed = [saved(observed_images(done), f"_seen_{index}") for index, done in enumerate(group.completions)]
    prompt = group.prompt
    return {
        "prompt_id": prompt.id,
        "task": prompt.task,
        "messages": list(prompt.messages),
        **files,
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
    names = [f"{stem}_{number}.png" for number in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        picture.save(folder / name)
    return names


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
