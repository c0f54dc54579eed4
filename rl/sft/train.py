"""Supervised learning: a loop over the learner of RL, with demonstrations for rollouts and their likelihood for a reward.

`supervise` teaches any policy; `cold_start` makes a small one, and teaches it an answer format and partial skill.

Shapes: B sequences, T predicted positions.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import policies.small.qwen3_vl
import rl.learner.learner
import rl.learner.optimizer
import rl.sft.demonstrations
from policies.loading import load_processor
from policies.model_sizes import shape_of_checkpoint
from policies.small.qwen3_vl import save_small_policy, small_processor
from rl.config import ColdStartConfig, LearnerConfig, OptimizerConfig, plain_config
from rl.hardware.memory import memory_table, this_device
from rl.learner import Learner
from rl.run_dir.checkpoint import LOOP_FILE, LoopState, save_checkpoint, starting_point
from rl.run_dir.tracker import Tracker, read_metrics
from rl.sft.config import SftConfig, as_learner_reads, check_sft, plan_sft
from rl.sft.demonstrations import Demonstrate, Lessons, demonstration, reference_answer
from rl.types import Sample
from rollout.config import RolloutConfig
from rollout.data.mixture import open_stream
from rollout.data.prompts import Rows, prompts_from, readable
from rollout.rendering import limit_pixels
from rollout.types import Prompt

if TYPE_CHECKING:
    from rl.learner.group import LearnerGroup

COLD_START_FILE = "cold_start.json"
KEPT = ("loss/objective", "policy/entropy", "policy/grad_norm", "policy/learning_rate", "policy/skipped_updates")


def negative_log_likelihood(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    num_tokens: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """An objective that is no RL: the mean of −log p over all tokens that are shown, in nats."""
    return -torch.where(mask_BT, logprobs_BT, 0).sum() / (num_tokens or mask_BT.sum()), {}


def supervise(
    config: SftConfig,
    prompts: Rows,
    demonstrate: Demonstrate = reference_answer,
    eval_prompts: Rows | None = None,
) -> Path:
    """Teaches a policy to answer as it is shown, by the mean negative log-likelihood of the answers' tokens.

    A killed run that is started again with `resume="auto"` ends with the weights that it would have had.

    Args:
        config: The choices.
        prompts: What to answer; of a `mixture`, every update has its ratio.
        demonstrate: Shows how a prompt is answered, the same at each call; default: by its reference answer.
        eval_prompts: Held-out prompts, whose loss is `eval/loss`; None measures nothing.

    Returns:
        The last checkpoint: a folder that `from_pretrained` and vLLM load.

    Raises:
        ValueError: For whatever is wrong with config, prompts or checkpoint.
    """
    check_sft(config)
    if config.learner.gpus:
        plan = plan_sft(config, shape_of_checkpoint(config.model), this_device()[0])
        Console().print(memory_table(plan))
    checkpoint, state = starting_point(config)
    if checkpoint is not None and state.step >= config.steps:
        return checkpoint
    processor = limit_pixels(load_processor(checkpoint or config.model), as_learner_reads(config).rollout)
    lessons = Lessons(processor, demonstrate, config.max_tokens)
    held_out = lessons.take(list(readable(eval_prompts or [], lessons.accept)))
    stream = open_stream(prompts, batch_size=config.batch_size, seed=config.seed, accept=lessons.accept)
    if state.cursor:
        stream.restore(state.cursor)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a checkpoint of one process, as intended
        learner = _open_learner(config, checkpoint, stack)
        plain = plain_config(config)
        tracker = Tracker(config, plain, state.step)
        stack.callback(tracker.close)
        if state.step == 0 and held_out:
            tracker.log(0, {"eval/loss": held_out_loss(learner, held_out, config.batch_size)})
        started = time.perf_counter() - state.seconds
        for step in track(range(state.step + 1, config.steps + 1), description="learning", console=tracker.console):
            began = time.perf_counter()
            samples = lessons.take(stream.next_batch())
            report = learner.step([[sample] for sample in samples]).metrics
            metrics = _row(report, samples) | {
                "rollout/prompts_skipped": stream.skipped,
                "time/step": time.perf_counter() - began,
                "time/elapsed": time.perf_counter() - started,
            }
            last = step == config.steps
            if held_out and (last or _due(step, config.eval_every)):
                metrics["eval/loss"] = held_out_loss(learner, held_out, config.batch_size)
            tracker.log(step, metrics)
            if last or _due(step, config.checkpoint_every):
                seconds = time.perf_counter() - started
                state = LoopState(step=step, policy_version=step, cursor=stream.state(), seconds=seconds, config=plain)
                checkpoint = save_checkpoint(config.run_dir, state, learner.save, keep=config.keep_checkpoints)
    assert checkpoint is not None, "a run ends with a checkpoint"
    return checkpoint


def _row(report: Mapping[str, float], samples: Sequence[Sample]) -> dict[str, float]:
    """What of a learner's report means something here, and how many tokens were learnt."""
    kept = {name: value for name, value in report.items() if name in KEPT or name.startswith("memory/")}
    return kept | {"loss/tokens": float(sum(sample.loss_mask.sum() for sample in samples))}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _open_learner(config: SftConfig, checkpoint: Path | None, stack: ExitStack) -> Learner | LearnerGroup:
    """In this process where one rank on the CPU will do, else Ray's actors, which give the GPUs back when they end."""
    choices, model = as_learner_reads(config), checkpoint or config.model
    if config.learner.gpus == 0 and config.learner.num_ranks == 1:
        threads = torch.get_num_threads()
        stack.callback(torch.set_num_threads, threads)
        learner = Learner(choices, model, negative_log_likelihood)
        if checkpoint is not None:
            learner.load(checkpoint)
        return learner
    from rl.learner.group import LearnerGroup
    from rl.run import local_ray

    stack.enter_context(local_ray())
    group = LearnerGroup(choices, model, checkpoint, "shared_memory", negative_log_likelihood)
    stack.callback(group.close)
    group.wait()
    return group


