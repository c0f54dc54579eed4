"""Metrics to `metrics.jsonl`, wandb and the terminal; transcripts to `samples/`."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rewards.types import Score
from rl.config import RunOptions, WandbMode
from rl.run_dir.files import append_whole, jsonl_line, write_atomically, write_json
from rl.run_dir.transcripts import transcript
from rollout.types import Group

logger = logging.getLogger(__name__)

WANDB_ID_FILE = "wandb_id"
"""File of the id of wandb's run."""


class Tracker:
    """Writes one run's metrics and samples.

    Args:
        options: The run's folder and its wandb mode.
        config: Every choice of the run as JSON has it, for `config.json` and wandb.
        first_row: The first step that is to be logged; rows from it on are dropped.
    """

    def __init__(self, options: RunOptions, config: Mapping[str, Any], first_row: int) -> None:
        self.run_dir = options.run_dir
        self.samples_dir = self.run_dir / "samples"
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.metrics_file = self.run_dir / "metrics.jsonl"
        write_json(self.run_dir / "config.json", config)
        keep_rows(self.metrics_file, first_row)
        self._unwritten: list[str] = []
        self.console = Console()
        self.wandb = _start_wandb(options.wandb, self.run_dir, config)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one row. A step may have several rows, as evaluation writes its own.

        Rows that a full disk has no room for are written with a later one.
        """
        row = {"step": step, **{name: _as_number(value) for name, value in metrics.items()}}
        self._unwritten.append(json.dumps(row) + "\n")
        try:
            append_whole(self.metrics_file, "".join(self._unwritten))
            self._unwritten.clear()
        except OSError as error:
            logger.warning("metrics of step %d are not written so far: %s", step, error)
        if self.wandb is not None:
            self.wandb.log(row)  # its axis is the row's `step`: a resumed run may log a step again

    def rewind(self, first_row: int) -> None:
        """Drops the rows from a step on, which the run logs again."""
        self._unwritten.clear()
        keep_rows(self.metrics_file, first_row)

    def save_samples(
        self, name: str, groups: Sequence[Group], scores: Sequence[Sequence[Score]], limit: int = 4
    ) -> None:
        """Writes transcripts of the first groups to `samples/NAME.jsonl`, with their images and film strips."""
        try:
            self.samples_dir.mkdir(exist_ok=True)
            rows = [
                transcript(self.samples_dir, f"{name}_{index}", group, group_scores)
                for index, (group, group_scores) in enumerate(zip(groups[:limit], scores[:limit], strict=True))
            ]
            (self.samples_dir / f"{name}.jsonl").write_text("".join(jsonl_line(row) for row in rows))
        except OSError as error:
            logger.warning("no samples of %s: %s", name, error)

    @contextmanager
    def progress(self, total: int, done: int) -> Iterator[ProgressLine]:
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
            yield ProgressLine(progress, task)

    def close(self) -> None:
        """Ends the wandb run, if any."""
        if self.wandb is not None:
            import wandb

            self.wandb.finish()
            wandb.teardown()  # its service would otherwise run as long as this process


class ProgressLine:
    """The live line of a run; without a terminal, a printed line every ten steps."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task
        self._live = progress.console.is_terminal
        self._held_out: float | None = None

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows one finished step."""
        if "eval/greedy" in metrics:
            self._held_out = metrics["eval/greedy"]
        held_out = "" if self._held_out is None else f"held-out {self._held_out:.3f}  "
        reward, seconds = metrics.get("reward/mean", 0.0), metrics["time/step"]
        speed = f"{metrics['rollout/tokens_per_second']:.0f} tok/s"
        # The live line fits 80 columns; a log may be wider.
        self._progress.update(
            self._task, completed=step, status=f"{held_out}reward {reward:.3f}  {speed}  {seconds:.1f} s"
        )
        if not self._live and (step % 10 == 0 or step == 1):
            gap = metrics.get("rollout/logprob_gap_mean", 0.0)
            line = f"step {step:4d}  {held_out}reward {reward:.3f}  gap {gap:.1e}  {speed}  {seconds:.2f} s/step"
            self._progress.console.print(line, highlight=False)


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.jsonl`; none if it has not written any. Lines that are no rows are left out."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    return [row for row in map(_row_of, lines) if row is not None]


def keep_rows(metrics_file: Path, before: int) -> None:
    """Drops rows from step `before` on, which a resumed run writes again, and lines that are no rows."""
    if not metrics_file.exists():
        return
    lines = metrics_file.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line + "\n" for line in lines if _is_before(_row_of(line), before)]
    write_atomically(metrics_file, "".join(kept))


def _row_of(line: str) -> dict[str, float] | None:
    """Returns the row of a line; None if it is no object, as the last line of a killed run may be."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def _is_before(row: dict[str, float] | None, step: int) -> bool:
    """Returns True for the row of an earlier step."""
    found = None if row is None else row.get("step")
    return isinstance(found, int | float) and found < step


def _as_number(value: float) -> float | int:
    value = float(value)
    return int(value) if value.is_integer() and abs(value) < 1e15 else value


def _start_wandb(mode: WandbMode, run_dir: Path, config: Mapping[str, Any]) -> Any:
    """Starts wandb's run, or goes on with it: the folder has its id."""
    if mode == "disabled":
        return None
    import wandb

    if mode == "auto":
        mode = "online" if _logged_in_to_wandb() else "offline"
    file = run_dir / WANDB_ID_FILE
    if not file.exists():
        write_atomically(file, secrets.token_hex(4) + "\n")
    run = wandb.init(
        project="sapo",
        name=run_dir.name,
        id=file.read_text().strip(),
        resume="allow" if mode == "online" else None,
        dir=str(run_dir),
        mode=mode,
        config=dict(config),
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.define_metric("*", step_metric="step")
    return run


def _logged_in_to_wandb() -> bool:
    """Looks for a key where `wandb login` stores it, without network access."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    with suppress(OSError, NetrcParseError):
        return any("wandb" in host for host in netrc().hosts)
    return False
