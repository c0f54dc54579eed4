"""Steps of the real loop, with real engines and a real learner, while one size of a batch varies at a time.

The policy is the small one with random weights. No response ends before its limit, since the tokenizer's end token is a picture's
placeholder, which engines never sample. All batches with the same vocabulary and number of engines share one run: stream, batches
and limits change between steps, while engines and learner stay.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import groupby, product
from pathlib import Path
from threading import Event, Thread
from typing import cast

import numpy as np
import psutil
import ray
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from bench.cost.cases import PHASES, Case
from bench.rehearsal import role_of, share_of_ascii
from policies.export import save_policy
from policies.loading import load_processor
from policies.small.qwen3_vl import (
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    TOKEN_IDS,
    small_config,
    small_model,
    small_processor,
)
from rl.config import EvalConfig, LearnerConfig, TrainConfig
from rl.generation.batches import BatchProducer, ScoredBatch, Stages
from rl.loop import train_step
from rl.preflight import TrainArguments, open_runner, prepare
from rl.run import Run, open_run
from rl.run_dir.checkpoint import starting_point
from rl.samples import make_samples
from rollout.config import RolloutConfig
from rollout.data.mixture import open_stream
from rollout.rendering import limit_pixels
from rollout.types import Prompt, Sampling

ROLES = ("driver", "learner", "engine")
MEMORY_SECONDS = 0.1
QUESTION = "sum?"
IMAGE_TOKEN_SIDE = 32
END = "<|image_pad|>"
"""The end token: engines never sample it."""


def measure(cases: Sequence[Case], steps: int, threads: int, keep: Callable[[dict[str, float]], None]) -> None:
    """Measures cases, one run for each policy and number of engines.

    Args:
        cases: The cases.
        steps: Measured steps of each, after one to warm up.
        threads: The learner's threads.
        keep: Takes each case's row as soon as it is measured.
    """
    if not cases:
        return
    # Engines may be more than the cores: their cost to driver and syncs shows, their speed does not.
    cpus = max(os.cpu_count() or 1, *(case.engines for case in cases))
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, logging_level=logging.ERROR)
    try:
        for _, its in groupby(sorted(cases), key=lambda case: (case.vocabulary, case.engines)):
            run_cases(list(its), steps, threads, keep)
    finally:
        ray.shutdown()


def run_cases(cases: Sequence[Case], steps: int, threads: int, keep: Callable[[dict[str, float]], None]) -> None:
    """Opens one run and measures all cases in it."""
    with tempfile.TemporaryDirectory() as scratch:
        model = endless_policy(Path(scratch) / "policy", cases[0].vocabulary)
        config = prepare(config_of(cases, model, Path(scratch) / "run", threads, len(cases) * (steps + 1)))
        arguments = TrainArguments(
            prompts=prompts_of(cases[0], 2 * cases[0].prompts),
            reward=share_of_ascii,
            eval_prompts=[],
            objective=None,
            environment=None,
        )
        checkpoint, state = starting_point(config)
        with open_run(config, checkpoint, state, arguments) as run, open_runner(share_of_ascii, config) as runner:
            processor = limit_pixels(load_processor(model), config.rollout)
            stages = Stages(stream=run.stream, pool=run.pool, runner=runner, processor=processor)
            for number, case in enumerate(cases):
                keep(measure_case(run, case, stages, number * (steps + 1) + 1, steps))


def config_of(cases: Sequence[Case], model: Path, run_dir: Path, threads: int, steps: int) -> TrainConfig:
    """Returns a run's config, with room for the longest of the cases."""
    first = cases[0]
    longest = max(
        64 + (case.image_side // IMAGE_TOKEN_SIDE) ** 2 + case.response_tokens for case in cases
    )  # 64: the question in its chat template
    return TrainConfig(
        model=str(model),
        run_dir=run_dir,
        steps=steps,
        prompts_per_step=first.prompts,
        group_size=first.group_size,
        reward_cache=0,
        check_references=False,
        samples_every=0,
        checkpoint_every=0,
        wandb="disabled",
        eval=EvalConfig(num_prompts=0),
        learner=LearnerConfig(dtype="float32", threads=threads),
        rollout=RolloutConfig(
            num_engines=first.engines,
            dtype="float32",
            max_tokens=first.response_tokens,
            max_model_len=longest,
        ),
    )


def measure_case(run: Run, case: Case, stages: Stages, first_step: int, steps: int) -> dict[str, float]:
    """Makes the steps of one case, and returns sizes, seconds of each phase, speed, memory and bytes."""
    batches = use_case(run, case, stages, first_step, steps + 1)
    rows: list[dict[str, float]] = []
    with peak_memory() as peak:
        for step in range(first_step, first_step + steps + 1):
            begin, cpu = time.perf_counter(), time.process_time()
            batch, metrics = train_step(run, step)
            run.log(step, metrics)
            phases = phases_of(time.perf_counter() - begin, metrics)
            rows.append({**phases, "handle": batches.cpu_when_taken - cpu, "driver_cpu": time.process_time() - cpu})
            assert metrics["rollout/response_tokens"] == case.response_tokens, metrics["rollout/response_tokens"]
    row = {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}
    step_seconds = sum(row[phase] for phase in PHASES)
    pickled = ray.cloudpickle.dumps(make_samples(batch.groups, batch.scores))
    return {
        **asdict(case),
        **row,
        "step": step_seconds,
        "tokens_per_second": case.samples * case.response_tokens / step_seconds,
        "bytes": float(len(pickled)),
        "sync_bytes": metrics["sync/bytes"],
        **{f"{role}_bytes": float(value) for role, value in peak.items()},
    }


def phases_of(wall: float, metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the seconds of a step's phases, whose sum is the wall time."""
    found = {
        "generate": metrics["time/generate"],
        "score": metrics["time/score"],
        "prepare": metrics["time/learner_inputs"],
        "learn": metrics["time/old_logprobs"] + metrics["time/updates"],
        "sync": metrics["time/sync"],
    }
    found["hand over"] = metrics["time/learn"] - found["prepare"] - found["learn"]
    return {**found, "rest": wall - sum(found.values())}


class TimedBatches:
    """A producer of batches, with this process's CPU seconds at the moment when the last batch was ready."""

    def __init__(self, producer: BatchProducer) -> None:
        self._producer = producer
        self.cpu_when_taken = 0.0

    def start(self, policy_version: int) -> None:
        """Starts the batches that may start."""
        self._producer.start(policy_version)

    def take(self, step: int) -> ScoredBatch:
        """Waits for a step's batch."""
        batch = self._producer.take(step)
        self.cpu_when_taken = time.process_time()
        return batch


def use_case(run: Run, case: Case, stages: Stages, first_step: int, steps: int) -> TimedBatches:
    """Lets a run's next steps have the sizes of a case."""
    rollout = replace(run.config.rollout, max_tokens=case.response_tokens)
    run.config = replace(run.config, prompts_per_step=case.prompts, group_size=case.group_size, rollout=rollout)
    run.stream = open_stream(
        prompts_of(case, case.prompts * steps),
        batch_size=case.prompts,
        num_minibatches=run.config.num_minibatches,
        seed=0,
    )
    producer = BatchProducer(
        run.config,
        Sampling(max_tokens=case.response_tokens),
        replace(stages, stream=run.stream),
        seed=0,
        steps=range(first_step, first_step + steps),
    )
    batches = TimedBatches(producer)
    run.batches = cast(BatchProducer, batches)  # the loop's steps use the two methods alone
    return batches


def prompts_of(case: Case, count: int) -> list[Prompt]:
    """Returns prompts with pictures of noise, no two alike: no cache helps from one step to the next."""
    rng = np.random.default_rng([case.image_side, count])
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    return [
        Prompt(
            id=str(number),
            messages=[{"role": "user", "content": content}],
            images=[Image.fromarray(rng.integers(0, 256, (case.image_side, case.image_side, 3), dtype=np.uint8))],
        )
        for number in range(count)
    ]


def endless_policy(folder: Path, vocabulary: int) -> Path:
    """Writes a small random policy whose responses never end before their limit."""
    model = small_model(small_config("dense", vocab_size=vocabulary), seed=0)
    model.generation_config.eos_token_id = TOKEN_IDS[END]
    return save_policy(model, small_processor(endless_tokenizer(vocabulary)), folder)


def endless_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Returns the small policy's tokenizer with a vocabulary of any size, whose end token is the placeholder of pictures.

    Additional tokens are pairs and triples of bytes. Without merges no text is encoded to them, but a policy may sample them.
    """
    characters = list(bytes_to_unicode().items())
    vocab = {char: byte for byte, char in characters} | TOKEN_IDS
    longer = ("".join(parts) for length in (2, 3) for parts in product((char for _, char in characters), repeat=length))
    while len(vocab) < vocabulary:
        vocab[next(longer)] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Yields role → largest resident memory of its processes inside the block, in bytes; complete when the block ends."""
    peak, processes, ended = dict.fromkeys(ROLES, 0), processes_by_role(), Event()

    def watch() -> None:
        while not ended.wait(MEMORY_SECONDS):
            for role, its in processes.items():
                peak[role] = max(peak[role], sum(process.memory_info().rss for process in its))

    thread = Thread(target=watch, name="peak memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def processes_by_role() -> dict[str, list[psutil.Process]]:
    """Returns the processes of driver, learner and engines."""
    driver = psutil.Process()
    found: dict[str, list[psutil.Process]] = {"driver": [driver], "learner": [], "engine": []}
    for process in driver.children(recursive=True):
        role = role_of(" ".join(process.cmdline()))
        if role in found:
            found[role].append(process)
    return found
