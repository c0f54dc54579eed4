"""The run that suffers the faults: its command, its processes, what it has logged, what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from bench.chaos.disk import SmallDisk
from rl.run_dir.checkpoint import list_checkpoints
from rl.run_dir.sums import damage_of
from rl.signals.supervisor import SUPERVISOR_VAR
from rollout.config import Backend

OPTIONS = """
--prompts-per-step 4 --group-size 4 --optimizer.warmup-updates 2 --eval.num-prompts 8 --samples-every 50 --wandb disabled
--learner.threads 1 --cold-start.threads 1 --cold-start.updates 4 --checkpoint-every 2 --keep-checkpoints 3 --reward-timeout 3
--rollout.engine-timeout 20 --rollout.start-timeout 90 --learner.step-timeout 20 --restarts 1000 --stop-timeout 60 --resume auto
"""
"""A small run, on-policy and in float32, with time limits that fit it."""
REWARD = '''
import os, time

def share_of_digits(prompt, completion):
    """Hangs once where a file asks for it."""
    try:
        os.unlink("{hang}")
    except FileNotFoundError:
        return sum(letter.isdigit() for letter in completion.text) / (1 + len(completion.text))
    time.sleep(3600)
'''
OBJECTIVE = '''
import gc, os, torch
from rl.sapo import sapo_loss

def sapo(new, old, advantages, mask, *, num_sequences):
    """SAPO; where a file asks for it, it first makes a weight of the policy NaN."""
    try:
        os.unlink("{nan}")
    except FileNotFoundError:
        pass
    else:
        optimizer = next(each for each in gc.get_objects() if isinstance(each, torch.optim.Optimizer))
        weight = max(optimizer.param_groups[0]["params"], key=torch.numel).detach()
        getattr(weight, "to_local", lambda: weight)().view(-1)[0] = float("nan")
    return sapo_loss(new, old, advantages, mask, num_sequences=num_sequences)
'''
AGAIN = (128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit statuses after which a scheduler would start the run again, and this bench does."""
MARK = "BENCH_CHAOS"
"""Environment variable of the run's processes."""
STOP_SECONDS = 60.0
"""Seconds in which a signal must have ended the run, `--stop-timeout`."""
START_SECONDS = 240.0
"""Longest time between two steps, in seconds, before the bench takes the run for stuck."""
DISK_MB = 400
"""Size of the run's disk: room for the checkpoints that are kept, and one more."""
KEPT_IN_TMP = {"ray", "ray_current_cluster", "torchinductor_root"}
"""Names in the temporary folder that are meant to stay."""


