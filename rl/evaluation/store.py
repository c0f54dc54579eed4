"""Storage of answers that survives a kill: one line per finished prompt, and the options that the answers depend on."""

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
"""File name that `rewards.check` finds in a folder of samples."""
READ_WHOLE = 1 << 20
"""Largest file, in bytes, that is compared by content."""
ENGINE_OPTIONS = """
    dtype max_tokens max_model_len max_images max_videos min_image_pixels max_image_pixels max_video_pixels
    max_turns max_turn_tokens episode_timeout environment_timeout request_timeout
    """.split()
"""Engine options that change the answers; the others change place and speed only."""


def answer_identity(config: SamplingRunConfig) -> dict[str, Any]:
    """Returns everything that the answers depend on; data, model and reward are compared by their local files' content."""
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
    """Returns eight hexadecimal digits of a hash."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def _identity(path: Path) -> str | None:
    """Returns a hash of a file, or of all files in a folder; None if there is no such path."""
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return digest({str(each.relative_to(path)): _content(each) for each in files})


def _content(file: Path) -> str:
    """Returns the hash of a small file; size and modification time of a large one, which would take minutes to hash."""
    status = file.stat()
    if status.st_size <= READ_WHOLE:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    return f"{status.st_size} bytes of {status.st_mtime_ns}"


class AnswerStore:
    """The answers of one run, a line for each prompt in order of completion.

    Args:
        run_dir: The run's folder; created if missing.
        identity: Everything that the answers depend on, from `answer_identity`.
        pictures: Saves the pictures, too.

    Raises:
        ValueError: The folder has answers of another identity.
    """

    def __init__(self, run_dir: Path, identity: Mapping[str, Any], *, pictures: bool = True) -> None:
        self.run_dir, self._pictures = run_dir, pictures
        self.folder = run_dir / "samples"
        self.file = self.folder / ANSWERS
        plain = json.loads(json.dumps(identity))
        identity_file = run_dir / "asked.json"
        if identity_file.exists():
            _require_same(run_dir, json.loads(identity_file.read_text()), plain)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(identity_file, plain)
        drop_partial_line(self.file)
        self.done = {row["row"] for row in self.rows()}

    def add(self, number: int, group: Group, scores: Sequence[Score]) -> None:
        """Saves the answers to one prompt. The pictures come first: a prompt with a line is finished.

        Args:
            number: The prompt's row in the data.
            group: The prompt and its completions.
            scores: One for each completion.
        """
        row = transcript(self.folder, f"row_{number:06d}", group, scores, with_pictures=self._pictures)
        with self.file.open("a") as file:
            file.write(jsonl_line({"row": number, **row}))
        self.done.add(number)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the saved lines one by one, since long answers to many prompts do not fit into memory."""
        if self.file.exists():
            with self.file.open() as lines:
                yield from map(json.loads, lines)


def drop_partial_line(file: Path) -> None:
    """Removes a last line that a kill left incomplete."""
    if not file.exists():
        return
    with file.open("rb+") as lines:
        end = 0
        for line in lines:
            if line.endswith(b"\n"):
                end += len(line)
        lines.truncate(end)


def _require_same(run_dir: Path, saved: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    for name, value in identity.items():
        if saved.get(name) != value:
            raise ValueError(
                f"{run_dir} has answers with other options: {name} was {saved.get(name)!r} and is {value!r}; "
                "pass another --run-dir, or the same options as before"
            )
