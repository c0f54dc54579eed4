"""Checkpoints that somebody else has changed, sums included: a sentence or a run, nothing executed, nothing overwritten."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from policies.loading import load_processor
from rl.config import TrainConfig
from rl.learner import Learner
from rl.run_dir.checkpoint import starting_point
from rl.run_dir.checkpoint_writer import CheckpointWriter
from rl.run_dir.files import reading
from rl.run_dir.sums import SUMS_FILE, file_sums, write_sums
from rollout.data.mixture import open_stream
from rollout.types import Prompt
from tests.checkpoints import state_of
from tests.learning import config
from tests.mutations import mutate

MUTATIONS = 200
PROMPTS = [Prompt(id=str(number), messages=[]) for number in range(40)]


@pytest.fixture(scope="module")
def options(dense_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run with a checkpoint of step 2."""
    options = replace(config(), model=str(dense_policy), run_dir=tmp_path_factory.mktemp("whole"), resume="auto")
    writer = CheckpointWriter(options, Learner(options, dense_policy), None)
    cursor = open_stream(PROMPTS, batch_size=4, seed=0).state()
    writer.begin(replace(state_of(options, 2), cursor=cursor))
    writer.finish()
    return options


def resume(options: TrainConfig) -> None:
    """Does what a resumed run does before its engines start."""
    checkpoint, state = starting_point(options)
    assert checkpoint is not None
    load_processor(checkpoint)
    stream = open_stream(PROMPTS, batch_size=4, seed=0)
    with reading("the saved prompt order"):
        stream.restore(state.cursor)
    stream.next_batch()
    Learner(options, checkpoint).load(checkpoint)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_of_two_hundred_changed_checkpoints_is_refused_by_a_sentence_or_goes_on(
    options: TrainConfig, tmp_path: Path
):
    resume(options)
    canary, outcomes = tmp_path / "executed", Counter[str]()
    for seed in range(MUTATIONS):
        rng, run_dir = random.Random(seed), tmp_path / "run"
        shutil.copytree(options.run_dir, run_dir)
        checkpoint = run_dir / "checkpoints" / "step_2"
        files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
        chosen = rng.choice(files)
        kind = mutate(chosen, rng, canary)
        if chosen.name != SUMS_FILE and rng.random() < 0.9:  # the others are found by their sums
            write_sums(checkpoint, file_sums(checkpoint, [path for path in files if path.name != SUMS_FILE]))
        before = contents(run_dir)
        try:
            resume(replace(options, run_dir=run_dir))
            outcomes["goes on"] += 1
        except ValueError as error:
            outcomes["refused"] += 1
            assert str(error).strip(), f"{kind} in {chosen.name}: no reason"
        assert contents(run_dir) == before and not canary.exists(), f"{kind} in {chosen.name}, seed {seed}"
        shutil.rmtree(run_dir)
    assert outcomes["refused"] > 0.6 * MUTATIONS, "most changes are found"


@pytest.mark.parametrize(
    "change",
    [
        {"position": 40},
        {"position": -1},
        {"epoch": None},
        {"postponed": [40]},
        {"postponed": 3},
        {"skipped": True},
        {"seed": 1},
        {"num_prompts": "40"},
    ],
    ids=str,
)
def test_a_cursor_that_no_stream_of_these_prompts_has_is_refused_by_its_value(change: dict[str, object]):
    stream = open_stream(PROMPTS, batch_size=4, seed=0)
    [(name, value)] = change.items()
    shown = value[0] if isinstance(value, list) else None if name == "postponed" else value
    with pytest.raises(ValueError, match=f"the saved prompt order has {name} {shown}"):
        stream.restore({**stream.state(), **change})
