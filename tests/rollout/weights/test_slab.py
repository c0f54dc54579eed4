"""The slab of shared memory that carries new weights: its layout, what another process reads in it, and its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policies.export import exported_metadata, exported_parameters
from policies.loading import load_policy
from rollout.weights.senders import SharedMemorySender
from rollout.weights.slab import ALIGNMENT, SlabParameter, WeightSlab, map_slab, plan_slab, slab_tensor
from rollout.weights.source import WeightSource

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8])


def test_layout_is_worked_by_hand():
    layout, nbytes = plan_slab([("a", torch.float32, (3, 5)), ("b", torch.bfloat16, (33,)), ("c", torch.float32, ())])
    # 60 bytes round up to 64, 66 to 128, 4 to 64
    assert layout == [
        SlabParameter(name="a", dtype="float32", shape=[3, 5], offset=0),
        SlabParameter(name="b", dtype="bfloat16", shape=[33], offset=64),
        SlabParameter(name="c", dtype="float32", shape=[], offset=192),
    ]
    assert nbytes == 256


@given(st.lists(st.tuples(DTYPES, st.lists(st.integers(1, 9), max_size=3)), max_size=10))
def test_every_parameter_starts_on_a_cache_line_and_none_overlap(parameters: list[tuple[torch.dtype, list[int]]]):
    layout, nbytes = plan_slab((f"p{i}", dtype, shape) for i, (dtype, shape) in enumerate(parameters))
    buffer = torch.zeros(nbytes, dtype=torch.uint8)
    assert all(parameter.offset % ALIGNMENT == 0 for parameter in layout)
    for number, parameter in enumerate(layout):
        slab_tensor(buffer, parameter).fill_(number + 1)
    for number, (parameter, (dtype, shape)) in enumerate(zip(layout, parameters, strict=True)):
        view = slab_tensor(buffer, parameter)
        assert (view.dtype, list(view.shape)) == (dtype, shape)
        assert (view == number + 1).all()


READER = """
import sys
from rollout.weights.slab import SlabParameter, map_slab, slab_tensor
buffer = map_slab(sys.argv[1], int(sys.argv[2]))
view = slab_tensor(buffer, SlabParameter(name="w", dtype="float32", shape=[2, 3], offset=64))
print(view.tolist(), flush=True)
sys.stdin.readline()
print(view.tolist(), flush=True)
view[0, 0] = 42.0
sys.stdin.readline()
print(view.tolist(), flush=True)
"""


def test_another_process_maps_the_slab_and_sees_what_is_written_before_and_after():
    slab = WeightSlab(128)
    view = slab_tensor(slab.buffer, SlabParameter(name="w", dtype="float32", shape=[2, 3], offset=64))
    view.copy_(torch.arange(6.0).view(2, 3))
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, slab.path, "128"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    try:
        assert reader.stdout.readline().strip() == "[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]"
        view.mul_(10)
        print(file=reader.stdin, flush=True)
        assert reader.stdout.readline().strip() == "[[0.0, 10.0, 20.0], [30.0, 40.0, 50.0]]"
        while view[0, 0] != 42.0:  # the same memory, both ways
            assert reader.poll() is None
            time.sleep(0.01)
        slab.close()
        print(file=reader.stdin, flush=True)  # who still maps it keeps it
        assert reader.stdout.readline().strip() == "[[42.0, 10.0, 20.0], [30.0, 40.0, 50.0]]"
    finally:
        reader.communicate(timeout=30)
    assert reader.returncode == 0


def slabs_of_this_process() -> int:
    """Open files and mappings that keep a slab's memory alive."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    num_open = sum("memfd:policy-weights" in os.readlink(link) for link in links if os.path.islink(link))
    return num_open + Path("/proc/self/maps").read_text().count("memfd:policy-weights")


def test_memory_is_anonymous_and_freed_on_close():
    before = slabs_of_this_process()
    slab = WeightSlab(1 << 20)
    mirror = map_slab(slab.path, slab.nbytes)
    assert slabs_of_this_process() > before
    assert os.readlink(slab.path) == "/memfd:policy-weights (deleted)"
    assert not [name for name in os.listdir("/dev/shm") if "policy" in name]
    path = slab.path
    slab.close()
    del mirror
    assert slabs_of_this_process() == before
    with pytest.raises(FileNotFoundError):
        map_slab(path, 1 << 20)


class FakeEngine:
    """An engine that reads its slab when it is told to, as the real one does."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.next_version = 0
        self.policy_version = 0
        self.weights: dict[str, torch.Tensor] = {}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.calls.append("init")
        self.layout = [SlabParameter(**parameter) for parameter in init_info["layout"]]
        self.buffer = map_slab(init_info["path"], init_info["nbytes"])

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.calls.append("update")
        self.weights = {parameter.name: slab_tensor(self.buffer, parameter).clone() for parameter in self.layout}

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.calls.append("finish")
        self.policy_version = self.next_version


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_arrives_under_the_published_names_and_layouts_in_the_engines_precision(
    policy: Path, dtype: torch.dtype
):
    model, engine = load_policy(policy, dtype=torch.float32, device="cpu"), FakeEngine()
    source = WeightSource(
        metadata=partial(exported_metadata, model), tensors=partial(exported_parameters, model), dtype=dtype
    )
    sender = SharedMemorySender(source, engine)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    metrics = sender.send_weights(7)
    expected = dict(exported_parameters(model))
    assert engine.weights.keys() == expected.keys()
    assert all(torch.equal(engine.weights[name], tensor.to(dtype)) for name, tensor in expected.items())
    assert engine.calls == ["init", "start", "update", "finish"]
    assert engine.policy_version == 7
    num_bytes = sum(tensor.numel() for tensor in expected.values()) * dtype.itemsize
    assert num_bytes <= metrics["sync/bytes"] < num_bytes + ALIGNMENT * len(expected)
    assert metrics["sync/seconds"] == pytest.approx(metrics["sync/copy_seconds"] + metrics["sync/load_seconds"])


def test_transposed_views_are_copied_as_they_are_seen_and_integers_keep_their_type():
    experts, steps = torch.arange(24.0).view(2, 3, 4), torch.tensor([1 << 40])
    tensors = {"experts": experts.transpose(1, 2), "steps": steps}
    engine = FakeEngine()
    source = WeightSource(
        metadata=lambda: [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()],
        tensors=lambda: iter(tensors.items()),
        dtype=torch.bfloat16,
    )
    sender = SharedMemorySender(source, engine)
    sender.send_weights(1)
    assert engine.weights["experts"].shape == (2, 4, 3)
    assert engine.weights["experts"][1, :, 0].tolist() == [12, 13, 14, 15]
    assert torch.equal(engine.weights["experts"], experts.transpose(1, 2).bfloat16())
    assert engine.weights["steps"].item() == 1 << 40
    assert [asdict(parameter)["dtype"] for parameter in sender.layout] == ["bfloat16", "int64"]


def test_parameters_that_change_their_order_are_an_error_and_not_swapped_weights():
    order = ["a", "b"]
    source = WeightSource(
        metadata=lambda: [(name, torch.float32, (2,)) for name in ("a", "b")],
        tensors=lambda: iter([(name, torch.zeros(2)) for name in order]),
        dtype=torch.float32,
    )
    sender = SharedMemorySender(source, FakeEngine())
    order.reverse()
    with pytest.raises(AssertionError, match="parameters changed their order: a became b"):
        sender.copy_to_slab()
