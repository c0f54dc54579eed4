"""The trainer state of a checkpoint: a learner that is loaded goes on as the one that was saved."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from policies.host_copies import HostCopies
from policies.weight_files import TensorFile
from rl.learner import Learner
from rl.learner.state import available_bytes, copy_fits
from rl.run_dir.parts import sums_of_parts
from tests.learning import config, parameters, rollout


@pytest.mark.slow
@pytest.mark.parametrize("shown", [{"with_images": True}, {"with_images": False}], ids=["images", "text"])
def test_saved_and_loaded_learner_goes_on_as_if_nothing_had_happened(
    policy: Path, shown: dict[str, bool], tmp_path: Path
):
    options = config(num_minibatches=2, warmup_updates=6, weight_decay=0.01)
    steps = [rollout(**shown, seed=seed) for seed in range(4)]
    uninterrupted = Learner(options, policy)
    expected = [uninterrupted.step(groups).metrics for groups in steps]

    interrupted = Learner(options, policy)
    for groups in steps[:2]:
        interrupted.step(groups)
    interrupted.save(tmp_path / "step_2")
    draw = torch.rand(3)
    resumed = Learner(options, tmp_path / "step_2")
    resumed.load(tmp_path / "step_2")
    assert torch.equal(torch.rand(3), draw)
    got = [resumed.step(groups).metrics for groups in steps[2:]]

    ours, theirs = parameters(resumed), parameters(uninterrupted)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    for a, b in zip(got, expected[2:], strict=True):
        assert {n: v for n, v in a.items() if not n.startswith(("time/", "memory/"))} == {
            n: v for n, v in b.items() if not n.startswith(("time/", "memory/"))
        }


def test_a_lower_learning_rate_holds_from_the_first_update_after_a_resume(dense_policy: Path, tmp_path: Path):
    # A rise over 4 updates: after two of them the third has 3/4 of its rate, the fourth all of it.
    learner = Learner(config(num_minibatches=2, warmup_updates=4, learning_rate=1e-3), dense_policy)
    learner.step(rollout())
    learner.save(tmp_path)
    resumed = Learner(config(warmup_updates=4, learning_rate=2e-4, vision_learning_rate=1e-4), tmp_path)
    resumed.load(tmp_path)
    assert [group["lr"] for group in resumed.optimizer.param_groups] == pytest.approx([1.5e-4, 1.5e-4, 7.5e-5, 7.5e-5])
    rates = [resumed.step(rollout(seed=seed)).metrics["policy/learning_rate"] for seed in (1, 2, 3)]
    assert rates == pytest.approx([1.5e-4, 2e-4, 2e-4])


def test_a_policy_that_learnt_from_text_goes_on_with_images(dense_policy: Path, tmp_path: Path):
    learner = Learner(config(), dense_policy)
    learner.step(rollout(with_images=False))
    learner.save(tmp_path)
    resumed = Learner(config(), tmp_path)
    resumed.load(tmp_path)
    for each in (learner, resumed):
        each.step(rollout(with_images=True))
    assert all(
        torch.equal(a, b) for a, b in zip(parameters(learner).values(), parameters(resumed).values(), strict=True)
    )


def test_saving_does_not_change_what_follows(dense_policy: Path, tmp_path: Path):
    def run(between: Callable[[Learner], object]) -> dict[str, Tensor]:
        learner = Learner(config(), dense_policy)
        between(learner)
        learner.step(rollout(num_groups=1))
        return parameters(learner)

    saved, not_saved = run(lambda learner: learner.save(tmp_path)), run(lambda learner: None)
    assert all(torch.equal(saved[name], weight) for name, weight in not_saved.items())


def test_what_a_thread_writes_are_the_values_of_its_step(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    learner, go_on = Learner(config(), policy), Event()
    learner.step(rollout())
    learner.save(tmp_path / "at_once")
    write = TensorFile.write
    monkeypatch.setattr(TensorFile, "write", lambda file, folder: (go_on.wait(20), write(file, folder))[1])
    learner.save(tmp_path / "by_thread", background=True)
    learner.step(rollout(seed=1))
    assert not list((tmp_path / "by_thread").rglob("*.safetensors"))
    go_on.set()
    while (sums := sums_of_parts(tmp_path / "by_thread", 1)) is None:
        time.sleep(0.01)
    assert sums == sums_of_parts(tmp_path / "at_once", 1)


def test_no_file_of_a_checkpoint_is_a_pickle(dense_policy: Path, tmp_path: Path):
    Learner(config(), dense_policy).save(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            with pytest.raises((pickle.UnpicklingError, KeyError, EOFError, ValueError, IndexError)):
                pickle.loads(path.read_bytes())


def test_a_trainer_state_of_another_policy_is_refused_with_the_tensor(dense_policy: Path, tmp_path: Path):
    learner = Learner(config(), dense_policy)
    learner.save(tmp_path)
    file = tmp_path / "trainer" / "rank_0.safetensors"
    with safe_open(file, framework="pt") as saved:
        tensors, metadata = {name: saved.get_tensor(name) for name in saved.keys()}, saved.metadata()  # noqa: SIM118
    name = "exp_avg/model.language_model.norm.weight"
    save_file({**tensors, name: torch.zeros(3)}, file, metadata=metadata)
    with pytest.raises(ValueError, match=rf"trainer has 3 of \d+ rows of {name} from row 0 on"):
        learner.load(tmp_path)
    described = json.loads(metadata["trainer"])
    del described["first_rows"][name]
    save_file(tensors, file, metadata={"trainer": json.dumps(described)})
    with pytest.raises(ValueError, match=f"trainer has no {name}: it is of another policy"):
        learner.load(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"no rank_N.safetensors there: .* of an older version"):
        learner.load(tmp_path)


def test_without_room_for_a_copy_training_waits_for_the_file(dense_policy: Path, tmp_path: Path, monkeypatch):
    learner = Learner(config(), dense_policy)
    # 4 bytes of weights and 8 of moments for each parameter, and a step for each tensor.
    parameters = list(learner.model.parameters())
    size = 12 * sum(parameter.numel() for parameter in parameters) + 4 * len(parameters)
    for free, fits in ((1.2 * size, True), (1.2 * size - 1, False)):
        monkeypatch.setattr("rl.learner.state.available_bytes", lambda free=free: free)
        assert copy_fits(learner.model, learner.optimizer, HostCopies()) == fits
    learner.save(tmp_path, background=True)
    assert sums_of_parts(tmp_path, 1)


def test_each_checkpoint_has_the_weights_of_its_time_though_all_are_copied_into_the_same_memory(
    policy: Path, tmp_path: Path
):
    learner = Learner(config(), policy)
    pointers = []
    for number in range(3):
        learner.step(rollout(with_images=False, seed=number))
        learner.save(tmp_path / f"background_{number}", background=True)
        learner.save(tmp_path / f"at_once_{number}", background=False)
        copies = learner._host_copies
        pointers.append({name: copy.data_ptr() for name, copy in copies._copies.items()})
        learner.step(rollout(with_images=False, seed=9))  # while the first one is written
        learner._host_copies.begin()
    assert pointers[0] == pointers[1] == pointers[2] and copies.nbytes > 10_000_000
    for number in range(3):
        folders = [tmp_path / f"{kind}_{number}" for kind in ("background", "at_once")]
        written = [{path.relative_to(folder): path.read_bytes() for path in tensor_files(folder)} for folder in folders]
        assert written[0] == written[1] and len(written[0]) >= 2


def tensor_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_free_memory_is_that_of_the_machine_and_within_the_containers_limit(tmp_path: Path):
    assert available_bytes(tmp_path) > 2**20, "no limit there"
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) > 2**20
    (tmp_path / "memory.max").write_text("1500000\n")
    assert available_bytes(tmp_path) == 500_000
