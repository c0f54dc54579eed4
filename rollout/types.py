"""Prompts, completions and the requests between them.

Shape suffixes, here and everywhere: P prompt tokens, T response tokens, L = P + T, G completions per prompt, B sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    from rollout.pool.stored_experts import StoredExperts

Experts: TypeAlias = "np.ndarray | StoredExperts"
"""[tokens, layers, top_k] of `expert_dtype`, the experts that an engine chose. Under Ray they stay on its node."""


def _no_tokens() -> np.ndarray:
    import numpy as np  # imported late: a module with only a reward must not wait for numpy

    return np.zeros(0, np.int32)


def _no_logprobs() -> np.ndarray:
    import numpy as np

    return np.zeros(0, np.float32)


def expert_dtype(num_experts: int) -> np.dtype:
    """Returns the type of experts' numbers, the smallest that also has one for `unknown_expert`."""
    import numpy as np

    return np.dtype(np.uint8 if num_experts < 256 else np.int16)


def unknown_expert(num_bytes: int) -> int:
    """Returns the number that stands for an unknown expert in a type of so many bytes."""
    return 255 if num_bytes == 1 else -1


def _new_name() -> str:
    import uuid

    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Video:
    """The sampled frames of a video."""

    frames: np.ndarray
    """[F, H, W, 3] uint8, RGB."""
    fps: float
    """Frames per second of the original video; 1000 if they vary."""
    frame_indices: Sequence[int]
    """[F] the number of each frame in the original video, from 0; its milliseconds if they vary. Its time is frame_indices / fps
    seconds."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """One question, made of a dataset row."""

    id: str
    """Names the prompt in logs, errors and seeds; unique inside a dataset."""
    messages: Sequence[Mapping[str, Any]]
    """Chat messages, `{"role": ..., "content": str | list of parts}`. A part is `{"type": "text", "text": ...}`,
    `{"type": "image"}` or `{"type": "video"}`. The n-th image part shows `images[n]`, the n-th video part `videos[n]`."""
    images: Sequence[Any] = ()
    """PIL images, in the order of their parts."""
    videos: Sequence[Any] = ()
    """Videos, in the order of their parts."""
    answer: Any = None
    """The reference answer that verifiers compare with; `None` where a verifier needs none."""
    task: str = "default"
    """The prompt's task, for metrics and `by_task` rewards."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Every other column of the dataset row, untouched."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the chat template, such as `tools` (a list of JSON schemas) and `enable_thinking`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """An environment's answer to a turn, which the policy reads next."""

    text: str = ""
    """Text of the message."""
    images: Sequence[Any] = ()
    """PIL images, shown before the text."""
    role: Literal["user", "tool"] = "user"
    """Role of the message in the chat template."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Done:
    """The end of an episode, returned by an environment."""

    outcome: Mapping[str, Any] = field(default_factory=dict)
    """Results for verifiers to read, such as `{"won": True}`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Turn:
    """One turn of the policy in an episode, and the environment's answer."""

    text: str
    """The turn, decoded without special tokens."""
    start: int
    """Place of its first token in the completion's `token_ids`."""
    stop: int
    """Place after its last token, the end token included. The observation fills the tokens from here to the next turn's start."""
    observation: Observation | None = None
    """The environment's answer; `None` after the last turn."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """One sampled response, or all turns of one episode."""

    text: str
    """The response, decoded without special tokens. Of an episode, the last turn, which holds the answer."""
    token_ids: np.ndarray = field(default_factory=_no_tokens)
    """[T] int32, the sampled tokens, end tokens included. Of an episode, also the observations between its turns."""
    logprobs: np.ndarray = field(default_factory=_no_logprobs)
    """[T] float32, natural log-probability of each token under the engine's weights and sampling temperature; 0 for tokens that
    were not sampled."""
    finish_reason: str = "stop"
    """`"stop"` (end token, or the environment is done) or `"length"` (cut at a limit, or at its deadline)."""
    policy_version: int = 0
    """The version of the weights that sampled the first token."""
    token_versions: np.ndarray | None = None
    """[T] int32, the version that sampled each token, if a weight sync came in between; `None` if `policy_version` sampled all."""
    routed_experts: Experts | None = None
    """[T, layers, top_k], the experts that the engine chose; `None` if it does not return them."""
    turns: Sequence[Turn] | None = None
    """The turns of an episode; `None` without an environment."""
    outcome: Mapping[str, Any] = field(default_factory=dict)
    """The environment's outcome at the end of an episode."""
    error: str | None = None
    """Why the episode could not be played to its end. Such a completion is neither scored nor trained on."""
    thinking: bool = False
    """The prompt has opened a thought with `<think>`, as Qwen3-VL-Thinking's template does: `text` begins inside it."""


