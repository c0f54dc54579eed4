"""The learner on several ranks, which share the policy by FSDP2 over gloo: the same run as on one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from policies.loading import load_policy
from policies.model_sizes import shape_of_checkpoint
from rl.config import LoraConfig, TrainConfig
from rl.hardware.learner_memory import checkpoint_size
from rl.learner import Learner
from rl.learner.microbatches import lengthen_plan, split_ranks
from rl.learner.nonfinite import nonfinite_origin
from rl.samples import Sample
from tests.learning import config, difference, parameters, rollout, watch_gradients
from tests.ranks import RankPool

pytestmark = pytest.mark.slow  # four more processes with torch: 150 seconds


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a step of a learner made."""

    gradients: list[Tensor]
    weights: Tensor
    metrics: dict[str, float]
    microbatches: list[tuple[int, bool, bool]]
    """Of the first step's samples on this rank: sequences, whether there are images to see, whether it is idle."""


def learn(folder: Path, options: TrainConfig, groups: list[list[Sample]], save_to: Path | None = None) -> Run:
    return one_step(Learner(options, folder), groups, save_to)


def one_step(learner: Learner, groups: list[list[Sample]], save_to: Path | None) -> Run:
    microbatches = [
        (len(batch.prompt_ids), batch.vision is not None and batch.vision.is_seen, batch.is_padding)
        for batch in learner.make_microbatches([sample for group in groups for sample in group])
    ]
    gradients = watch_gradients(learner)
    metrics = learner.step(groups).metrics
    if save_to is not None:
        learner.save(save_to)
    return Run(
        gradients=gradients,
        weights=torch.cat([tensor.flatten() for tensor in parameters(learner).values()]),
        metrics={name: value for name, value in metrics.items() if not name.startswith(("time/", "memory/"))},
        microbatches=microbatches,
    )


def mixed(num_groups: int) -> list[list[Sample]]:
    """Groups with pictures, then groups without."""
    half = num_groups // 2
    return rollout(num_groups=half) + rollout(with_images=False, num_groups=num_groups - half, seed=1)


CONTENTS = {
    "images": rollout(),
    "text": rollout(with_images=False),
    "mixed": mixed(4),
    "videos": rollout(with_images=False, with_videos=True),
}


def require_all_same(runs: Sequence[Run], one: Run) -> None:
    for run in runs:
        require_same(run, one)
    assert runs[0].metrics.keys() == one.metrics.keys()  # rank 0 reports for all


def require_same(many: Run, one: Run) -> None:
    assert difference(many.weights, one.weights) <= 1e-6
    for ours, theirs in zip(many.gradients, one.gradients, strict=True):
        assert difference(ours, theirs) <= 3e-6  # 2⁻²⁴ = 6e-8 through a dozen layers
    expected = {name: one.metrics[name] for name in many.metrics}
    assert many.metrics == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("content", CONTENTS)
def test_any_number_of_ranks_gives_the_same_update(ranks: RankPool, policy: Path, content: str):
    groups = CONTENTS[content]
    longest = max(len(sample.token_ids) for group in groups for sample in group)
    options = config(microbatch_tokens=2 * longest, learning_rate=1e-4)
    one = learn(policy, replace(options, learner=replace(options.learner, share_prefixes=False)), groups)
    for num_ranks in (2, 3):
        runs = ranks.run(num_ranks, learn, policy, options, groups)
        assert len({len(run.microbatches) for run in runs}) == 1
        assert sum(n for run in runs for n, _, idle in run.microbatches if not idle) == 12
        seen = [{seen for _, seen, _ in at_once} for at_once in zip(*(run.microbatches for run in runs), strict=True)]
        assert ({True, False} in seen) == (content == "mixed")  # pictures on one rank, none on another
        require_all_same(runs, one)


def test_a_rank_that_runs_out_of_sequences_waits_in_step(ranks: RankPool, policy: Path):
    groups = [group[:size] for group, size in zip(mixed(3), (1, 2, 1), strict=True)]
    longest = max(len(sample.token_ids) for group in groups for sample in group)
    options = config(microbatch_tokens=longest, learning_rate=1e-4)
    one = learn(policy, options, groups)
    runs = ranks.run(3, learn, policy, options, groups)
    assert sorted([idle for _, _, idle in run.microbatches] for run in runs) == [
        [False, False],
        [False, True],
        [False, True],
    ]
    require_all_same(runs, one)


