"""A language model as a verifier, behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.answer_text import after_thinking
from rewards.checking import describe
from rewards.judge_cache import VerdictCache
from rewards.judge_request import chat_request, read_verdict, request_key
from rewards.options import with_options
from rewards.types import Score, Verifier
from rollout.types import Completion, Prompt

if TYPE_CHECKING:
    import asyncio

    from openai import AsyncOpenAI

ACCURACY = (
    "1 if the response's final answer means the same as the reference answer, 0 if it does not or if it gives several"
)
OPENAI = "https://api.openai.com/v1"
_REMEDIES = {  # by the names of the openai package's errors
    "APITimeoutError": "raise limits.timeout, or lower limits.concurrency",
    "APIConnectionError": "start the server, or correct base_url",
    "AuthenticationError": "set OPENAI_API_KEY to the key of this endpoint",
    "NotFoundError": "correct base_url, which mostly ends in /v1, or model",
    "RateLimitError": "lower limits.concurrency",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeLimits:
    """What a judge may cost; everything is counted by each reward worker for itself.

    Attributes:
        max_calls: Questions, after which there are no more verdicts but errors; `None`: any number. What the cache knows is free,
            and so is a request that failed and is repeated.
        concurrency: Questions that are asked at the same time.
        attempts: How often a request that fails, and a question that is not answered by a verdict, is tried.
        timeout: Seconds that one request may take.

    Raises:
        ValueError: A limit is out of range.
    """

    max_calls: int | None = None
    concurrency: int = 8
    attempts: int = 3
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.max_calls is not None and self.max_calls < 0:
            raise ValueError(f"max_calls of a judge must be >= 0, or None for any number, got {self.max_calls}")
        for name in ("concurrency", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a judge must be >= 1, got {getattr(self, name)}")
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout of a judge must be > 0 seconds, got {self.timeout}")


@with_options
def judge(
    *,
    model: str | None = None,
    base_url: str | None = None,
    axes: Mapping[str, str] = {"accuracy": ACCURACY},  # only read
    weights: Mapping[str, float] | None = None,
    cache: str | Path | None = None,
    limits: JudgeLimits = JudgeLimits(),  # frozen
) -> Verifier:
    """Rewards a response as a language model grades it, compared with `prompt.answer`: `judge(model="Qwen/Qwen3-VL-8B-Instruct")`.

    The judge sees the question with its images, the reference answer, and of the response what follows its thoughts, at most
    `judge_request.LONGEST_RESPONSE` characters of it. It is told to take the response for data; a judge can be talked round
    all the same, so look at what it rewards. It has to reply in the JSON that `response_format` describes, at temperature 0.

    It is async: the completions of a group are judged at the same time, as one call for the `RewardRunner`, whose timeout
    (`--reward-timeout`, 10 s) has to leave time for the slowest of them. A judge that shares the GPUs of the training waits for
    them, too: give it its own.

    Args:
        model: The judge's name at the endpoint.
        base_url: The endpoint, `http://localhost:8000/v1` for `vllm serve`; `None`: what `OPENAI_BASE_URL` says, or OpenAI
            where there is only an `OPENAI_API_KEY`, which every endpoint is sent, if it is set.
        axes: What is graded: a name, which metrics show, and a description, by which the judge goes.
        weights: Of the axes, for the mean that is the reward; `None`: all the same.
        cache: A file that keeps verdicts, by all that was asked and the model's name: see `judge_cache.VerdictCache`.
        limits: Calls, concurrency, attempts, seconds.

    Returns:
        The weighted mean of the grades, 0 to 1, with each as a part, and 0 without asking for a response that says nothing; a
        `Score` with an error where the prompt has no answer, or no verdict is to be had.

    Raises:
        ValueError: An option is missing or wrong, or the cache cannot be used.
    """
    if not model:
        raise ValueError(
            "judge needs a model: give the name by which its endpoint knows it, as in judge(model='my-model')"
        )
    asked = _Judge(
        base_url=_endpoint(base_url),
        model=model,
        axes=_checked_axes(axes),
        weights=_shares(axes, weights),
        cache=None if cache is None else VerdictCache(Path(cache).expanduser().resolve()),
        limits=limits,
    )

    async def verify(prompt: Prompt, completion: Completion) -> Score:
        return await asked.score(prompt, completion)

    return verify


def _endpoint(base_url: str | None) -> str:
    url = base_url or os.environ.get("OPENAI_BASE_URL") or (os.environ.get("OPENAI_API_KEY") and OPENAI)
    if not url:
        remedy = "give base_url='http://localhost:8000/v1', or set OPENAI_BASE_URL or OPENAI_API_KEY"
        raise ValueError(f"judge knows no endpoint; {remedy}")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"base_url of a judge must be a URL such as 'http://localhost:8000/v1', got {url!r}")
    return url


def _checked_axes(axes: Mapping[str, str]) -> dict[str, str]:
    texts = [*axes, *axes.values()] if isinstance(axes, Mapping) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"axes of a judge must be names and descriptions, as in {{'accuracy': '...'}}, got {axes!r}")
    return dict(axes)


def _shares(axes: Mapping[str, str], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Returns the weights of the axes, normalised to the sum 1."""
    weights = dict.fromkeys(axes, 1.0) if weights is None else weights
    if weights.keys() != axes.keys():
        raise ValueError(f"weights of a judge must name its axes {list(axes)}, got {list(weights)}")
    are_weights = all(isinstance(weight, Real) and weight >= 0 for weight in weights.values())
    total = float(sum(weights.values())) if are_weights else 0.0
    if not 0 < total < math.inf:
        raise ValueError(f"weights of a judge must be numbers >= 0, not all of them 0, got {dict(weights)}")
    return {axis: weight / total for axis, weight in weights.items()}


