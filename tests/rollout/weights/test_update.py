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
    made = RayEngineClient(config=RolloutConfig(), engines=engines)
    made.init_weight_transfer_engine({"rank_offset": 1})  # as NCCL has it
    calls.clear()
    return made


def test_an_engine_that_is_lost_before_a_broadcast_is_named_before_it_begins(calls: list[str]) -> None:
    # By NCCL the learner would wait for the dead engine for ever.
    ours = client(calls, "start_weight_update")
    assert ours.begin(ours.engines) == "a has died"
    assert calls == ["a.start_weight_update", "b.start_weight_update"]


def test_engines_that_are_prepared_are_not_prepared_again_in_this_sync_but_in_the_next(calls: list[str]) -> None:
    ours = client(calls, "")
    assert ours.begin(ours.engines) is None
    ours.start_weight_update()
    assert calls == ["a.start_weight_update", "b.start_weight_update"]
    ours.start_weight_update()
    assert len(calls) == 4


def test_an_engine_that_fails_in_an_update_is_left_out_of_the_rest_and_named(calls: list[str]) -> None:
    ours = client(calls, "update_weights")

    def send(version: int) -> dict[str, float]:
        ours.next_version = version
        ours.start_weight_update()
        ours.update_weights({})
        ours.finish_weight_update()
        return {"sync/seconds": 1.0}

    report = ours.run_sync(5, ours.engines, send)
    assert calls[-1] == "b.finish_weight_update" and "a.finish_weight_update" not in calls
    assert report.failures == {"a": "a has died"} and report.published.version == 5
    assert report.metrics == {"sync/seconds": 1.0}
