"""Answers that survive a kill: one line for each prompt that is done, and what they are answers to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rewards.types import Score
from rl.evaluation.config import SamplingRunConfig, sampling_of
from rl.run_dir.files import jsonl_line, write_json
from rl.run_dir.transcripts import transcript
from rollout.types import Group

ANSWERS = "step_000000.jsonl"
"""A name by which `rewards.check` finds the file in a folder of samples."""
READ_WHOLE = 1 << 20
"""Bytes: files up to this size are read to see whether they are the same."""
ENGINE_OPTIONS = """
    dtype max_tokens max_model_len max_images max_videos min_image_pixels max_image_pixels max_video_pixels
    max_turns max_turn_tokens episode_timeout environment_timeout request_timeout
    """.split()
"""Options of the engines that change what is answered; the others say where and how fast."""


def answer_identity(config: SamplingRunConfig) -> dict[str, Any]:
    """What the answers depend on. Data, model and reward count with what is in their files, as far as they are files here."""
    return {
        "model": config.model,
        "model_files": _identity(Path(config.model).expanduser()),
        "data": config.data,
        "data_files": _identity(Path(config.data.rpartition(":")[0] or config.data).expanduser()),
        "split": config.split,
        "subset": config.subset,
        "layout": config.layout,
        "columns": asdict(config.columns),
        "reward": config.reward,
        "reward_files": _identity(Path(config.reward.rpartition(":")[0] or config.reward).expanduser()),
        "environment": config.environment,
        "samples": config.samples,
        "sampling": asdict(sampling_of(config)),
        "blind": config.blind,
        "seed": config.seed,
        "rollout": {name: getattr(config.rollout, name) for name in ENGINE_OPTIONS},
    }


def digest(plain: Mapping[str, Any]) -> str:
    """Eight letters that two different things hardly share."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def _identity(path: Path) -> str | None:
    """Changes where a file, or one of a folder's, does; None where nothing is there."""
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return digest({str(each.relative_to(path)): _content(each) for each in files})


def _content(file: Path) -> str:
    """Of a small file its content's hash; of weights and pictures by the million size and time, for they would take minutes."""
    told = file.stat()
    if told.st_size <= READ_WHOLE:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    return f"{told.st_size} bytes of {told.st_mtime_ns}"


class AnswerStore:
    """The answers of one run, a line for each prompt in the order in which they came.

    Args:
        run_dir: Where they are, or are to be.
        what: What they are answers to, as `asked` says it.
        pictures: Whether to keep the pictures.

    Raises:
        ValueError: The folder has answers to something else.
    """

    def __init__(self, run_dir: Path, what: Mapping[str, Any], *, pictures: bool = True) -> None:
        self.run_dir, self._pictures = run_dir, pictures
        self.folder = run_dir / "samples"
        self.file = self.folder / ANSWERS
        plain = json.loads(json.dumps(what))
        told = run_dir / "asked.json"
        if told.exists():
            _require_same(run_dir, json.loads(told.read_text()), plain)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(told, plain)
        drop_partial_line(self.file)
        self.done = {row["row"] for row in self.rows()}

    def add(self, number: int, group: Group, scores: Sequence[Score]) -> None:
        """Keeps the answers to one prompt, the pictures first: once its line is there, the prompt is done.

        Args:
            number: Its row in the data.
            group: What was asked and answered.
            scores: Of its completions.
        """
        row = transcript(self.folder, f"row_{number:06d}", group, scores, with_pictures=self._pictures)
        with self.file.open("a") as file:
            file.write(jsonl_line({"row": number, **row}))
        self.done.add(number)

    def rows(self) -> Iterator[dict[str, Any]]:
        """What is there, one line after the other: long answers to many prompts do not fit into memory."""
        if self.file.exists():
            with self.file.open() as lines:
                yield from map(json.loads, lines)


def drop_partial_line(file: Path) -> None:
    """Drops a last line that a kill has cut short."""
    if not file.exists():
        return
    with file.open("rb+") as lines:
        end = 0
        for line in lines:
            if line.endswith(b"\n"):
                end += len(line)
        lines.truncate(end)


def _require_same(run_dir: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"{run_dir} has answers to something else: {name} was {theirs.get(name)!r} and is {value!r}; "
                "pass another --run-dir, or the same choices as then"
            )
