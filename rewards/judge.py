"""A language model as a verifier, behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from rewards.llm_judge.limits import JudgeLimits
from rewards.types import Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

ACCURACY = (
    "1 if the response's final answer means the same as the reference answer, 0 if it does not or if it gives several"
)
OPENAI = "https://api.openai.com/v1"


@with_options
def judge(
    *,
    model: str | None = None,
    base_url: str | None = None,
    axes: Mapping[str, str] = {"accuracy": ACCURACY},  # only read
    weights: Mapping[str, float] | None = None,
    cache: str | Path | None = None,
    limits: JudgeLimits = JudgeLimits(),  # noqa: B008  # frozen
    request: Mapping[str, Any] = {},  # only read
) -> Verifier:
    """Rewards a response as a language model grades it, compared with `prompt.answer`: `judge(model="Qwen/Qwen3-VL-8B-Instruct")`.

    The judge sees the question with its images, the reference answer, and of the response what follows its thoughts, at most
    `judge_request.LONGEST_RESPONSE` characters of it. It is told to take the response for data; a judge can be talked round
    all the same, so look at what it rewards. It has to reply in the JSON that `response_format` describes, at temperature 0.

    It is async: the completions of a group are judged at the same time, as one call for the `RewardRunner`, whose limit
    (`--reward-timeout`, 10 s) has to be longer than `limits.timeout`. A judge that shares the GPUs of the training waits for them,
    too: give it its own.

    Args:
        model: The judge's name at the endpoint.
        base_url: The endpoint, `http://localhost:8000/v1` for `vllm serve`; `None`: what `OPENAI_BASE_URL` says, or OpenAI
            where there is only an `OPENAI_API_KEY`, which every endpoint is sent, if it is set.
        axes: What is graded: a name, which metrics show, and a description, by which the judge goes.
        weights: Of the axes, for the mean that is the reward; `None`: all the same.
        cache: A file that keeps verdicts, by all that was asked and the model's name: see `judge_cache.VerdictCache`.
        limits: Calls, concurrency, attempts, seconds.
        request: Fields of the request to add, to replace, or with `None` to leave out where the endpoint does not know them:
            `{"chat_template_kwargs": {"enable_thinking": False}}`, `{"temperature": None}`.

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
    from rewards.llm_judge.cache import VerdictCache
    from rewards.llm_judge.client import JudgeClient  # late, as all that only some runs need

    asked = JudgeClient(
        base_url=_endpoint(base_url),
        model=model,
        axes=_checked_axes(axes),
        weights=_shares(axes, weights),
        cache=None if cache is None else VerdictCache(Path(cache).expanduser().resolve()),
        limits=limits,
        request=_checked_fields(request),
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


def _checked_fields(request: Mapping[str, Any]) -> dict[str, Any]:
    if taken := {"model", "messages", "stream"} & request.keys():
        raise ValueError(f"request of a judge must leave {sorted(taken)} to it, got {dict(request)}")
    return dict(request)


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
