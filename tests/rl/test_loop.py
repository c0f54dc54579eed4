"""The parts of the loop that decide whether to go on, and what a step's rows say; the loop itself runs in test_resume."""

from __future__ import annotations

import json
import logging
import math
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rewards import Score
from rl.config import EvalConfig, LearnerConfig, TrainConfig
from rl.evaluation.evaluator import Evaluator
from rl.generation.batches import ScoredBatch
from rl.loop import check_logprob_gap, check_scores, evaluate_first, one_step, train
from rl.metrics import rollout_metrics
from rl.run_dir.checkpoint import LoopState
from rl.types import RunStopped
from rollout import Completion, Group, Prompt, Video
from rollout.config import RolloutConfig
from rollout.pool.seeds import request_seed
from rollout.types import Sampling
from rollout.weights.senders import choose_backend
from tests.checkpoints import state_of, write_checkpoints

CONFIG = TrainConfig(model="/no/policy", learner=LearnerConfig(dtype="float32"), rollout=RolloutConfig(dtype="float32"))
FAILED = Score(reward=0.0, error="reward 'r' raised KeyError for prompt 'p-7'")


def group(*lengths: int, finish_reason: str = "stop") -> Group:
    completions = [
        Completion(text="x", token_ids=np.zeros(length, np.int32), finish_reason=finish_reason) for length in lengths
    ]
    return Group(prompt=Prompt(id="p", messages=[]), prompt_token_ids=np.zeros(3, np.int32), completions=completions)


class FakeEvaluation:
    """Engines and a reward in one, which notes what is asked; every answer is worth 1."""

    def __init__(self) -> None:
        self.asked: list[list[Prompt]] = []

    def generate(self, prompts, sampling, seeds, policy_version) -> list[Group]:
        self.asked.append(list(prompts))
        return [replace(group(1), prompt=prompt) for prompt in prompts]

    def score(self, groups) -> list[list[Score]]:
        return [[Score(reward=1.0) for _ in group.completions] for group in groups]


def evaluator(config: TrainConfig, prompts: list[Prompt], fake: FakeEvaluation) -> Evaluator:
    sampling = Sampling(max_tokens=config.rollout.max_tokens, temperature=config.rollout.temperature)
    return Evaluator(config.eval, prompts, fake, fake, sampling=sampling, seed=config.seed)


def test_a_video_too_is_asked_about_blindly():
    video = Video(frames=np.zeros((2, 4, 4, 3), np.uint8), fps=1.0, frame_indices=(0, 1))
    prompts = [Prompt(id="text", messages=[]), Prompt(id="video", messages=[], videos=[video])]
    both = FakeEvaluation()
    assert "eval/blind" in evaluator(CONFIG, prompts, both).run(0, with_blind=True)
    [unseeing] = both.asked[-1]
    assert unseeing.id == "video" and (unseeing.videos[0].frames == 128).all()


class FakeTasks(FakeEvaluation):
    """Prompts of two tasks; of the sampled answers to `vqa` the first is right, to `sums` all are."""

    def generate(self, prompts, sampling, seeds, policy_version) -> list[Group]:
        return [replace(group(*[1] * len(own)), prompt=prompt) for prompt, own in zip(prompts, seeds, strict=True)]

    def score(self, groups) -> list[list[Score]]:
        return [
            [Score(reward=float(group.prompt.task == "sums" or i == 0)) for i in range(len(group.completions))]
            for group in groups
        ]


def test_each_task_is_told_by_itself_and_several_samples_tell_more():
    prompts = [Prompt(id=task, messages=[], task=task) for task in ("sums", "vqa")]
    several = replace(CONFIG, eval=EvalConfig(num_samples=4))
    fake = FakeTasks()
    assert evaluator(several, prompts, fake).run(0, with_blind=False) == {
        "eval/greedy": 1.0,
        "eval/sampled": 5 / 8,
        "eval/sums/avg": 1.0,
        "eval/sums/pass@4": 1.0,
        "eval/sums/majority": 1.0,
        "eval/vqa/avg": 0.25,
        "eval/vqa/pass@4": 1.0,
        "eval/vqa/majority": 0.25,  # all four say "x"
    }
    once = evaluator(CONFIG, prompts, fake).run(0, with_blind=False)
    assert once == {"eval/greedy": 1.0, "eval/sampled": 1.0, "eval/sums/avg": 1.0, "eval/vqa/avg": 1.0}


def test_a_gap_within_the_bound_goes_on():
    check_logprob_gap(3, {"rollout/logprob_gap_mean": 9e-4}, CONFIG.rollout)
    with pytest.raises(RunStopped):  # and the bound of 1e-3 lies right behind it
        check_logprob_gap(3, {"rollout/logprob_gap_mean": 1.1e-3}, CONFIG.rollout)


