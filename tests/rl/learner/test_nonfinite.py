"""Where numbers that are not finite arise is found: in weights, in a layer's output, in a gradient."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.learner import Learner
from rl.learner.nonfinite import WeightsNotFinite, require_finite_weights
from tests.learning import config, parameters, rollout

LAYER = "model.language_model.layers.1.mlp"
PARAMETER = "model.language_model.layers.1.self_attn.q_proj.weight"


def message_of(learner: Learner, caplog: pytest.LogCaptureFixture) -> str:
    """The warning of a step whose update is skipped."""
    before = parameters(learner)
    with caplog.at_level(logging.WARNING, logger="rl.learner.learner"):
        report = learner.step(rollout(with_images=False))
    assert report.metrics["policy/skipped_updates"] == 1 and report.num_updates == 0
    assert all(torch.equal(before[name], weight) for name, weight in parameters(learner).items())
    (record,) = [record for record in caplog.records if record.name == "rl.learner.learner"]
    return record.getMessage()


def test_weights_that_are_not_finite_are_named_and_neither_trained_nor_saved(dense_policy: Path, tmp_path: Path):
    learner = Learner(config(), dense_policy)
    with torch.no_grad():
        for name in (PARAMETER, "model.language_model.layers.1.self_attn.k_proj.weight"):
            learner.model.get_parameter(name)[0, 0] = torch.nan
    for use in (lambda: learner.step(rollout(with_images=False)), lambda: learner.save(tmp_path)):
        with pytest.raises(WeightsNotFinite, match=rf"^the weights of {PARAMETER} are not finite$"):
            use()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 50_000, 99_999])
def test_one_number_that_is_not_finite_is_found_at_any_place(value: float, place: int):
    layer = torch.nn.Linear(100_000, 1, bias=False)
    require_finite_weights(layer)
    with torch.no_grad():
        layer.weight[0, place] = value
    with pytest.raises(WeightsNotFinite, match="the weights of weight are not finite"):
        require_finite_weights(layer)


def infinite(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output / 0


def test_the_first_layer_with_such_an_output_is_named_and_not_those_after_it(policy: Path, caplog):
    learner = Learner(config(), policy)
    learner.model.get_submodule(LAYER).register_forward_hook(infinite)
    assert f"not finite, first the output of {LAYER};" in message_of(learner, caplog)


def test_of_a_gradient_alone_that_next_to_the_loss_is_named(dense_policy: Path, caplog):
    learner = Learner(config(), dense_policy)
    for name in (PARAMETER, "model.language_model.layers.0.self_attn.q_proj.weight"):
        learner.model.get_parameter(name).register_hook(lambda gradient: gradient * torch.inf)
    text = message_of(learner, caplog)
    assert f"not finite, first the gradient of {PARAMETER};" in text
    assert text.endswith("that are not: none of the sequences alone")


def test_finite_numbers_with_a_sum_that_is_not_are_told_from_a_layers(dense_policy: Path, caplog):
    learner = Learner(config(), dense_policy)
    for weight in learner.model.parameters():  # the squares of 1e30 are beyond float32
        weight.register_hook(lambda gradient: torch.full_like(gradient, 1e30))
    assert "not finite, first no layer alone;" in message_of(learner, caplog)


def test_the_hooks_of_the_search_go_with_it(dense_policy: Path, caplog):
    learner = Learner(config(), dense_policy)
    handle = learner.model.get_submodule(LAYER).register_forward_hook(infinite)
    message_of(learner, caplog)
    handle.remove()
    assert all(not module._forward_hooks for module in learner.model.modules())
    assert learner.step(rollout(with_images=False)).num_updates == 1