OPTIONS: dict[str, dict[str, Any]] = {
    "checkpointing": {"learner": {"gradient_checkpointing": True}},
    "frozen tower": {"optimizer": {"vision_learning_rate": 0.0}},
    "penalty": {"kl_coefficient": 0.1},
    "adapters": {"lora": LoraConfig(rank=4, parts=("language", "vision"))},
    "adapters and penalty": {"lora": LoraConfig(rank=4, parts=("language",)), "kl_coefficient": 0.1},
    "adapted experts": {"lora": LoraConfig(rank=4, parts=("language", "experts"))},
    "balance": {"balance_coefficient": 1.0, "learner": {"gradient_checkpointing": True}},
    "other objective": {"objective": "dapo"},
    "cures": {
        "objective": "sspo",
        "aggregation": "token_mean",
        "correction": {"off_policy_threshold": 0.1, "off_policy_reference": "engine"},
    },
    "early stopping": {"correction": {"target_kl": 1e-12}},
}


def with_options(folder: Path, options: dict[str, Any], **kwargs: Any) -> TrainConfig:
    made = replace(config(**kwargs), model=str(folder))
    nested = {name: replace(getattr(made, name), **value) for name, value in options.items() if isinstance(value, dict)}
    return replace(made, **{**options, **nested})


@pytest.mark.parametrize("name", OPTIONS)
def test_options_mean_the_same_on_two_ranks(ranks: RankPool, moe_policy: Path, name: str):
    options = with_options(moe_policy, OPTIONS[name], microbatch_tokens=100, num_minibatches=2, learning_rate=1e-5)
    one = learn(moe_policy, options, mixed(4))
    assert "policy/routing_agreement" in one.metrics
    assert one.metrics["policy/updates"] == (1 if name == "early stopping" else 2)
    require_all_same(ranks.run(2, learn, moe_policy, options, mixed(4)), one)


def test_two_ranks_in_bfloat16_learn_what_one_rank_learns_up_to_its_rounding(ranks: RankPool, policy: Path):
    options = config(dtype="bfloat16", learning_rate=1e-4)
    exact = learn(policy, config(learning_rate=1e-4), rollout())
    one = learn(policy, options, rollout())
    noise = difference(one.gradients[0], exact.gradients[0])
    for run in ranks.run(2, learn, policy, options, rollout()):
        assert 0 < difference(run.gradients[0], exact.gradients[0]) <= 2 * noise


def resumed(folder: Path, options: TrainConfig, groups: list[list[Sample]], save_to: Path | None = None) -> Run:
    """One step more."""
    learner = Learner(options, folder)
    learner.load(folder)
    return one_step(learner, groups, save_to)


@pytest.mark.parametrize("parts", [(), ("language", "experts")], ids=["all weights", "adapters"])
def test_a_checkpoint_of_two_ranks_resumes_on_one_and_on_three(
    ranks: RankPool, moe_policy: Path, tmp_path: Path, parts: tuple[Any, ...]
):
    lora = LoraConfig(rank=4 if parts else 0, parts=parts or ("language",))
    options = with_options(moe_policy, {"lora": lora}, learning_rate=1e-4)
    ranks.run(2, learn, moe_policy, options, CONTENTS["mixed"], tmp_path)
    groups = rollout(seed=5)
    one = resumed(tmp_path, options, groups, tmp_path / "next_of_1")
    for num_ranks in (2, 3):
        runs = ranks.run(num_ranks, resumed, tmp_path, options, groups, tmp_path / f"next_of_{num_ranks}")
        loss = runs[0].metrics["loss/objective"]
        assert loss == pytest.approx(one.metrics["loss/objective"], rel=1e-6, abs=1e-6)
        require_all_same(runs, one)
        ours, theirs = (exported(tmp_path / f"next_of_{n}") for n in (num_ranks, 1))
        assert difference(ours, theirs) <= 1e-6
        assert difference(theirs, exported(moe_policy)) > 1e-6  # adapters, too, have moved what others read


def exported(folder: Path) -> Tensor:
    model = load_policy(folder, dtype=torch.float32, device="cpu")
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def hybrid(options: TrainConfig) -> TrainConfig:
    """HSDP: on four ranks two replicas, each over two of them."""
    return replace(options, learner=replace(options.learner, replicas=2))


