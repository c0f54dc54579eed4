"""GPUs that are not there: gloo in NCCL's place, memory files in CUDA IPC's. All else is the code of vLLM and of the product.

`FakeEngineActor` and `FakeLearnerActor` stand in for the product's actors and install the fakes in their processes; vLLM's own are
forks of the engine's. Files in the config's folder show and steer what happens there:

    group-PID-N          a communicator that is open in a process
    connected-PID        an engine's worker that has been connected to the learner
    SIGKILL-CALL-N       sends that signal to the first worker that comes to this call for the Nth time in a weight update
    FLIP-chunk-N         flips a bit of what the first worker receives in the Nth broadcast of a weight update
"""

from __future__ import annotations

import mmap
import os
import signal
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from itertools import count
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import torch

from rl.learner.group import _LearnerActor
from rollout.cluster import Gpu
from rollout.config import Backend, RolloutConfig
from rollout.engine.spec import EngineSpec
from rollout.engine.vllm_processes import _ForkedContext
from rollout.pool.engine_actor import _EngineActor
from rollout.processes import NodeProcesses
from rollout.ray_calls import EngineAddress

BUFFER_BYTES = 300_000
"""Weights come in many pieces."""
CALLS: Counter[str] = Counter()
"""Calls of this process in the present weight update."""
NUMBERS = count()


@dataclass(frozen=True, kw_only=True)
class FakeGpus(RolloutConfig):
    """Engines on GPUs that are not there."""

    folder: str
    """The folder that shows and steers."""
    width: int = 1
    """GPUs of each engine."""

    @property
    def workers_per_engine(self) -> int:
        return self.width


class FakeEngineActor(_EngineActor):
    async def start(self, spec: EngineSpec, devices: Sequence[str]) -> NodeProcesses:
        assert isinstance(spec.config, FakeGpus)
        install(spec.config)
        return await super().start(spec, devices)


class FakeLearnerActor(_LearnerActor):
    def gpu(self) -> Gpu:
        return Gpu(node=ray.get_runtime_context().get_node_id(), device=str(self._rank))

    def connect(self, backend: Backend, engines: Sequence[EngineAddress]) -> None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(self._rank)
        assert isinstance(self._learner.options.rollout, FakeGpus)
        install(self._learner.options.rollout)
        super().connect(backend, engines)


@contextmanager
def fake_actors() -> Iterator[None]:
    """Engines and learners that start inside have fake GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rollout.pool.engine_actor._EngineActor", FakeEngineActor)
        patch.setattr("rl.learner.group._LearnerActor", FakeLearnerActor)
        yield


def open_groups(folder: str) -> Counter[int]:
    """Process id -> communicators that are open in it; processes that have ended hold none."""
    pids = (int(path.name.split("-")[1]) for path in Path(folder).glob("group-*"))
    return Counter(pid for pid in pids if psutil.pid_exists(pid))


class FakeNccl:
    """A communicator over gloo, which waits as NCCL's does: if a peer is lost, a collective ends only when it is aborted."""

    def __init__(self, meeting: Any, config: FakeGpus) -> None:
        from torch.distributed import PrefixStore, ProcessGroupGloo

        self._meeting, self._config = meeting, config
        store = PrefixStore("gloo", meeting.store)
        self._group = ProcessGroupGloo(store, meeting.rank, meeting.world_size, timedelta(seconds=600))
        self._is_aborted = Event()
        self._file = Path(config.folder, f"group-{os.getpid()}-{next(NUMBERS)}")
        self._file.touch()

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        from torch.distributed import BroadcastOptions

        if self._meeting.rank:
            be_hit(self._config, "chunk")
        options, done = BroadcastOptions(), Event()
        options.rootRank, options.rootTensor = src, 0
        work = self._group.broadcast([tensor], options)

        def finish() -> None:
            try:
                work.wait()
                done.set()
            except RuntimeError:  # gloo notices a lost peer, NCCL does not
                pass

        Thread(target=finish, daemon=True).start()
        while not (done.wait(0.002) or self._is_aborted.is_set()):
            pass
        if self._meeting.rank and _taken(Path(self._config.folder, f"FLIP-chunk-{CALLS['chunk']}")):
            tensor.view(-1).view(torch.uint8)[0] ^= 1

    def destroy(self) -> None:
        self._is_aborted.set()
        self._file.unlink(missing_ok=True)


class FakeStream:
    def synchronize(self) -> None: ...


class TorchWithGpus:
    """torch, whose `empty` on a GPU is a memory file that other processes can map."""

    paths: dict[int, bytes] = {}  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *size: int, device: Any = None, **options: Any) -> torch.Tensor:
        if str(device) != "cuda":
            return torch.empty(*size, device=device, **options)
        fd = os.memfd_create("fake-gpu")
        os.ftruncate(fd, size[0])
        tensor = torch.frombuffer(mmap.mmap(fd, size[0]), **options)
        self.paths[tensor.data_ptr()] = f"/proc/{os.getpid()}/fd/{fd}".encode()
        weakref.finalize(tensor, os.close, fd)
        return tensor


