"""A sampler in the process of the learner, on its weights: many short runs of a small policy do not wait for an engine's start.

It takes the place of engines and dispatcher. Prompts, environments, rewards, advantages and the learner are the product's own.

Shapes: U distinct prompts, N completions, L tokens of a prompt, V entries of the vocabulary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from policies.inputs import EncodedMedia, encode_images, join_media, mrope_positions, vision_tokens
from policies.loading import load_policy, load_processor, vision_token_ids
from policies.vision_tower import use_fast_vision
from rollout.environments.environment import MakeEnvironment
from rollout.environments.episodes import Episodes
from rollout.rendering import expand_media, limit_pixels, render
from rollout.types import Completion, GenerateCall, Group, Prompt, Request, Sampling

if TYPE_CHECKING:
    from pathlib import Path

    from rl.learner import Learner
    from rollout.config import RolloutConfig

QUIET = 0.003
"""Seconds without another turn of an episode, after which the turns that have come are sampled together."""


@dataclass(slots=True)
class _Row:
    """One completion on its way."""

    call: int
    prompt: int
    """Index among the distinct prompts."""
    noise: np.ndarray | None
    """[max_tokens, V] of Gumbel's distribution; None for greedy decoding."""
    tokens: list[int]
    logprobs: list[float]
    is_done: bool = False


