"""A cold start: a few minutes of supervised learning that teach a fresh policy the answer format, and partial skill."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from rich.progress import track

import policies.small
from policies.export import save_policy
from policies.inputs import hidden_states, vision_tokens
from policies.loading import load_policy, load_processor
from policies.logprobs import token_logprobs
from policies.small import save_small_policy, small_processor
from rl.batching import encode_media, make_microbatch
from rl.config import ColdStartConfig
from rl.types import Microbatch, Sample
from rollout.config import RolloutConfig
from rollout.mixture import open_stream
from rollout.prompts import Rows, prompts_from
from rollout.rendering import expand_media, expanded_prompt, limit_pixels, observation_tokens
from rollout.types import Observation, Prompt

Demonstrate: TypeAlias = Callable[[Prompt], Sequence[str | Observation]]
"""What to learn of a prompt: texts are learnt, each as a turn of its own; observations between them are read."""


def reference_answer(prompt: Prompt) -> Sequence[str | Observation]:
    """The prompt's reference answer, in one turn.

    Raises:
        ValueError: The prompt has none.
    """
    if prompt.answer is None:
        raise ValueError(f"prompt {prompt.id!r} has no answer to learn from: a cold start needs prompts with answers")
    return [str(prompt.answer)]


def cold_start(config: ColdStartConfig, prompts: Rows, demonstrate: Demonstrate = reference_answer) -> Path:
    """Makes a small policy and teaches it to answer prompts as it is shown.

    Args:
        config: The choices.
        prompts: What to answer; of a `mixture`, every update has its ratio.
        demonstrate: Shows how a prompt is answered, the same at each call; default: by its reference answer.

    Returns:
        A folder that `from_pretrained` and vLLM load; found again by the hash of config, prompts and code when it exists.

    Raises:
        ValueError: If a number in config is not positive, or a prompt has no answer.
    """
    for name in ("updates", "batch_size", "learning_rate", "threads"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} of the cold start must be > 0, got {getattr(config, name)}")
    folder = config.cache_dir / _fingerprint(config, prompts_from(prompts), demonstrate)
    if (folder / "cold_start.json").is_file():
        return folder
    started = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        save_small_policy(folder, kind=config.kind, seed=config.seed)
        losses = supervise(folder, config, prompts, demonstrate)
    finally:
        torch.set_num_threads(threads)
    report = {
        "config": asdict(config),
        "seconds": time.perf_counter() - started,
        "loss_first": losses[0],
        "loss_last": float(np.mean(losses[-10:])),
    }
    # Written last: its presence says that the folder is whole.
    (folder / "cold_start.json").write_text(json.dumps(report, indent=1, default=str))
    return folder


def supervise(
    folder: Path, config: ColdStartConfig, prompts: Rows, demonstrate: Demonstrate = reference_answer
) -> list[float]:
    """Trains the policy in `folder` in place, by the mean negative log-likelihood of the answers' tokens.

    Args:
        folder: A policy's folder; the trained weights replace it.
        config: The choices.
        prompts: What to answer.
        demonstrate: How.

    Returns:
        The loss of each update, in nats per token.
    """
    processor = limit_pixels(load_processor(folder), RolloutConfig(max_image_pixels=config.max_image_pixels))
    model = load_policy(folder, dtype=torch.float32, device="cpu")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rise, num_updates=config.updates))
    stream = open_stream(prompts, batch_size=config.batch_size, seed=config.seed)
    no_ban = torch.zeros(0, dtype=torch.long)
    losses = []
    for _ in track(range(config.updates), description="cold start"):
        batch = supervised_batch(processor, model.config, stream.next_batch(), demonstrate)
        hidden_BLH = hidden_states(model, batch.tokens_BL, batch.positions_3BL, batch.vision)
        logprobs_N, _ = token_logprobs(
            hidden_BLH[:, :-1][batch.mask_BT],
            model.get_output_embeddings().weight,
            batch.tokens_BL[:, 1:][batch.mask_BT],
            no_ban,
        )
        loss = -logprobs_N.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    save_policy(model, processor, folder)
    return losses


def _rise(update: int, *, num_updates: int) -> float:
    """The share of the peak learning rate: up over a twentieth of the updates, then level.

    It does not fall at the end. A falling rate scores higher, but ends in a valley so narrow that RL's first noisy updates
    throw the policy out of it: on sums of digits the sampled reward fell from 0.73 to 0.30 within 20 steps.
    """
    return min(1.0, (update + 1) / max(1, num_updates // 20))


def supervised_batch(
    processor, model_config, prompts: Sequence[Prompt], demonstrate: Demonstrate = reference_answer
) -> Microbatch:
    """Prompts with what is shown behind them, the texts and their end tokens marked for learning."""
    samples = [demonstration(processor, prompt, demonstrate) for prompt in prompts]
    return make_microbatch(samples, encode_media(processor, samples), vision_tokens(model_config))


def demonstration(processor, prompt: Prompt, demonstrate: Demonstrate) -> Sample:
    """One prompt with what is shown behind it."""
    parts = [prompt, *demonstrate(prompt)]
    tokens = [_tokens(processor, part) for part in parts]
    learnt = [np.full(len(its), isinstance(part, str)) for part, its in zip(parts, tokens, strict=True)]
    return Sample(
        prompt_id=prompt.id,
        token_ids=np.concatenate(tokens),
        loss_mask=np.concatenate(learnt),
        rollout_logprobs=np.zeros(sum(map(len, tokens)), np.float32),
        advantage=0.0,
        images=[image for part in parts if not isinstance(part, str) for image in part.images],
        videos=prompt.videos,
    )


def _tokens(processor, part: Prompt | str | Observation) -> np.ndarray:
    """A question, what the policy is to say, or what it is shown then; int32."""
    if isinstance(part, Prompt):
        return expanded_prompt(processor, part)
    if isinstance(part, Observation):
        return expand_media(processor, observation_tokens(processor, part), part.images, ())
    words = processor.tokenizer.encode(part, add_special_tokens=False)
    return np.array([*words, processor.tokenizer.eos_token_id], np.int32)


def _fingerprint(config: ColdStartConfig, prompts: Sequence[Prompt], demonstrate: Demonstrate) -> str:
    """Names what makes the result: the choices, a sample of what is learnt as the policy reads it, the code, torch's version."""
    digest = hashlib.sha256()
    choices = {name: value for name, value in asdict(config).items() if name not in ("cache_dir", "threads")}
    digest.update(json.dumps(choices, sort_keys=True).encode())
    digest.update(torch.__version__.encode())
    for code in (policies.small.__file__, __file__):
        digest.update(Path(code).read_bytes())
    digest.update(str(len(prompts)).encode())
    processor = limit_pixels(small_processor(), RolloutConfig(max_image_pixels=config.max_image_pixels))
    for prompt in prompts[:64]:
        sample = demonstration(processor, prompt, demonstrate)
        digest.update(prompt.id.encode() + sample.token_ids.tobytes() + sample.loss_mask.tobytes())
        for image in sample.images:
            digest.update(image.tobytes())
        for video in sample.videos:
            digest.update(video.frames.tobytes())
    return digest.hexdigest()[:16]
