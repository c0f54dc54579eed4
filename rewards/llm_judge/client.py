"""A judge at work: it asks its endpoint, once for each question, and keeps the verdicts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rewards.llm_judge.cache import VerdictCache
from rewards.llm_judge.limits import JudgeLimits
from rewards.llm_judge.request import chat_request, read_verdict, request_key
from rewards.text.answer_text import after_thinking
from rewards.types import Score
from rewards.workers.call import describe
from rollout.types import Completion, Prompt

if TYPE_CHECKING:
    import asyncio

    from openai import AsyncOpenAI, OpenAIError

FIRST_PAUSE = (
    0.5  # seconds after a failed request, unless the endpoint says how many; twice as many after each further one
)
_PASSING = {408, 409, 429}  # statuses, besides those from 500 on, that may be others at the next attempt
_REMEDIES = {  # by the names of the openai package's errors
    "APIConnectionError": "start the server, or correct base_url",
    "AuthenticationError": "set OPENAI_API_KEY to the key of this endpoint",
    "BadRequestError": "give what the endpoint takes in request={...}, None for a field that it does not know",
    "NotFoundError": "correct base_url, which mostly ends in /v1, or model",
    "RateLimitError": "lower limits.concurrency",
}
_CUT = (
    "it was cut at max_completion_tokens: switch the judge's thoughts off, and have its server write no white space for ever "
    """(vLLM: --structured-outputs-config '{"backend": "xgrammar", "disable_any_whitespace": true}')"""
)


class RetryableError(ValueError):
    """What may be otherwise at the next attempt, after a pause in seconds."""

    def __init__(self, told: str, pause: float = 0.0) -> None:
        super().__init__(told)
        self.pause = pause


@dataclass(slots=True)
class _Session:
    """What the questions of one event loop share while any of them is being asked."""

    client: AsyncOpenAI
    places: asyncio.Semaphore
    asking: dict[str, asyncio.Task[dict[str, float]]] = field(default_factory=dict)


@dataclass(kw_only=True)
class JudgeClient:
    """The options, checked, and what one process has of its own: the calls it has made, and its sessions."""

    base_url: str
    model: str
    axes: Mapping[str, str]
    weights: Mapping[str, float]
    cache: VerdictCache | None
    limits: JudgeLimits
    request: Mapping[str, Any]
    num_calls: int = 0
    sessions: dict[asyncio.AbstractEventLoop, _Session] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"num_calls": 0, "sessions": {}}  # on its way to another process

    async def score(self, prompt: Prompt, completion: Completion) -> Score:
        """The verdict on one completion; an error where there is none to be had."""
        if prompt.answer is None or not str(prompt.answer).strip():
            return Score(reward=0.0, error=f"judge needs an answer, and prompt {prompt.id!r} has none")
        response = after_thinking(completion.text).strip()
        if not response:
            return self._weighed(dict.fromkeys(self.axes, 0.0))
        try:
            request = chat_request(prompt, response, self.axes, {"model": self.model, **self.request})
            return self._weighed(await self._verdict(request))
        except ValueError as error:
            told = f"judge {self.model!r} gave no verdict on prompt {prompt.id!r}: {error}"
            return Score(reward=0.0, error=_without_secrets(told))

    def _weighed(self, verdict: Mapping[str, float]) -> Score:
        return Score(reward=sum(self.weights[axis] * grade for axis, grade in verdict.items()), parts=verdict)

    async def _verdict(self, request: dict[str, Any]) -> dict[str, float]:
        import asyncio

        key = request_key(request)
        known = self.cache.get(key) if self.cache else None
        if known is not None:
            return read_verdict(known, self.axes)
        session = self._session()
        if key not in session.asking:
            session.asking[key] = asyncio.create_task(self._asked(session, request, key))
        return await asyncio.shield(session.asking[key])  # of several who wait for it, one may be cancelled

    def _session(self) -> _Session:
        """Returns that of the running loop; importing and building a client is no part of a question's time."""
        import asyncio

        from openai import AsyncOpenAI

        loop = asyncio.get_running_loop()
        if loop not in self.sessions:
            key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"  # vLLM wants none, and the client wants one
            client = AsyncOpenAI(base_url=self.base_url, api_key=key, timeout=None, max_retries=0)
            self.sessions[loop] = _Session(client, asyncio.Semaphore(self.limits.concurrency))
        return self.sessions[loop]

    async def _asked(self, session: _Session, request: dict[str, Any], key: str) -> dict[str, float]:
        """Asks, and keeps the verdict; the last to be answered closes the session, for its loop may be about to end."""
        import asyncio

        try:
            verdict = await self._in_time(session, request)
            if self.cache:
                self.cache.put(key, json.dumps(verdict))
            return verdict
        finally:
            del session.asking[key]
            if not session.asking:
                del self.sessions[asyncio.get_running_loop()]
                await session.client.close()

    async def _in_time(self, session: _Session, request: dict[str, Any]) -> dict[str, float]:
        import asyncio

        problem = None
        try:
            # All of it: the reward runner, which sees only calls, would end the process after too many attempts.
            async with asyncio.timeout(self.limits.timeout), session.places:
                for attempt in range(self.limits.attempts):
                    if problem is not None:
                        await asyncio.sleep(problem.pause * 2 ** (attempt - 1))
                    try:
                        return await self._attempt(session.client, request)
                    except RetryableError as error:
                        problem = error
                    if request.get("temperature") == 0:  # which would give the same answer again
                        request = request | {"temperature": 1}
        except TimeoutError:
            remedy = "raise limits.timeout, and beyond it the limit of reward calls (--reward-timeout)"
            told = f"none came within {self.limits.timeout:g} s; {remedy}"
            raise ValueError(f"{told}; before that: {problem}" if problem else told) from problem
        raise ValueError(f"{problem} (the last of {self.limits.attempts} attempts)") from problem

    async def _attempt(self, client: AsyncOpenAI, request: dict[str, Any]) -> dict[str, float]:
        from openai import OpenAIError

        self._begin_call()
        more = {name: value for name, value in request.items() if name not in ("model", "messages")}
        try:
            reply = await client.chat.completions.create(
                model=request["model"], messages=request["messages"], extra_body=more
            )
            choice = reply.choices[0]
            content, refusal, is_cut = choice.message.content, choice.message.refusal, choice.finish_reason == "length"
        except OpenAIError as error:
            self._take_back_call()
            raise self._failure(error) from error
        # The client hands over whatever JSON it got.
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.base_url} sent no chat completion ({describe(error)}); correct base_url"
            ) from error
        try:
            return read_verdict(content or "", self.axes)
        except ValueError as error:
            remedy = _CUT if is_cut else "take a model, or a server, that keeps to response_format"
            refused = f" and refused: {str(refusal)[:100]!r}" if refusal else ""
            raise RetryableError(f"{error}{refused}; {remedy}") from error

    def _failure(self, error: OpenAIError) -> ValueError:
        # Of a connection that fails, the error itself says no more than that.
        cause = f", {describe(error.__cause__)}" if error.__cause__ and not hasattr(error, "status_code") else ""
        remedy = _REMEDIES.get(type(error).__name__, "the server's log may say more")
        told = f"{describe(error)}{cause} ({self.base_url}); {remedy}"
        status = getattr(error, "status_code", 500)  # where there was no reply at all, there may be one later
        if status < 500 and status not in _PASSING:
            return ValueError(told)
        try:
            pause = float(error.response.headers["retry-after"])  # type: ignore[attr-defined]
        except (AttributeError, KeyError, ValueError):
            pause = FIRST_PAUSE
        return RetryableError(told, pause)

    def _begin_call(self) -> None:
        limit = self.limits.max_calls
        if limit is None:
            return
        if self.cache:
            has_begun = self.cache.begin_call(self.model, limit)
        else:
            has_begun = self.num_calls < limit
            self.num_calls += has_begun
        if not has_begun:
            raise ValueError(f"all of max_calls={limit} have been made; raise it in limits")

    def _take_back_call(self) -> None:
        if self.limits.max_calls is None:
            return
        if self.cache:
            self.cache.take_back_call(self.model)
        else:
            self.num_calls -= 1


def _without_secrets(text: str) -> str:
    """Returns what may stand in a run's records: servers repeat a key that they do not know, and a URL may hold a password."""
    text = re.sub(r"(?<=://)[^/@\s]*@", "", text)
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    return text.replace(key, "***") if key else text