def test_two_replicas_on_two_ranks_each_give_the_same_update(ranks: RankPool, policy: Path):
    # A key's bias has no gradient but rounding, which AdamW's usual eps would blow up to whole steps.
    options = config(microbatch_tokens=200, learning_rate=1e-4, eps=1e-5)
    before = exported(policy)
    one = learn(policy, options, mixed(4))
    assert (one.weights - before).abs().max() > 0.9e-4
    runs = ranks.run(4, learn, policy, hybrid(options), mixed(4))
    require_all_same(runs, one)
    for run in runs:
        assert (run.weights - one.weights).abs().max() <= 1e-6
        assert torch.equal(run.weights, runs[0].weights), "the replicas stay equal to the last bit"


def test_the_reference_of_a_penalty_has_two_replicas_too(ranks: RankPool, moe_policy: Path):
    options = with_options(moe_policy, OPTIONS["penalty"], microbatch_tokens=100, num_minibatches=2, learning_rate=1e-5)
    one = learn(moe_policy, options, mixed(4))
    assert one.metrics["policy/kl"] > 0
    require_all_same(ranks.run(4, learn, moe_policy, hybrid(options), mixed(4)), one)


@pytest.mark.parametrize("parts", [(), ("language", "experts")], ids=["all weights", "adapters"])
def test_a_checkpoint_of_two_replicas_resumes_on_one_and_on_three_ranks_and_one_of_one_rank_on_two_replicas(
    ranks: RankPool, moe_policy: Path, tmp_path: Path, parts: tuple[Any, ...]
):
    lora = LoraConfig(rank=4 if parts else 0, parts=parts or ("language",))
    options, groups = with_options(moe_policy, {"lora": lora}, learning_rate=1e-4), rollout(seed=5)
    of_four, of_one = tmp_path / "of_four", tmp_path / "of_one"
    ranks.run(4, learn, moe_policy, hybrid(options), CONTENTS["mixed"], of_four)
    learn(moe_policy, options, CONTENTS["mixed"], of_one)
    assert difference(exported(of_four), exported(of_one)) <= 1e-6
    assert bytes_in(of_four / "trainer") < 1.5 * bytes_in(of_one / "trainer"), "one of the replicas writes each shard"

    one = resumed(of_four, options, groups)
    require_all_same(ranks.run(3, resumed, of_four, options, groups), one)
    require_all_same(ranks.run(4, resumed, of_one, hybrid(options), groups), resumed(of_one, options, groups))


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


