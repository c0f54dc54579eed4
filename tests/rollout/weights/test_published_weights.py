"""What the learner sends fills vLLM's own models of the published sizes, on the meta device: every element, under its name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from policies.export import exported_metadata
from policies.model_sizes import PUBLISHED, published_config
from policies.sharding import empty_policy
from policies.small.qwen3_vl import small_processor
from rollout.config import RolloutConfig
from rollout.pool.engine_actor import engine_environment

pytestmark = pytest.mark.slow

GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"

Weights = list[tuple[str, Sequence[int]]]


class Copies(TorchDispatchMode):
    """Counts the elements that are copied into parameters; refuses a copy that would repeat some."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.copy_.default:
            assert args[0].shape == args[1].shape
            self.elements += args[0].numel()
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def lone_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process as vLLM's only worker."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment(RolloutConfig(), "").items():
            patch.setenv(name, value)
        from vllm.config import VllmConfig, set_current_vllm_config
        from vllm.distributed import parallel_state

        method = f"file://{tmp_path_factory.mktemp('store') / 'store'}"
        with set_current_vllm_config(VllmConfig()):
            parallel_state.init_distributed_environment(1, 0, method, local_rank=0, backend="gloo")
            parallel_state.initialize_model_parallel()
        yield
        parallel_state.destroy_model_parallel()
        parallel_state.destroy_distributed_environment()


@contextmanager
def tensor_parallel(width: int, rank: int) -> Iterator[None]:
    """Makes layers believe that they are a part of several workers'."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    group.world_size, group.rank_in_group = width, rank
    yield
    group.world_size, group.rank_in_group = 1, 0


def vllm_model(folder: Path, width: int, rank: int) -> torch.nn.Module:
    """vLLM's model of a folder's config, without weights."""
    from vllm import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    args = EngineArgs(model=str(folder), dtype="bfloat16", max_model_len=4096, enforce_eager=True, load_format="dummy")
    config = args.create_engine_config()
    config.parallel_config.tensor_parallel_size = width
    with tensor_parallel(width, rank), set_default_torch_dtype(torch.bfloat16), torch.device("meta"):
        return initialize_model(config)


def published(size: str, folder: Path) -> Path:
    """A folder with a published config. The tokenizer is not the published one, since only its presence matters."""
    small_processor().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(published_config(size)))
    return folder


def sent(folder: Path) -> Weights:
    return [(name, shape) for name, _, shape in exported_metadata(empty_policy(folder))]


def require_whole(model: torch.nn.Module, weights: Weights) -> None:
    """Loads weights of these names and shapes. All of the model must be written, each element once."""
    with Copies() as copies:
        loaded = model.load_weights(
            (name, torch.empty(shape, dtype=torch.bfloat16, device="meta")) for name, shape in weights
        )
    parameters = dict(model.named_parameters())
    assert set(parameters) <= set(loaded)
    assert copies.elements == sum(parameter.numel() for parameter in parameters.values())


@pytest.mark.usefixtures("lone_worker")
@pytest.mark.parametrize(
    ("size", "width", "rank"),
    [("2B", 1, 0), ("8B", 1, 0), ("32B", 4, 3), ("30B-A3B", 2, 1), ("235B-A22B", 8, 5)],
)
def test_all_that_is_sent_fills_all_of_vllms_model(size: str, width: int, rank: int, tmp_path: Path):
    folder = published(size, tmp_path)
    model, weights = vllm_model(folder, width, rank), sent(folder)
    require_whole(model, weights)
    if width == 1:
        assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[size].parameters


def renamed(weights: Weights) -> Weights:
    return [(name.replace(".mlp.gate.", ".mlp.router."), shape) for name, shape in weights]


def without_one(weights: Weights) -> Weights:
    return [each for each in weights if not each[0].endswith("layers.7.self_attn.k_norm.weight")]


def in_transformers_layout(name: str) -> Any:
    """Experts [E, out, in] of one of the two kinds."""

    def changed(weights: Weights) -> Weights:
        return [(key, (s[0], s[2], s[1]) if key.endswith(name) else s) for key, s in weights]

    return changed


def half_the_experts(weights: Weights) -> Weights:
    return [(name, (s[0] // 2, *s[1:]) if name.endswith(DOWN) else s) for name, s in weights]


@pytest.mark.usefixtures("lone_worker")
def test_names_and_layouts_that_are_not_vllms_are_noticed(tmp_path: Path):
    folder = published("30B-A3B", tmp_path)
    model, weights = vllm_model(folder, 1, 0), sent(folder)
    faults = (renamed, without_one, in_transformers_layout(GATE_UP), in_transformers_layout(DOWN), half_the_experts)
    for fault in faults:
        assert fault(weights) != weights
        with pytest.raises((AssertionError, ValueError, RuntimeError)):
            require_whole(model, fault(weights))
    require_whole(model, weights)
