"""The recipes that ask and do not train: help and refusals in this process; a kill, a resume and the figures with real engines."""

from __future__ import annotations

import json
import re
import runpy
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.running import run_here

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")

ROOT = Path(__file__).parents[2]
NUM_PROMPTS = 24
DATA = f"""
from rollout.data.prompts import prompts_from
from rollout.tasks.digit_sums import digit_sums, to_prompt

def held_out():
    return prompts_from(digit_sums("test", num_prompts={NUM_PROMPTS}), to_prompt)
"""
REWARD = """
def has_a_digit(prompt, completion):
    if completion.text[:1].islower():
        raise ValueError("no word may begin small")
    return float(any(letter.isdigit() for letter in completion.text))
"""
"""An untrained policy writes bytes at random: some answers have a digit, some have none, some begin with a small letter."""
SIZES = "--samples 8 --rollout.dtype float32 --rollout.max-tokens 24 --rollout.max-model-len 128"


def words(policy: Path, folder: Path, *more: str) -> list[str]:
    """The same in every call but for `more`."""
    (folder / "own.py").write_text(DATA + REWARD)
    chosen = f"{policy} --data {folder}/own.py:held_out --reward {folder}/own.py:has_a_digit {SIZES}"
    return [*chosen.split(), *more]


def printed_by(name: str, options: list[str]) -> str:
    """What a recipe prints that runs here."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setenv("COLUMNS", "100")
        run_here(name, options)
    return out.getvalue()


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("name", ["evaluate", "measure_pass_rate"])
def test_help_shows_the_options_and_does_not_wait_for_torch(name: str) -> None:
    code = f"import runpy, sys; sys.argv = ['{name}', '--help']\n"
    code += f"try: runpy.run_module('recipes.{name}', run_name='__main__', alter_sys=True)\n"
    code += "finally: print('loaded', *{'torch', 'ray', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "loaded")
    options = set(re.findall(r"(?<=[ │])--[a-z.-]+", done.stdout))
    assert options >= {"--data", "--reward", "--samples", "--sampling", "--blind", "--run-dir", "--seed", "--limit"}
    assert ("--output" in options) == (name == "measure_pass_rate")
    assert "CHECKPOINT" in done.stdout and "trains nothing" in done.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("none --data x.jsonl --reward exact", "no config.json of model 'none', here or on the hub"),
        ("{policy} --data x.jsonl --reward exact", "there is no file or folder x.jsonl: give a .parquet"),
        (
            "{policy} --data x.jsonl --reward exactly",
            "there is no verifier 'exactly'; give FILE.py:FUNCTION or one of box_iou",
        ),
        ("{policy} --data x.jsonl --reward exact --sampling greedy", "greedy decoding gives the same answer 16 times"),
        (
            "{policy} --data x.jsonl --reward exact --output rates.csv",
            "output must end in .jsonl or .parquet, got rates.csv",
        ),
    ],
)
def test_a_mistake_is_told_in_one_sentence_before_ray_starts(
    options: str, told: str, dense_policy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(*args: Any, **options: Any) -> None:
        raise AssertionError("this must have been refused before")

    monkeypatch.setattr("ray.init", forbidden)
    # The environment is read at the import alone; without a network the hub would be asked for 20 seconds.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("RL_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "argv", ["measure_pass_rate", *options.format(policy=dense_policy).split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("recipes.measure_pass_rate", run_name="__main__", alter_sys=True)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith(f"error: {told}") and len(err.splitlines()) == 1


@pytest.fixture(scope="module")
def evaluated(dense_policy: Path, tmp_path_factory: pytest.TempPathFactory, cluster: None) -> tuple[Path, str]:
    """The folder of an undisturbed evaluation, and what it printed."""
    folder = tmp_path_factory.mktemp("asking")
    return folder, printed_by("evaluate", words(dense_policy, folder, "--run-dir", str(folder / "evaluation")))


@pytest.mark.engine
def test_an_evaluation_leaves_figures_that_follow_from_its_records(evaluated: tuple[Path, str]) -> None:
    folder, printed = evaluated
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    rows = lines(folder / "evaluation" / "samples" / "step_000000.jsonl")
    assert sorted(row["row"] for row in rows) == list(range(NUM_PROMPTS))
    assert all(len(row["completions"]) == 8 for row in rows)
    done = [each for row in rows for each in row["completions"]]
    overall = results["overall"]
    assert overall["truncated"] == sum(each["finish_reason"] == "length" for each in done) / len(done)
    assert overall["tokens"]["mean"] == pytest.approx(sum(each["num_tokens"] for each in done) / len(done))
    assert overall["without_verdict"] == sum(each["text"][:1].islower() for each in done) > 0
    of_prompts = [[each["reward"] for each in row["completions"] if each["error"] is None] for row in rows]
    average = sum(sum(rewards) / len(rewards) for rewards in of_prompts if rewards) / sum(map(bool, of_prompts))
    figure = overall["figures"]["avg@8"]
    assert figure["value"] == pytest.approx(average) and 0 < figure["low"] < average < figure["high"] < 1
    assert overall["figures"]["pass@8"]["value"] >= overall["figures"]["pass@2"]["value"] > average
    assert f"{average:.3f}" in printed and "digit_sums" in printed and "majority@8" in printed


@pytest.mark.engine
def test_pass_rates_survive_a_kill_and_are_those_of_the_undisturbed_evaluation(
    evaluated: tuple[Path, str], dense_policy: Path
) -> None:
    folder, _ = evaluated
    run_dir = folder / "rates"
    options = words(dense_policy, folder, "--run-dir", str(run_dir), "--rollout.max-running", "8")
    answers = run_dir / "samples" / "step_000000.jsonl"
    command = [sys.executable, "-m", "recipes.measure_pass_rate", *options]
    with (folder / "log.txt").open("w") as log:
        begun = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while not (answers.exists() and answers.read_text().count("\n") >= 3):
            assert begun.poll() is None and time.monotonic() < deadline, "it was to be killed in the middle"
            time.sleep(0.02)
    finally:
        begun.send_signal(signal.SIGKILL)
        begun.wait()
    before = answers.read_text()
    kept = before[: before.rfind("\n") + 1]
    assert 3 <= kept.count("\n") < NUM_PROMPTS and not (run_dir / "pass_rates.jsonl").exists()

    printed = printed_by("measure_pass_rate", options)
    assert answers.read_text().startswith(kept)
    assert f"{kept.count(chr(10))} prompts were finished before" in printed
    assert sorted(row["row"] for row in lines(answers)) == list(range(NUM_PROMPTS))
    undisturbed = {
        row["prompt_id"]: row["completions"] for row in lines(folder / "evaluation/samples/step_000000.jsonl")
    }
    rates = lines(run_dir / "pass_rates.jsonl")
    assert [row["row"] for row in rates] == list(range(NUM_PROMPTS))
    for row in rates:
        judged = [each["reward"] for each in undisturbed[row["prompt_id"]] if each["error"] is None]
        assert (row["n"], row["correct"]) == (len(judged), sum(judged))


@pytest.mark.engine
def test_the_answers_can_be_scored_again_without_an_engine(
    evaluated: tuple[Path, str], dense_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = evaluated
    check = [sys.executable, "-m", "rewards.check", "exact", "--data", str(folder / "evaluation")]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert f"exact: {NUM_PROMPTS * 8} completions, 0 without a verdict" in done.stdout
    monkeypatch.setattr("rl.evaluation.sampling.EnginePool", None)  # no engine is to start
    again = printed_by("evaluate", words(dense_policy, folder, "--run-dir", str(folder / "evaluation")))
    assert f"{NUM_PROMPTS} prompts were finished before, 0 now" in again
