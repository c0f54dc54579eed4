"""A run that is killed or ended by a signal, and resumed, against what it had come to before: real Ray, real vLLM, fp32.

A run of its own costs all imports, half a minute of a core: what it wrote before the kill, beyond its last checkpoint, is what it
comes to undisturbed. Only the run that is to be killed has a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from rl.run_dir.checkpoint import list_checkpoints, step_of
from rl.run_dir.sums import damage_of
from rl.signals.supervisor import SUPERVISOR_VAR
from rollout.engine.vllm_processes import segments_of, semaphores_of
from tests.recipes.running import ONE_THREAD, run_here

pytestmark = pytest.mark.engine

STEPS, CHECKPOINT, KILLED_AFTER = 6, 3, 5
REWARD = """
def share_of_digits(prompt, completion):
    return sum(letter.isdigit() for letter in completion.text) / (1 + len(completion.text))
"""
"""Sums are beyond a policy that has hardly seen any; this it can learn from at once."""
SELECTED = range(7, 300, 2)
"""The rows of the training set that are trained on."""
MARK = "RESUME_TEST"
"""Environment variable of the processes of a run in a process of its own."""
UNEQUAL = ("time/", "sync/", "memory/")
"""Metrics that tell of the machine, not of the policy."""


def recipe(run_dir: Path, *more: str) -> list[str]:
    """The main job, small: the same in every call but for `more`."""
    options = f"--steps {STEPS} --cold-start.updates 4 --eval.num-prompts 8 --samples-every 1 --wandb disabled"
    when = f"--checkpoint-every {CHECKPOINT} --eval.every {KILLED_AFTER}"
    sizes = "--prompts-per-step 4 --group-size 4 --optimizer.warmup-updates 2"
    cache = f"--cold-start.cache-dir {run_dir.parent / 'cold_start'} --run-dir {run_dir}"
    reward, selection = run_dir.parent / "reward.py", run_dir.parent / "selected.jsonl"
    reward.write_text(REWARD)
    lines = [json.dumps({"row": row, "prompt_id": f"digit_sums-train-{row}"}) for row in SELECTED]
    selection.write_text("\n".join(lines))
    chosen = f"--reward {reward}:share_of_digits --selection {selection}"
    return [*f"{options} {when} {sizes} {ONE_THREAD} {cache} {chosen}".split(), *more]


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The run's metrics, without those that differ between any two runs."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(UNEQUAL) and "per_second" not in k}
        for line in lines
    ]


def processes_with(mark: str) -> list[psutil.Process]:
    """Living processes that have this mark in their environment. Zombies do not count."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


def processes_of_killed() -> list[psutil.Process]:
    """Those of the killed run, but for Ray's own agents, which wait up to a minute for connections that are still open."""
    agents = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
    return [process for process in processes_with(str(os.getpid())) if process.name() not in agents]


@dataclass(frozen=True)
class Killed:
    """A run of which nothing but its folder is left.

    Attributes:
        run_dir: The folder.
        rows: What it had come to.
        names: The names of its processes.
        mapped: What these processes had mapped.
        shared: Their shared memory that has a name.
    """

    run_dir: Path
    rows: list[dict[str, Any]]
    names: list[str]
    mapped: str
    shared: set[Path]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Killed past the checkpoint of step 3: steps 4 and 5 are lost, and step 6 is under way."""
    run_dir = tmp_path_factory.mktemp("runs") / "killed"
    command = [sys.executable, "-m", "recipes.digit_sums", *recipe(run_dir)]
    environment = {**os.environ, MARK: str(os.getpid())}
    with (run_dir.parent / "log.txt").open("w") as log:
        run = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for_row(run, run_dir, KILLED_AFTER - 1)
        living = processes_of_killed()
        names = [process.name() for process in living]
        mapped = "".join(Path(f"/proc/{process.pid}/maps").read_text() for process in living if process.is_running())
        shared = segments_of(living) | {path for process in living for path in semaphores_of(process.pid)}
        wait_for_row(run, run_dir, KILLED_AFTER)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    return Killed(run_dir, rows(run_dir), names, mapped, shared)


def test_a_run_killed_in_the_middle_of_a_step_leaves_no_process_and_no_shared_memory(killed: Killed):
    # On CPUs vLLM has one process, which shares no memory that has a name; that of the weights is freed with its last process.
    assert "VLLM::EngineCore" in killed.names and "VLLM::Worker" not in killed.names
    assert "memfd:policy-weights" in killed.mapped
    deadline = time.monotonic() + 60
    while processes_of_killed() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not processes_of_killed(), "the killed run left processes behind"
    assert not [path for path in killed.shared if path.exists()], "the killed run left shared memory behind"
    assert not (killed.run_dir / "checkpoints" / f"step_{STEPS}").exists(), "it was to be killed before its end"


@pytest.fixture(scope="module")
def resumed(killed: Killed, cluster: None) -> Path:
    """The killed run's folder, after it has gone on to its end."""
    run_here("digit_sums", recipe(killed.run_dir, "--resume", "auto"))
    return killed.run_dir