@pytest.mark.parametrize("gap", [2e-3, math.nan, math.inf])
def test_a_gap_beyond_the_bound_stops_the_run_with_step_gap_and_bound(gap: float):
    with pytest.raises(RunStopped, match=rf"step 3: .* disagree by {gap:.3g} .* rollout.max_logprob_gap = 0.001"):
        check_logprob_gap(3, {"rollout/logprob_gap_mean": gap}, CONFIG.rollout)


def test_the_bound_is_the_users_where_given():
    config = replace(CONFIG, rollout=RolloutConfig(dtype="float32", max_logprob_gap=0.5))
    check_logprob_gap(3, {"rollout/logprob_gap_mean": 0.4}, config.rollout)
    with pytest.raises(RunStopped, match=r"rollout.max_logprob_gap = 0.5"):
        check_logprob_gap(3, {"rollout/logprob_gap_mean": 0.6}, config.rollout)


def test_some_failed_verdicts_are_shown_and_the_run_goes_on(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        check_scores(5, [[FAILED, Score(reward=1.0)], [Score(reward=0.0), FAILED]])
    assert caplog.messages == [f"step 5: no score for 2 of 4 completions; one: {FAILED.error}"]


def test_a_reward_that_fails_on_every_completion_stops_the_run_in_its_own_words():
    with pytest.raises(RunStopped, match="failed on all 2 completions; the first: reward 'r' raised KeyError"):
        check_scores(5, [[FAILED], [FAILED]])


def test_rollout_metrics_of_two_groups():
    # 2, 4, 6 tokens stopped, 8 tokens cut: mean 5, a quarter cut; the second group's rewards are all equal. 20 tokens in 4 s.
    # All are of version 0, the learner has 3.
    groups = [group(2, 4), Group(**{**fields(group(6)), "completions": [*group(6).completions, *cut(8)]})]
    scores = [[Score(reward=1.0), Score(reward=0.0)], [Score(reward=1.0), Score(reward=1.0)]]
    batch = ScoredBatch(groups=groups, scores=scores, num_refills=1, seconds_to_generate=4.0, seconds_to_score=0.5)
    assert rollout_metrics(batch, policy_version=3) == {
        "rollout/response_tokens": 5.0,
        "rollout/truncated": 0.25,
        "rollout/groups_without_variance": 0.5,
        "rollout/refills": 1.0,
        "rollout/staleness": 3.0,
        "rollout/tokens_per_second": 5.0,
        "time/generate": 4.0,
        "time/score": 0.5,
    }


def cut(length: int) -> list[Completion]:
    return list(group(length, finish_reason="length").completions)


def fields(of: Group) -> dict:
    return {"prompt": of.prompt, "prompt_token_ids": of.prompt_token_ids, "completions": of.completions}


def test_a_request_has_the_same_seed_wherever_it_runs_and_another_for_every_other():
    asked = [(run, step, prompt, i) for run in (0, 1) for step in (1, 2) for prompt in ("a", "b") for i in (0, 1)]
    seeds = [request_seed(*request) for request in asked]
    assert len(set(seeds)) == len(asked)
    assert seeds == [request_seed(*request) for request in asked]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_run_that_is_finished_returns_its_result_without_starting_anything(tmp_path: Path):
    config = replace(CONFIG, run_dir=tmp_path, steps=4, resume="auto")
    checkpoint = write_checkpoints(config, 4)
    rows = [{"step": 0, "eval/greedy": 0.25}, {"step": 4, "eval/greedy": 0.75}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = train(config, prompts=[], reward=lambda prompt, completion: 0.0)
    assert (result.checkpoint, result.before, result.after) == (
        checkpoint,
        {"eval/greedy": 0.25},
        {"eval/greedy": 0.75},
    )


def train_on(run: Any, train_step: Any, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the loop with another step, on the parts of a run."""
    monkeypatch.setattr("rl.loop.train_step", train_step)
    monkeypatch.setattr("rl.loop.prepare", lambda config: config)
    monkeypatch.setattr("rl.loop.open_run", lambda *args: nullcontext(run))
    state = LoopState(step=0, policy_version=0, cursor={}, seconds=0.0, config={})
    monkeypatch.setattr("rl.loop.starting_point", lambda config: (None, state))
    monkeypatch.setattr("rl.loop.read_result", lambda *args: None)
    train(config, prompts=[], reward=lambda prompt, completion: 0.0)


def test_the_next_batch_is_generated_while_a_step_is_logged_and_saved_but_not_while_it_is_evaluated(
    monkeypatch: pytest.MonkeyPatch,
):
    calls: list[str] = []

    def part(name: str, result: Any = None) -> Any:
        return lambda *args, **kwargs: (calls.append(name), result)[1]

    def train_step(run: Any, step: int) -> tuple[ScoredBatch, dict[str, float]]:
        run.version = step
        batch = ScoredBatch(groups=[], scores=[], num_refills=0, seconds_to_generate=1, seconds_to_score=1)
        return part(f"step {step}", (batch, {"time/elapsed": 0.0}))()

    config = replace(CONFIG, steps=2, eval=EvalConfig(every=1), checkpoint_every=1, samples_every=1)
    run = SimpleNamespace(
        config=config,
        evaluate=part("evaluate", {}),
        log=part("log"),
        watch=part("watch"),
        note_position=lambda step, unlogged=(): None,
        checkpoints=SimpleNamespace(
            is_due=lambda step: True, save=part("save"), finish=part("finish"), saved_at_a_stop=nullcontext
        ),
        tracker=SimpleNamespace(save_samples=part("samples")),
        batches=SimpleNamespace(start=lambda version: calls.append(f"generate from {version}")),
    )
    train_on(run, train_step, config, monkeypatch)
    # Before the checkpoint: a rollback must not find one of a policy that is about to collapse.
    after = ["evaluate", "generate from 1", "log", "watch", "samples", "save"]
    assert calls == ["evaluate", "step 1", *after, "step 2", *[call.replace("1", "2") for call in after], "finish"]


def test_a_step_that_is_over_keeps_nothing_of_its_groups(monkeypatch: pytest.MonkeyPatch):
    # Experts stay on the engines' nodes as long as a group refers to them.
    kept: list[weakref.ref[Group]] = []

    def train_step(run: Any, step: int) -> tuple[ScoredBatch, dict[str, float]]:
        assert [its() for its in kept] == [None] * (step - 1)
        one = GroupOfAStep(**fields(group(2)))
        kept.append(weakref.ref(one))
        batch = ScoredBatch(groups=[one], scores=[[]], num_refills=0, seconds_to_generate=1, seconds_to_score=1)
        return batch, {"time/elapsed": 0.0}

    nothing = SimpleNamespace(save_samples=lambda name, groups, scores: None)
    config = replace(CONFIG, steps=3)
    run = SimpleNamespace(
        config=config,
        evaluate=lambda with_blind: {},
        log=lambda step, metrics: None,
        watch=lambda step, metrics: None,
        note_position=lambda step, unlogged=(): None,
        checkpoints=SimpleNamespace(is_due=lambda step: False, finish=lambda: None, saved_at_a_stop=nullcontext),
        tracker=nothing,
        batches=SimpleNamespace(start=lambda version: None),
        version=0,
    )
    train_on(run, train_step, config, monkeypatch)
    assert len(kept) == 3


class GroupOfAStep(Group):
    """A group that can be watched: without slots it takes weak references."""


@pytest.mark.parametrize(
    ("transfer", "learner_gpus", "engine_gpus", "expected"),
    [("auto", 0, 0, "shared_memory"), ("auto", 1, 1, "nccl"), ("auto", 1, 0, "shared_memory"), ("ipc", 1, 1, "ipc")],
)
def test_weights_take_the_way_that_fits_the_devices(transfer, learner_gpus, engine_gpus, expected):
    config = RolloutConfig(weight_transfer=transfer, gpus_per_engine=engine_gpus)
    assert choose_backend(config, learner_gpus=learner_gpus) == expected


def test_nccl_without_gpus_is_refused_with_both_counts():
    with pytest.raises(ValueError, match=r"nccl needs GPUs on both sides, got learner.gpus = 1 and .*per_engine = 0"):
        choose_backend(RolloutConfig(weight_transfer="nccl"), learner_gpus=1)


def test_an_evaluation_that_a_signal_cuts_is_made_by_the_resumed_run_and_its_row_is_logged_once(tmp_path: Path):
    logged: list[tuple[int, dict[str, float]]] = []
    run = SimpleNamespace(
        config=replace(CONFIG, steps=4),
        evaluate=lambda with_blind: {"eval/greedy": 0.5, "blind": float(with_blind)},
        log=lambda step, metrics: logged.append((step, metrics)),
        watch=lambda step, metrics: None,
    )
    state = replace(state_of(CONFIG, 2), unlogged={"reward/mean": 0.25})
    evaluate_first(run, state)
    assert logged == [(2, {"reward/mean": 0.25, "eval/greedy": 0.5, "blind": 0.0})]
    assert state.first_row == 2, "a row of step 2 that is there already is dropped"
    assert replace(state, unlogged={}).first_row == 3 and state_of(CONFIG, 0).first_row == 0


def test_where_an_evaluation_is_cut_the_step_is_noted_with_its_metrics(monkeypatch: pytest.MonkeyPatch):
    def cut(with_blind: bool) -> dict[str, float]:
        raise KeyboardInterrupt

    noted: list[tuple[int, dict[str, float]]] = []
    batch = ScoredBatch(groups=[], scores=[], num_refills=0, seconds_to_generate=1, seconds_to_score=1)
    monkeypatch.setattr("rl.loop.train_step", lambda run, step: (batch, {"reward/mean": 0.25}))
    run = SimpleNamespace(
        config=replace(CONFIG, steps=4, eval=EvalConfig(every=1)),
        evaluate=cut,
        note_position=lambda step, unlogged=(): noted.append((step, dict(unlogged))),
    )
    with pytest.raises(KeyboardInterrupt):
        one_step(run, 2)
    assert noted == [(2, {"reward/mean": 0.25})]
