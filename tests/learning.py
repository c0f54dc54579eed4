"""Small rollouts for the learner, and ways to look at what it makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from policies.dtensor import full_tensor
from policies.small.qwen3_vl import small_processor
from rewards.types import Score
from rl.config import LearnerConfig, OptimizerConfig, TrainConfig
from rl.learner import Learner
from rl.learner.optimizer import make_optimizer, make_scheduler
from rl.samples import Sample, make_samples
from rollout.config import RolloutConfig
from rollout.rendering import expanded_prompt
from rollout.types import Completion, Group, Prompt, Video

PROCESSOR = small_processor()


def config(
    *,
    microbatch_tokens: int = 4096,
    dtype: str = "float32",
    num_minibatches: int = 1,
    packing: bool = True,
    **optimizer,
) -> TrainConfig:
    return TrainConfig(
        model="unused",
        num_minibatches=num_minibatches,
        optimizer=OptimizerConfig(**{"learning_rate": 1e-3, "warmup_updates": 1} | optimizer),
        rollout=RolloutConfig(dtype="float32", temperature=1.2),
        learner=LearnerConfig(dtype=dtype, microbatch_tokens=microbatch_tokens, packing=packing),
    )


def rollout(
    *, with_images: bool = True, with_videos: bool = False, num_groups: int = 4, seed: int = 0
) -> list[list[Sample]]:
    """What the loop hands to the learner: groups of 3, prompts and responses of different lengths, rewards 0 and 1."""
    rng = np.random.default_rng(seed)
    groups, scores = [], []
    for number in range(num_groups):
        groups.append(make_group(rng, number, with_images, with_videos))
        scores.append([Score(reward=float(r)) for r in ([1, 0, 0], [1, 1, 0])[number % 2]])
    return make_samples(groups, scores)


def make_group(rng: np.random.Generator, number: int, with_images: bool, with_videos: bool = False) -> Group:
    images: list[Image.Image] = []
    if with_images:
        size = (32 * (1 + number % 2), 32 * (1 + number % 3), 3)
        images = [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for _ in range(1 + number % 2)]
    videos = [make_video(rng, 3 + number, 32, 32 * (1 + number % 2))] if with_videos else []
    media = [{"type": "video"} for _ in videos] + [{"type": "image"} for _ in images]
    content = [*media, {"type": "text", "text": "sum?" * (1 + number)}]
    prompt = Prompt(
        id=f"prompt-{number}", messages=[{"role": "user", "content": content}], images=images, videos=videos
    )
    token_ids = expanded_prompt(PROCESSOR, prompt)
    lengths = rng.integers(1, 9, 3)
    completions = [
        Completion(text="", token_ids=rng.integers(0, 256, n).astype(np.int32), logprobs=-np.ones(n, np.float32))
        for n in lengths
    ]
    return Group(prompt=prompt, prompt_token_ids=token_ids, completions=completions)


def make_video(rng: np.random.Generator, num_frames: int, height: int, width: int) -> Video:
    """Noise, at every fifth of 10 frames per second."""
    frames = rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    return Video(frames=frames, fps=10.0, frame_indices=range(0, 5 * num_frames, 5))


def parameters(learner: Learner) -> dict[str, Tensor]:
    return {name: full_tensor(parameter.detach()).clone() for name, parameter in learner.model.named_parameters()}


def watch_gradients(learner: Learner) -> list[Tensor]:
    """Every gradient that the optimizer is given, as one long vector; zeros where there is none."""
    seen: list[Tensor] = []

    def remember(*_) -> None:
        parts = [
            torch.zeros(p.shape) if p.grad is None else full_tensor(p.grad).cpu() for p in learner.model.parameters()
        ]
        seen.append(torch.cat([part.flatten() for part in parts]))

    learner.optimizer.register_step_pre_hook(remember)
    return seen


def difference(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    return ((ours - theirs).double().norm() / theirs.double().norm()).item()


def learner_in_float64(options: TrainConfig, folder: Path) -> Learner:
    """All but the logits in double precision: what is left of rounding does not hide a wrong denominator."""
    learner = Learner(options, folder)
    learner.model.double().set_experts_implementation("eager")
    learner.optimizer = make_optimizer(learner.model, options.optimizer)
    learner.scheduler = make_scheduler(learner.optimizer, options.optimizer)
    return learner
