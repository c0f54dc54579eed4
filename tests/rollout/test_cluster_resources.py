"""How many engines Ray's nodes have room for, and how a refusal says what there is."""

from __future__ import annotations

import pytest

from rollout.cluster import Gpu, Node, most_engines, require_room, require_room_for_both, require_room_for_one
from rollout.config import RolloutConfig
from rollout.pool.engine_actor import engine_environment, engine_options


def node(cpus: int, gpus: int = 0, name: str = "10.0.0.1") -> Node:
    return Node(name=name, cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("nodes", "options", "learner_gpus"),
    [
        ([node(2)], {"num_engines": 2}, 0),
        ([node(3), node(3)], {"num_engines": 2, "threads_per_engine": 2}, 0),
        ([node(64, 8)], {"num_engines": 6, "gpus_per_engine": 1}, 2),
        ([node(64, 8)], {"num_engines": 8, "gpus_per_engine": 1}, 0),  # the learner shares them
        ([node(64, 8), node(64, 2)], {"num_engines": 2, "gpus_per_engine": 4}, 2),
    ],
)
def test_what_just_fits_is_let_in_and_one_engine_more_is_not(nodes, options, learner_gpus) -> None:
    require_room(nodes, RolloutConfig(**options), learner_gpus=learner_gpus)
    one_more = RolloutConfig(**options | {"num_engines": options["num_engines"] + 1})
    with pytest.raises(ValueError, match=f"Ray has room for {options['num_engines']} "):
        require_room(nodes, one_more, learner_gpus=learner_gpus)


@pytest.mark.parametrize(
    ("nodes", "options", "learner_gpus", "told"),
    [
        (
            [node(2)],
            {"num_engines": 3},
            0,
            "rollout.num_engines = 3 engines of 1 CPUs, each on one node: Ray has room for 2 "
            "(node 10.0.0.1: 2 CPUs, 0 GPUs): lower rollout.num_engines to 2, or start Ray on more machines",
        ),
        # Three CPUs on each of two nodes are six, but an engine of four fits on neither.
        ([node(3), node(3)], {"threads_per_engine": 4}, 0, "room for 0"),
        (
            [node(64, 8)],
            {"num_engines": 7, "gpus_per_engine": 1},
            2,
            "each on one node beside learner.gpus = 2: Ray has room for 6",
        ),
        ([node(64, 3), node(64, 3)], {"num_engines": 3, "gpus_per_engine": 2}, 0, "room for 2"),
        # Two GPUs are left over; the learner of three takes one of an engine, too.
        ([node(64, 3), node(64, 3)], {"num_engines": 2, "gpus_per_engine": 2}, 3, "room for 1"),
        ([node(64, 4)], {"gpus_per_engine": 1}, 5, "learner.gpus = 5, but Ray has 4 (node 10.0.0.1: 64 CPUs, 4 GPUs)"),
        ([], {}, 0, "room for 0 (no node)"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_asked_and_what_there_is(nodes, options, learner_gpus, told) -> None:
    with pytest.raises(ValueError) as caught:
        require_room(nodes, RolloutConfig(**options), learner_gpus=learner_gpus)
    assert told in str(caught.value)


def test_a_learner_takes_left_over_gpus_before_it_takes_an_engines() -> None:
    # Two nodes of three: an engine of two on each, one left over on each.
    assert [most_engines([1, 1], [1, 1], 2, learner) for learner in range(7)] == [2, 2, 2, 1, 1, 0, 0]


def test_an_engine_claims_its_gpus_of_ray_or_shares_those_of_the_learners_ranks() -> None:
    config = RolloutConfig(gpus_per_engine=2, threads_per_engine=3)
    own = engine_options(config, "m")
    assert (own["num_gpus"], own["num_cpus"], own["scheduling_strategy"]) == (2, 3, "SPREAD")
    assert engine_options(RolloutConfig(), "m")["num_cpus"] == 1, "nothing has derived its threads"
    assert engine_environment(RolloutConfig(), "m")["OMP_NUM_THREADS"] == "1"
    shared = engine_options(config, "m", [Gpu(node="ab" * 28, device="4"), Gpu(node="ab" * 28, device="5")])
    assert shared["num_gpus"] == 0, "of several GPUs Ray can lend a part to nobody"
    assert shared["scheduling_strategy"].node_id == "ab" * 28


def test_an_engine_of_a_local_folder_asks_no_hub(tmp_path) -> None:
    assert engine_environment(RolloutConfig(), tmp_path)["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in engine_environment(RolloutConfig(), "Qwen/Qwen3-VL-2B-Instruct")
    assert "VLLM_CPU_KVCACHE_SPACE" not in engine_environment(RolloutConfig(gpus_per_engine=1), tmp_path)


def test_a_teachers_engines_need_room_beside_the_students():
    one, on_gpus = RolloutConfig(), RolloutConfig(num_engines=2, gpus_per_engine=2)
    require_room_for_both([node(2)], one, one)
    with pytest.raises(
        ValueError, match=r"take 2 CPUs and 0 GPUs; Ray has node 10.0.0.1: 1 CPUs, 0 GPUs: lower rollout"
    ):
        require_room_for_both([node(1)], one, one)
    require_room_for_both([node(64, 8), node(64, 2)], on_gpus, on_gpus, learner_gpus=2)
    with pytest.raises(ValueError, match="take 4 CPUs and 11 GPUs"):
        require_room_for_both([node(64, 8), node(64, 2)], on_gpus, on_gpus, learner_gpus=3)


def test_a_replacement_without_room_is_told_and_one_that_never_has_room_is_refused(caplog) -> None:
    config = RolloutConfig(num_engines=3, gpus_per_engine=1)
    require_room_for_one([node(8, 3)], config)
    assert not caplog.messages
    require_room_for_one([node(8, 2)], config)
    [told] = caplog.messages
    assert "may have to wait for room" in told and "Ray has room for 2 (node 10.0.0.1: 8 CPUs, 2 GPUs)" in told
    with pytest.raises(ValueError, match="Ray has room for 0"):
        require_room_for_one([node(8)], config)
