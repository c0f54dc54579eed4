"""The grid of gates: its sampler agrees with the learner, and its tables are worked by hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.gates.cells import GROUP_SIZE, LEARNING_RATES, OBJECTIVES, PROMPTS_PER_STEP, STEPS, UPDATES, Cell, grid
from bench.gates.engine import LocalEngine, seeds_of
from bench.gates.run import start_policy, summary
from bench.gates.tables import cells_of, final, has_collapsed, interval, never_worse
from rewards.types import Score
from rl.config import LearnerConfig, OptimizerConfig, TrainConfig
from rl.learner import Learner
from rl.objectives import choose_objective
from rl.samples import make_samples
from rollout.config import RolloutConfig
from rollout.data.prompts import prompts_from
from rollout.environments import GuessNumber
from rollout.tasks.digit_sums import digit_sums, to_prompt
from rollout.tasks.fine_print import fine_print, magnifier
from rollout.tasks.fine_print import to_prompt as to_fine_prompt
from rollout.tasks.guess_number import guess_number
from rollout.types import Group, Prompt, Sampling

CONFIG = RolloutConfig(dtype="float32", max_tokens=60, max_turn_tokens=3, max_turns=3, max_model_len=160)
SUMS = [prompts_from(digit_sums("test", num_digits=n, num_prompts=20), to_prompt)[n] for n in (1, 3, 2)]
GAMES: dict[str, tuple[list[Prompt], Any]] = {
    "sums": (SUMS, None),
    "text game": (guess_number("train", largest=7, num_prompts=3), partial(GuessNumber, 3)),
    "game with pictures": (list(prompts_from(fine_print("test", num_prompts=3), to_fine_prompt)), magnifier),
}


def learner_and_engine(folder: Path) -> tuple[Learner, LocalEngine]:
    options = TrainConfig(
        model=str(folder),
        rollout=CONFIG,
        learner=LearnerConfig(dtype="float32", threads=1),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_updates=1),
    )
    learner = Learner(options, folder)
    return learner, LocalEngine(learner, folder, CONFIG)


def tokens_of(groups: list[Group]) -> list[list[int]]:
    return [completion.token_ids.tolist() for group in groups for completion in group.completions]


@pytest.mark.parametrize("name", GAMES)
def test_the_sampler_and_the_learner_agree_before_and_after_an_update(policy: Path, name: str):
    prompts, environment = GAMES[name]
    learner, engine = learner_and_engine(policy)
    for step in range(2):
        groups = engine.play(prompts, Sampling(max_tokens=60), seeds_of(step, groups=3, group_size=4), environment)
        assert [group.prompt.id for group in groups] == [prompt.id for prompt in prompts]
        scores = [[Score(reward=float(place % 2)) for place in range(4)] for _ in groups]
        metrics = learner.step(make_samples(groups, scores)).metrics
        assert metrics["rollout/logprob_gap_max"] <= 2e-5
        assert metrics["policy/grad_norm"] > 0


def test_a_seed_gives_the_same_tokens_alone_and_among_others(dense_policy: Path):
    _, engine = learner_and_engine(dense_policy)
    seeds = seeds_of(0, groups=3, group_size=2)
    together = engine.play(SUMS, Sampling(max_tokens=8), seeds, None)
    alone = [engine.play([SUMS[i]], Sampling(max_tokens=8), [seeds[i]], None)[0] for i in range(3)]
    assert tokens_of(together) == tokens_of(alone)
    assert len(set(map(tuple, tokens_of(together)))) == 6


def test_greedy_completions_are_the_same_for_all_seeds_and_end_at_the_limit(dense_policy: Path):
    _, engine = learner_and_engine(dense_policy)
    (group,) = engine.play(SUMS[:1], Sampling(max_tokens=5, temperature=0), [[1, 2]], None)
    first, second = group.completions
    assert first.token_ids.tolist() == second.token_ids.tolist()
    assert (first.finish_reason, len(first.token_ids)) == ("length", 5)


def test_seeds_differ_by_every_part():
    drawn = [seed for step in range(3) for its in seeds_of(7, step, groups=5, group_size=4) for seed in its]
    assert len(set(drawn)) == 60 and all(0 <= seed < 2**63 for seed in drawn)
    assert seeds_of(7, 1, groups=2, group_size=2) == seeds_of(7, 1, groups=2, group_size=2)


def test_each_cell_has_its_own_name_and_there_are_prompts_for_all_updates():
    cells = list(grid(seeds=2))
    assert len({cell.key for cell in cells}) == len(cells)
    assert len({(cell.objective, cell.updates, cell.task, cell.kind) for cell in cells}) == len(cells) / 2
    assert max(UPDATES) <= PROMPTS_PER_STEP and GROUP_SIZE >= 2


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_options_of_every_objective_are_valid(name: str):
    assert callable(choose_objective(TrainConfig(model="unused", **OBJECTIVES[name])))


def test_all_runs_of_a_cache_start_from_its_first_policy(tmp_path: Path):
    (tmp_path / "sums_dense.txt").write_text("717f")
    assert start_policy("sums", "dense", tmp_path) == tmp_path / "717f"


def result(objective: str, updates: int, held_out: list[float], seed: int = 0) -> dict[str, Any]:
    cell = Cell(
        task="sums",
        kind="dense",
        objective=objective,
        updates=updates,
        seed=seed,
        learning_rate=LEARNING_RATES["sums"],
        steps=STEPS["sums"],
    )
    fields = {name: getattr(cell, name) for name in Cell.__dataclass_fields__}
    return {**fields, "key": cell.key, "held_out": [[5 * i, score] for i, score in enumerate(held_out)]}


def test_a_run_has_collapsed_if_it_ends_below_half_of_its_best():
    # Means of three: .4, .5, .6, .5 and then .3, which is half of the best and no collapse.
    assert not has_collapsed(result("sapo", 2, [0.3, 0.4, 0.5, 0.6, 0.7, 0.2, 0.0]))
    assert has_collapsed(result("sapo", 2, [0.3, 0.4, 0.5, 0.6, 0.7, 0.1, 0.0]))
    assert final(result("sapo", 2, [0.0, 0.3, 0.6, 0.9])) == pytest.approx(0.6)


def test_the_interval_is_students():
    # Two seeds, .4 and .6: s = .1414, s / √2 = .1, t = 12.706.
    assert interval([0.4, 0.6]) == pytest.approx((0.5, 1.2706), abs=1e-4)
    assert interval([0.5]) == (0.5, 0.0)


def test_an_objective_is_below_the_best_baseline_beyond_that_ones_interval():
    runs = [
        *(result("grpo", 2, [score] * 3, seed) for seed, score in enumerate([0.60, 0.61, 0.62])),  # .61 ± .025
        *(result("gspo", 2, [score] * 3, seed) for seed, score in enumerate([0.10, 0.11, 0.90])),
        result("sapo", 2, [0.59] * 3),
        result("vespo", 2, [0.58] * 3),
    ]
    below = never_worse(cells_of(runs)["sums", "dense"])
    assert (below["sapo"], below["vespo"], below["grpo"]) == ([], [2], [])
    assert never_worse(cells_of(runs[1:3])["sums", "dense"]) == {}, "two seeds are too few"


def test_runs_of_another_length_or_learning_rate_are_not_in_the_tables():
    made = result("sapo", 2, [0.5] * 3)
    assert cells_of([{**made, "steps": 1 + STEPS["sums"]}, {**made, "learning_rate": 2 * LEARNING_RATES["sums"]}]) == {}


def test_a_run_is_summed_up_though_some_steps_had_a_single_update():
    # A step that ends after one update has no gate of a last one.
    made = {**result("sapo", 2, [0.2, 0.6, 0.4]), "seconds": 9.6, "curves": {"gate_last": [0.9, None, 0.7]}}
    assert summary({**made, "curves": {"gate": [1.0], **made["curves"]}}) == (
        "sums/dense/sapo/2/6e-05/120/0: 0.200 → 0.400 (best 0.600), least gate 0.700, 10 s"
    )
