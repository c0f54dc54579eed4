"""vLLM's loading of weights from the slab: what the first update records, later ones repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

from rollout.weights.slab import SlabParameter, slab_tensor

ROWS, PADDED, COLUMNS = 4, 6, 3
LAYOUT = [
    SlabParameter(name="whole.weight", dtype="float32", shape=[ROWS, COLUMNS], offset=0),
    SlabParameter(name="padded.weight", dtype="float32", shape=[ROWS, COLUMNS], offset=64),
]


class Model(nn.Module):
    """A layer that its tensor fills, and one with rows of padding that no tensor fills, as vLLM's embeddings have."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.whole = nn.Linear(COLUMNS, ROWS, bias=False)
        self.padded = nn.Linear(COLUMNS, PADDED, bias=False)
        self.change, self.num_loads = change, 0
        for layer in (self.whole, self.padded):
            layer.weight.data.zero_()

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Loads tensors by name, as vLLM's models do."""
        self.num_loads += 1
        parameters = dict(self.named_parameters())
        for name, tensor in tensors:
            loader = getattr(parameters[name], "weight_loader", fill)
            loader(parameters[name], self.change(tensor))


def fill(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
    """Fills the first rows of a parameter."""
    param.data[: len(loaded_weight)].copy_(loaded_weight)


class Update:
    """Weight updates of a model by the receiver, without an engine."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor) -> None:
        from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

        from rollout.weights.slab_receiver import SharedMemoryWeightTransferEngine

        self.model = Model(change)
        for layer in (self.model.whole, self.model.padded):
            layer.weight.weight_loader = fill
        record_metadata_for_reloading(self.model)
        self.receiver = SharedMemoryWeightTransferEngine.__new__(SharedMemoryWeightTransferEngine)
        self.receiver.model, self.receiver.model_config = self.model, None
        self.receiver.device = torch.device("cpu")
        self.receiver._buffer, self.receiver._layout = torch.zeros(128, dtype=torch.uint8), LAYOUT
        self.receiver._loads = []

    def send(self, value: float) -> None:
        """Writes the value everywhere in the slab, and lets the model load it."""
        for number, parameter in enumerate(LAYOUT):
            slab_tensor(self.receiver._buffer, parameter).fill_(value + number)
        self.receiver.start_weight_update()
        self.receiver.receive_weights(None)
        self.receiver.finish_weight_update()

    def has(self, value: float) -> bool:
        """True if each layer has its value, in its rows that are not padding."""
        whole, padded = self.model.whole.weight, self.model.padded.weight[:ROWS]
        return bool((whole == value).all() and (padded == value + 1).all())


@pytest.mark.engine
def test_the_first_update_is_recorded_and_later_ones_repeat_it_padding_or_not() -> None:
    update = Update()
    kernels = update.model.whole.weight.data_ptr()
    for value in (1.0, 5.0, 9.0):
        update.send(value)
        assert update.has(value)
    assert update.model.num_loads == 1
    assert update.model.whole.weight.data_ptr() == kernels, "captured graphs would read the old memory"


@pytest.mark.engine
@pytest.mark.parametrize("change", [torch.Tensor.clone, lambda tensor: tensor * 1.0])
def test_a_model_that_copies_tensors_before_it_loads_them_is_asked_at_each_update(
    change: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    update = Update(change)
    for value in (1.0, 5.0, 9.0):
        update.send(value)
        assert update.has(value)
    assert update.model.num_loads == 3


@pytest.mark.engine
def test_calls_that_vllm_postpones_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    from rollout.weights import slab_receiver

    update = Update()
    monkeypatch.setattr(slab_receiver, "is_deferred_attention_layer", lambda layer: layer is update.model.padded)
    update.send(1.0)
    update.send(5.0)
    assert update.model.num_loads == 2 and update.has(5.0)
