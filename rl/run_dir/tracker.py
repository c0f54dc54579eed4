"""Metrics to `metrics.jsonl`, wandb and the terminal; what was asked, answered and scored to `samples/`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rewards.types import Score
from rl.config import TrainConfig, WandbMode
from rl.sft.config import SftConfig
from rollout.types import Completion, Group, Video, observed_images


class Tracker:
    """Writes one run's metrics and samples.

    Args:
        config: The run's choices.
        plain: The same as plain data.
        start_step: Steps done already; later rows of an interrupted run are dropped.
    """

    def __init__(self, config: TrainConfig | SftConfig, plain: Mapping[str, Any], start_step: int) -> None:
        self.run_dir = config.run_dir
        self.samples_dir = self.run_dir / "samples"
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.metrics_file = self.run_dir / "metrics.jsonl"
        write_json(self.run_dir / "config.json", plain)
        keep_steps(self.metrics_file, start_step)
        self.console = Console()
        self.wandb = _start_wandb(config.wandb, self.run_dir, plain)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one row; of one step several rows may exist, as evaluation adds its own."""
        row = {"step": step, **{name: _plain(value) for name, value in metrics.items()}}
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.wandb is not None:
            self.wandb.log(dict(row), step=step)

    def save_samples(
        self, name: str, groups: Sequence[Group], scores: Sequence[Sequence[Score]], limit: int = 4
    ) -> None:
        """Writes the first groups of a step: `samples/NAME.jsonl`, and beside it their images, and some frames of their videos."""
        self.samples_dir.mkdir(exist_ok=True)
        rows = [
            sample_row(self.samples_dir, f"{name}_{index}", group, group_scores)
            for index, (group, group_scores) in enumerate(zip(groups[:limit], scores[:limit], strict=True))
        ]
        (self.samples_dir / f"{name}.jsonl").write_text("".join(as_line(row) for row in rows))

    @contextmanager
    def progress(self, total: int, done: int) -> Iterator[_Bar]:
        """A live line with step, reward, accuracy, tokens per second and time left."""
        columns = (
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=8),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, refresh_per_second=2) as progress:
            task = progress.add_task("train", total=total, completed=done, status="")
            yield _Bar(progress, task)

    def close(self) -> None:
        """Ends the wandb run, if any."""
        if self.wandb is not None:
            import wandb

            self.wandb.finish()
            wandb.teardown()  # its service would live on as long as this process


