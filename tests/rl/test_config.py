"""Choices that cannot work are refused before anything is loaded, each in one sentence with value and remedy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rl.config import LearnerConfig, LoraConfig, OptimizerConfig, TeacherConfig, TrainConfig, check_config, config_dict
from rollout.config import RolloutConfig

CONFIG = TrainConfig(model="small")


def refusal(**changed: object) -> str:
    """The message; `optimizer__learning_rate` names a field of a part."""
    config = CONFIG
    for name, value in changed.items():
        part, _, field = name.rpartition("__")
        config = replace(
            config, **({part: replace(getattr(config, part), **{field: value})} if part else {name: value})
        )
    with pytest.raises(ValueError) as error:
        check_config(config)
    return str(error.value)


def test_the_defaults_are_accepted():
    check_config(CONFIG)
    check_config(replace(CONFIG, group_size=2, num_minibatches=16, steps=1))


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    "name",
    [
        "steps",
        "prompts_per_step",
        "num_minibatches",
        "reward_workers",
        "rollout__num_engines",
        "rollout__threads_per_engine",
        "rollout__max_tokens",
        "learner__threads",
    ],
)
def test_counts_must_be_positive(name: str, value: int):
    assert refusal(**{name: value}) == f"{name.replace('__', '.')} must be > 0, got {value}"


@pytest.mark.parametrize("name", ["min_image_pixels", "max_image_pixels", "max_video_pixels"])
def test_pixel_limits_must_be_positive_where_there_are_any(name: str):
    assert refusal(**{f"rollout__{name}": 0}) == f"rollout.{name} must be > 0, got 0"
    check_config(replace(CONFIG, rollout=RolloutConfig(**{name: 1})))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize(
    "name",
    [
        "tau_pos",
        "tau_neg",
        "reward_timeout",
        "optimizer__learning_rate",
        "optimizer__max_grad_norm",
        "rollout__temperature",
    ],
)
def test_numbers_must_be_positive(name: str, value: float):
    assert refusal(**{name: value}) == f"{name.replace('__', '.')} must be > 0, got {value}"


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint_every",
        "keep_checkpoints",
        "samples_every",
        "optimizer__warmup_updates",
        "optimizer__decay_updates",
        "rollout__gpus_per_engine",
        "learner__gpus",
        "eval__every",
        "eval__num_prompts",
    ],
)
def test_numbers_of_which_none_is_a_choice_must_not_be_negative(name: str):
    assert refusal(**{name: -1}) == f"{name.replace('__', '.')} must be >= 0, got -1"


@pytest.mark.parametrize("size", [1, 0, -3])
def test_a_group_of_one_has_nothing_to_compare(size: int):
    expected = f"group_size must be >= 2, got {size}: an advantage compares a completion with its siblings"
    assert refusal(group_size=size) == expected


def test_more_minibatches_than_prompts_are_refused_with_both_numbers():
    assert refusal(num_minibatches=5, prompts_per_step=4) == (
        "num_minibatches = 5 exceeds prompts_per_step = 4: each minibatch uses whole groups"
    )


def test_an_unknown_objective_is_refused_with_all_known_ones():
    known = (
        "sapo, sapo_one_sided, sapo_sequence, sapo_log, sapo_erf, sapo_arctan, sapo_softsign, sspo, "
        "grpo, gspo, dapo, dr_grpo, cispo, vespo, policy_gradient"
    )
    assert refusal(objective="ppo") == f"objective must be one of {known}, or FILE.py:FUNCTION, got 'ppo'"
    check_config(replace(CONFIG, objective="my_loss.py:mine"))


@pytest.mark.parametrize("band", [(1.1, 2.0), (0.5, 0.9), (-1.0, 2.0)])
def test_a_band_must_lie_around_1(band: tuple[float, float]):
    expected = f"correction.token_band must be a band around 1, such as 0.5 2.0, got {band[0]} {band[1]}"
    assert refusal(correction__token_band=band) == expected
    assert refusal(correction__sequence_band=band) == expected.replace("token", "sequence")


def test_clipping_that_cuts_off_everything_is_refused():
    assert refusal(objective="grpo", clip_high=0.0) == "clip_high must be > 0, got 0.0"


def test_lora_without_any_part_is_refused():
    message = "lora.rank = 8 with no lora.parts trains nothing: name language, vision or experts"
    with pytest.raises(ValueError, match=message):
        check_config(replace(CONFIG, lora=LoraConfig(rank=8, parts=())))


def test_adapters_in_a_frozen_vision_tower_are_refused():
    config = replace(CONFIG, lora=LoraConfig(rank=8, parts=("language", "vision")))
    check_config(config)
    with pytest.raises(ValueError, match="lora.parts has vision, but optimizer.vision_learning_rate = 0 freezes"):
        check_config(replace(config, optimizer=OptimizerConfig(vision_learning_rate=0.0)))


def test_a_negative_learning_rate_of_the_vision_tower_is_refused():
    assert refusal(optimizer__vision_learning_rate=-1e-6) == "optimizer.vision_learning_rate must be >= 0, got -1e-06"


@pytest.mark.parametrize("max_tokens", [4096, 5000])
def test_a_response_as_long_as_the_context_leaves_no_room_for_a_prompt(max_tokens: int):
    assert refusal(rollout__max_tokens=max_tokens) == (
        f"rollout.max_tokens = {max_tokens} leaves no room for a prompt in rollout.max_model_len = 4096: "
        "raise max_model_len or lower max_tokens"
    )


def test_a_microbatch_must_hold_the_longest_sequence():
    assert refusal(learner__microbatch_tokens=4095) == (
        "learner.microbatch_tokens = 4095 cannot hold the longest sequence, rollout.max_model_len = 4096: "
        "raise the one or lower the other"
    )
    check_config(replace(CONFIG, learner=LearnerConfig(microbatch_tokens=4096)))


def test_choices_survive_json():
    config = replace(CONFIG, run_dir=Path("runs/a"), optimizer=OptimizerConfig(betas=(0.9, 0.95)))
    plain = config_dict(config)
    assert json.loads(json.dumps(plain)) == plain
    assert (plain["run_dir"], plain["optimizer"]["betas"], plain["rollout"]["dtype"]) == (
        "runs/a",
        [0.9, 0.95],
        "auto",
    )


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_bound_on_the_gap_between_engine_and_learner_follows_the_precision(dtype: str, bound: float):
    assert RolloutConfig(dtype=dtype).gap_bound == bound
    assert RolloutConfig(dtype=dtype, max_logprob_gap=0.02).gap_bound == 0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner": {"routing_replay": "R3"}}, r"routing_replay = R3 with rollout\.gpus_per_engine = 0.*use R2"),
        ({"learner": {"offload": True}}, r"learner\.offload = True has no effect with learner\.gpus = 0"),
        ({"learner": {"cpu_ranks": 0}}, r"learner\.cpu_ranks must be > 0, got 0"),
        ({"learner": {"replicas": 0}}, r"learner\.replicas must be >= 1, got 0"),
        (
            {"learner": {"cpu_ranks": 6, "replicas": 4}},
            r"learner\.replicas = 4 does not divide the learner's 6 ranks: use a divisor",
        ),
        ({"balance_coefficient": -1.0}, r"balance_coefficient must be >= 0, got -1\.0"),
        ({"lora": {"sync": "adapter"}}, r"lora\.sync = adapter .* got lora\.rank = 0"),
        (
            {"lora": {"sync": "adapter", "rank": 8, "parts": ("language", "experts")}},
            r"lora\.parts = language experts: use lora\.sync merged",
        ),
        ({"lora": {"sync": "adapter", "rank": 600}}, r"lora\.rank = 600 is more than vLLM's 512"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_the_remedy(changes: dict[str, Any], message: str):
    config = TrainConfig(model="unused")
    nested = {n: replace(getattr(config, n), **c) for n, c in changes.items() if isinstance(c, dict)}
    with pytest.raises(ValueError, match=message):
        check_config(replace(config, **{**changes, **nested}))


TEACHER = TeacherConfig(model="large")


def test_without_a_teacher_its_options_are_refused_instead_of_ignored():
    expected = "teacher.coefficient = 2.0 without a teacher: name one with teacher.model, or leave it out"
    assert refusal(teacher__coefficient=2.0) == expected


def test_a_teacher_alone_compares_no_siblings_and_takes_groups_of_one():
    check_config(replace(CONFIG, teacher=TEACHER, group_size=1))
    assert refusal(teacher=replace(TEACHER, reward_weight=0.5), group_size=1).startswith("group_size must be >= 2")


def test_a_teacher_alone_has_no_use_for_refills():
    assert refusal(teacher=TEACHER, refill_prompts=4).startswith("refill_prompts = 4 replaces groups whose rewards")
    check_config(replace(CONFIG, teacher=replace(TEACHER, reward_weight=0.5), refill_prompts=4))


@pytest.mark.parametrize(("student", "teacher"), [(1, 0), (0, 1)])
def test_a_teacher_on_another_kind_of_device_than_the_student_is_refused_with_both_counts(student: int, teacher: int):
    told = refusal(teacher=replace(TEACHER, gpus_per_engine=teacher), rollout__gpus_per_engine=student)
    assert told.startswith(f"teacher.gpus_per_engine = {teacher} with rollout.gpus_per_engine = {student}: vLLM is")


def test_the_numbers_of_a_teacher_are_checked_like_others():
    assert refusal(teacher=replace(TEACHER, coefficient=0.0)) == "teacher.coefficient must be > 0, got 0.0"
    assert refusal(teacher=replace(TEACHER, reward_weight=-1.0)) == "teacher.reward_weight must be >= 0, got -1.0"
