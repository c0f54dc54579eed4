"""What goes into a rollout and what comes out of it.

Shape suffixes, here and everywhere: P prompt tokens, T response tokens, L = P + T, G completions per prompt, B sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def _no_tokens() -> np.ndarray:
    import numpy as np  # late: who only writes a reward does not wait for it

    return np.zeros(0, np.int32)


def _no_logprobs() -> np.ndarray:
    import numpy as np

    return np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """One question, as a dataset row gives it.

    Attributes:
        id: Names the prompt in logs, errors and seeds; unique inside a dataset.
        messages: Chat messages, `{"role": ..., "content": str | list of parts}`. A part is `{"type": "text", "text": ...}`,
            `{"type": "image"}` or `{"type": "video"}`; the n-th image part shows `images[n]`.
        images: PIL images, in the order of their parts.
        videos: Videos, in the order of their parts.
        answer: The reference answer that verifiers compare with; `None` where a verifier needs none.
        task: The task that the prompt belongs to, for metrics and `by_task` rewards.
        columns: Every other column of the dataset row, untouched.
    """

    id: str
    messages: Sequence[Mapping[str, Any]]
    images: Sequence[Any] = ()
    videos: Sequence[Any] = ()
    answer: Any = None
    task: str = "default"
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """One sampled response.

    Attributes:
        text: The response, decoded without special tokens.
        token_ids: [T] int32, the sampled tokens, the end token included.
        logprobs: [T] float32, natural log-probability of each token under the engine's weights and sampling temperature.
        finish_reason: `"stop"` (end token) or `"length"` (cut at the token limit, or at its deadline).
        policy_version: The version of the weights that sampled the first token.
        token_versions: [T] int32, the version that sampled each token, where a weight sync came in between; `None` where
            `policy_version` sampled them all.
        routed_experts: [T, layers, top_k] int, the experts that the engine chose; `None` where it does not say.
        turns: Per-turn record of a multi-turn episode; `None` for a single turn.
    """

    text: str
    token_ids: np.ndarray = field(default_factory=_no_tokens)
    logprobs: np.ndarray = field(default_factory=_no_logprobs)
    finish_reason: str = "stop"
    policy_version: int = 0
    token_versions: np.ndarray | None = None
    routed_experts: np.ndarray | None = None
    turns: Sequence[Any] | None = None


def token_versions(completion: Completion) -> np.ndarray:
    """[T] int, the version of the weights that sampled each token."""
    import numpy as np

    if completion.token_versions is not None:
        return completion.token_versions
    return np.full(len(completion.token_ids), completion.policy_version, np.int32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """All completions of one prompt; the images are here once, not G times.

    Attributes:
        prompt: The prompt.
        prompt_token_ids: [P] int32, the prompt as the engine read it: chat template applied, vision placeholders expanded.
        completions: [G] the completions, in the order of their seeds.
        prompt_routed_experts: [P, layers, top_k] int, the experts that the engine chose for the prompt; `None` where it does not
            say.
    """

    prompt: Prompt
    prompt_token_ids: np.ndarray
    completions: Sequence[Completion]
    prompt_routed_experts: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Response:
    """One completion on its way to its group.

    Attributes:
        index: Which of the group's seeds it answers.
        completion: The completion.
        prompt_token_ids: As in `Group`.
        prompt_routed_experts: As in `Group`.
    """

    index: int
    completion: Completion
    prompt_token_ids: np.ndarray
    prompt_routed_experts: np.ndarray | None = None


class EngineFailed(RuntimeError):
    """An engine is beyond help: its process died, or it hangs. The message says what is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How responses are drawn. There is no top-p or top-k: they renormalise the distribution and would bias the ratio.

    Attributes:
        max_tokens: The longest response, in tokens, the end token included.
        temperature: Divides the logits; 0 is greedy decoding.
    """

    max_tokens: int
    temperature: float = 1.0