@dataclass(slots=True)
class _Session:
    """What belongs to one event loop: a client, its free places, and the questions that are being asked."""

    loop: asyncio.AbstractEventLoop
    client: AsyncOpenAI
    places: asyncio.Semaphore
    asking: dict[str, asyncio.Task[dict[str, float]]] = field(default_factory=dict)


@dataclass(kw_only=True)
class _Judge:
    """The options, checked, and what one process has of its own: the calls it has made, and its session."""

    base_url: str
    model: str
    axes: Mapping[str, str]
    weights: Mapping[str, float]
    cache: VerdictCache | None
    limits: JudgeLimits
    num_calls: int = 0
    session: _Session | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"num_calls": 0, "session": None}  # on its way to another process

    async def score(self, prompt: Prompt, completion: Completion) -> Score:
        if prompt.answer is None or not str(prompt.answer).strip():
            return Score(reward=0.0, error=f"judge needs an answer, and prompt {prompt.id!r} has none")
        response = after_thinking(completion.text).strip()
        if not response:
            return self._weighed(dict.fromkeys(self.axes, 0.0))
        try:
            return self._weighed(await self._verdict(chat_request(prompt, response, self.model, self.axes)))
        except ValueError as error:
            return Score(reward=0.0, error=f"judge {self.model!r} gave no verdict on prompt {prompt.id!r}: {error}")

    def _weighed(self, verdict: Mapping[str, float]) -> Score:
        return Score(reward=sum(self.weights[axis] * grade for axis, grade in verdict.items()), parts=verdict)

    async def _verdict(self, request: dict[str, Any]) -> dict[str, float]:
        import asyncio

        key = request_key(request)
        known = self.cache.get(key) if self.cache else None
        if known is not None:
            return read_verdict(known, self.axes)
        asking = self._here().asking
        if key not in asking:
            asking[key] = asyncio.create_task(self._asked(request, key))
            asking[key].add_done_callback(lambda _: asking.pop(key))
        return await asyncio.shield(asking[key])  # of several who wait for it, one may be cancelled

    async def _asked(self, request: dict[str, Any], key: str) -> dict[str, float]:
        """Asks until there is a verdict, and keeps it."""
        problem = ValueError()
        async with self._here().places:
            for _ in range(self.limits.attempts):
                content = await self._content(request)
                try:
                    verdict = read_verdict(content, self.axes)
                except ValueError as error:
                    problem = error
                    continue
                if self.cache:
                    self.cache.put(key, json.dumps(verdict))
                return verdict
        remedy = "take a model, or a server, that keeps to response_format"
        raise ValueError(f"{problem}, in the last of {self.limits.attempts} attempts; {remedy}") from problem

    async def _content(self, request: dict[str, Any]) -> str:
        """Returns what the judge replies, `""` for nothing. The client repeats requests that fail, ever more slowly."""
        from openai import OpenAIError

        if self.limits.max_calls is not None and self.num_calls >= self.limits.max_calls:
            raise ValueError(f"all of max_calls={self.limits.max_calls} have been made here; raise it in limits")
        self.num_calls += 1
        try:
            reply = await self._here().client.chat.completions.create(**request)
            message = reply.choices[0].message
            return message.content or message.refusal or ""
        except OpenAIError as error:
            remedy = _REMEDIES.get(type(error).__name__, "the server's log may say more")
            raise ValueError(f"{describe(error)} ({self.base_url}); {remedy}") from error
        except (
            AttributeError,
            IndexError,
            TypeError,
            ValueError,
        ) as error:  # the client hands over whatever JSON it got
            raise ValueError(
                f"{self.base_url} sent no chat completion ({describe(error)}); correct base_url"
            ) from error

    def _here(self) -> _Session:
        import asyncio

        from openai import AsyncOpenAI

        loop = asyncio.get_running_loop()
        if self.session is None or self.session.loop is not loop:
            key = os.environ.get("OPENAI_API_KEY") or "none"  # vLLM wants none, and the client wants one
            retries = self.limits.attempts - 1
            client = AsyncOpenAI(base_url=self.base_url, api_key=key, timeout=self.limits.timeout, max_retries=retries)
            self.session = _Session(loop, client, asyncio.Semaphore(self.limits.concurrency))
        return self.session
