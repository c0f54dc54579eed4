"""Episodes: turns of the policy and an environment's observations in alternation. Sampled tokens are never encoded again."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from rollout.config import RolloutConfig
from rollout.data.media import open_images
from rollout.environments.environment import EnvironmentFailed, MakeEnvironment, as_outcome, call_environment
from rollout.pool.dispatcher import Dispatcher, PrefixAffinity
from rollout.pool.stored_experts import join_experts
from rollout.rendering import expand_media, observation_tokens
from rollout.types import (
    Completion,
    Done,
    Experts,
    GenerateCall,
    Group,
    History,
    Observation,
    Prompt,
    Request,
    Sampling,
    Turn,
    token_versions,
)

if TYPE_CHECKING:
    from transformers import ProcessorMixin

logger = logging.getLogger(__name__)

SampleTurn: TypeAlias = Callable[[History, int, int], Awaitable[Group]]
"""Samples one turn, given the episode so far, the turn's token limit and its seed. Returns a group of one completion."""


class Episodes:
    """Plays episodes, one for each completion of a group.

    Args:
        make_environment: Makes the environment of an episode.
        processor: The policy's processor.
        config: Limits of turns, tokens, images and seconds.
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
            The episodes as completions, in the order of their seeds. An episode that could not be played to its end has an `error`.

        Raises:
            RuntimeError: If engines fail repeatedly.
        """
        request, affinity = Request(prompt=prompt), PrefixAffinity()

        async def sample_turn(history: History, limit: int, seed: int) -> Group:
            call = GenerateCall(
                request=replace(request, history=history),
                sampling=replace(sampling, max_tokens=limit),
                seeds={0: seed},
                policy_version=policy_version,
            )
            return await self._dispatcher.generate(call, batch=batch, affinity=affinity)

        pictures: dict[bytes, Any] = {}
        states = [_EpisodeState(max_tokens=sampling.max_tokens, pictures=pictures) for _ in seeds]
        plays = (self._play(prompt, sample_turn, state, seed) for state, seed in zip(states, seeds, strict=True))
        tasks = [asyncio.ensure_future(play) for play in plays]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        first = next((state for state in states if state.turns), states[0])
        return Group(
            prompt=prompt,
            prompt_token_ids=first.tokens[: first.num_prompt],
            completions=[state.completion() for state in states],
            prompt_routed_experts=None if first.experts is None else first.experts[: first.num_prompt],
        )

    async def _play(self, prompt: Prompt, sample_turn: SampleTurn, state: _EpisodeState, seed: int) -> None:
        """Plays one episode, from `reset` until the environment is done or a limit is reached."""
        start = time.monotonic()
        try:
            environment = await self._call(self._make_environment)
            await self._call(environment.reset, prompt)
            for number in range(self._config.max_turns):
                limit = min(state.tokens_left, self._config.max_turn_tokens or state.tokens_left)
                turn = state.add_turn(await sample_turn(state.history, limit, turn_seed(seed, number)))
                if turn.finish_reason == "length":  # cut in the middle of a sentence
                    return
                answer = await self._call(environment.step, turn)
                if isinstance(answer, Done):
                    state.outcome, state.finish_reason = as_outcome(answer), "stop"
                    return
                is_late = time.monotonic() - start > self._config.episode_timeout
                is_last = number + 1 == self._config.max_turns
                if is_late or is_last or not self._observe(state, prompt, answer, number):
                    return
        except EnvironmentFailed as error:
            state.error = f"{error} at turn {max(0, len(state.turns) - 1)} of prompt {prompt.id!r}"

    def _observe(self, state: _EpisodeState, prompt: Prompt, answer: Any, number: int) -> bool:
        """Adds an observation to an episode. Returns False if it leaves no room for another turn."""
        rendered = state.with_shared_pictures(render_observation(self._processor, answer, prompt.template))
        num_images = len(prompt.images) + len(state.history.images) + len(rendered.observation.images)
        if num_images > self._config.max_images:
            reason = f"{num_images} images in all, rollout.max_images = {self._config.max_images}"
        elif rendered.length >= state.tokens_left:
            limit, left = state.max_tokens, state.tokens_left
            reason = f"{rendered.length} tokens, of rollout.max_tokens = {limit} are {left} left"
        else:
            state.add_observation(rendered)
            return True
        logger.warning("the episode of prompt %r ends before the observation of turn %d: %s", prompt.id, number, reason)
        return False

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return await call_environment(function, self._config.environment_timeout, *args)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RenderedObservation:
    """An observation as the policy reads it."""

    observation: Observation
    """With its images opened."""
    tokens: Sequence[int]
    """The observation with the chat template around it, and one placeholder per image."""
    length: int
    """Number of these tokens with images expanded."""


def render_observation(processor: ProcessorMixin, answer: Any, template: Mapping[str, Any]) -> RenderedObservation:
    """Renders an environment's answer that is not Done, with the prompt's variables for the chat template.

    Raises:
        EnvironmentFailed: If it is no Observation, or one that cannot be rendered.
    """
    if not isinstance(answer, Observation):
        raise EnvironmentFailed(f"the environment returned a {type(answer).__name__}, not an Observation or Done,")
    try:
        observation = replace(answer, images=open_images(answer.images))
        tokens = observation_tokens(processor, observation, template)
        length = len(expand_media(processor, tokens, observation.images, ()))
    except Exception as error:
        raise EnvironmentFailed(f"the observation cannot be rendered: {type(error).__name__}: {error}") from error
    return RenderedObservation(observation=observation, tokens=tokens, length=length)


