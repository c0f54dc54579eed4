"""A language model as a verifier, at any OpenAI-compatible endpoint."""

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

    The judge gets the question with its images, the reference answer, and the response after its thoughts, at most
    `rewards.llm_judge.request.LONGEST_RESPONSE` characters. Its instructions are to treat the response as data, but a judge can
    be persuaded all the same, so look at the responses that it rewards. It has to reply in the JSON of `response_format`, at
    temperature 0.

    The verifier is async: the completions of a group are judged at the same time, as one call for the `RewardRunner`. Its limit
    (`--reward-timeout`, 10 s) has to be longer than `limits.timeout`. Give the judge its own GPUs: on those of the training it
    waits for them.

    Args:
        model: The judge's name at the endpoint.
        base_url: The endpoint, `http://localhost:8000/v1` for `vllm serve`. Default: `OPENAI_BASE_URL`, or OpenAI if only
            `OPENAI_API_KEY` is set. Every endpoint gets that key.
        axes: Names of the grades, which metrics show, and their descriptions for the judge.
        weights: Weights of the axes in the mean that is the reward; default: equal.
        cache: A file that keeps verdicts by request and model, see `rewards.llm_judge.cache.VerdictCache`.
        limits: Calls, concurrency, attempts, seconds.
        request: Fields of the request to add or replace, or `None` to leave out a field that the endpoint does not know:
            `{"chat_template_kwargs": {"enable_thinking": False}}`, `{"temperature": None}`.

    Returns:
        The weighted mean of the grades, 0 to 1, with each grade as a part; an empty response has 0 without a request. A `Score`
        with an error if the prompt has no answer, or the judge gives no verdict.

    Raises:
        ValueError: An option is missing or wrong, or the cache cannot be used.
    """
    if not model:
        raise ValueError("judge needs a model: give its name at the endpoint, as in judge(model='my-model')")
    from rewards.llm_judge.cache import VerdictCache
    from rewards.llm_judge.client import JudgeClient  # late, as only some runs need it

    client = JudgeClient(
        base_url=_endpoint(base_url),
        model=model,
        axes=_checked_axes(axes),
        weights=_normalised_weights(axes, weights),
        cache=None if cache is None else VerdictCache(Path(cache).expanduser().resolve()),
        limits=limits,
        request=_checked_fields(request),
    )

    async def verify(prompt: Prompt, completion: Completion) -> Score:
        return await client.score(prompt, completion)

    return verify


def _endpoint(base_url: str | None) -> str:
    url = base_url or os.environ.get("OPENAI_BASE_URL") or (os.environ.get("OPENAI_API_KEY") and OPENAI)
    if not url:
        remedy = "give base_url='http://localhost:8000/v1', or set OPENAI_BASE_URL or OPENAI_API_KEY"
        raise ValueError(f"judge has no endpoint; {remedy}")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"base_url of a judge must be a URL such as 'http://localhost:8000/v1', got {url!r}")
    return url


def _checked_fields(request: Mapping[str, Any]) -> dict[str, Any]:
    if taken := {"model", "messages", "stream"} & request.keys():
        raise ValueError(f"request of a judge must not set {sorted(taken)}, got {dict(request)}")
    return dict(request)


def _checked_axes(axes: Mapping[str, str]) -> dict[str, str]:
    texts = [*axes, *axes.values()] if isinstance(axes, Mapping) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"axes of a judge must be names and descriptions, as in {{'accuracy': '...'}}, got {axes!r}")
    return dict(axes)


def _normalised_weights(axes: Mapping[str, str], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Returns the weights of the axes, scaled to the sum 1."""
    weights = dict.fromkeys(axes, 1.0) if weights is None else weights
    if weights.keys() != axes.keys():
        raise ValueError(f"weights of a judge must name its axes {list(axes)}, got {list(weights)}")
    are_weights = all(isinstance(weight, Real) and weight >= 0 for weight in weights.values())
    total = float(sum(weights.values())) if are_weights else 0.0
    if not 0 < total < math.inf:
        raise ValueError(f"weights of a judge must be numbers >= 0, not all of them 0, got {dict(weights)}")
    return {axis: weight / total for axis, weight in weights.items()}