class _Bar:
    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task
        self._live = progress.console.is_terminal
        self._held_out: float | None = None

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step is done. Without a terminal every tenth step prints a line."""
        if "eval/greedy" in metrics:
            self._held_out = metrics["eval/greedy"]
        held_out = "" if self._held_out is None else f"held-out {self._held_out:.3f}  "
        reward, seconds = metrics.get("reward/mean", 0.0), metrics["time/step"]
        speed = f"{metrics['rollout/tokens_per_second']:.0f} tok/s"
        # The live line is for terminals of 80 columns; a log may have more.
        self._progress.update(
            self._task, completed=step, status=f"{held_out}reward {reward:.3f}  {speed}  {seconds:.1f} s"
        )
        if not self._live and (step % 10 == 0 or step == 1):
            gap = metrics.get("rollout/logprob_gap_mean", 0.0)
            line = f"step {step:4d}  {held_out}reward {reward:.3f}  gap {gap:.1e}  {speed}  {seconds:.2f} s/step"
            self._progress.console.print(line, highlight=False)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes aside, then renames."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(content, indent=1, default=str))
    aside.rename(path)


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def keep_steps(metrics_file: Path, last_step: int) -> None:
    """Drops rows past `last_step`, and a last line that a kill cut short: a resumed run writes them again."""
    if not metrics_file.exists():
        return
    kept = []
    for line in metrics_file.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if last_step and row["step"] <= last_step:
            kept.append(line + "\n")
    aside = metrics_file.with_suffix(".tmp")
    aside.write_text("".join(kept))
    aside.rename(metrics_file)


def film_strip(video: Video, num_frames: int = 5, height: int = 128) -> Image.Image:
    """Some frames of a video side by side, the first and the last among them; `height` pixels high."""
    chosen = sorted(set(np.linspace(0, len(video.frames) - 1, num_frames).round().astype(int).tolist()))
    width = max(1, round(video.frames.shape[2] * height / video.frames.shape[1]))
    strip = Image.new("RGB", (width * len(chosen), height))
    for place, index in enumerate(chosen):
        strip.paste(Image.fromarray(video.frames[index]).resize((width, height)), (place * width, 0))
    return strip


def _is_plain(value: object) -> bool:
    """Whether JSON has it: not the pictures of a dataset's row, which are files of their own."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def sample_row(
    folder: Path, stem: str, group: Group, scores: Sequence[Score], *, with_pictures: bool = True
) -> dict[str, Any]:
    """A group as JSON has it, for `rewards.check` and people to read; writes what is seen in it beside.

    Args:
        folder: Where pictures go.
        stem: How their names begin.
        group: What was asked and answered.
        scores: [G] of its completions.
        with_pictures: Whether there are to be any.
    """

    def saved(pictures: Sequence[Any], name: str = "") -> list[str]:
        return _save_pictures(folder, stem + name, pictures) if with_pictures else []

    strips = [film_strip(video) for video in group.prompt.videos] if with_pictures else []
    files = {"images": saved(group.prompt.images), "videos": saved(strips, "_video")}
    seen = [saved(observed_images(done), f"_seen_{place}") for place, done in enumerate(group.completions)]
    prompt = group.prompt
    return {
        "prompt_id": prompt.id,
        "task": prompt.task,
        "messages": list(prompt.messages),
        **files,
        "answer": prompt.answer,
        "columns": {name: value for name, value in prompt.columns.items() if _is_plain(value)},
        "completions": [
            {
                "text": completion.text,
                **_turns(completion, pictures),
                "reward": score.reward,
                "parts": dict(score.parts),
                "error": score.error,
                "failed": score.failed,
                "finish_reason": completion.finish_reason,
                "num_tokens": len(completion.token_ids),
                "policy_version": completion.policy_version,
            }
            for completion, score, pictures in zip(group.completions, scores, seen, strict=True)
        ],
    }


def as_line(row: Mapping[str, Any]) -> str:
    """A row of a JSONL file; what JSON does not have, in words."""
    return json.dumps(row, default=str) + "\n"


def _save_pictures(folder: Path, stem: str, pictures: Sequence[Any]) -> list[str]:
    names = [f"{stem}_{number}.png" for number in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        picture.save(folder / name)
    return names


def _turns(completion: Completion, pictures: Sequence[str]) -> dict[str, Any]:
    """Of an episode, who said what, in which of its tokens, and the files of the pictures that were shown."""
    if completion.turns is None:
        return {}
    told, files = [], iter(pictures)
    for turn in completion.turns:
        shown = turn.observation
        told.append(
            {"text": turn.text, "start": turn.start, "stop": turn.stop}
            | ({} if shown is None else {"observation": shown.text, "images": list(islice(files, len(shown.images)))})
        )
    return {"turns": told, "outcome": dict(completion.outcome)}


def _plain(value: float) -> float | int:
    value = float(value)
    return int(value) if value.is_integer() and abs(value) < 1e15 else value


def _start_wandb(mode: WandbMode, run_dir: Path, config: Mapping[str, Any]) -> Any:
    if mode == "disabled":
        return None
    import wandb

    if mode == "auto":
        mode = "online" if _logged_in_to_wandb() else "offline"
    settings = wandb.Settings(silent=True, console="off")
    return wandb.init(
        project="sapo", name=run_dir.name, dir=str(run_dir), mode=mode, config=dict(config), settings=settings
    )


def _logged_in_to_wandb() -> bool:
    """As `wandb login` leaves it; asked without asking the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    with suppress(OSError, NetrcParseError):
        return any("wandb" in host for host in netrc().hosts)
    return False
