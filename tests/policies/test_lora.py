"""LoRA on parts of small policies: what learns, what is exported, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from policies.export import exported_metadata, exported_parameters, save_policy
from policies.inputs import hidden_states
from policies.loading import load_policy
from policies.lora import adapters, adapters_off, add_lora, is_adapter
from policies.packing import padded_row
from policies.small.qwen3_vl import small_processor

TOKENS = torch.randint(0, 256, (2, 7), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.arange(7).expand(3, 2, 7)


def exact(folder: Path) -> torch.nn.Module:
    """A policy in float64: what is left of rounding does not hide a wrong sum."""
    model = load_policy(folder, dtype=torch.float64, device="cpu")
    model.set_experts_implementation("eager")
    return model


def adapted(folder: Path, parts: tuple[str, ...], load=exact) -> torch.nn.Module:
    """A policy whose adapters do something: peft starts them as zero."""
    model = load(folder)
    add_lora(model, rank=4, alpha=8.0, parts=parts, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def output(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return hidden_states(model, TOKENS, POSITIONS, None, padded_row(*TOKENS.shape))


def test_fresh_adapters_change_nothing_and_are_all_that_learns(policy: Path):
    model = load_policy(policy, dtype=torch.float32, device="cpu")
    before = output(model)
    add_lora(model, rank=4, alpha=8.0, parts=("language",), seed=0)
    assert torch.allclose(output(model), before, rtol=0, atol=1e-6)
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learning and all(is_adapter(name) for name in learning)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        # 4 layers × (q, k, v, o, gate, up, down); 4 blocks × (qkv, proj, fc1, fc2) + 3 mergers × 2
        (("language",), 28),
        (("vision",), 22),
        (("language", "vision"), 50),
    ],
)
def test_each_part_of_a_dense_policy_is_chosen_by_name(dense_policy: Path, parts: tuple[str, ...], expected: int):
    assert len(adapters(adapted(dense_policy, parts))) == expected


@pytest.mark.parametrize(("parts", "expected"), [(("language",), 16), (("experts",), 8), (("language", "experts"), 24)])
def test_each_part_of_a_moe_policy_is_chosen_by_name(moe_policy: Path, parts: tuple[str, ...], expected: int):
    assert len(adapters(adapted(moe_policy, parts))) == expected


def test_the_seed_decides_the_adapters_and_leaves_the_random_state_alone(dense_policy: Path):
    models = [load_policy(dense_policy, dtype=torch.float32, device="cpu") for _ in range(3)]
    state = torch.get_rng_state()
    for model, seed in zip(models, (0, 0, 1), strict=True):
        add_lora(model, rank=4, alpha=8.0, parts=("language",), seed=seed)
    first, again, other = (dict(model.named_parameters()) for model in models)
    name = "model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("parts", [("language",), ("language", "vision"), ("language", "vision", "experts")])
def test_what_is_exported_is_the_merged_policy_under_the_published_names(
    dense_policy: Path, moe_policy: Path, tmp_path: Path, parts: tuple[str, ...]
):
    folder = moe_policy if "experts" in parts else dense_policy
    plain = exact(folder)
    model = adapted(folder, parts)
    exported = dict(exported_parameters(model))
    assert [name for name, *_ in exported_metadata(model)] == [name for name, _ in exported_parameters(plain)]
    assert exported_metadata(model) == [(n, t.dtype, t.shape) for n, t in exported.items()]
    saved = exact(save_policy(model, small_processor(), tmp_path))
    assert not any("lora" in name for name, _ in saved.named_parameters())
    assert torch.allclose(output(saved), output(model), rtol=0, atol=1e-6)
    assert not torch.allclose(output(saved), output(plain), rtol=0, atol=1e-2)


def test_a_merged_weight_is_the_sum_worked_by_hand(dense_policy: Path):
    model = adapted(dense_policy, ("language",))
    parameters = dict(model.named_parameters())
    layer = "model.language_model.layers.0.mlp.up_proj"
    product = parameters[f"{layer}.lora_B.default.weight"] @ parameters[f"{layer}.lora_A.default.weight"]
    expected = parameters[f"{layer}.base_layer.weight"] + 8.0 / 4 * product
    assert torch.allclose(dict(exported_parameters(model))[f"{layer}.weight"], expected, rtol=0, atol=1e-6)


def test_switched_off_the_policy_is_the_one_that_lora_started_from(moe_policy: Path):
    model = adapted(moe_policy, ("language", "experts"))
    start = exact(moe_policy)
    with_adapters = output(model)
    with adapters_off(model):
        assert torch.allclose(output(model), output(start), rtol=0, atol=1e-6)
    assert torch.equal(output(model), with_adapters)
    assert all(p.requires_grad == is_adapter(name) for name, p in model.named_parameters())


def test_a_part_that_matches_nothing_is_refused_with_what_there_is(dense_policy: Path):
    message = "lora.parts: 'experts' matches nothing in a Qwen3VLForConditionalGeneration; it has language, vision"
    with pytest.raises(ValueError, match=message):
        adapted(dense_policy, ("language", "experts"))