def test_a_run_killed_in_the_middle_of_a_step_resumes_to_the_same_metrics(killed: Killed, resumed: Path):
    assert [row["step"] for row in killed.rows][: KILLED_AFTER + 1] == list(range(KILLED_AFTER + 1))
    assert all(row["policy/grad_norm"] > 0 for row in killed.rows[1:]), "a policy that does not change proves nothing"
    assert {"eval/greedy", "eval/sampled"} <= killed.rows[KILLED_AFTER].keys()
    assert rows(resumed)[: len(killed.rows)] == killed.rows
    assert [row["step"] for row in rows(resumed)] == list(range(STEPS + 1))
    assert {"eval/greedy", "eval/sampled", "eval/blind"} <= rows(resumed)[0].keys() & rows(resumed)[STEPS].keys()


def test_two_ranks_go_on_with_the_run_of_one_as_it_would_have_itself(resumed: Path):
    # From two ranks to one go the adapters below, and in `test_ranks` all weights.
    run_dir, checkpoint = resumed.with_name("two_ranks"), resumed / "checkpoints" / f"step_{CHECKPOINT}"
    run_here("digit_sums", recipe(run_dir, "--learner.cpu-ranks", "2", "--resume", str(checkpoint)))
    for ours, theirs in zip(rows(run_dir), rows(resumed)[CHECKPOINT + 1 :], strict=True):
        assert {"reward/mean", "loss/objective"} <= ours.keys()
        assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_adapters_alone_keep_engine_and_learner_together_over_ranks_and_a_resume(resumed: Path):
    run_dir = resumed.with_name("adapters")
    lora = "--lora.rank 8 --lora.sync adapter --optimizer.learning-rate 0.01".split()
    for more in (["--learner.cpu-ranks", "2", "--steps", "2"], ["--resume", "auto", "--steps", "3"]):
        run_here("digit_sums", recipe(run_dir, *lora, *more))
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()][1:]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all(row["rollout/logprob_gap_max"] <= 1e-5 for row in steps)
    assert all(row["policy/grad_norm"] > 0 for row in steps)
    assert max(row["sync/bytes"] for row in steps) < 1e6  # all weights would be 5 MB and more


def wait_for_row(run: subprocess.Popen, run_dir: Path, step: int) -> None:
    """Returns as soon as the row of `step` is written."""
    deadline = time.monotonic() + 400
    metrics = run_dir / "metrics.jsonl"
    while time.monotonic() < deadline:
        assert run.poll() is None, "the run ended before it could be killed"
        if metrics.exists() and f'{{"step": {step},' in metrics.read_text():
            return
        time.sleep(0.02)
    raise TimeoutError(f"step {step} did not come")


def test_only_selected_prompts_are_trained_on(resumed: Path):
    files = [resumed / "samples" / f"step_{step:06d}.jsonl" for step in range(1, STEPS + 1)]
    drawn = [json.loads(line)["prompt_id"] for file in files for line in file.read_text().splitlines()]
    assert len(set(drawn)) == 4 * STEPS
    assert set(drawn) <= {f"digit_sums-train-{row}" for row in SELECTED}


