"""A judge at work: it asks its endpoint, once for each question, and keeps the verdicts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rewards.answer_text import after_thinking
from rewards.checking import describe
from rewards.judge import JudgeLimits
from rewards.judge_cache import VerdictCache
from rewards.judge_request import chat_request, read_verdict, request_key
from rewards.types import Score
from rollout.types import Completion, Prompt

if TYPE_CHECKING:
    import asyncio

    from openai import AsyncOpenAI

_REMEDIES = {  # by the names of the openai package's errors
    "APITimeoutError": "raise limits.timeout, or lower limits.concurrency",
    "APIConnectionError": "start the server, or correct base_url",
    "AuthenticationError": "set OPENAI_API_KEY to the key of this endpoint",
    "NotFoundError": "correct base_url, which mostly ends in /v1, or model",
    "RateLimitError": "lower limits.concurrency",
}


@dataclass(slots=True)
class _Session:
    """What belongs to one event loop: a client, its free places, and the questions that are being asked."""

    loop: asyncio.AbstractEventLoop
    client: AsyncOpenAI
    places: asyncio.Semaphore
    asking: dict[str, asyncio.Task[dict[str, float]]] = field(default_factory=dict)


@dataclass(kw_only=True)
class Judge:
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
        """The verdict on one completion; an error where there is none to be had."""
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
        # The client hands over whatever JSON it got.
        except (AttributeError, IndexError, TypeError, ValueError) as error:
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