def sampled_mask(completion: Completion) -> np.ndarray:
    """Returns [T] bool: True at tokens that the policy sampled, False at tokens of observations."""
    import numpy as np

    if completion.turns is None:
        return np.ones(len(completion.token_ids), bool)
    mask = np.zeros(len(completion.token_ids), bool)
    for turn in completion.turns:
        mask[turn.start : turn.stop] = True
    return mask


def observed_images(completion: Completion) -> list[Any]:
    """Returns the images of all observations, in the order of their placeholders in `token_ids`."""
    observations = [turn.observation for turn in completion.turns or () if turn.observation is not None]
    return [image for observation in observations for image in observation.images]


def token_versions(completion: Completion) -> np.ndarray:
    """Returns [T] int, the version of the weights that sampled each token."""
    import numpy as np

    if completion.token_versions is not None:
        return completion.token_versions
    return np.full(len(completion.token_ids), completion.policy_version, np.int32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """All completions of one prompt. The images are held once, not G times."""

    prompt: Prompt
    """The prompt."""
    prompt_token_ids: np.ndarray
    """[P] int32, the prompt as the engine read it: chat template applied, vision placeholders expanded."""
    completions: Sequence[Completion]
    """[G] the completions, in the order of their seeds."""
    prompt_routed_experts: Experts | None = None
    """[P, layers, top_k], the experts that the engine chose for the prompt; `None` without them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class History:
    """The tokens of an episode after its prompt. The policy's tokens stay as it sampled them and are never encoded again."""

    token_ids: np.ndarray = field(default_factory=_no_tokens)
    """[S] int32, sampled and observed tokens, with one placeholder per image."""
    images: Sequence[Any] = ()
    """The observed images, in the order of their placeholders."""
    name: str = field(default_factory=_new_name)
    """Names these images in an engine's caches."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """The input of a generation: a prompt and, in an episode, the turns so far."""

    prompt: Prompt
    """The question."""
    name: str = field(default_factory=_new_name)
    """Names the prompt's media in an engine's caches. Siblings, and the turns of an episode, share it: media are then processed
    and encoded once, and no pixels are hashed."""
    history: History = field(default_factory=History)
    """The episode after the prompt; empty in its first turn."""

    @property
    def is_continuation(self) -> bool:
        """True if the episode has tokens after the prompt."""
        return len(self.history.token_ids) > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The sampling of responses.

    Training samples from the plain softmax and leaves `top_p`, `top_k` and `presence_penalty` alone. They renormalise the
    distribution, but the learner's log-probabilities are those of the plain one, so every ratio would be wrong. They are for
    evaluation, because published figures were measured with them. A completion's `logprobs` then belong to the renormalised
    distribution.
    """

    max_tokens: int
    """Longest response, in tokens, the end token included. 0 samples nothing: a teacher's engine returns all tokens that it has
    read as the completion's `token_ids` [L], and the log-probability of each as `logprobs` [L], 0 for the first."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy decoding."""
    top_p: float = 1.0
    """Samples only from the likeliest tokens that together have this probability; 1: from all."""
    top_k: int = 0
    """Samples only from so many of the likeliest tokens; 0: from all."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that the response already contains."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenerateCall:
    """One call of an engine's `generate`."""

    request: Request
    """The input."""
    sampling: Sampling
    """Temperature, length and the other parameters of sampling."""
    seeds: Mapping[int, int]
    """The seed of each completion, by its index in the group."""
    policy_version: int
    """The oldest version of the weights that may answer."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Response:
    """One completion on its way to its group."""

    index: int
    """Index of the completion's seed in the group."""
    completion: Completion
    """The completion."""
    prompt_token_ids: np.ndarray
    """As in `Group`, followed by the request's history."""
    prompt_routed_experts: Experts | None = None
    """As in `Group`, followed by those of the request's history."""


class EngineFailed(RuntimeError):
    """An engine's process has died, or it hangs. The message has the details."""


class PlaysGroups(Protocol):
    """Plays episodes of several turns: `rollout.environments.episodes.Episodes`."""

    async def group(
        self, prompt: Prompt, sampling: Sampling, seeds: Sequence[int], policy_version: int, *, batch: int = 0
    ) -> Group:
        """Plays one episode per seed."""
