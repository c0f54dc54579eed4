"""One run of TRL's GRPOTrainer, in a process that finds TRL on its PYTHONPATH:

    python -m bench.against_trl.theirs --case NAME --steps N --policies FOLDER --output FILE

The settings are the fastest plain ones: plain SDPA attention, the key-value cache, no gradient checkpointing, no logs, no files.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import tyro
from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback

from bench.against_trl.cases import CASES, Case, case_policy, case_prompts, share_of_letters
from policies.frozen import frozen_parameters
from policies.loading import vision_token_ids

TIMED = {"generate": "_generate", "score": "_calculate_rewards", "wait": "_generate_and_score_completions"}
"""Phase → method of the trainer."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Arguments of a run."""

    case: str
    """Name of the case."""
    steps: int
    """Steps."""
    policies: Path
    """Folder of the checkpoints."""
    output: Path
    """File of the rows."""
    seed: int = 0
    """Seeds prompts and sampled tokens."""
    threads: int = 2
    """CPU threads."""


def main(arguments: Arguments) -> None:
    """Trains, and writes one row per step."""
    torch.set_num_threads(arguments.threads)
    sys.modules["vllm"] = None  # type: ignore[assignment]  # TRL does not use it here, but would import it, 21 s and its memory
    case = CASES[arguments.case]
    rows = StepRows()
    trainer = make_trainer(case, arguments, rows)
    rows.watch(trainer)
    trainer.train()
    arguments.output.write_text(json.dumps(rows.rows))


def make_trainer(case: Case, arguments: Arguments, rows: StepRows) -> Any:
    """Returns a trainer that learns what ours learns: the same parameters, batch, temperatures and clipping."""
    from trl import GRPOConfig, GRPOTrainer

    folder = case_policy(case, arguments.policies)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    frozen = set(frozen_parameters(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    config = GRPOConfig(
        output_dir=str(arguments.output.with_suffix("")),
        loss_type="sapo",
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        max_steps=arguments.steps,
        seed=arguments.seed,
        per_device_train_batch_size=case.trl_microbatch,
        gradient_accumulation_steps=case.sequences // case.trl_microbatch,
        num_generations=case.group_size,
        max_completion_length=case.max_tokens,
        generation_kwargs={"suppress_tokens": vision_token_ids(processor)},
        temperature=1.0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        adam_beta2=0.99,
        max_grad_norm=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_dropout=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return GRPOTrainer(
        model=model,
        reward_funcs=letters_of_text,
        args=config,
        train_dataset=dataset_of(case),
        processing_class=processor,
        callbacks=[rows],
    )


def dataset_of(case: Case) -> Dataset:
    """Returns the case's prompts as TRL wants them; pictures stay in memory and are not encoded."""
    prompts = case_prompts(case)
    columns = {
        "prompt": [[{"role": "user", "content": _text_of(prompt.messages)}] for prompt in prompts],
        "image": [prompt.images[0] for prompt in prompts],
    }

    def read(rows: dict[str, list[int]]) -> dict[str, list[Any]]:
        return {name: [values[number] for number in rows["number"]] for name, values in columns.items()}

    return Dataset.from_dict({"number": range(len(prompts))}).with_transform(read)


def _text_of(messages: Any) -> str:
    [message] = messages
    [text] = [part["text"] for part in message["content"] if part["type"] == "text"]
    return text


def letters_of_text(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Scores TRL's completions by the case's reward."""
    found = zip(completions, completion_ids, strict=True)
    answers = (SimpleNamespace(text=message["content"], token_ids=ids) for [message], ids in found)
    return [share_of_letters(None, answer).reward for answer in answers]


class StepRows(TrainerCallback):
    """One row per step: seconds by phase, and the lengths of its responses."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._row: defaultdict[str, float] = defaultdict(float)
        self._begin = 0.0

    def watch(self, trainer: Any) -> None:
        """Measures the trainer's phases."""
        for phase, method in TIMED.items():
            setattr(trainer, method, self._timed(phase, getattr(trainer, method)))

    def _timed(self, phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = method(*args, **options)
            self._row[phase] += time.perf_counter() - begin
            if phase == "generate":
                self._count([len(ids) for ids in result[1]])
            return result

        return call

    def _count(self, lengths: list[int]) -> None:
        self._row["sequences"] += len(lengths)
        self._row["tokens"] += sum(lengths)
        self._row["tokens_squared"] += sum(length**2 for length in lengths)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock: loading a step's data belongs to the step."""
        self._begin = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Ends a row."""
        now = time.perf_counter()
        row = {"seconds": now - self._begin, **self._row, "sync": 0.0}
        self.rows.append(row | {"learn": row["seconds"] - row["wait"]})
        self._row.clear()
        self._begin = now


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
