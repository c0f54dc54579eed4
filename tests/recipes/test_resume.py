"""A run that is killed in the middle of a step, resumed, against the same run left alone: real Ray, real vLLM, fp32."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rollout.shared_segments import segments_of, semaphores_of

pytestmark = pytest.mark.engine

STEPS, KILLED_AFTER = 4, 3
REWARD = """
def share_of_digits(prompt, completion):
    return sum(letter.isdigit() for letter in completion.text) / (1 + len(completion.text))
"""
"""Sums are beyond a policy that has hardly seen any; this it can learn from at once."""
UNEQUAL = ("time/", "sync/", "memory/")
"""Metrics that tell of the machine, not of the policy."""


def recipe(run_dir: Path, *more: str) -> list[str]:
    """The main job, small: the same in every call but for `more`."""
    options = f"--steps {STEPS} --cold-start.updates 4 --eval.num-prompts 8 --checkpoint-every 2 --samples-every 1"
    sizes = "--prompts-per-step 4 --group-size 4 --wandb disabled --optimizer.warmup-updates 2"
    cache = f"--cold-start.cache-dir {run_dir.parent / 'cold_start'} --run-dir {run_dir}"
    reward = run_dir.parent / "reward.py"
    reward.write_text(REWARD)
    chosen = f"--reward {reward}:share_of_digits"
    return [sys.executable, "-m", "recipes.digit_sums", *f"{options} {sizes} {cache} {chosen}".split(), *more]


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The run's metrics, without those that differ between any two runs."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(UNEQUAL) and "per_second" not in k}
        for line in lines
    ]


def processes_of(session: int) -> list[psutil.Process]:
    """Living processes, zombies aside, whose environment says that they belong to the killed run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RESUME_TEST") == str(session) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run from the first step to the last."""
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = subprocess.run(recipe(run_dir), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert all(row["policy/grad_norm"] > 0 for row in rows(run_dir)[1:]), "a policy that does not change proves nothing"
    return run_dir


def test_a_run_killed_in_the_middle_of_a_step_resumes_to_the_same_metrics(undisturbed):
    run_dir = undisturbed.with_name("killed")
    environment = {**os.environ, "RESUME_TEST": str(os.getpid())}
    run = subprocess.Popen(recipe(run_dir), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_row(run, run_dir, KILLED_AFTER)  # past the checkpoint of step 2: step 3 is lost, step 4 is under way
    living = processes_of(os.getpid())
    shared = segments_of(living) | {path for process in living for path in semaphores_of(process.pid)}
    assert shared, "vLLM's processes talk through shared memory"
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert [row["step"] for row in rows(run_dir)][-1] >= KILLED_AFTER
    deadline = time.monotonic() + 60
    while processes_of(os.getpid()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not processes_of(os.getpid()), "the killed run left processes behind"
    assert not [path for path in shared if path.exists()], "the killed run left shared memory behind"

    done = subprocess.run(recipe(run_dir, "--resume", "auto"), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert rows(run_dir) == rows(undisturbed)


def test_two_ranks_go_on_with_the_run_of_one_as_it_would_have_itself(undisturbed):
    # From two ranks to one go the adapters below, and in `test_ranks` all weights.
    run_dir, checkpoint = undisturbed.with_name("two_ranks"), undisturbed / "checkpoints" / "step_2"
    more = ["--learner.cpu-ranks", "2", "--resume", str(checkpoint)]
    done = subprocess.run(recipe(run_dir, *more), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for ours, theirs in zip(rows(run_dir), rows(undisturbed)[3:], strict=True):
        assert {"reward/mean", "loss/objective"} <= ours.keys()
        assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_adapters_alone_keep_engine_and_learner_together_over_ranks_and_a_resume(undisturbed):
    run_dir = undisturbed.with_name("adapters")
    lora = "--lora.rank 8 --lora.sync adapter --optimizer.learning-rate 0.01".split()
    for more in (["--learner.cpu-ranks", "2", "--steps", "2"], ["--resume", "auto", "--steps", "3"]):
        done = subprocess.run(recipe(run_dir, *lora, *more), capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
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


def test_the_run_directory_holds_what_a_user_looks_for(undisturbed):
    names = {path.name for path in undisturbed.iterdir()}
    assert {"config.json", "metrics.jsonl", "samples", "checkpoints"} <= names
    assert [row["step"] for row in rows(undisturbed)] == list(range(STEPS + 1))
    checkpoint = undisturbed / "checkpoints" / f"step_{STEPS}"
    assert {"config.json", "model.safetensors", "trainer", "loop.json"} <= {path.name for path in checkpoint.iterdir()}
    first = json.loads((undisturbed / "samples" / f"step_{STEPS:06d}.jsonl").read_text().splitlines()[0])
    assert (undisturbed / "samples" / first["images"][0]).is_file()
    assert len(first["completions"]) == 4


def test_a_checkpoint_loads_with_from_pretrained(undisturbed):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    checkpoint = undisturbed / "checkpoints" / f"step_{STEPS}"
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    assert model.config.model_type == "qwen3_vl"
    assert AutoProcessor.from_pretrained(checkpoint).tokenizer.eos_token == "<|im_end|>"
