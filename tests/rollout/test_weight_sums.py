"""Sums of weights: by hand, over chunks, and that no small change goes unseen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rollout.weight_sums
from rollout.types import EngineFailed
from rollout.weight_sums import file_sums, require_same, tensor_sum
from rollout.weights.source import WeightSource, summed
from rollout.weights.summing_worker import SummingWorker


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.tensor([1.0, 2.0]), 0x3F800000 + 2 * 0x40000000),
        (torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16), 0x3F80 + 2 * 0x4000),
        (torch.tensor([[1, 2], [3, 4]]).T, 1 + 2 * 3 + 3 * 2 + 4 * 4),  # in the order in which it is seen
        (torch.tensor([-1, 1]), -1 + 2),
        (torch.tensor([1 << 62] * 2), -(1 << 62)),  # 3 · 2⁶² modulo 2⁶⁴
        (torch.zeros(0), 0),
    ],
)
def test_a_sum_by_hand(tensor: Tensor, expected: int):
    assert tensor_sum(tensor) == expected


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20), st.integers(1, 7))
def test_the_size_of_the_chunks_does_not_matter(values: list[int], chunk: int):
    tensor = torch.tensor(values, dtype=torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout.weight_sums, "CHUNK", chunk)
        assert tensor_sum(tensor) == sum(place * value for place, value in enumerate(values, 1))


@given(st.data())
def test_a_flipped_bit_and_an_exchange_of_two_elements_change_the_sum(data: st.DataObject):
    dtype = data.draw(st.sampled_from([torch.bfloat16, torch.float32]))
    tensor = torch.randn(data.draw(st.integers(2, 50)), generator=torch.Generator().manual_seed(0)).to(dtype)
    flipped, places = tensor.clone(), st.integers(0, len(tensor) - 1)
    flipped.view(torch.uint8)[data.draw(st.integers(0, tensor.nbytes - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert tensor_sum(flipped) != tensor_sum(tensor)
    exchanged, (one, other) = tensor.clone(), data.draw(st.tuples(places, places))
    exchanged[[one, other]] = tensor[[other, one]]
    assert (tensor_sum(exchanged) == tensor_sum(tensor)) == bool(tensor[one] == tensor[other])


def test_the_sums_are_those_of_what_is_sent_in_the_engines_precision():
    tensors = {"norm": torch.tensor([1.0, 2.0]), "steps": torch.tensor([5])}
    source = WeightSource(
        metadata=lambda: [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()],
        tensors=lambda: iter(tensors.items()),
        dtype=torch.bfloat16,
    )
    source, sums = summed(source)
    for _ in range(2):
        assert [(name, sent.dtype) for name, sent in source.tensors()] == [
            ("norm", torch.bfloat16),
            ("steps", torch.int64),
        ]
        assert sums == {"norm": 0x3F80 + 2 * 0x4000, "steps": 5}
        tensors["norm"] = tensors["norm"].clone()
    assert file_sums({"adapter": b"\x01\x02"}) == {"adapter": 5}


class Worker(SummingWorker):
    """vLLM's worker with a model that counts its loads; its transport keeps nothing."""

    weight_transfer_engine = None

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.model = torch.nn.Module()
        self.model.load_weights = self._load  # type: ignore[assignment]

    def get_model(self) -> torch.nn.Module:  # type: ignore[override]
        return self.model

    def _load(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        self.loaded += [name for name, _ in weights]


def test_a_worker_sums_the_pieces_of_one_update_as_they_are_loaded_and_forgets_those_of_the_last():
    worker = Worker()
    for _ in range(2):
        worker.sum_arriving_weights()
        worker.model.load_weights([("a", torch.tensor([1])), ("b", torch.tensor([1, 1]))])
        worker.model.load_weights([("c", torch.tensor([4]))])
        assert worker.arrived_sums() == {"a": 1, "b": 3, "c": 4}
    assert worker.loaded == ["a", "b", "c"] * 2
    worker.sum_arriving_weights()
    assert worker.arrived_sums() == {}


@pytest.mark.parametrize(
    ("arrived", "message"),
    [
        ({"a": 1}, r"1 of 2 weights are not the learner's after a sync: b is missing \(rollout.verify_weights\)"),
        ({"a": 1, "b": 3}, "1 of 2 weights .* b has other bits"),
        ({"a": 2, "b": 3}, "2 of 2 weights .* a has other bits"),
        ({"a": 1, "b": 2, "c": 0}, "1 of 2 weights .* c was not sent"),
    ],
)
def test_what_differs_is_counted_and_the_first_named(arrived: dict[str, int], message: str):
    with pytest.raises(EngineFailed, match=message):
        require_same({"a": 1, "b": 2}, arrived)


def test_equal_sums_pass():
    assert require_same({"a": 1, "b": 2}, {"b": 2, "a": 1}) is None
