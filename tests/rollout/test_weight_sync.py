"""The engine against the learner, fp32, real images: the proof that a sync brings every weight and every cache is dropped."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from policies.export import exported_metadata, exported_parameters
from policies.small import save_small_policy
from rl.config import LearnerConfig, TrainConfig
from rl.learner import Learner
from rollout.config import RolloutConfig
from rollout.prompts import prompts_from
from rollout.sources.digit_sums import digit_sums, to_prompt
from rollout.types import Sampling
from rollout.weight_transfer import SharedMemorySender, WeightSource
from tests.engines import EngineThread, change_weights, largest_gap

pytestmark = pytest.mark.engine

CONFIG = RolloutConfig(dtype="float32", max_tokens=12, max_model_len=128)
PROMPTS = prompts_from(digit_sums("train", num_prompts=8), to_prompt)[:8]


@pytest.fixture(scope="module", params=["dense", "moe"])
def pair(request, tmp_path_factory):
    """An engine, a learner of the same weights, and a sender between them."""
    folder = save_small_policy(tmp_path_factory.mktemp("policy") / request.param, kind=request.param, seed=0)
    engine = EngineThread(folder, CONFIG)
    learner = Learner(
        TrainConfig(model=str(folder), rollout=CONFIG, learner=LearnerConfig(dtype="float32", threads=1)), folder
    )
    source = WeightSource(
        metadata=partial(exported_metadata, learner.model),
        tensors=partial(exported_parameters, learner.model),
        dtype=torch.float32,
    )
    yield engine, learner, SharedMemorySender(source, engine)
    engine.close()


def test_engine_and_learner_agree_on_images_before_any_sync(pair):
    engine, learner, _ = pair
    assert largest_gap(learner, engine.generate(PROMPTS, Sampling(max_tokens=12))) <= 1e-5


def test_engine_and_learner_agree_after_each_of_two_syncs_of_changed_weights(pair):
    engine, learner, sender = pair
    for seed in (1, 2):
        change_weights(learner, seed)
        stale = largest_gap(learner, engine.generate(PROMPTS, Sampling(max_tokens=12)))
        metrics = sender.send_weights(engine.engine.policy_version + 1)
        groups = engine.generate(PROMPTS, Sampling(max_tokens=12))
        assert stale > 1e-2, "the weights did not change enough to prove anything"
        assert largest_gap(learner, groups) <= 1e-5
        assert {c.policy_version for group in groups for c in group.completions} == {engine.engine.policy_version}
        assert metrics["sync/bytes"] >= sum(p.numel() * 4 for p in learner.model.parameters())
