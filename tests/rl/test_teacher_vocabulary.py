"""Who can be a teacher, and what its engines are like."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from policies.small.qwen3_vl import save_small_policy, small_processor
from rl.config import TeacherConfig
from rl.preflight import require_same_vocabulary
from rollout.config import RolloutConfig


def test_a_teacher_of_the_same_vocabulary_is_taken_whatever_its_weights(moe_policy: Path):
    assert require_same_vocabulary(small_processor(), str(moe_policy)) is None


def test_a_teacher_of_another_vocabulary_is_refused_with_a_token_and_both_its_ids(tmp_path: Path):
    folder = save_small_policy(tmp_path / "teacher", kind="dense", seed=0)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"2 tokens differ, the first is 'A' \(id 66 there, id 65 here\)") as error:
        require_same_vocabulary(small_processor(), str(folder))
    assert str(error.value).startswith(f"teacher.model = {folder} has another vocabulary than the student")


def test_a_teacher_that_is_no_policy_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ValueError, match="nowhere"):
        require_same_vocabulary(small_processor(), str(tmp_path / "nowhere"))


def test_a_teachers_engines_read_what_the_student_has_said_as_it_has_read_it():
    student = RolloutConfig(
        num_engines=5, temperature=0.8, max_model_len=700, max_image_pixels=4096, max_images=3, weight_transfer="ipc"
    )
    chosen = TeacherConfig(model="large", num_engines=2, gpus_per_engine=4, dtype="bfloat16", max_batched_tokens=128)
    engines = chosen.engine_config(student)
    assert engines == replace(
        student,
        num_engines=2,
        gpus_per_engine=4,
        dtype="bfloat16",
        kv_cache_gib=1.0,
        max_batched_tokens=128,
        max_running=128,  # vLLM wants room for a token of each
        max_model_len=701,  # and for one behind the longest
        weight_transfer="shared_memory",
    )
    assert not engines.shares_gpus
