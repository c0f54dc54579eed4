"""A judge is believed only where it keeps to the form, and its failures are errors."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards import Score
from rewards.judge import JudgeLimits, judge
from rewards.llm_judge.request import read_verdict
from rewards.trial.dry_run import dry_run
from rewards.workers.runner import RewardRunner
from rl.config import TrainConfig
from rollout import Completion
from tests.rewards.judging import AXES, Endpoint, asked_for, saying, scores


def test_the_reward_is_the_mean_of_the_axes_and_each_is_a_part(endpoint: Endpoint) -> None:
    endpoint.script = lambda *_: saying(' {"style": 0.5, "accuracy": 1}\n')
    verifier = judge(base_url=endpoint.url, model="m", axes=AXES)
    parts = {"accuracy": 1.0, "style": 0.5}
    assert scores(verifier, "17") == [Score(reward=0.75, parts=parts)]
    verifier = judge(base_url=endpoint.url, model="m", axes=AXES, weights={"style": 1, "accuracy": 3})
    assert scores(verifier, "17") == [Score(reward=0.875, parts=parts)]


MALFORMED = [
    "",
    " ",
    "null",
    "1",
    "1.0",
    "true",
    "[]",
    "{}",
    '"accuracy"',
    "The answer is correct, score 1",
    '{"accuracy": 1',
    '{"accuracy": 1} {"style": 1}',
    '{"accuracy": 1, "style": 1} and so on',
    'Sure: {"accuracy": 1, "style": 1}',
    '```json\n{"accuracy": 1, "style": 1}\n```',
    '[{"accuracy": 1, "style": 1}]',
    '{"accuracy": 1}',
    '{"accuracy": 1, "style": 1, "extra": 1}',
    '{"accuracy": 1, "Style": 1}',
    '{"accuracy": 0, "accuracy": 1, "style": 1}',
    '{"accuracy": 1, "style": {"style": 1}}',
    '{"accuracy": true, "style": 1}',
    '{"accuracy": "1", "style": 1}',
    '{"accuracy": null, "style": 1}',
    '{"accuracy": [1], "style": 1}',
    '{"accuracy": 1.0001, "style": 1}',
    '{"accuracy": 2, "style": 1}',
    '{"accuracy": -0.1, "style": 1}',
    '{"accuracy": NaN, "style": 1}',
    '{"accuracy": Infinity, "style": 1}',
    '{"accuracy": 1e999, "style": 1}',
    '{"accuracy": 1' + "0" * 5000 + ', "style": 1}',
    '{"accuracy": .5, "style": 1}',
    "{'accuracy': 1, 'style': 1}",
    '\ufeff{"accuracy": 1, "style": 1}',
    '{"accuracy": 1, "style": 1}\0',
    "[" * 100_000,
    '{"accuracy":' * 50_000,
]


@pytest.mark.parametrize("content", MALFORMED, ids=lambda content: repr(content[:40]))
def test_what_is_not_quite_a_verdict_is_none(content: str) -> None:
    told = "it answered .*, not one JSON object with a number from 0 to 1 for each of \\['accuracy', 'style'\\] and nothing else"
    with pytest.raises(ValueError, match=told):
        read_verdict(content, AXES)


def test_without_a_verdict_there_is_an_error_after_all_attempts(endpoint: Endpoint) -> None:
    responses = [f"response {n:02d}" for n in range(len(MALFORMED))]

    def reply(endpoint: Endpoint, request: dict[str, Any]) -> tuple[int, Any]:
        number = re.search(r"response (\d\d)$", request["messages"][1]["content"][-1]["text"], re.MULTILINE)
        assert number
        return saying(MALFORMED[int(number[1])])

    endpoint.script = reply
    verifier = judge(base_url=endpoint.url, model="m", axes=AXES, limits=JudgeLimits(attempts=2, timeout=60))
    found = scores(verifier, *responses)
    assert (len(endpoint.asked), [score.reward for score in found]) == (2 * len(MALFORMED), [0.0] * len(MALFORMED))
    for score in found:
        told = str(score.error)
        assert told.startswith("judge 'm' gave no verdict on prompt 'p-7': it answered ") and len(told) < 600
        assert told.endswith("; take a model, or a server, that keeps to response_format (the last of 2 attempts)")


@given(st.dictionaries(st.sampled_from(["accuracy", "style", "x"]), st.floats() | st.integers() | st.booleans()))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on busy cores
def test_a_verdict_has_all_axes_and_only_them_from_0_to_1(verdict: dict[str, Any]) -> None:
    is_sound = verdict.keys() == AXES.keys() and all(type(v) is not bool and 0 <= v <= 1 for v in verdict.values())
    try:
        assert read_verdict(json.dumps(verdict), AXES) == verdict and is_sound
    except ValueError:
        assert not is_sound


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (saying(None, refusal="I would rather not."), "it answered '', .* and refused: 'I would rather not.'"),
        (saying(None, refusal='{"accuracy": 1}'), "it answered '', .* and refused"),
        (saying('{"accuracy": 0.', "length"), "; it was cut at max_completion_tokens: switch the judge's thoughts off"),
        (saying(["a list"]), r"it answered \['a list'\]"),
        ((200, {"choices": []}), "sent no chat completion .*; correct base_url"),
        ((200, {"hello": "world"}), "sent no chat completion .*; correct base_url"),
        ((200, "[]"), "sent no chat completion .*; correct base_url"),
        ((200, "not JSON"), "sent no chat completion .*; correct base_url"),
        ((400, {"error": {"message": "too long"}}), r"BadRequestError: .*too long.* \(http.*\); give what the endpoint"),
        ((401, {"error": {"message": "who?"}}), "AuthenticationError: .*; set OPENAI_API_KEY"),
        ((404, {"error": {"message": "no such model"}}), "NotFoundError: .*no such model.*; correct base_url.* or model"),
        ((429, {"error": {"message": "slow down"}}), "RateLimitError: .*; lower limits.concurrency"),
        ((500, "oh"), "InternalServerError: .*; the server's log may say more"),
    ],
)  # fmt: skip
def test_a_failure_is_an_error_with_a_remedy_and_not_a_zero(
    endpoint: Endpoint, reply: tuple[int, Any], told: str
) -> None:
    endpoint.script = lambda *_: reply
    [score] = scores(judge(base_url=endpoint.url, model="m", limits=JudgeLimits(attempts=1)), "17")
    assert score.error is not None and score.reward == 0.0
    assert re.search(f"gave no verdict on prompt 'p-7': .*{told}", score.error)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failed_requests_and_unusable_answers_are_tried_again(endpoint: Endpoint, status: int) -> None:
    replies = [(status, "oh"), (status, "oh"), saying("hm"), saying('{"accuracy": 0.25}')]
    endpoint.script = lambda endpoint, request: replies[len(endpoint.asked) - 1]
    verifier = judge(base_url=endpoint.url, model="m", limits=JudgeLimits(attempts=4, max_calls=2))
    assert scores(verifier, "17") == [Score(reward=0.25, parts={"accuracy": 0.25})]
    assert len(endpoint.asked) == 4


@pytest.mark.parametrize("replies", [[(500, "oh"), saying("hm")], [saying("hm"), (500, "oh")], [(500, "oh")] * 2])
def test_failed_requests_and_unusable_answers_have_one_budget_of_attempts(
    endpoint: Endpoint, replies: list[tuple[int, Any]]
) -> None:
    endpoint.script = lambda endpoint, request: replies[(len(endpoint.asked) - 1) % 2]
    [score] = scores(judge(base_url=endpoint.url, model="m", limits=JudgeLimits(attempts=3)), "17")
    assert len(endpoint.asked) == 3 and str(score.error).endswith("(the last of 3 attempts)")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_request_that_cannot_succeed_is_made_once(endpoint: Endpoint, status: int) -> None:
    endpoint.script = lambda *_: (status, "no")
    [score] = scores(judge(base_url=endpoint.url, model="m", limits=JudgeLimits(attempts=3)), "17")
    assert score.error is not None and len(endpoint.asked) == 1


def test_what_was_no_verdict_at_temperature_0_is_not_asked_for_again_but_sampled(endpoint: Endpoint) -> None:
    endpoint.script = lambda *_: saying("hm")
    for request in ({}, {"temperature": 0.3}, {"temperature": None}):
        scores(judge(base_url=endpoint.url, model="m", limits=JudgeLimits(attempts=3), request=request), "17")
    assert [asked.get("temperature") for asked in endpoint.asked] == [0, 1, 1] + [0.3] * 3 + [None] * 3


def test_a_judge_that_takes_too_long_is_an_error(endpoint: Endpoint) -> None:
    endpoint.script = lambda *_: time.sleep(0.5) or saying('{"accuracy": 1}')
    [score] = scores(judge(base_url=endpoint.url, model="m", limits=JudgeLimits(attempts=1, timeout=0.1)), "17")
    told = "none came within 0.1 s; raise limits.timeout, and beyond it the limit of reward calls (--reward-timeout)"
    assert score.error == f"judge 'm' gave no verdict on prompt 'p-7': {told}"


def test_all_attempts_and_the_wait_for_a_place_are_within_the_time(endpoint: Endpoint) -> None:
    endpoint.script, endpoint.retry_after = lambda *_: (429, "slow down"), 30
    start = time.monotonic()
    found = scores(judge(base_url=endpoint.url, model="m", limits=JudgeLimits(timeout=0.5, concurrency=2)), *"abcd")
    assert time.monotonic() - start < 5
    assert [bool(re.search("none came within 0.5 s; ", str(score.error))) for score in found] == [True] * 4
    # The others wait for a place all the time; one of them may get it in the last moment.
    assert all(
        "before that: HTTPStatusError: Client error '429 Too Many Requests'" in str(score.error) for score in found[:2]
    )


def test_a_judge_gives_up_before_its_process_is_ended() -> None:
    given = inspect.signature(RewardRunner).parameters["timeout"].default
    assert JudgeLimits().timeout < given == TrainConfig.reward_timeout


def test_a_server_that_is_not_there_is_an_error_that_tells_why() -> None:
    [score] = scores(judge(base_url="http://127.0.0.1:9/v1", model="m", limits=JudgeLimits(attempts=1)), "17")
    told = "APIConnectionError: Connection error., ConnectError: .*; start the server, or correct base_url"
    assert re.search(told, str(score.error))


def test_no_error_tells_a_secret(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-my-secret\n")
    endpoint.script = lambda *_: (401, {"error": {"message": "sk-my-secret is no key of ours"}})
    url = endpoint.url.replace("http://", "http://me:my-password@")
    [score] = scores(judge(base_url=url, model="m"), "17")
    assert "*** is no key of ours" in str(score.error) and f"({endpoint.url})" in str(score.error)
    assert "my-secret" not in repr(score) and "my-password" not in repr(score)
    endpoint.script, endpoint.retry_after = lambda *_: (429, "sk-my-secret again"), 30
    [score] = scores(judge(base_url=url, model="m", limits=JudgeLimits(timeout=0.5)), "17")
    assert "before that: HTTPStatusError" in str(score.error)
    assert "my-secret" not in repr(score) and "my-password" not in repr(score)


def test_siblings_are_judged_at_the_same_time_within_the_bound_and_the_same_question_once(endpoint: Endpoint) -> None:
    endpoint.script = lambda *_: time.sleep(0.1) or saying('{"accuracy": 1}')
    verifier = judge(base_url=endpoint.url, model="m", limits=JudgeLimits(concurrency=3, timeout=60))
    assert inspect.iscoroutinefunction(verifier)
    rewards = [score.reward for score in scores(verifier, *(str(n % 9) for n in range(36)))]
    assert (rewards, endpoint.most, len(endpoint.asked)) == ([1.0] * 36, 3, 9)


def test_one_who_no_longer_waits_leaves_the_answer_to_the_others(endpoint: Endpoint) -> None:
    endpoint.script = lambda *_: time.sleep(0.2) or saying('{"accuracy": 1}')
    verifier: Any = judge(base_url=endpoint.url, model="m")

    async def both() -> Score:
        first, second = (asyncio.create_task(verifier(asked_for(), Completion(text="17"))) for _ in range(2))
        await asyncio.sleep(0.1)
        first.cancel()
        return await second

    assert (asyncio.run(both()).reward, len(endpoint.asked)) == (1.0, 1)


def test_event_loops_may_come_and_go(endpoint: Endpoint) -> None:
    verifier: Any = judge(base_url=endpoint.url, model="m")
    endpoint.script = lambda *_: time.sleep(0.05) or saying('{"accuracy": 1}')

    def ask(text: str) -> float:
        return asyncio.run(verifier(asked_for(), Completion(text=text))).reward

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, "abcdefgh")) == [1.0] * 8


def test_no_connection_stays_open(endpoint: Endpoint) -> None:
    verifier = judge(base_url=endpoint.url, model="m")
    for texts in ("abc", "def"):
        assert [score.reward for score in scores(verifier, *texts)] == [1.0] * 3
        deadline = time.monotonic() + 5
        while endpoint.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert endpoint.connections == 0


def test_without_options_it_is_refused_with_a_remedy() -> None:
    with (
        RewardRunner(judge) as runner,
        pytest.raises(ValueError, match="needs a model: give its name .* judge\\(model="),
    ):
        dry_run(runner, asked_for())


@pytest.mark.parametrize("text", ["", " \n\t ", "<think>It is 17", "<think>It is 17</think>\n"])
def test_a_response_that_says_nothing_is_0_without_a_call(endpoint: Endpoint, text: str) -> None:
    found = scores(judge(base_url=endpoint.url, model="m", axes=AXES), text)
    assert found == [Score(reward=0.0, parts={"accuracy": 0.0, "style": 0.0}, unread=True)] and not endpoint.asked


@pytest.mark.parametrize("answer", [None, "", " "])
def test_a_prompt_without_an_answer_is_an_error_without_a_call(endpoint: Endpoint, answer: object) -> None:
    [score] = scores(judge(base_url=endpoint.url, model="m"), "17", prompt=asked_for(answer))
    assert score.error == "judge needs an answer, and prompt 'p-7' has none" and not endpoint.asked


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": None}, "judge needs a model: give its name"),
        ({"model": ""}, "judge needs a model: give its name"),
        ({"base_url": "localhost:8000"}, "must be a URL such as 'http://localhost:8000/v1', got 'localhost:8000'"),
        ({"request": {"stream": True, "n": 2}}, r"request of a judge must not set \['stream'\], got"),
        ({"axes": {}}, r"axes of a judge must be names and descriptions, .*, got \{\}"),
        ({"axes": ["accuracy"]}, r"axes of a judge must be names and descriptions, .*, got \['accuracy'\]"),
        ({"axes": {"accuracy": ""}}, "axes of a judge must be names and descriptions"),
        ({"weights": {"style": 1}}, r"weights of a judge must name its axes \['accuracy'\], got \['style'\]"),
        ({"weights": {"accuracy": 0}}, r"weights of a judge must be numbers >= 0, not all of them 0, got"),
        ({"weights": {"accuracy": -1}}, r"weights of a judge must be numbers >= 0"),
        ({"weights": {"accuracy": float("nan")}}, r"weights of a judge must be numbers >= 0"),
        ({"weights": {"accuracy": "1"}}, r"weights of a judge must be numbers >= 0"),
    ],
)  # fmt: skip
def test_options_are_checked_when_it_is_made(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        judge(**{"base_url": "http://x/v1", "model": "m"} | options)


@pytest.mark.parametrize(
    "limits", [{"max_calls": -1}, {"concurrency": 0}, {"attempts": 0}, {"timeout": 0}, {"timeout": float("nan")}]
)
def test_limits_are_checked_when_they_are_made(limits: dict[str, Any]) -> None:
    [(name, value)] = limits.items()
    with pytest.raises(ValueError, match=f"{name} of a judge must be .*, got {value}"):
        JudgeLimits(**limits)
