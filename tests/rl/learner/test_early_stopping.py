"""Early stopping: the updates of a step end when the policy has moved further than `correction.target_kl`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rl.config import CorrectionConfig, TrainConfig
from rl.learner import Learner
from rl.objectives.penalty import kl_estimates
from rl.samples import Sample
from tests.learning import config, difference, parameters, rollout, watch_gradients


def stopping_at(target_kl: float, **more: int) -> TrainConfig:
    made = config(num_minibatches=4, learning_rate=1e-4, **more)
    return replace(made, correction=CorrectionConfig(target_kl=target_kl))


def test_an_estimate_is_that_worked_by_hand():
    # d = log q − log p: e^d − d − 1 is 1 − ln 2 at d = ln 2, ln 2 − ½ at d = −ln 2, and 0 at 0.
    found = kl_estimates(torch.tensor([math.log(2), -math.log(2), 0.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([1 - math.log(2), math.log(2) - 0.5, 0.0], abs=1e-15)


def test_its_mean_over_the_samples_of_p_is_the_divergence():
    # p = (.7, .3), q = (.4, .6): KL = .7 ln(.7/.4) + .3 ln(.3/.6) = .391731 − .207944 = .183787.
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])
    assert (p * kl_estimates(q.log() - p.log())).sum().item() == pytest.approx(0.183787, abs=1e-6)


def test_the_distance_is_that_of_the_minibatch_to_the_weights_that_the_step_began_with(dense_policy: Path):
    # Two minibatches: the first one has a distance of 0, so the mean over both is half of the second one's.
    groups = rollout()
    learner = Learner(config(num_minibatches=2, learning_rate=1e-4), dense_policy)
    metrics = learner.step(groups).metrics
    other = Learner(config(learning_rate=1e-4), dense_policy)
    batches = other.make_microbatches([sample for group in groups[2:] for sample in group])
    before = other.old_logprobs(batches)
    other.step(groups[:2])
    estimates = [
        kl_estimates((new - old)[batch.mask_BT])
        for new, old, batch in zip(other.old_logprobs(batches), before, batches, strict=True)
    ]
    expected = torch.cat(estimates).mean().item()
    assert metrics["policy/approx_kl_last"] == pytest.approx(expected, rel=1e-4) and expected > 1e-6
    assert metrics["policy/approx_kl"] == pytest.approx(expected / 2, rel=1e-4)


def test_a_step_ends_with_the_update_before_the_minibatch_that_shows_it(dense_policy: Path):
    stopped, first = Learner(stopping_at(1e-9), dense_policy), Learner(config(learning_rate=1e-4), dense_policy)
    report, alone = stopped.step(rollout()), first.step(rollout()[:1])
    assert (report.num_updates, report.metrics["policy/updates"]) == (1, 1.0)
    assert all(weights.equal(parameters(first)[name]) for name, weights in parameters(stopped).items())
    assert report.metrics["policy/grad_norm"] == alone.metrics["policy/grad_norm"]
    assert stopped.scheduler.last_epoch == 1
    # Nothing of the dropped gradient is left for the next step, which begins with new weights.
    again = first.step(rollout(seed=1)[:1])
    assert stopped.step(rollout(seed=1)).metrics["policy/grad_norm"] == pytest.approx(
        again.metrics["policy/grad_norm"], rel=1e-6
    )


def test_a_distance_that_is_never_reached_changes_nothing(dense_policy: Path):
    runs = []
    for target_kl in (0.0, 1e9):
        learner = Learner(stopping_at(target_kl), dense_policy)
        gradients = watch_gradients(learner)
        assert learner.step(rollout()).metrics["policy/updates"] == 4
        runs.append(gradients)
    assert all(one.equal(other) for one, other in zip(*runs, strict=True))


def test_any_split_ends_at_the_same_update(dense_policy: Path):
    # A limit between the distances that the third and the fourth minibatch show.
    free = Learner(stopping_at(0.0), dense_policy)
    reports = []
    update = free._update
    free._update = lambda *given: reports.append(update(*given)) or reports[-1]  # type: ignore[method-assign]
    free.step(rollout())
    distances = [metrics["policy/approx_kl"] for metrics, _ in reports]
    limit = (max(distances[:3]) + distances[3]) / 2
    assert distances[0] == 0 and max(distances[:3]) < limit < distances[3]
    found = []
    for budget in (4096, 60):
        learner = Learner(stopping_at(limit, microbatch_tokens=budget), dense_policy)
        gradients = watch_gradients(learner)
        assert learner.step(rollout()).num_updates == 3
        found.append(gradients)
    assert all(difference(one, other) <= 3e-6 for one, other in zip(*found, strict=True))


def test_samples_of_an_older_policy_are_no_distance_of_this_step(dense_policy: Path):
    def aged(sample: Sample) -> Sample:
        old = np.full_like(sample.rollout_logprobs, -5.0)
        return replace(sample, rollout_logprobs=old, stale_mask=sample.loss_mask)

    groups = [[aged(sample) for sample in group] for group in rollout()]
    learner = Learner(config(), dense_policy)
    metrics = learner.step(groups).metrics
    assert metrics["policy/approx_kl"] == 0 and metrics["policy/ratio_max"] > 1.1


def test_no_limit_can_be_negative():
    with pytest.raises(ValueError, match=r"^correction.target_kl must be >= 0, got -1"):
        from rl.config import check_config

        check_config(stopping_at(-1.0))
