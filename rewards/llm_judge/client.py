"""Client of a judge's endpoint: requests each verdict once, and caches it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rewards.llm_judge.cache import VerdictCache
from rewards.llm_judge.limits import JudgeLimits
from rewards.llm_judge.request import chat_request, read_verdict, request_key
from rewards.text.answer_text import answer_part
from rewards.types import Score
from rewards.workers.call import describe
from rollout.types import Completion, Prompt

if TYPE_CHECKING:
    import asyncio

    from openai import AsyncOpenAI, OpenAIError

_REMEDIES = {  # by the names of the openai package's errors
    "APIConnectionError": "start the server, or correct base_url",
    "AuthenticationError": "set OPENAI_API_KEY to the key of this endpoint",
    "BadRequestError": "give what the endpoint takes in request={...}, None for a field that it does not know",
    "NotFoundError": "correct base_url, which mostly ends in /v1, or model",
    "RateLimitError": "lower limits.concurrency",
}
_CUT = (
    "it was cut at max_completion_tokens: switch the judge's thoughts off, and keep its server from endless white space "
    """(vLLM: --structured-outputs-config '{"backend": "xgrammar", "disable_any_whitespace": true}')"""
)


class RetryableError(ValueError):
    """A reply without a verdict, where another request may bring one."""


@dataclass(slots=True)
class _Session:
    """Connections of one event loop; it is closed when no request is pending."""

    client: AsyncOpenAI
    slots: asyncio.Semaphore
    pending: dict[str, asyncio.Task[dict[str, float]]] = field(default_factory=dict)
    """Tasks by the key of their request; equal requests share one."""


@dataclass(kw_only=True)
class JudgeClient:
    """Checked options of a judge, and the state of one process: its number of calls and its sessions."""

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
        """Returns the score of one completion; it has an error if no verdict can be had."""
        if prompt.answer is None or not str(prompt.answer).strip():
            return Score(reward=0.0, error=f"judge needs an answer, and prompt {prompt.id!r} has none")
        response = answer_part(completion).strip()
        if not response:
            return replace(self._weighted_score(dict.fromkeys(self.axes, 0.0)), unread=True)
        try:
            request = chat_request(prompt, response, self.axes, {"model": self.model, **self.request})
            return self._weighted_score(await self._verdict(request))
        except ValueError as error:
            message = f"judge {self.model!r} gave no verdict on prompt {prompt.id!r}: {error}"
            return Score(reward=0.0, error=_without_secrets(message))

    def _weighted_score(self, verdict: Mapping[str, float]) -> Score:
        return Score(reward=sum(self.weights[axis] * grade for axis, grade in verdict.items()), parts=verdict)

    async def _verdict(self, request: dict[str, Any]) -> dict[str, float]:
        import asyncio

        key = request_key(request)
        cached = self.cache.get(key) if self.cache else None
        if cached is not None:
            return read_verdict(cached, self.axes)
        session = self._session()
        if key not in session.pending:
            session.pending[key] = asyncio.create_task(self._new_verdict(session, request, key))
        return await asyncio.shield(session.pending[key])  # one waiting call may be cancelled, and the others go on

    def _session(self) -> _Session:
        """Returns the session of the running loop; imports and client set-up do not count against the time limit."""
        import asyncio

        from openai import AsyncOpenAI

        loop = asyncio.get_running_loop()
        if loop not in self.sessions:
            key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"  # vLLM needs no key, but the client does
            client = AsyncOpenAI(base_url=self.base_url, api_key=key, timeout=None)
            self.sessions[loop] = _Session(client, asyncio.Semaphore(self.limits.concurrency))
        return self.sessions[loop]

    async def _new_verdict(self, session: _Session, request: dict[str, Any], key: str) -> dict[str, float]:
        """Requests and caches a verdict; the last pending request closes the session, as its loop may be about to end."""
        import asyncio

        try:
            verdict = await self._with_deadline(session, request)
            if self.cache:
                self.cache.put(key, json.dumps(verdict))
            return verdict
        finally:
            del session.pending[key]
            if not session.pending:
                del self.sessions[asyncio.get_running_loop()]
                await session.client.close()

    async def _with_deadline(self, session: _Session, request: dict[str, Any]) -> dict[str, float]:
        import asyncio

        problem: BaseException | None = None
        attempts = 0
        try:
            # One limit for all attempts: the reward runner sees only calls, and would end the process after a long one.
            async with asyncio.timeout(self.limits.timeout), session.slots:
                while attempts < self.limits.attempts:
                    reply, num_requests = await self._call(session.client, request, attempts)
                    attempts += num_requests
                    try:
                        return self._read(reply)
                    except RetryableError as error:
                        problem = error
                    if request.get("temperature") == 0:  # the same request would bring the same reply
                        request = request | {"temperature": 1}
        except TimeoutError as error:
            # The client retries inside an `except`, so its last failure is the context of the exception that ends its pause.
            problem = (error.__cause__ and error.__cause__.__context__) or problem
            remedy = "raise limits.timeout, and beyond it the limit of reward calls (--reward-timeout)"
            message = f"none came within {self.limits.timeout:g} s; {remedy}"
            raise ValueError(f"{message}; before that: {_brief(problem)}" if problem else message) from problem
        raise ValueError(f"{problem} (the last of {attempts} attempts)") from problem

    async def _call(self, client: AsyncOpenAI, request: dict[str, Any], attempts: int) -> tuple[Any, int]:
        """Returns the reply, and the number of requests that it took; the client repeats requests that fail for a while.

        Args:
            client: Of the session.
            request: The body.
            attempts: Requests that were made for this verdict before.

        Raises:
            ValueError: The endpoint refused the request, failed, or is none.
        """
        from openai import OpenAIError

        self._begin_call()
        patient = client.with_options(max_retries=self.limits.attempts - attempts - 1)
        extra = {name: value for name, value in request.items() if name not in ("model", "messages")}
        try:
            raw = await patient.chat.completions.with_raw_response.create(
                model=request["model"], messages=request["messages"], extra_body=extra
            )
        except OpenAIError as error:
            self._take_back_call()
            raise ValueError(self._readable(error, attempts)) from error
        # The client does not check the JSON that it received.
        try:
            choice = raw.parse().choices[0]
            _ = choice.message.content, choice.message.refusal, choice.finish_reason
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.base_url} sent no chat completion ({describe(error)}); correct base_url"
            ) from error
        return choice, raw.retries_taken + 1

    def _read(self, choice: Any) -> dict[str, float]:
        try:
            return read_verdict(choice.message.content or "", self.axes)
        except ValueError as error:
            refusal = choice.message.refusal
            is_cut = choice.finish_reason == "length"
            remedy = _CUT if is_cut else "take a model, or a server, that keeps to response_format"
            refused = f" and refused: {str(refusal)[:100]!r}" if refusal else ""
            raise RetryableError(f"{error}{refused}; {remedy}") from error

    def _readable(self, error: OpenAIError, attempts: int) -> str:
        """Returns a failed request as a message with a remedy."""
        # A connection error has its reason only in its cause.
        cause = f", {describe(error.__cause__)}" if error.__cause__ and not hasattr(error, "status_code") else ""
        remedy = _REMEDIES.get(type(error).__name__, "the server's log may say more")
        sent = getattr(error, "request", None)
        attempts += 1 + int(sent.headers.get("x-stainless-retry-count", 0) if sent else 0)  # the client counts in there
        count = f" (the last of {attempts} attempts)" if attempts > 1 else ""
        return f"{describe(error)}{cause} ({self.base_url}); {remedy}{count}"

    def _begin_call(self) -> None:
        limit = self.limits.max_calls
        if limit is None:
            return
        if self.cache:
            is_allowed = self.cache.begin_call(self.model, limit)
        else:
            is_allowed = self.num_calls < limit
            self.num_calls += is_allowed
        if not is_allowed:
            raise ValueError(f"all of max_calls={limit} have been made; raise it in limits")

    def _take_back_call(self) -> None:
        if self.limits.max_calls is None:
            return
        if self.cache:
            self.cache.take_back_call(self.model)
        else:
            self.num_calls -= 1


def _brief(problem: BaseException) -> str:
    return str(problem) if isinstance(problem, RetryableError) else describe(problem)


def _without_secrets(text: str) -> str:
    """Returns the text without passwords of URLs and without the API key, which servers repeat if they do not know it."""
    text = re.sub(r"(?<=://)[^/@\s]*@", "", text)
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    return text.replace(key, "***") if key else text