@dataclass(slots=True, kw_only=True, eq=False)
class _EpisodeState:
    """An episode so far."""

    max_tokens: int
    """Most tokens after the prompt."""
    pictures: dict[bytes, Any]
    """The pictures that any episode of the group has observed, by a hash of their content."""
    num_prompt: int = 0
    """P, prompt tokens."""
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """[P + T], as the engine has read or sampled them. Turns count their places from P."""
    history: History = field(default_factory=History)
    """The tokens after the prompt with one placeholder per image, and then the last observation, which no engine has read yet."""
    num_observed: int = 0
    """Tokens of that last observation."""
    turns: list[Turn] = field(default_factory=list)
    """The turns, with their observations."""
    completions: list[Completion] = field(default_factory=list)
    """One for each turn, without experts."""
    experts: Experts | None = None
    """[P + T, layers, top_k], as the last turn's engine chose them."""
    finish_reason: str = "length"
    """As in `Completion`."""
    outcome: Any = field(default_factory=dict)
    """The environment's."""
    error: str | None = None
    """Why the episode could not be played to its end."""

    @property
    def tokens_left(self) -> int:
        """Tokens that remain of `max_tokens`."""
        return self.max_tokens - (len(self.tokens) - self.num_prompt) - self.num_observed

    def add_turn(self, group: Group) -> Completion:
        """Adds a turn of the policy, and returns it."""
        (completion,) = group.completions
        read = group.prompt_token_ids
        if not self.turns:
            self.num_prompt = len(read)
        elif not np.array_equal(read[: len(self.tokens)], self.tokens):
            raise RuntimeError(
                f"at turn {len(self.turns)} of prompt {group.prompt.id!r} the engine read other tokens than those before"
            )
        start, self.num_observed = len(read) - self.num_prompt, 0
        self.tokens = np.concatenate([read, completion.token_ids]).astype(np.int32)
        self.history = replace(self.history, token_ids=np.concatenate([self.history.token_ids, completion.token_ids]))
        self.turns.append(Turn(text=completion.text, start=start, stop=start + len(completion.token_ids)))
        self.completions.append(replace(completion, routed_experts=None))
        if completion.routed_experts is not None and group.prompt_routed_experts is not None:
            self.experts = join_experts(group.prompt_routed_experts, completion.routed_experts)
        return completion

    def with_shared_pictures(self, rendered: RenderedObservation) -> RenderedObservation:
        """Returns an observation whose pictures are those that a sibling has observed, where they are equal.

        Siblings often see the same screen. As one object it is sent once, and passes through the learner's vision tower once.
        """
        observation = rendered.observation
        images = [self.pictures.setdefault(_content(image), image) for image in observation.images]
        return replace(rendered, observation=replace(observation, images=images))

    def add_observation(self, rendered: RenderedObservation) -> None:
        """Adds the environment's answer to the last turn."""
        images = rendered.observation.images
        self.turns[-1] = replace(self.turns[-1], observation=rendered.observation)
        self.num_observed = rendered.length
        self.history = replace(
            self.history,
            token_ids=np.concatenate([self.history.token_ids, np.array(rendered.tokens, np.int32)]),
            images=[*self.history.images, *images],
        )

    def completion(self) -> Completion:
        """Returns the episode as one completion."""
        num_tokens = len(self.tokens) - self.num_prompt
        logprobs = np.zeros(num_tokens, np.float32)
        first = self.completions[0].policy_version if self.completions else 0
        versions = np.full(num_tokens, first, np.int32)
        for turn, completion in zip(self.turns, self.completions, strict=True):
            logprobs[turn.start : turn.stop] = completion.logprobs
            versions[turn.start : turn.stop] = token_versions(completion)
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
            thinking=bool(self.completions) and self.completions[-1].thinking,
        )


def _content(image: Any) -> bytes:
    """Returns a hash of a picture's pixels."""
    head = f"{image.mode} {image.size}".encode()
    return hashlib.blake2b(head + image.tobytes(), digest_size=16).digest()


def try_environment(
    make_environment: MakeEnvironment, prompt: Prompt, processor: ProcessorMixin, *, limit: float
) -> None:
    """Plays a first turn with two made-up responses, the reference answer and an empty text, before anything costly starts.

    Args:
        make_environment: Makes the environment.
        prompt: The prompt of the episode.
        processor: The policy's processor.
        limit: Seconds that a call may take.

    Raises:
        ValueError: If the environment fails or its answer cannot be rendered, or if the chat template supports no further turns.
    """
    observation_tokens(processor, Observation(text="?"), prompt.template)
    for text in ("" if prompt.answer is None else str(prompt.answer), ""):

        async def play(response: str = text) -> None:
            environment = await call_environment(make_environment, limit)
            await call_environment(environment.reset, limit, prompt)
            answer = await call_environment(environment.step, limit, Completion(text=response))
            if isinstance(answer, Done):
                as_outcome(answer)
            else:
                render_observation(processor, answer, prompt.template)

        try:
            asyncio.run(play())
        except EnvironmentFailed as error:
            raise ValueError(
                f"{error} on prompt {prompt.id!r} and the made-up response {text!r}, before the start"
            ) from error


def turn_seed(seed: int, turn: int) -> int:
    """Returns the seed of one turn. The first has the episode's seed, so an episode of one turn equals a single request."""
    if turn == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}/{turn}".encode(), digest_size=8).digest()) >> 1
