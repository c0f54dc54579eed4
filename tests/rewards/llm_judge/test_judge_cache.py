"""A judge is not asked twice, and not more often than it may be, whoever asks."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from rewards import Score
from rewards.judge import JudgeLimits, judge
from rewards.llm_judge.cache import VerdictCache
from rewards.workers.runner import RewardRunner
from rollout import Completion, Group
from tests.rewards.judging import Endpoint, asked_for, saying, scores


def test_the_budget_counts_calls_and_then_there_are_errors(endpoint: Endpoint, tmp_path: Path) -> None:
    limits = JudgeLimits(max_calls=2, concurrency=1)
    verifier = judge(base_url=endpoint.url, model="m", cache=tmp_path / "verdicts.db", limits=limits)
    first = scores(verifier, "1", "2", "3")
    assert [score.reward for score in first] == [1.0, 1.0, 0.0]
    told = "judge 'm' gave no verdict on prompt 'p-7': all of max_calls=2 have been made; raise it in limits"
    assert first[2].error == told
    assert [score.error for score in scores(verifier, "2", "", "4")] == [None, None, told]
    assert len(endpoint.asked) == 2


def test_the_cache_knows_the_same_question_and_no_other(endpoint: Endpoint, tmp_path: Path) -> None:
    def ask(model: str = "m", text: str = "17", **prompt: Any) -> int:
        before = len(endpoint.asked)
        verifier = judge(base_url=endpoint.url, model=model, cache=tmp_path / "new" / "verdicts.db")
        assert scores(verifier, text, prompt=asked_for(**prompt)) == [Score(reward=1.0, parts={"accuracy": 1.0})]
        return len(endpoint.asked) - before

    def picture(color: str) -> dict[str, Any]:
        content = [{"type": "image"}, {"type": "text", "text": "8+9=?"}]
        return {"messages": [{"role": "user", "content": content}], "images": [Image.new("RGB", (2, 2), color)]}

    assert (ask(), ask()) == (1, 0)
    assert ask(id="another name of the same question") == 0
    assert (ask(text="18"), ask(model="n"), ask(answer="18"), ask(messages=[])) == (1, 1, 1, 1)
    assert (ask(**picture("red")), ask(**picture("blue")), ask(**picture("red"))) == (1, 1, 0)


def test_only_verdicts_are_kept(endpoint: Endpoint, tmp_path: Path) -> None:
    replies = [saying("hm"), (400, "oh"), saying('{"accuracy": 0}')]
    endpoint.script = lambda endpoint, request: replies[len(endpoint.asked) - 1]
    limits = JudgeLimits(attempts=1)
    verifier = judge(base_url=endpoint.url, model="m", cache=tmp_path / "verdicts.db", limits=limits)
    told = [scores(verifier, "17")[0].error for _ in range(4)]
    assert [error is None for error in told] == [False, False, True, True]
    assert len(endpoint.asked) == 3


def test_it_travels_to_worker_processes_which_share_the_cache(endpoint: Endpoint, tmp_path: Path) -> None:
    verifier = judge(base_url=endpoint.url, model="m", cache=tmp_path / "verdicts.db")
    assert scores(verifier, "1")[0].reward == 1.0  # it holds a connection now
    group = Group(
        prompt=asked_for(),
        prompt_token_ids=np.zeros(1, np.int32),
        completions=[Completion(text=text) for text in "1221"],
    )
    for _ in range(2):  # a new process each
        with RewardRunner(verifier) as runner:
            assert runner.score([group]) == [[Score(reward=1.0, parts={"accuracy": 1.0})] * 4]
    assert len(endpoint.asked) == 2


def test_the_budget_and_the_connections_of_a_process_stay_there(endpoint: Endpoint) -> None:
    verifier = judge(base_url=endpoint.url, model="m", limits=JudgeLimits(max_calls=1))
    assert [score.reward for score in scores(verifier, "1", "2")] == [1.0, 0.0]
    assert scores(cloudpickle.loads(cloudpickle.dumps(verifier)), "2")[0].reward == 1.0


def test_with_a_cache_the_budget_is_that_of_all_processes_and_runs_that_ask_the_model(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    def ask(text: str, model: str = "m") -> float:
        verifier = judge(
            base_url=endpoint.url, model=model, cache=tmp_path / "verdicts.db", limits=JudgeLimits(max_calls=2)
        )
        return scores(cloudpickle.loads(cloudpickle.dumps(verifier)), text)[0].reward

    assert [ask("1"), ask("2"), ask("3"), ask("1"), ask("3", "n"), ask("4")] == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    assert len(endpoint.asked) == 3


@pytest.mark.parametrize("cache", [None, "verdicts.db"])
def test_a_failed_request_costs_nothing_of_the_budget(endpoint: Endpoint, tmp_path: Path, cache: str | None) -> None:
    replies = [(500, "oh"), (401, "oh"), saying('{"accuracy": 1}'), saying('{"accuracy": 1}')]
    endpoint.script = lambda endpoint, request: replies[len(endpoint.asked) - 1]
    limits = JudgeLimits(attempts=1, max_calls=1)
    verifier = judge(base_url=endpoint.url, model="m", cache=cache and tmp_path / cache, limits=limits)
    assert [scores(verifier, text)[0].reward for text in "1234"] == [0.0, 0.0, 1.0, 0.0]
    assert len(endpoint.asked) == 3


def test_processes_count_their_calls_together(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rewards.llm_judge.cache import VerdictCache\n"
        "cache = VerdictCache(Path(sys.argv[1])); print(sum(cache.begin_call('m', 50) for _ in range(40)))"
    )
    command = [sys.executable, "-c", code, tmp_path / "verdicts.db"]
    processes = [
        subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert sum(int(process.communicate()[0]) for process in processes) == 50


def test_processes_may_make_and_fill_one_cache_at_the_same_time(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rewards.llm_judge.cache import VerdictCache\n"
        "for n in range(40): VerdictCache(Path(sys.argv[1])).put(f'{sys.argv[2]} {n}', str(n))"
    )
    path = tmp_path / "verdicts.db"
    root = Path(__file__).parents[3]
    processes = [subprocess.Popen([sys.executable, "-c", code, path, str(k)], cwd=root) for k in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    cache = VerdictCache(path)
    assert [cache.get(f"{k} {n}") for k in range(3) for n in range(40)] == [str(n) for _ in range(3) for n in range(40)]


def test_threads_may_make_one_cache_at_the_same_time(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        for n in range(20):
            caches = list(threads.map(VerdictCache, [tmp_path / f"{n}.db"] * 8))
            caches[0].put("asked", str(n))
            assert [cache.get("asked") for cache in caches] == [str(n)] * 8


def test_a_cache_that_is_none_is_refused_when_the_judge_is_made(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, but it is long enough to be looked at as one" * 30)
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE verdicts (a, b)")
    (tmp_path / "folder").mkdir()
    for name in ("text", "other.db", "folder", "text/below"):
        told = f"the judge's cache {str(tmp_path / name)!r} cannot be used (.*); give the path of a new file"
        with pytest.raises(ValueError, match=told):
            judge(base_url="http://x/v1", model="m", cache=tmp_path / name)


def test_a_cache_that_breaks_later_is_an_error(endpoint: Endpoint, tmp_path: Path) -> None:
    path = tmp_path / "verdicts.db"
    verifier = judge(base_url=endpoint.url, model="m", cache=path)
    assert scores(verifier, "17")[0].error is None
    path.write_text("no database any more" * 1000)
    assert "cannot be used" in str(scores(verifier, "17")[0].error)


def test_a_verdict_that_was_tampered_with_on_disk_is_an_error(endpoint: Endpoint, tmp_path: Path) -> None:
    verifier = judge(base_url=endpoint.url, model="m", cache=tmp_path / "verdicts.db")
    scores(verifier, "17")
    with sqlite3.connect(tmp_path / "verdicts.db") as database:
        database.execute("UPDATE verdicts SET verdict = '{\"accuracy\": 7}'")
    assert "it answered '{\"accuracy\": 7}'" in str(scores(verifier, "17")[0].error)