class Gathers(TorchDispatchMode):
    """The values that this rank gets in each gather of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # what it does to its shards comes here
        result = func(*args, **(kwargs or {}))
        if func.namespace == "_c10d_functional" and "all_gather" in func._opname:
            self.sizes.append(result.numel())
        return result


def gathers(folder: Path, options: TrainConfig, save_to: Path) -> tuple[list[int], list[int], int]:
    """What this rank gathers to load a policy and to save it; the values of the largest parameter."""
    with Gathers() as loading:
        learner = Learner(options, folder)
    with Gathers() as saving:
        learner.save(save_to)
    return loading.sizes, saving.sizes, max(parameter.numel() for parameter in learner.model.parameters())


def test_no_rank_of_a_replica_gathers_more_than_a_parameter_at_a_time(
    ranks: RankPool, moe_policy: Path, tmp_path: Path
):
    num_parameters = len(list(load_policy(moe_policy, dtype=torch.float32, device="cpu").parameters()))
    for loading, saving, largest in ranks.run(4, gathers, moe_policy, hybrid(config()), tmp_path):
        assert loading == []
        assert len(saving) == num_parameters
        assert max(saving) <= largest + 1  # an odd number of rows is filled up


def test_the_plan_knows_the_size_of_a_checkpoint(moe_policy: Path, tmp_path: Path):
    options = with_options(moe_policy, {})
    learn(moe_policy, options, rollout(), tmp_path)
    weights, optimizer = checkpoint_size(options, shape_of_checkpoint(str(moe_policy)))
    assert (tmp_path / "model.safetensors").stat().st_size == pytest.approx(weights.bytes, rel=0.02)
    assert bytes_in(tmp_path / "trainer") == pytest.approx(optimizer.bytes, rel=0.1)


def shares_of_memory(folder: Path, options: TrainConfig) -> tuple[float, float]:
    """This rank's part of all parameters and of the optimizer's state."""
    learner = Learner(options, folder)
    states = [tensor for state in learner.optimizer.state.values() for tensor in state.values() if tensor.dim()]
    return share_of(list(learner.model.parameters())), share_of(states)


def share_of(tensors: list[Any]) -> float:
    return sum(tensor.to_local().numel() for tensor in tensors) / sum(tensor.numel() for tensor in tensors)


def test_each_rank_holds_its_share_of_weights_and_of_the_optimizers_state(ranks: RankPool, policy: Path):
    for shares in ranks.run(2, shares_of_memory, policy, config()):
        assert shares == pytest.approx((0.5, 0.5), abs=0.01)
    for shares in ranks.run(4, shares_of_memory, policy, hybrid(config())):
        assert shares == pytest.approx((0.5, 0.5), abs=0.01)


def files_written(folder: Path, options: TrainConfig, target: Path, unwritable: str = "none") -> list[str] | str:
    """Saves the policy; the files that this rank has written, or the error of the one that cannot write its file."""
    from policies import export, weight_files

    def noting(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        if path.name.startswith(unwritable):
            raise OSError("no space left")
        written.append(path.name)
        save_file(tensors, path, **options)

    written: list[str] = []
    learner, save_file = Learner(options, folder), weight_files.save_file
    weight_files.save_file = noting
    try:
        export.save_policy(learner.model, learner.processor, target, max_shard_bytes=300_000)
    except OSError as error:
        return str(error)
    finally:
        weight_files.save_file = save_file
    return written


def test_four_ranks_of_two_replicas_write_the_files_of_the_published_folder_in_turn(
    ranks: RankPool, policy: Path, tmp_path: Path
):
    written = ranks.run(4, files_written, policy, hybrid(config()), tmp_path)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert written == [files[rank::4] for rank in range(4)] and len(files) > 4
    ours, theirs = (load_policy(path, dtype=torch.float32, device="cpu") for path in (tmp_path, policy))
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_rank_that_cannot_write_fails_when_the_others_have_gathered_all(
    ranks: RankPool, policy: Path, tmp_path: Path
):
    first, second = ranks.run(2, files_written, policy, config(), tmp_path, "model-00002")
    assert second == "no space left" and len(first) > 1


def nonfinite_on_the_second_rank(folder: Path, options: TrainConfig, groups: list[list[Sample]]) -> str:
    learner = Learner(options, folder)
    batches = learner.make_microbatches([sample for group in groups for sample in group])
    if torch.distributed.get_rank() == 1:
        layer = learner.model.get_submodule("model.language_model.layers.1.mlp")
        layer.register_forward_hook(lambda module, inputs, output: output / 0)
    return nonfinite_origin(learner.model, [partial(learner.forward, batch) for batch in batches])


def test_what_is_not_finite_on_one_rank_is_named_on_all(ranks: RankPool, dense_policy: Path):
    found = ranks.run(2, nonfinite_on_the_second_rank, dense_policy, config(), rollout())
    assert found == ["the output of model.language_model.layers.1.mlp"] * 2


def test_samples_are_cut_in_order_into_shares_of_about_equal_tokens():
    samples = [replace(rollout()[0][0], token_ids=np.zeros(n, np.int32)) for n in (10, 10, 10, 20, 5, 5)]
    shares = [[len(sample.token_ids) for sample in share] for share in split_ranks(samples, 3)]
    assert shares == [[10, 10], [10, 20], [5, 5]] or shares == [[10, 10], [10], [20, 5, 5]]
    assert [len(share) for share in split_ranks(samples[:1], 3)].count(0) == 2
    assert split_ranks(samples, 1) == [samples]


def test_a_plan_grows_by_halving_what_has_most_sequences():
    assert lengthen_plan([[0, 1, 2, 3], [4, 5]], 3) == [[0, 1], [2, 3], [4, 5]]
    assert lengthen_plan([[0, 1, 2]], 2) == [[0], [1, 2]]
    assert lengthen_plan([[0], [1]], 4) == [[0], [1]]
    assert lengthen_plan([], 2) == []


def step_with_a_nan(folder: Path, options: TrainConfig, groups: list[list[Sample]]) -> tuple[dict[str, float], bool]:
    """One step with an advantage that is not a number, on whichever rank has it; its metrics, and whether weights stayed."""
    learner = Learner(options, folder)
    before = parameters(learner)
    groups[-1][-1] = replace(groups[-1][-1], advantage=float("nan"))
    metrics = learner.step(groups).metrics
    return dict(metrics), all(torch.equal(before[name], tensor) for name, tensor in parameters(learner).items())


def test_a_gradient_that_is_not_finite_on_one_rank_is_dropped_on_all(ranks: RankPool, dense_policy: Path):
    for metrics, unchanged in ranks.run(2, step_with_a_nan, dense_policy, config(), rollout()):
        assert metrics["policy/skipped_updates"] == 1.0
        assert unchanged
