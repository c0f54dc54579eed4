"""Norms as one kernel: what transformers' own give."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from policies.fused_norms import NORMS, use_fused_kernels
from policies.loading import load_policy


def test_a_fused_norm_is_the_models_own(policy: Path):
    model = load_policy(policy, dtype=torch.float32, device="cpu")
    plain = next(module for module in model.modules() if isinstance(module, NORMS))
    with torch.no_grad():
        plain.weight.copy_(torch.linspace(0.5, 2, len(plain.weight)))
    fused = copy.deepcopy(plain)
    hidden = torch.randn(3, len(plain.weight), generator=torch.Generator().manual_seed(0)) * 5
    expected = plain(hidden)
    use_fused_kernels(torch.nn.ModuleList([fused]))
    torch.testing.assert_close(fused(hidden), expected, rtol=1e-6, atol=1e-6)
    # In bfloat16, too, the sum of squares is a float32: 8 bits of a sum over hundreds would be off by percents.
    torch.testing.assert_close(fused(hidden.bfloat16()).float(), expected, rtol=2e-2, atol=1e-2)


def test_a_norm_worked_by_hand(dense_policy: Path):
    model = load_policy(dense_policy, dtype=torch.float32, device="cpu")
    norm = next(module for module in model.modules() if isinstance(module, NORMS))
    norm.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    use_fused_kernels(model)
    # The mean of 9 and 16 is 12.5: 3 and 4 are divided by its root.
    assert norm(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([3 / 12.5**0.5, 8 / 12.5**0.5], rel=1e-6)
