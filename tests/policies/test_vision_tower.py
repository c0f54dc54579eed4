"""The faster vision tower: what transformers' own gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from policies.loading import load_policy
from policies.vision_tower import use_fast_vision

GRIDS = {
    "one size": [(1, 4, 2), (1, 4, 2), (1, 4, 2)],
    "several sizes": [(1, 2, 2), (1, 4, 6), (1, 4, 6), (1, 2, 2)],
    "a video": [(3, 4, 2), (1, 2, 4)],
}
"""Patches of each picture in time, height and width."""


@pytest.mark.parametrize("kind", GRIDS)
def test_features_and_gradients_are_those_of_transformers(policy: Path, kind: str):
    grids = torch.tensor(GRIDS[kind])
    pixels = torch.randn(int(grids.prod(1).sum()), 3 * 2 * 16 * 16, generator=torch.Generator().manual_seed(0))
    found = []
    for fast in (True, False):
        model = load_policy(policy, dtype=torch.float64, device="cpu")
        if fast:
            use_fast_vision(model)
        features = model.model.get_image_features(pixels.double(), grids, return_dict=True)
        outputs = torch.cat(
            [*features.pooler_output, *(image for level in features.deepstack_features for image in level)]
        )
        outputs.square().sum().backward()
        gradients = [parameter.grad for name, parameter in model.named_parameters() if ".visual." in name]
        found.append([outputs.detach(), *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # the rotation is in float32 in both


def test_pictures_of_one_size_are_one_call(policy: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    own = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        sizes.append(tuple(query.shape[::2]))
        return own(query, *args, **options)

    monkeypatch.setattr("policies.vision_tower.scaled_dot_product_attention", watched)
    model = load_policy(policy, dtype=torch.float32, device="cpu")
    use_fast_vision(model)
    grids = torch.tensor(GRIDS["several sizes"])
    with torch.no_grad():
        model.model.get_image_features(torch.zeros(int(grids.prod(1).sum()), 3 * 2 * 16 * 16), grids, return_dict=True)
    # Two runs of one picture of 4 patches each, around a run of two pictures of 24.
    assert sizes == [(1, 4), (2, 24), (1, 4)] * len(model.model.visual.blocks)