def held_out_loss(learner: Learner | LearnerGroup, samples: Sequence[Sample], batch_size: int) -> float:
    """Nats per token that is shown, under the present weights."""
    parts = [learner.total_logprob(samples[i : i + batch_size]) for i in range(0, len(samples), batch_size)]
    total, num_tokens = map(sum, zip(*parts, strict=True))
    return -total / num_tokens


def cold_start(
    config: ColdStartConfig,
    prompts: Rows,
    demonstrate: Demonstrate = reference_answer,
    eval_prompts: Rows | None = None,
) -> Path:
    """Makes a small policy and teaches it to answer prompts as it is shown. Killed, it goes on where it was.

    The learning rate does not fall at the end. A falling rate scores higher, but ends in a valley so narrow that RL's first noisy
    updates throw the policy out of it: on sums of digits the sampled reward fell from 0.73 to 0.30 within 20 steps.

    Args:
        config: The choices.
        prompts: What to answer.
        demonstrate: Shows how a prompt is answered, the same at each call; default: by its reference answer.
        eval_prompts: As in `supervise`.

    Returns:
        A folder that `from_pretrained` and vLLM load; found again by the hash of config, prompts and code when it exists.

    Raises:
        ValueError: If a number in config is not positive, or a prompt has no answer.
    """
    for name in ("updates", "batch_size", "learning_rate", "threads"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} of the cold start must be > 0, got {getattr(config, name)}")
    folder = config.cache_dir / _fingerprint(config, prompts_from(prompts), demonstrate)
    if (folder / COLD_START_FILE).is_file():
        return folder
    save_small_policy(folder, kind=config.kind, seed=config.seed)
    choices = _choices(config, folder)
    taught = supervise(choices, prompts, demonstrate, eval_prompts)
    # Copied, not moved: a kill at any moment leaves the checkpoint whole, and the next start copies again.
    for file in taught.iterdir():
        if file.is_file() and file.name != LOOP_FILE:
            shutil.copy2(file, folder / file.name)
    rows = read_metrics(choices.run_dir)
    losses = [row["loss/objective"] for row in rows if "loss/objective" in row]
    report = {
        "config": asdict(config),
        "seconds": rows[-1]["time/elapsed"],
        "loss_first": losses[0],
        "loss_last": float(np.mean(losses[-10:])),
    }
    # Written last: its presence says that the folder is whole.
    (folder / COLD_START_FILE).write_text(json.dumps(report, indent=1, default=str))
    shutil.rmtree(choices.run_dir / "checkpoints")
    return folder


def _choices(config: ColdStartConfig, folder: Path) -> SftConfig:
    """A cold start as supervised learning of the fresh policy in `folder`."""
    return SftConfig(
        model=str(folder),
        run_dir=folder / "run",
        steps=config.updates,
        seed=config.seed,
        resume="auto",
        batch_size=config.batch_size,
        max_image_pixels=config.max_image_pixels,
        checkpoint_every=-(-config.updates // 3),
        keep_checkpoints=1,
        optimizer=OptimizerConfig(
            learning_rate=config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            warmup_updates=max(1, config.updates // 20),
        ),
        learner=LearnerConfig(dtype="float32", threads=config.threads),
    )


def _fingerprint(config: ColdStartConfig, prompts: Sequence[Prompt], demonstrate: Demonstrate) -> str:
    """Names what makes the result: the choices, a sample of what is learnt as the policy reads it, the code, torch's version."""
    digest = hashlib.sha256()
    choices = {name: value for name, value in asdict(config).items() if name not in ("cache_dir", "threads")}
    digest.update(json.dumps(choices, sort_keys=True).encode())
    digest.update(torch.__version__.encode())
    for code in (
        policies.small.qwen3_vl.__file__,
        __file__,
        rl.sft.demonstrations.__file__,
        rl.learner.learner.__file__,
        rl.learner.optimizer.__file__,
    ):
        digest.update(Path(code).read_bytes())
    digest.update(str(len(prompts)).encode())
    processor = limit_pixels(small_processor(), RolloutConfig(max_image_pixels=config.max_image_pixels))
    for prompt in prompts[:64]:
        sample = demonstration(processor, prompt, demonstrate(prompt))
        digest.update(prompt.id.encode() + sample.token_ids.tobytes() + sample.loss_mask.tobytes())
        for image in sample.images:
            digest.update(image.tobytes())
        for video in sample.videos:
            digest.update(video.frames.tobytes())
    return digest.hexdigest()[:16]
