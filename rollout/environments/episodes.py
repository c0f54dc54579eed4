"""Episodes: the policy speaks, an environment answers, until one of them has said the last word. Tokens are never encoded anew."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from rollout.config import RolloutConfig
from rollout.data.media import open_images
from rollout.environments.environment import EnvironmentFailed, MakeEnvironment, as_outcome, call_environment
from rollout.pool.dispatcher import Dispatcher, Home
from rollout.rendering import expand_media, observation_tokens
from rollout.types import Completion, Done, Group, Observation, Prompt, Request, Said, Sampling, Turn, token_versions

if TYPE_CHECKING:
    from transformers import ProcessorMixin

logger = logging.getLogger(__name__)


class Episodes:
    """Plays episodes: one for each completion that is asked for.

    Args:
        make_environment: Makes the environment of each.
        processor: The policy's processor.
        config: The limits on turns, tokens, images and seconds.
        dispatcher: The queue in front of the engines.
    """

    def __init__(
        self,
        make_environment: MakeEnvironment,
        processor: ProcessorMixin,
        config: RolloutConfig,
        dispatcher: Dispatcher,
    ) -> None:
        self._make_environment, self._processor = make_environment, processor
        self._config, self._dispatcher = config, dispatcher

    async def group(
        self, prompt: Prompt, sampling: Sampling, seeds: Sequence[int], policy_version: int, *, batch: int = 0
    ) -> Group:
        """Plays one episode per seed.

        Args:
            prompt: The question.
            sampling: Temperature, and the most tokens of an episode, observations included.
            seeds: [G] one for each episode.
            policy_version: The oldest version that may answer.
            batch: Groups of a smaller number go first.

        Returns:
            The episodes as completions, in the order of their seeds. One that could not be played to its end says so in `error`.

        Raises:
            RuntimeError: If engines fail again and again.
        """
        request, home = Request(prompt=prompt), Home()

        async def ask(said: Said, limit: int, seed: int) -> Group:
            return await self._dispatcher.generate(
                replace(request, said=said),
                replace(sampling, max_tokens=limit),
                [seed],
                policy_version,
                batch=batch,
                home=home,
            )

        tasks = [asyncio.ensure_future(self._play(prompt, ask, sampling.max_tokens, seed)) for seed in seeds]
        try:
            records = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        begun = next((record for record in records if record.turns), records[0])
        return Group(
            prompt=prompt,
            prompt_token_ids=begun.tokens[: begun.num_prompt],
            completions=[record.completion() for record in records],
            prompt_routed_experts=None if begun.experts is None else begun.experts[: begun.num_prompt],
        )

    async def _play(self, prompt: Prompt, ask: Ask, max_tokens: int, seed: int) -> _Record:
        """One episode, from `reset` until the environment is done or a limit is reached."""
        record, begin = _Record(max_tokens=max_tokens), time.monotonic()
        try:
            environment = await self._call(self._make_environment)
            await self._call(environment.reset, prompt)
            for number in range(self._config.max_turns):
                limit = min(record.room, self._config.max_turn_tokens or record.room)
                spoken = record.take(await ask(record.said, limit, turn_seed(seed, number)))
                if spoken.finish_reason == "length":  # cut in the middle of a sentence
                    return record
                answer = await self._call(environment.step, spoken)
                if isinstance(answer, Done):
                    record.outcome, record.finish_reason = as_outcome(answer), "stop"
                    return record
                late = time.monotonic() - begin > self._config.episode_timeout
                if late or number + 1 == self._config.max_turns or not self._observe(record, prompt, answer, number):
                    return record
        except EnvironmentFailed as error:
            record.error = f"{error} at turn {max(0, len(record.turns) - 1)} of prompt {prompt.id!r}"
        return record

    def _observe(self, record: _Record, prompt: Prompt, answer: Any, number: int) -> bool:
        """Puts what the environment has shown into an episode; False where there is no room for it and an answer."""
        shown = read_observation(self._processor, answer)
        num_images = len(prompt.images) + len(record.said.images) + len(shown.observation.images)
        if num_images > self._config.max_images:
            told = f"{num_images} images in all, rollout.max_images = {self._config.max_images}"
        elif shown.length >= record.room:
            told = f"{shown.length} tokens, of rollout.max_tokens = {record.max_tokens} are {record.room} left"
        else:
            record.observe(shown)
            return True
        logger.warning("the episode of prompt %r ends before what it was shown at turn %d: %s", prompt.id, number, told)
        return False

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return await call_environment(function, self._config.environment_timeout, *args)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """An observation as the policy will read it.

    Attributes:
        observation: With its images opened.
        tokens: It and what stands around it, one placeholder per image.
        length: The same in tokens, images expanded.
    """

    observation: Observation
    tokens: Sequence[int]
    length: int


def read_observation(processor: ProcessorMixin, answer: Any) -> Shown:
    """What an environment's answer that is not Done comes to.

    Raises:
        EnvironmentFailed: It is no Observation, or one that cannot be shown; whatever was wrong with it.
    """
    if not isinstance(answer, Observation):
        raise EnvironmentFailed(f"the environment returned a {type(answer).__name__}, not an Observation or Done,")
    try:
        observation = replace(answer, images=open_images(answer.images))
        tokens = observation_tokens(processor, observation)
        length = len(expand_media(processor, tokens, observation.images, ()))
    except Exception as error:
        raise EnvironmentFailed(f"what was shown cannot be: {type(error).__name__}: {error}") from error
    return Shown(observation=observation, tokens=tokens, length=length)


Ask: TypeAlias = "Callable[[Said, int, int], Any]"
"""What has been said, the most tokens of the next turn, and its seed → a group of that one turn."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Record:
    """An episode so far.

    `tokens` are [P + T], as the engine has read or sampled them; places of turns are counted from P. `said` has the same behind
    the prompt, with one placeholder per image, and then the last observation, of `num_shown` tokens, which no engine has read yet.
    """

    max_tokens: int
    num_prompt: int = 0
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    said: Said = field(default_factory=Said)
    num_shown: int = 0
    turns: list[Turn] = field(default_factory=list)
    spoken: list[Completion] = field(default_factory=list)
    experts: np.ndarray | None = None
    finish_reason: str = "length"
    outcome: Any = field(default_factory=dict)
    error: str | None = None

    @property
    def room(self) -> int:
        """Tokens that are left of `max_tokens`."""
        return self.max_tokens - (len(self.tokens) - self.num_prompt) - self.num_shown

    def take(self, group: Group) -> Completion:
        """Notes what the policy has said."""
        (spoken,) = group.completions
        read = group.prompt_token_ids
        if not self.turns:
            self.num_prompt = len(read)
        elif not np.array_equal(read[: len(self.tokens)], self.tokens):
            raise RuntimeError(
                f"at turn {len(self.turns)} of prompt {group.prompt.id!r} the engine read other tokens than those before"
            )
        start, self.num_shown = len(read) - self.num_prompt, 0
        self.tokens = np.concatenate([read, spoken.token_ids]).astype(np.int32)
        self.said = replace(self.said, token_ids=np.concatenate([self.said.token_ids, spoken.token_ids]))
        self.turns.append(Turn(text=spoken.text, start=start, stop=start + len(spoken.token_ids)))
        self.spoken.append(spoken)
        if spoken.routed_experts is not None and group.prompt_routed_experts is not None:
            self.experts = np.concatenate([group.prompt_routed_experts, spoken.routed_experts])
        return spoken

    def observe(self, shown: Shown) -> None:
        """Notes what the environment has answered."""
        images = shown.observation.images
        self.turns[-1] = replace(self.turns[-1], observation=shown.observation)
        self.num_shown = shown.length
        self.said = replace(
            self.said,
            token_ids=np.concatenate([self.said.token_ids, np.array(shown.tokens, np.int32)]),
            images=[*self.said.images, *images],
        )

    def completion(self) -> Completion:
        """The episode as one completion."""
        num_tokens = len(self.tokens) - self.num_prompt
        logprobs = np.zeros(num_tokens, np.float32)
        first = self.spoken[0].policy_version if self.spoken else 0
        versions = np.full(num_tokens, first, np.int32)
        for turn, spoken in zip(self.turns, self.spoken, strict=True):
            logprobs[turn.start : turn.stop] = spoken.logprobs
            versions[turn.start : turn.stop] = token_versions(spoken)
        return Completion(
            text=self.turns[-1].text if self.turns else "",
            token_ids=self.tokens[self.num_prompt :],
            logprobs=logprobs,
            finish_reason=self.finish_reason,
            policy_version=first,
            token_versions=versions if (versions != first).any() else None,
            routed_experts=None if self.experts is None else self.experts[self.num_prompt :],
            turns=list(self.turns),
            outcome=self.outcome,
            error=self.error,
        )