class ChaosRun:
    """One run, started again as often as a signal ends it.

    Args:
        folder: Folder of the runs.
        name: The run's name.
        steps: Its steps.
        transfer: Transport of weights; NCCL and CUDA IPC on GPUs that are not there.
        more: More options of the run.
        on_small_disk: Puts it on a disk that a fault can fill.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        steps: int,
        *,
        transfer: Backend = "shared_memory",
        more: str = "",
        on_small_disk: bool = False,
    ) -> None:
        self.run_dir, self.steps = folder / name, steps
        self.disk = SmallDisk(self.run_dir, DISK_MB) if on_small_disk else None
        self.gpus: Path | None = None
        """Folder that steers GPUs that are not there (`tests.fake_gpus`); None without."""
        module = ["recipes.digit_sums"]
        if transfer != "shared_memory":
            self.gpus = folder / f"{name}-gpus"
            self.gpus.mkdir(exist_ok=True)
            module = ["bench.on_fake_gpus", transfer, "--rollout.folder", str(self.gpus)]
        self.hang, self.nan = folder / "hang", folder / "nan"
        reward, objective = folder / "reward.py", folder / "objective.py"
        reward.write_text(REWARD.format(hang=self.hang))
        objective.write_text(OBJECTIVE.format(nan=self.nan))
        where = f"--run-dir {self.run_dir} --steps {steps} --cold-start.cache-dir {folder / 'cold_start'}"
        what = f"--reward {reward}:share_of_digits --objective {objective}:sapo"
        self._command = [sys.executable, "-m", *module, *f"{OPTIONS} {where} {what} {more}".split()]
        self.temporary = Path(tempfile.mkdtemp(prefix="c-"))  # short: Ray's sockets are in it
        # A driver ends when Ray's GCS has been gone for so long, by default a minute.
        self._environment = {**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
        self._environment |= {MARK: str(self.temporary), "TMPDIR": str(self.temporary)}
        self._environment.pop(SUPERVISOR_VAR, None)
        self.starts = 0
        self.exits: list[float] = []
        """Seconds from each signal to the run's end."""
        self._segments = segments()
        self._log: IO[str] | None = None
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts the run, or goes on with it."""
        self.starts += 1
        self._log = (self.run_dir.parent / f"{self.run_dir.name}.log").open("a")
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdout=self._log, stderr=subprocess.STDOUT, text=True
        )

    @property
    def supervisor(self) -> psutil.Process:
        """The run's outermost process."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def has_ended(self) -> bool:
        """Returns True at the run's end. One that a signal has ended is started again.

        Raises:
            RuntimeError: The run has failed.
        """
        assert self._process is not None
        status = self._process.poll()
        if status in AGAIN:
            self.start()
        elif status:
            raise RuntimeError(f"the run has ended with status {status}: {self.run_dir.parent / self.run_dir.name}.log")
        return status == 0

    def step(self) -> int:
        """Returns the last step that is logged."""
        file = self.run_dir / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        for line in reversed(lines):
            try:
                return int(json.loads(line)["step"])
            except ValueError:  # cut in the middle
                continue
        return 0

    def wait_for_step(self, step: int) -> None:
        """Waits until a step is logged, or the run has ended.

        Raises:
            RuntimeError: The run makes no progress.
        """
        reached, since = self.step(), time.monotonic()
        while not self.has_ended() and (now := self.step()) < step:
            if now != reached:
                reached, since = now, time.monotonic()
            if time.monotonic() - since > START_SECONDS:
                raise RuntimeError(f"no step for {START_SECONDS:g} s after step {reached}")
            time.sleep(0.02)

    def processes(self, name: str) -> list[psutil.Process]:
        """Returns the run's living processes with this in their names or command lines."""
        found = []
        for process in self.supervisor.children(recursive=True):
            try:
                words = f"{process.name()} {' '.join(process.cmdline())}"
                if name in words and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def driver(self) -> psutil.Process:
        """Returns the process with the training loop."""
        return self.supervisor.children()[0]

    def stop(self, number: int) -> None:
        """Sends the run a signal, waits for its end, and checks what it leaves.

        Raises:
            RuntimeError: It has ended late or with another status, or has left something, or a checkpoint that is not whole.
        """
        assert self._process is not None
        sent = time.monotonic()
        self._process.send_signal(number)
        status = self._process.wait(STOP_SECONDS + 10)
        self.exits.append(time.monotonic() - sent)
        newest = self.newest_checkpoint()
        problems = self.left_running()
        if status not in (0, 128 + number):
            problems.append(f"status {status}")
        if self.exits[-1] > STOP_SECONDS:
            problems.append(f"{self.exits[-1]:.1f} s")
        if newest is not None and (damage := damage_of(newest)):
            problems.append(f"{newest.name}: {damage}")
        if problems:
            raise RuntimeError(f"after {signal.Signals(number).name}: {'; '.join(problems)}")

    def newest_checkpoint(self) -> Path | None:
        """Returns the newest checkpoint, whole or not."""
        return next(iter(reversed(list_checkpoints(self.run_dir))), None)

    @contextmanager
    def killed_on_failure(self) -> Iterator[None]:
        """Ends the run if the bench itself fails in the block."""
        try:
            yield
        except BaseException:
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()
                try:
                    self._process.wait(90)
                except subprocess.TimeoutExpired:
                    self._process.kill()
            self.close()
            raise

    def close(self) -> None:
        """Ends its disk."""
        if self.disk is not None:
            self.disk.close()

    def left_running(self) -> list[str]:
        """Returns the names of processes and shared memory that have outlived the run."""
        left = [f"process {each.pid} {each.name()}" for each in _marked(str(self.temporary))]
        return left + [f"/dev/shm/{name}" for name in sorted(segments().keys() - self._segments.keys())]

    def left_behind(self) -> list[str]:
        """Returns what has outlived the run, temporary files included; deletes their folder."""
        left = self.left_running()
        files = [*self.temporary.iterdir(), *(self.temporary / "ray").glob("*")]
        left += [str(path) for path in files if path.name not in KEPT_IN_TMP and not path.is_symlink()]
        shutil.rmtree(self.temporary, ignore_errors=True)
        return left


def segments() -> dict[str, int]:
    """Returns name → size of the files in shared memory."""
    return {path.name: path.stat().st_size for path in Path("/dev/shm").iterdir() if path.is_file()}


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found