def test_the_run_directory_holds_what_a_user_looks_for(resumed):
    names = {path.name for path in resumed.iterdir()}
    assert {"config.json", "metrics.jsonl", "samples", "checkpoints", "report.html"} <= names
    assert "data:image/png;base64," in (resumed / "report.html").read_text()
    assert [row["step"] for row in rows(resumed)] == list(range(STEPS + 1))
    checkpoint = resumed / "checkpoints" / f"step_{STEPS}"
    assert {"config.json", "model.safetensors", "trainer", "loop.json"} <= {path.name for path in checkpoint.iterdir()}
    first = json.loads((resumed / "samples" / f"step_{STEPS:06d}.jsonl").read_text().splitlines()[0])
    assert (resumed / "samples" / first["images"][0]).is_file()
    assert len(first["completions"]) == 4


def test_a_checkpoint_loads_with_from_pretrained(resumed):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    checkpoint = resumed / "checkpoints" / f"step_{STEPS}"
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    assert model.config.model_type == "qwen3_vl"
    assert AutoProcessor.from_pretrained(checkpoint).tokenizer.eos_token == "<|im_end|>"


class SignalledRun:
    """A run in a process group of its own, with its supervisor."""

    def __init__(self, run_dir: Path, *options: str) -> None:
        self.run_dir, self.mark = run_dir, f"{os.getpid()}-{run_dir}"
        self.temporary = Path(tempfile.mkdtemp(prefix="s-"))  # short: Ray's sockets are in it
        environment = {**os.environ, MARK: self.mark, "TMPDIR": str(self.temporary)}
        del environment[SUPERVISOR_VAR]
        self.log = run_dir.parent / f"{run_dir.name}.log"
        command = [sys.executable, "-m", "recipes.digit_sums", *recipe(run_dir), *options]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, process_group=0
            )

    def wait_for(self, name: str) -> None:
        """Waits until a process with this in its name is there."""
        deadline = time.monotonic() + 120
        while not any(name in process.name() for process in processes_with(self.mark)):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Sends the group a signal, checks the end, and returns its duration in seconds."""
        living = processes_with(self.mark)
        shared = segments_of(living) | {path for process in living for path in semaphores_of(process.pid)}
        sent = time.monotonic()
        os.killpg(self.process.pid, number)
        assert self.process.wait(90) == 128 + number, self.log.read_text()
        seconds = time.monotonic() - sent
        text = self.log.read_text()
        assert f"stopped by {signal.Signals(number).name}; --resume auto goes on" in text
        assert not any(word in text for word in ("Traceback", "SIGABRT", "core dumped", "Check failed")), text
        assert processes_with(self.mark) == []
        assert [path for path in shared if path.exists()] == []
        left = [*self.temporary.iterdir(), *(self.temporary / "ray").glob("*")]
        # torch's cache of compiled code is meant to stay.
        assert {path.name for path in left if not path.is_symlink()} <= {
            "ray",
            "ray_current_cluster",
            "torchinductor_root",
        }
        shutil.rmtree(self.temporary)
        return seconds


def steps(run_dir: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(run_dir)]


def test_in_a_step_a_signal_costs_nothing_that_was_learned(resumed: Path):
    run = SignalledRun(resumed.parent / "in_a_step")
    wait_for_row(run.process, run.run_dir, 4)
    assert run.stop() < 60
    (newest,) = (path for path in list_checkpoints(run.run_dir) if step_of(path) > 3)
    assert damage_of(newest) == ""
    assert [row["step"] for row in rows(run.run_dir)][-1] == step_of(newest) >= 4
    run_here("digit_sums", [*recipe(run.run_dir), "--resume", "auto"])
    assert rows(run.run_dir) == rows(resumed)


def test_while_it_starts_a_signal_ends_it_and_leaves_nothing(resumed: Path):
    run = SignalledRun(resumed.parent / "at_the_start")
    run.wait_for("VLLM::EngineCore")
    assert run.stop() < 60
    assert steps(run.run_dir) == []
