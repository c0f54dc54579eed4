"""A cold start: a few minutes of supervised learning that teach a fresh policy the answer format, and partial skill."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

import policies.small
from policies.export import save_policy
from policies.inputs import encode_images, expand_image_tokens, hidden_states
from policies.loading import load_policy, load_processor
from policies.logprobs import token_logprobs
from policies.small import save_small_policy
from rl.batching import make_microbatch
from rl.config import ColdStartConfig
from rl.types import Microbatch, Sample
from rollout.prompts import PromptStream, Rows, prompts_from
from rollout.rendering import render
from rollout.types import Prompt


def cold_start(config: ColdStartConfig, prompts: Rows) -> Path:
    """Makes a small policy and teaches it to answer prompts as their reference answers do.

    Args:
        config: The choices.
        prompts: Prompts with a reference answer each, which is the text to learn.

    Returns:
        A folder that `from_pretrained` and vLLM load; found again by the hash of config, prompts and code when it exists.

    Raises:
        ValueError: If a number in config is not positive, or a prompt has no answer.
    """
    for name in ("updates", "batch_size", "learning_rate", "threads"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} of the cold start must be > 0, got {getattr(config, name)}")
    prompts = prompts_from(prompts)
    folder = config.cache_dir / _fingerprint(config, prompts)
    if (folder / "cold_start.json").is_file():
        return folder
    started = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        save_small_policy(folder, kind=config.kind, seed=config.seed)
        losses = supervise(folder, config, prompts)
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


def supervise(folder: Path, config: ColdStartConfig, prompts: Rows) -> list[float]:
    """Trains the policy in `folder` in place, by the mean negative log-likelihood of the answers' tokens.

    Args:
        folder: A policy's folder; the trained weights replace it.
        config: The choices.
        prompts: What to learn.

    Returns:
        The loss of each update, in nats per token.
    """
    processor = load_processor(folder)
    model = load_policy(folder, dtype=torch.float32, device="cpu")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rise, num_updates=config.updates))
    stream = PromptStream(prompts, batch_size=config.batch_size, seed=config.seed)
    no_ban = torch.zeros(0, dtype=torch.long)
    losses = []
    for _ in track(range(config.updates), description="cold start"):
        batch = supervised_batch(processor, model.config, stream.next_batch())
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


def supervised_batch(processor, model_config, prompts: Sequence[Prompt]) -> Microbatch:
    """Prompts with their reference answers behind them, the answers and their end token marked for learning."""
    image_token_id, merge_size = model_config.image_token_id, model_config.vision_config.spatial_merge_size
    end = processor.tokenizer.eos_token_id
    samples, encoded = [], {}
    for prompt in prompts:
        if prompt.answer is None:
            raise ValueError(
                f"prompt {prompt.id!r} has no answer to learn from: a cold start needs prompts with answers"
            )
        images = encode_images(processor, prompt.images)
        encoded[id(prompt.images)] = images
        grid_N3 = np.zeros((0, 3), np.int64) if images is None else images.grid_N3.numpy()
        question = expand_image_tokens(render(processor, prompt), grid_N3, image_token_id, merge_size)
        answer = [*processor.tokenizer.encode(str(prompt.answer), add_special_tokens=False), end]
        token_ids = np.concatenate([question, answer]).astype(np.int32)
        samples.append(
            Sample(
                prompt_id=prompt.id,
                token_ids=token_ids,
                loss_mask=np.arange(len(token_ids)) >= len(question),
                rollout_logprobs=np.zeros(len(token_ids), np.float32),
                advantage=0.0,
                images=prompt.images,
            )
        )
    return make_microbatch(samples, encoded, image_token_id, merge_size)


def _fingerprint(config: ColdStartConfig, prompts: Sequence[Prompt]) -> str:
    """Names what makes the result: the choices, a sample of the prompts, the code, and the versions below it."""
    digest = hashlib.sha256()
    choices = {name: value for name, value in asdict(config).items() if name not in ("cache_dir", "threads")}
    digest.update(json.dumps(choices, sort_keys=True).encode())
    digest.update(torch.__version__.encode())
    for code in (policies.small.__file__, __file__):
        digest.update(Path(code).read_bytes())
    digest.update(str(len(prompts)).encode())
    for prompt in prompts[:64]:
        digest.update(f"{prompt.id}\n{prompt.messages}\n{prompt.answer}".encode())
        for image in prompt.images:
            digest.update(image.tobytes())
    return digest.hexdigest()[:16]
