"""What goes into a rollout and what comes out of it.

Shape suffixes, here and everywhere: P prompt tokens, T response tokens, L = P + T, G completions per prompt, B sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np


def _no_tokens() -> np.ndarray:
    import numpy as np  # late: who only writes a reward does not wait for it

    return np.zeros(0, np.int32)


def _no_logprobs() -> np.ndarray:
    import numpy as np

    return np.zeros(0, np.float32)


def _new_name() -> str:
    import uuid

    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Video:
    """Frames of a video, those that a policy is to see.

    Attributes:
        frames: [F, H, W, 3] uint8, RGB.
        fps: Frames per second of the video that they were taken from.
        frame_indices: [F] the number of each frame in there, from 0 on: it is seen at frame_indices / fps seconds.
    """

    frames: np.ndarray
    fps: float
    frame_indices: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """One question, as a dataset row gives it.

    Attributes:
        id: Names the prompt in logs, errors and seeds; unique inside a dataset.
        messages: Chat messages, `{"role": ..., "content": str | list of parts}`. A part is `{"type": "text", "text": ...}`,
            `{"type": "image"}` or `{"type": "video"}`; the n-th image part shows `images[n]`, the n-th video part `videos[n]`.
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
class Observation:
    """What an environment shows the policy after a turn.

    Attributes:
        text: What is said.
        images: PIL images, shown before the text.
        role: Who says it, as the chat template has it: `"user"`, or `"tool"`.
    """

    text: str = ""
    images: Sequence[Any] = ()
    role: Literal["user", "tool"] = "user"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Done:
    """What an environment returns where an episode ends.

    Attributes:
        outcome: What the environment knows of it (`{"won": True}`), for verifiers to read.
    """

    outcome: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Turn:
    """What the policy said once in an episode, and what came of it.

    Attributes:
        text: What it said, decoded without special tokens.
        start: Its first token's place in the completion's `token_ids`.
        stop: The place behind its last token, the end token included. From there to the next turn's start lies the observation.
        observation: What the environment answered; `None` behind the last turn.
    """

    text: str
    start: int
    stop: int
    observation: Observation | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """One sampled response, or all turns of one episode.

    Attributes:
        text: The response, decoded without special tokens; of an episode its last turn, which is where the answer stands.
        token_ids: [T] int32, the sampled tokens, end tokens included; of an episode with the observations between its turns.
        logprobs: [T] float32, natural log-probability of each token under the engine's weights and sampling temperature; 0 for
            tokens that were not sampled.
        finish_reason: `"stop"` (end token, or the environment is done) or `"length"` (cut at a limit, or at its deadline).
        policy_version: The version of the weights that sampled the first token.
        token_versions: [T] int32, the version that sampled each token, where a weight sync came in between; `None` where
            `policy_version` sampled them all.
        routed_experts: [T, layers, top_k] int, the experts that the engine chose; `None` where it does not say.
        turns: The turns of an episode; `None` where no environment took part.
        outcome: What the environment knew at the end of an episode.
        error: Why the episode could not be played to its end; such a completion is not scored and not learnt from.
    """

    text: str
    token_ids: np.ndarray = field(default_factory=_no_tokens)
    logprobs: np.ndarray = field(default_factory=_no_logprobs)
    finish_reason: str = "stop"
    policy_version: int = 0
    token_versions: np.ndarray | None = None
    routed_experts: np.ndarray | None = None
    turns: Sequence[Turn] | None = None
    outcome: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


def sampled_mask(completion: Completion) -> np.ndarray:
    """[T] bool, True at the tokens that the policy chose, False at those that an environment has put in between."""
    import numpy as np

    if completion.turns is None:
        return np.ones(len(completion.token_ids), bool)
    mask = np.zeros(len(completion.token_ids), bool)
    for turn in completion.turns:
        mask[turn.start : turn.stop] = True
    return mask


def observed_images(completion: Completion) -> list[Any]:
    """The images that an environment has shown, in the order of their placeholders in `token_ids`."""
    observations = [turn.observation for turn in completion.turns or () if turn.observation is not None]
    return [image for observation in observations for image in observation.images]


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
class Said:
    """What an episode has come to since its prompt. The policy's own tokens are here as it sampled them, never encoded anew.

    Attributes:
        token_ids: [S] int32, sampled and observed tokens, with one placeholder per image.
        images: The observed images, in the order of their placeholders.
        name: Names these images in an engine's caches.
    """

    token_ids: np.ndarray = field(default_factory=_no_tokens)
    images: Sequence[Any] = ()
    name: str = field(default_factory=_new_name)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """What an engine is asked to go on from.

    Attributes:
        prompt: The question.
        name: Names the prompt's media in an engine's caches: siblings, and the turns of an episode, share it, so that media are
            processed and encoded once and nobody hashes pixels.
        said: What has come since.
    """

    prompt: Prompt
    name: str = field(default_factory=_new_name)
    said: Said = field(default_factory=Said)

    @property
    def has_begun(self) -> bool:
        """Whether anything has been said since the prompt."""
        return len(self.said.token_ids) > 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Response:
    """One completion on its way to its group.

    Attributes:
        index: Which of the group's seeds it answers.
        completion: The completion.
        prompt_token_ids: As in `Group`; with what has been said since.
        prompt_routed_experts: As in `Group`; likewise.
    """

    index: int
    completion: Completion
    prompt_token_ids: np.ndarray
    prompt_routed_experts: np.ndarray | None = None


class EngineFailed(RuntimeError):
    """An engine is beyond help: its process died, or it hangs. The message says what is known."""


class CannotReplace(RuntimeError):
    """No other engine can take the place of the one that failed while the rest goes on; the message says why and what failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How responses are drawn.

    Training draws from the plain softmax and leaves `top_p`, `top_k` and `presence_penalty` alone: they renormalise the
    distribution, and the learner's log-probabilities are those of the plain one, so that every ratio would be wrong. They are for
    evaluation, where published figures were measured with them; a completion's `logprobs` are then of what was drawn from.

    Attributes:
        max_tokens: The longest response, in tokens, the end token included. 0 draws none: a teacher's engine reads, and answers
            with all that it has read as the completion's `token_ids` [L], and its log-probability of each as `logprobs` [L], 0 for
            the first.
        temperature: Divides the logits; 0 is greedy decoding.
        top_p: Only the likeliest tokens that together have this probability are drawn from; 1: all.
        top_k: Only so many of the likeliest tokens are drawn from; 0: all.
        presence_penalty: Taken off the logit of each token that the response already has.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
