"""A weight update on several engines, by calls made up: who is left out, and when nothing may be sent at all."""

from __future__ import annotations

from typing import Any

import pytest

import rollout.weights.update
from rollout.config import RolloutConfig
from rollout.ray_calls import EngineAddress
from rollout.types import EngineFailed
from rollout.weights.update import RayEngineClient


class FakeActor:
    """Notes each call; fails in one method, if told so."""

    def __init__(self, calls: list[str], name: str, fails_in: str = "") -> None:
        self.calls, self.name, self.fails_in = calls, name, fails_in

    @property
    def call(self) -> Any:
        actor = self

        class Method:
            def remote(self, method: str, *args: Any) -> Any:
                actor.calls.append(f"{actor.name}.{method}")
                return (actor, method)

        return Method()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is called, without Ray: a call's reference is the call itself, done at once."""

    def get(found: Any) -> Any:
        for actor, method in found if isinstance(found, list) else [found]:
            if actor.fails_in == method:
                raise EngineFailed(f"{actor.name} has died")

    monkeypatch.setattr(rollout.weights.update, "ray_get", get)
    monkeypatch.setattr(rollout.weights.update.ray, "wait", lambda waiting, **_: (waiting, []))
    return []


def client(calls: list[str], fails_in: str) -> RayEngineClient:
    actors = [FakeActor(calls, "a", fails_in), FakeActor(calls, "b")]
    engines = [EngineAddress(name=actor.name, node="here", actor=actor) for actor in actors]
    return RayEngineClient(config=RolloutConfig(), engines=engines)


def update(client: RayEngineClient) -> dict[str, float]:
    client.find_lost()
    client.start_weight_update()
    client.update_weights({})
    client.finish_weight_update()
    return {"sync/seconds": 1.0}


def test_engines_in_one_group_are_told_their_ranks_one_after_the_other(calls: list[str]) -> None:
    ours = client(calls, "")
    ours.config = RolloutConfig(gpus_per_engine=4)
    ours.init_weight_transfer_engine({"rank_offset": 1})
    assert [ours._info_for(engine, number) for number, engine in enumerate(ours.engines)] == [
        {"rank_offset": 1},
        {"rank_offset": 5},
    ]


def test_an_engine_that_fails_in_an_update_is_left_out_of_the_rest_and_named(calls: list[str]) -> None:
    ours = client(calls, "update_weights")
    report = ours.run_sync(5, ours.engines, lambda version: update(ours))
    assert calls[-1] == "b.finish_weight_update" and "a.finish_weight_update" not in calls
    assert report.failures == {"a": "a has died"} and report.published.version == 5
    assert report.metrics == {"sync/seconds": 1.0}


@pytest.mark.parametrize("method", ["start_weight_update", "update_weights"])
def test_an_engine_that_fails_in_a_broadcast_takes_the_others_with_it(calls: list[str], method: str) -> None:
    ours, given_up = client(calls, method), []
    ours.give_up = lambda: given_up.append(True)
    update(ours)
    assert ours.failures == {"a": "a has died", "b": "another engine was lost in the same broadcast: a has died"}
    assert given_up == [True]
    assert calls[-1] == f"b.{method}", "nothing is asked of an engine that waits for a lost one"


@pytest.mark.parametrize("method", ["ping", "finish_weight_update"])
def test_an_engine_that_fails_before_or_after_a_broadcast_is_lost_alone(calls: list[str], method: str) -> None:
    ours, given_up = client(calls, method), []
    ours.give_up = lambda: given_up.append(True)
    update(ours)
    assert ours.failures == {"a": "a has died"} and not given_up
    assert calls[-1] == "b.finish_weight_update"


def test_an_engine_whose_sums_differ_is_lost_alone_and_never_commits_the_version(calls: list[str]) -> None:
    ours = client(calls, "verify_weights")
    ours.sums = {"norm": 3}
    report = ours.run_sync(5, ours.engines, lambda version: update(ours))
    assert calls[-1] == "b.finish_weight_update" and "a.finish_weight_update" not in calls
    assert report.failures == {"a": "a has died"} and report.published.sums == {"norm": 3}