def try_environment(
    make_environment: MakeEnvironment, prompt: Prompt, processor: ProcessorMixin, *, limit: float
) -> None:
    """Plays a first turn on two made-up responses, the reference answer and an empty text, before anything costly starts.

    Args:
        make_environment: Makes the environment.
        prompt: What to play on.
        processor: The policy's.
        limit: Seconds that a call may take.

    Raises:
        ValueError: The environment fails, or answers what cannot be shown; or the chat template knows no further turns.
    """
    observation_tokens(processor, Observation(text="?"))
    for text in ("" if prompt.answer is None else str(prompt.answer), ""):

        async def play(said: str = text) -> None:
            environment = await call_environment(make_environment, limit)
            await call_environment(environment.reset, limit, prompt)
            answer = await call_environment(environment.step, limit, Completion(text=said))
            if isinstance(answer, Done):
                as_outcome(answer)
            else:
                read_observation(processor, answer)

        try:
            asyncio.run(play())
        except EnvironmentFailed as error:
            raise ValueError(
                f"{error} on prompt {prompt.id!r} and the made-up response {text!r}, before the start"
            ) from error


def turn_seed(seed: int, turn: int) -> int:
    """The seed of one turn: the episode's own at first, so that one turn alone is what a single request would be."""
    if turn == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}/{turn}".encode(), digest_size=8).digest()) >> 1