class LocalEngine:
    """Samples completions with the weights of a learner, which may change between calls.

    Args:
        learner: The learner.
        folder: The folder that its weights came from.
        config: Limits of tokens, turns and pixels.
    """

    def __init__(self, learner: Learner, folder: Path, config: RolloutConfig) -> None:
        self.config, self.processor = config, limit_pixels(load_processor(folder), config)
        self._model = load_policy(folder, dtype=torch.float32, device="cpu").eval()
        use_fast_vision(self._model)
        for mine, its in zip(self._model.parameters(), learner.model.parameters(), strict=True):
            mine.data = its.data
        self._vision, self._banned = vision_tokens(self._model.config), vision_token_ids(self._model.config)
        self._end = self.processor.tokenizer.eos_token_id
        self._encoded: dict[int, tuple[Any, EncodedMedia]] = {}
        self._waiting: list[tuple[GenerateCall, asyncio.Future[Group]]] = []

    def play(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        environment: MakeEnvironment | None,
    ) -> list[Group]:
        """Samples a group for each prompt, of as many completions as it has seeds."""
        self._encoded.clear()
        if environment is not None:
            return asyncio.run(self._play(prompts, sampling, seeds, environment))
        calls = [
            GenerateCall(
                request=Request(prompt=prompt), sampling=sampling, seeds=dict(enumerate(its)), policy_version=0
            )
            for prompt, its in zip(prompts, seeds, strict=True)
        ]
        return self.answer(calls)

    async def _play(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        environment: MakeEnvironment,
    ) -> list[Group]:
        episodes = Episodes(environment, self.processor, self.config, self)  # type: ignore[arg-type]
        groups = (episodes.group(prompt, sampling, its, 0) for prompt, its in zip(prompts, seeds, strict=True))
        return await asyncio.gather(*groups)

    async def generate(self, call: GenerateCall, **_: Any) -> Group:
        """Samples one call with all others that come at about the same time; the dispatcher's method."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        if len(self._waiting) == 1:
            self._answering = asyncio.ensure_future(self._answer_waiting())
        return await future

    async def _answer_waiting(self) -> None:
        seen = 0
        while seen < len(self._waiting):
            seen = len(self._waiting)
            await asyncio.sleep(QUIET)
        waiting, self._waiting = self._waiting, []
        for (_, future), group in zip(waiting, self.answer([call for call, _ in waiting]), strict=True):
            future.set_result(group)

    @torch.no_grad()
    def answer(self, calls: Sequence[GenerateCall]) -> list[Group]:
        """Samples all completions of some calls together."""
        prompts = [self._read(call) for call in calls]
        distinct = {(tokens.tobytes(), *map(id, media)): index for index, (tokens, media) in enumerate(prompts)}
        first = {index: place for place, index in enumerate(distinct.values())}
        vocabulary = self._model.get_input_embeddings().num_embeddings
        rows = [
            _Row(
                call=index,
                prompt=first[distinct[(prompts[index][0].tobytes(), *map(id, prompts[index][1]))]],
                noise=_gumbel(seed, call.sampling, vocabulary),
                tokens=[],
                logprobs=[],
            )
            for index, call in enumerate(calls)
            for seed in call.seeds.values()
        ]
        self._sample([prompts[index] for index in distinct.values()], rows, [call.sampling for call in calls])
        return [self._group(call, prompts[i][0], [r for r in rows if r.call == i]) for i, call in enumerate(calls)]

    def _read(self, call: GenerateCall) -> tuple[np.ndarray, list[EncodedMedia]]:
        """Returns a request's tokens with placeholders expanded, and its encoded pictures."""
        prompt, history = call.request.prompt, call.request.history
        images = [*prompt.images, *history.images]
        tokens = [*render(self.processor, prompt), *history.token_ids.tolist()]
        unknown = {id(image): image for image in images if id(image) not in self._encoded}
        encoded = encode_images(self.processor, list(unknown.values()))
        self._encoded |= {key: (unknown[key], media) for key, media in zip(unknown, encoded, strict=True)}
        media = [self._encoded[id(image)][1] for image in images]
        return expand_media(self.processor, tokens, images, ()), media

    def _sample(
        self,
        prompts: Sequence[tuple[np.ndarray, list[EncodedMedia]]],
        rows: Sequence[_Row],
        samplings: Sequence[Sampling],
    ) -> None:
        """Fills the rows, token by token."""
        hidden_UH, cache, lengths_U, next_U = self._prefill(prompts)
        order = torch.tensor([row.prompt for row in rows])
        cache.batch_select_indices(order)
        longest, hidden_NH = int(lengths_U.max()), hidden_UH[order]
        valid_NK = torch.arange(longest) < lengths_U[order, None]
        position_N = next_U[order]
        for step in range(max(samplings[row.call].max_tokens for row in rows)):
            tokens_N = self._next(hidden_NH, rows, samplings, step)
            if all(row.is_done for row in rows):
                return
            valid_NK = torch.cat([valid_NK, torch.ones(len(rows), 1, dtype=torch.bool)], 1)
            hidden_NH = self._model.model(
                input_ids=tokens_N[:, None],
                position_ids=(position_N + step).expand(3, -1)[..., None],
                attention_mask=valid_NK.long(),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]

    def _prefill(
        self, prompts: Sequence[tuple[np.ndarray, list[EncodedMedia]]]
    ) -> tuple[Tensor, DynamicCache, Tensor, Tensor]:
        """Runs the distinct prompts: their last hidden states, the cache, their lengths, and the positions that follow."""
        lengths_U = torch.tensor([len(tokens) for tokens, _ in prompts])
        shape = (len(prompts), int(lengths_U.max()))
        tokens_UL, positions_3UL = np.full(shape, self._end), np.zeros((3, *shape), np.int64)
        for u, (tokens, media) in enumerate(prompts):
            tokens_UL[u, : len(tokens)] = tokens
            positions_3UL[:, u, : len(tokens)] = mrope_positions(tokens, media, self._vision)
        vision, outputs = join_media([media for _, media in prompts]), {}
        if vision is not None:
            features = self._model.model.get_image_features(vision.pixels, vision.grid_U3, return_dict=True)
            order = vision.image_order_N.tolist()
            outputs["image"] = type(features)(
                pooler_output=[features.pooler_output[i] for i in order],
                deepstack_features=[[level[i] for i in order] for level in features.deepstack_features],
            )
        cache = DynamicCache(config=self._model.config.text_config)
        hidden_ULH = self._model.model(
            input_ids=torch.from_numpy(tokens_UL),
            position_ids=torch.from_numpy(positions_3UL),
            mm_encoder_outputs=outputs,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        last = hidden_ULH[torch.arange(len(prompts)), lengths_U - 1]
        return last, cache, lengths_U, torch.from_numpy(positions_3UL.max(axis=(0, 2)) + 1)

    def _next(self, hidden_NH: Tensor, rows: Sequence[_Row], samplings: Sequence[Sampling], step: int) -> Tensor:
        """Samples the next token of each row that is not done; end tokens for the others."""
        logits_NV = hidden_NH @ self._model.get_output_embeddings().weight.T
        logits_NV[:, self._banned] = -torch.inf
        temperatures = [samplings[row.call].temperature or 1.0 for row in rows]
        logprobs_NV = torch.log_softmax(logits_NV / torch.tensor(temperatures)[:, None], -1).numpy()
        tokens = np.full(len(rows), self._end)
        for n, row in enumerate(rows):
            if row.is_done:
                continue
            tokens[n] = (logprobs_NV[n] if row.noise is None else logprobs_NV[n] + row.noise[step]).argmax()
            row.tokens.append(int(tokens[n]))
            row.logprobs.append(float(logprobs_NV[n, tokens[n]]))
            row.is_done = tokens[n] == self._end or step + 1 >= samplings[row.call].max_tokens
        return torch.from_numpy(tokens)

    def _group(self, call: GenerateCall, prompt: np.ndarray, rows: Sequence[_Row]) -> Group:
        completions = [
            Completion(
                text=self.processor.tokenizer.decode(row.tokens, skip_special_tokens=True),
                token_ids=np.array(row.tokens, np.int32),
                logprobs=np.array(row.logprobs, np.float32),
                finish_reason="stop" if row.tokens[-1] == self._end else "length",
            )
            for row in rows
        ]
        return Group(prompt=call.request.prompt, prompt_token_ids=prompt, completions=completions)


def _gumbel(seed: int, sampling: Sampling, vocabulary: int) -> np.ndarray | None:
    """Returns [max_tokens, V], the noise whose sum with log-probabilities has its maximum at a sampled token."""
    if not sampling.temperature:
        return None
    return np.random.default_rng(seed).gumbel(size=(sampling.max_tokens, vocabulary)).astype(np.float32)


def seeds_of(*parts: int, groups: int, group_size: int) -> list[list[int]]:
    """Returns [groups][group_size] seeds, different for different parts."""
    drawn = np.random.SeedSequence(parts).generate_state(groups * group_size, np.uint64) >> np.uint64(1)
    return drawn.reshape(groups, group_size).tolist()
