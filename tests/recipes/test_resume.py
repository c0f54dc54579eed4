"""A run that is killed in the middle of a step and resumed, against what it had come to before: real Ray, real vLLM, fp32.

A run of its own costs all imports, half a minute of a core: what it wrote before the kill, beyond its last checkpoint, is what it
comes to undisturbed. Only the run that is to be killed has a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

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


def processes_of(session: int) -> list[psutil.Process]:
    """Living processes whose environment says that they belong to the killed run.

    Zombies do not count, nor Ray's own agents, which wait up to a minute for connections that are still open.
    """
    found = []
    for process in psutil.process_iter():
        try:
            is_the_runs = process.environ().get("RESUME_TEST") == str(session)
            is_agent = process.name() in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
            if is_the_runs and not is_agent and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


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
    environment = {**os.environ, "RESUME_TEST": str(os.getpid())}
    with (run_dir.parent / "log.txt").open("w") as log:
        run = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for_row(run, run_dir, KILLED_AFTER - 1)
        living = processes_of(os.getpid())
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
    while processes_of(os.getpid()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not processes_of(os.getpid()), "the killed run left processes behind"
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
