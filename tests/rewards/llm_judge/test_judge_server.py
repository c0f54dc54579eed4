"""A real vLLM server as the judge. The small policy knows nothing, but held to the schema even its verdicts can be read."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from rewards import Score
from rewards.judge import JudgeLimits, judge
from rewards.workers.runner import RewardRunner
from rollout import Completion, Group
from rollout.config import RolloutConfig
from rollout.engine.vllm_processes import remove_unmapped, segments_of, semaphores_of, wait_until_ended
from rollout.pool.engine_actor import engine_environment
from tests.rewards.judging import AXES, asked_for, scores

pytestmark = pytest.mark.engine
SECONDS = 60.0  # for a verdict, on busy cores; it takes a fifth of a second
OPTIONS = {
    "--served-model-name": "small",
    "--host": "127.0.0.1",
    "--dtype": "float32",
    "--max-model-len": "4096",
    "--max-num-batched-tokens": "8192",
    "--max-num-seqs": "8",
    "--limit-mm-per-prompt": '{"image": 1, "video": 0}',
    "--generation-config": "vllm",
    # By default a second process imports all of vLLM, 12 CPU seconds; as to why it may be left out, see `VllmEngine`.
    "--distributed-executor-backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
    # Without it the schema allows white space anywhere, and at temperature 0 a random policy writes more than 1,000 tabs before
    # its first grade, or fills all 2,048 tokens with them (measured: 6 to 24 s each, 2 of 5 without a verdict).
    "--structured-outputs-config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
}


class Server:
    """A vLLM server in a session of its own, and all that it has started."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self._log = f"http://127.0.0.1:{self.port}/v1", log
        options = [word for option in (OPTIONS | {"--port": str(self.port)}).items() for word in option]
        module = "vllm.entrypoints.openai.api_server"
        command = [sys.executable, "-m", module, "--model", str(model), "--enforce-eager", *options]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | engine_environment(RolloutConfig(), model) | {"VLLM_CPU_KVCACHE_SPACE": "1"},
            )
        self._known: set[psutil.Process] = set()
        self._segments: set[Path] = set()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 900  # 45 s on idle cores
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(OSError):
                self._get("health")
                self._look_around()
                return
            time.sleep(0.2)
        pytest.fail("the server did not start:\n" + self._log.read_text()[-3000:])

    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts so far, as the server counts them."""
        found = re.search(r"^vllm:prompt_tokens_total\{.*\} (\S+)$", self._get("metrics"), re.MULTILINE)
        assert found
        return int(float(found[1]))

    def num_running(self) -> int:
        found = re.search(r"^vllm:num_requests_running\{.*\} (\S+)$", self._get("metrics"), re.MULTILINE)
        assert found
        return int(float(found[1]))

    def kill(self) -> None:
        """Ends it without notice, as a crash would."""
        self._look_around()
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ends it, at first in good order, and removes what vLLM leaves in shared memory."""
        self._look_around()
        self.process.terminate()
        wait_until_ended(self._known, seconds=20)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        wait_until_ended(self._known, seconds=10)
        remove_unmapped(self._segments.union(*(semaphores_of(process.pid) for process in self._known)))

    def _look_around(self) -> None:
        with suppress(psutil.NoSuchProcess):
            server = psutil.Process(self.process.pid)
            self._known |= {server, *server.children(recursive=True)}
        self._segments |= segments_of(self._known)

    def _get(self, page: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{page}", timeout=10) as reply:
            return str(reply.read().decode())


@pytest.fixture(scope="module")
def server(dense_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(dense_policy, tmp_path_factory.mktemp("server") / "log.txt")
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def small_judge(server: Server, **options: Any) -> Any:
    limits = JudgeLimits(timeout=SECONDS, attempts=2)
    return judge(**{"base_url": server.url, "model": "small", "axes": AXES, "limits": limits} | options)


def are_verdicts(found: list[Score]) -> bool:
    parts = [score.parts for score in found]
    in_range = all(part.keys() == AXES.keys() and all(0 <= grade <= 1 for grade in part.values()) for part in parts)
    return in_range and [score.error for score in found] == [None] * len(found)


def test_a_group_is_graded_on_all_axes_by_way_of_a_reward_worker(server: Server, tmp_path: Path) -> None:
    completions = [Completion(text=f"<think>8+9</think>It is {n % 4}.") for n in range(8)]
    group = Group(prompt=asked_for(), prompt_token_ids=np.zeros(1, np.int32), completions=completions)
    with RewardRunner(small_judge(server, cache=tmp_path / "verdicts.db"), timeout=2 * SECONDS) as runner:
        [found] = runner.score([group])
        read = server.num_prompt_tokens()
        assert are_verdicts(found) and runner.score([group]) == [found]
    assert server.num_prompt_tokens() == read  # they came from the cache


def test_grades_that_are_sampled_are_fractions_within_the_range(server: Server) -> None:
    found = [scores(small_judge(server, request={"temperature": 1, "seed": seed}), "17")[0] for seed in range(6)]
    assert are_verdicts(found) and len({score.reward for score in found}) > 3


def test_an_image_reaches_the_model(server: Server) -> None:
    def num_tokens(**prompt: Any) -> int:
        before = server.num_prompt_tokens()
        assert are_verdicts(scores(small_judge(server), "17", prompt=asked_for(**prompt)))
        return server.num_prompt_tokens() - before

    text = {"type": "text", "text": "8+9=?"}
    picture = {"images": [Image.new("RGB", (128, 64), "red")]}
    without = num_tokens(messages=[{"role": "user", "content": [text]}])
    shown = num_tokens(messages=[{"role": "user", "content": [{"type": "image"}, text]}], **picture)
    assert shown == without + 4 * 2 + 2  # a token for each 32 × 32 pixels, between two that mark begin and end


def test_what_keeps_to_no_schema_is_an_error_and_not_a_zero(server: Server) -> None:
    request = {"response_format": None, "max_completion_tokens": 16, "ignore_eos": True}
    [score] = scores(small_judge(server, request=request), "17")
    told = "gave no verdict on prompt 'p-7': it answered '.*, not one JSON object with .*; it was cut at max_completion"
    assert re.search(told, str(score.error), re.DOTALL)


def test_what_the_server_refuses_is_an_error_with_its_reason_and_a_remedy(server: Server) -> None:
    [score] = scores(small_judge(server, model="large"), "17")
    assert re.search(
        "NotFoundError: .*model `large` does not exist.*; correct base_url, .* or model$", str(score.error)
    )
    [score] = scores(small_judge(server, request={"max_completion_tokens": 5000}), "17")
    assert re.search("BadRequestError: .*4096.*; give what the endpoint takes in request=", str(score.error))


def test_a_server_that_dies_is_an_error_that_says_so(server: Server) -> None:  # the last one here
    request = {"response_format": None, "ignore_eos": True}  # 2,048 tokens: long enough to be met at work
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(scores, small_judge(server, request=request), "17")
        while not server.num_running():
            time.sleep(0.05)
        server.kill()
        [score] = asked.result()
    told = "APIConnectionError: Connection error., ConnectError: .*; start the server, or correct base_url"
    assert re.fullmatch(
        rf"judge 'small' gave no verdict on prompt 'p-7': {told} \(the last of 2 attempts\)", str(score.error)
    )
    assert score.reward == 0.0