def share(tensor: torch.Tensor) -> tuple[None, tuple[Any, ...]]:
    """What torch's `reduce_tensor` says of a tensor on a GPU, with the memory file's path as its handle."""
    size, handle = tensor.nbytes, TorchWithGpus.paths[tensor.data_ptr()]
    whole = (type(tensor), tensor.size(), tensor.stride(), 0, torch.UntypedStorage, tensor.dtype, 0)
    return None, (*whole, handle, size, 0, False, b"counter", 0, b"event", True)


def map_shared(
    cls: type, _size: Any, _stride: Any, _offset: int, storage: type, dtype: Any, *rest: Any
) -> torch.Tensor:
    """What torch's `rebuild_cuda_tensor` does, from what `share` says."""
    _device, handle, nbytes, *_ = rest
    assert cls is torch.Tensor and storage is torch.UntypedStorage and dtype is torch.uint8
    fd = os.open(handle, os.O_RDWR)
    try:
        return torch.frombuffer(mmap.mmap(fd, nbytes), dtype=dtype)
    finally:
        os.close(fd)


def gpu_properties(index: int | None) -> SimpleNamespace:
    """The UUID of a visible GPU; of a worker's own without an index."""
    from vllm.distributed.parallel_state import get_tp_group

    visible = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    return SimpleNamespace(uuid=f"GPU-{visible[get_tp_group().rank_in_group if index is None else index]}")


def be_hit(config: FakeGpus, call: str) -> None:
    """Takes the signal that a file has for the first worker that comes here."""
    CALLS[call] += 1
    for path in Path(config.folder).glob(f"SIG*-{call}-{CALLS[call]}"):
        if _taken(path):
            os.kill(os.getpid(), signal.Signals[path.name.split("-")[0]])


def _taken(path: Path) -> bool:
    """Removes a file. Returns False if it is not there, or another worker has been faster."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def install(config: FakeGpus) -> None:
    """Puts the fakes in the place of CUDA and NCCL in this process, which has begun with a few calls of vLLM at most."""
    import torch.multiprocessing.reductions as reductions
    import vllm
    import vllm.distributed.weight_transfer.ipc_engine as ipc
    import vllm.distributed.weight_transfer.nccl_common as nccl_common
    import vllm.distributed.weight_transfer.packed_tensor as packed_tensor
    import vllm.v1.executor.multiproc_executor
    from vllm.distributed.utils import StatelessProcessGroup
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    import rollout.weights.vllm_sender

    def form_group(host: str, port: int, rank: int, world_size: int, device: Any) -> FakeNccl:
        meeting = StatelessProcessGroup.create(host=host, port=port, rank=rank, world_size=world_size)
        return FakeNccl(meeting, config)

    rollout.weights.vllm_sender.BUFFER_BYTES = BUFFER_BYTES
    nccl_common.stateless_init_process_group = form_group
    packed_tensor._get_streams = lambda device, number: (FakeStream(),) * number
    packed_tensor.torch = TorchWithGpus()
    packed_tensor.reduce_tensor = share
    reductions.rebuild_cuda_tensor = map_shared
    torch.accelerator.current_device_index = lambda: 0
    torch.cuda.stream = nullcontext
    torch.cuda.current_stream = FakeStream
    torch.cuda.synchronize = torch.cuda.ipc_collect = lambda: None
    torch.cuda.get_device_properties = gpu_properties
    for receiver in (NCCLWeightTransferEngine, ipc.IPCWeightTransferEngine):
        _repair_for_cpus(receiver)
        for method in ("init_transfer_engine", "start_weight_update", "finish_weight_update"):
            setattr(receiver, method, _hit_first(config, method, getattr(receiver, method)))
    receiver.receive_weights = _hit_first(
        config, "chunk", receiver.receive_weights
    )  # CUDA IPC's: a call for each chunk
    if config.width > 1:  # vLLM would start workers anew, without the fakes
        vllm.v1.executor.multiproc_executor.get_mp_context = _ForkedContext
    real_args = vllm.AsyncEngineArgs
    # vLLM has no sleep mode on CPUs: engines sleep, and keep their memory.
    vllm.AsyncEngineArgs = lambda **options: real_args(**options | {"enable_sleep_mode": False})


def _hit_first(config: FakeGpus, call: str, method: Callable[..., None]) -> Callable[..., None]:
    @wraps(method)
    def hit_first(self: Any, *args: Any) -> None:
        if call != "chunk":
            CALLS.clear()
        if call == "init_transfer_engine":
            Path(config.folder, f"connected-{os.getpid()}").touch()
        be_hit(config, call)
        method(self, *args)

    return hit_first


def _repair_for_cpus(receiver: Any) -> None:
    """What the slab's receiver does on CPUs besides: on GPUs vLLM needs neither."""
    from rollout.weights.slab_receiver import _forget_moe_kernels, _repack_output_embeddings

    start, finish = receiver.start_weight_update, receiver.finish_weight_update

    def start_weight_update(self: Any) -> None:
        _forget_moe_kernels(self.model)
        start(self)

    def finish_weight_update(self: Any) -> None:
        finish(self)
        _repack_output_embeddings(self.model)

    receiver.start_weight_update, receiver.finish_weight_update = start_weight_update, finish_weight_update
