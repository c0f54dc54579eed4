"""Supervised learning: a loop over RL's learner, with demonstrations as samples and their likelihood as the objective.

Shapes: B sequences, T predicted positions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from policies.loading import load_processor
from policies.model_sizes import shape_of_checkpoint
from rl.config import LearningOptions, config_dict, config_file
from rl.hardware.cores import with_learner_threads
from rl.hardware.memory import memory_table, plan_learner, this_machine
from rl.hardware.placement import with_options
from rl.hardware.precision import learner_dtype
from rl.learner import Learner
from rl.run_dir.checkpoint import LoopState, set_aside, starting_point
from rl.run_dir.checkpoint_writer import CheckpointWriter
from rl.run_dir.tracker import Tracker
from rl.samples import Sample
from rl.sft.config import SftConfig, check_sft
from rl.sft.demonstrations import Demonstrate, DemonstrationEncoder, reference_answer
from rl.signals.stopping import STOP
from rollout.data.mixture import open_stream
from rollout.data.prompts import Rows, readable
from rollout.rendering import limit_pixels

if TYPE_CHECKING:
    from rl.learner.group import LearnerGroup

REPORTED = ("loss/objective", "policy/entropy", "policy/grad_norm", "policy/learning_rate", "policy/skipped_updates")
"""Metrics of the learner that have a meaning in supervised learning."""


def negative_log_likelihood(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    num_tokens: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective of supervised learning: the mean of −log p over all demonstrated tokens, in nats."""
    return -torch.where(mask_BT, logprobs_BT, 0).sum() / (num_tokens or mask_BT.sum()), {}


def supervise(
    config: SftConfig,
    prompts: Rows,
    demonstrate: Demonstrate = reference_answer,
    eval_prompts: Rows | None = None,
) -> Path:
    """Trains a policy on demonstrations by the mean negative log-likelihood of the answers' tokens; resumes exactly.

    Args:
        config: The options.
        prompts: Training prompts; of a `mixture`, every update has its ratio.
        demonstrate: Makes a prompt's demonstration, the same at each call.
        eval_prompts: Held-out prompts, whose loss is `eval/loss`.

    Returns:
        The last checkpoint: a folder that `from_pretrained` and vLLM load.

    Raises:
        ValueError: Config, prompts or checkpoint cannot be used.
    """
    check_sft(config)
    config = with_options(config, dtypes := learner_dtype(config.learner, on_gpus=config.learner.gpus > 0))
    _print_plan(options := config.learning_options(), config.keep_checkpoints)
    checkpoint, state = starting_point(config)
    if checkpoint is not None and state.step >= config.steps:
        return checkpoint
    set_aside(config.run_dir, state.step)
    processor = limit_pixels(load_processor(checkpoint or config.model), options.rollout)
    encoder = DemonstrationEncoder(processor, demonstrate, config.max_tokens)
    held_out = encoder.take(list(readable(eval_prompts or [], encoder.accept)))
    stream = open_stream(prompts, batch_size=config.batch_size, seed=config.seed, accept=encoder.accept)
    if state.cursor:
        stream.restore(state.cursor)
    config = replace(config, learner=with_learner_threads(config.learner, Console(), dtypes))
    with STOP.kept(), ExitStack() as stack:
        learner = _open_learner(config, checkpoint, stack)
        checkpoints, latest = CheckpointWriter(config, learner, checkpoint), dict(state.metrics)
        stack.callback(checkpoints.close)
        tracker = Tracker(config, config_file(config), state.first_row)
        stack.callback(tracker.close)
        stack.enter_context(checkpoints.saved_at_a_stop())
        evaluate = partial(held_out_loss, learner, held_out, config.batch_size)
        if state.step == 0 and held_out:
            tracker.log(0, {"eval/loss": evaluate()})
        started = time.perf_counter() - state.seconds
        for step in track(range(state.step + 1, config.steps + 1), description="training", console=tracker.console):
            STOP.check()
            step_started = time.perf_counter()
            samples = encoder.take(stream.next_batch())
            metrics = _step_metrics(learner.step([[sample] for sample in samples]).metrics, samples)
            metrics |= {"rollout/prompts_skipped": stream.skipped, **_times(step_started, started)}
            if held_out and config.is_due(step, config.eval_every):
                metrics["eval/loss"] = evaluate()
            tracker.log(step, metrics)
            latest |= metrics
            checkpoints.note(_loop_state(config, step, stream.state(), latest))
            if checkpoints.is_due(step):
                checkpoints.save()
        return checkpoints.finish()


def _loop_state(config: SftConfig, step: int, cursor: dict[str, Any], latest: dict[str, float]) -> LoopState:
    seconds, choices = latest["time/elapsed"], config_dict(config)
    return LoopState(
        step=step, policy_version=step, cursor=cursor, seconds=seconds, config=choices, metrics=dict(latest)
    )


def _print_plan(options: LearningOptions, keep_checkpoints: int) -> None:
    """Prints the memory plan of a learner on GPUs."""
    if not options.learner.gpus:
        return
    # Without siblings no images are shared: a microbatch may consist of image tokens.
    plan = plan_learner(options, shape_of_checkpoint(options.model), this_machine()[0], group_size=1)
    Console().print(memory_table(plan, keep_checkpoints=keep_checkpoints))


def _step_metrics(report: Mapping[str, float], samples: Sequence[Sample]) -> dict[str, float]:
    """The learner's metrics that apply here, and the number of trained tokens."""
    kept = {name: value for name, value in report.items() if name in REPORTED or name.startswith("memory/")}
    return kept | {"loss/tokens": float(sum(sample.loss_mask.sum() for sample in samples))}


def _times(step_started: float, started: float) -> dict[str, float]:
    now = time.perf_counter()
    return {"time/step": now - step_started, "time/elapsed": now - started}


def _open_learner(config: SftConfig, checkpoint: Path | None, stack: ExitStack) -> Learner | LearnerGroup:
    """One CPU rank runs in this process. Others run as Ray actors, which free the GPUs when they end."""
    options, model = config.learning_options(), checkpoint or config.model
    if config.learner.gpus == 0 and config.learner.num_ranks == 1:
        threads = torch.get_num_threads()
        stack.callback(torch.set_num_threads, threads)
        learner = Learner(options, model, negative_log_likelihood)
        if checkpoint is not None:
            learner.load(checkpoint)
        return learner
    from rl.learner.group import LearnerGroup
    from rollout.cluster import local_ray

    stack.enter_context(local_ray())
    group = LearnerGroup(options, model, checkpoint, "shared_memory", negative_log_likelihood)
    stack.callback(group.close)
    group.wait()
    return group


def held_out_loss(learner: Learner | LearnerGroup, samples: Sequence[Sample], batch_size: int) -> float:
    """Mean loss in nats per demonstrated token, under the present weights."""
    parts = [learner.total_logprob(samples[i : i + batch_size]) for i in range(0, len(samples), batch_size)]
    total, num_tokens = map(sum, zip(*parts, strict=True))
    return -total / num_tokens
