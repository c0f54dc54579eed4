"""The cold start: it learns, it is found again by what made it, and it says which prompt has no answer. Supervised learning in
general: what a loss is of, what a kill loses, and how it is shared out."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from policies.inputs import vision_tokens
from policies.loading import load_policy, load_processor
from policies.small.qwen3_vl import save_small_policy, small_config, small_processor
from rl.config import ColdStartConfig, LearnerConfig, OptimizerConfig
from rl.learner.microbatches import Microbatch, encode_media, make_microbatch
from rl.run_dir.tracker import read_metrics
from rl.sft.config import SftConfig
from rl.sft.demonstrations import DemonstrationEncoder, encode_demonstration, reasoned_answer, reference_answer
from rl.sft.small_policy import cold_start
from rl.sft.train import negative_log_likelihood, supervise
from rollout.types import Observation, Prompt, Video


def prompts(*answers: str | None) -> list[Prompt]:
    content = [{"type": "image"}, {"type": "text", "text": "sum?"}]
    return [
        Prompt(
            id=f"sum-{number}",
            messages=[{"role": "user", "content": content}],
            images=[Image.new("RGB", (32, 32), (60 * number, 0, 0))],
            answer=answer,
        )
        for number, answer in enumerate(answers)
    ]


PROMPTS = prompts("1=1", "2=2")


def batch_of(*asked: Prompt) -> Microbatch:
    samples = [encode_demonstration(small_processor(), prompt, reference_answer(prompt)) for prompt in asked]
    return make_microbatch(samples, encode_media(small_processor(), samples), vision_tokens(small_config("dense")))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_policy(tmp_path_factory.mktemp("fresh"), kind="dense", seed=0)


def choices(fresh: Path, run_dir: Path, **changed) -> SftConfig:
    options = {
        "steps": 6,
        "batch_size": 2,
        "checkpoint_every": 3,
        "eval_every": 3,
        "max_tokens": 64,
        "optimizer": OptimizerConfig(learning_rate=3e-3, warmup_updates=1),
        "learner": LearnerConfig(threads=1, dtype="float32"),
    }
    return SftConfig(model=str(fresh), run_dir=run_dir, **options | changed)


def losses(run_dir: Path) -> list[float]:
    return [row["loss/objective"] for row in read_metrics(run_dir) if "loss/objective" in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ColdStartConfig:
    cache = tmp_path_factory.mktemp("cold_start")
    return ColdStartConfig(updates=12, batch_size=2, learning_rate=3e-3, threads=1, cache_dir=cache)


@pytest.fixture(scope="module")
def folder(config: ColdStartConfig) -> Path:
    return cold_start(config, PROMPTS)


def test_the_loss_falls_and_the_folder_is_a_policy(folder: Path):
    report = json.loads((folder / "cold_start.json").read_text())
    assert report["loss_first"] > 4  # 263 tokens of which nothing is known: ln 263 = 5.6
    assert report["loss_last"] < 0.8 * report["loss_first"]
    assert load_policy(folder, dtype=torch.float32, device="cpu").config.model_type == "qwen3_vl"
    assert load_processor(folder).tokenizer.eos_token == "<|im_end|>"


def test_an_answer_to_a_video_is_learnt_behind_the_video():
    video = Video(frames=np.zeros((4, 32, 32, 3), np.uint8), fps=2.0, frame_indices=range(4))
    content = [{"type": "video"}, {"type": "text", "text": "how many?"}]
    prompt = Prompt(id="v", messages=[{"role": "user", "content": content}], videos=[video], answer="3")
    batch = batch_of(prompt)
    assert batch.vision.grid_U3.tolist() == [[2, 2, 2]]
    assert batch.tokens_BL[0, 1:][batch.mask_BT[0]].tolist() == [ord("3"), 258]


def test_the_same_choices_find_the_same_folder_and_teach_nothing(config: ColdStartConfig, folder: Path):
    file = folder / "model.safetensors"
    written = file.stat().st_mtime_ns
    assert cold_start(config, PROMPTS) == folder
    assert cold_start(replace(config, threads=2), PROMPTS) == folder  # does not change what is learnt
    assert file.stat().st_mtime_ns == written


def test_a_folder_that_was_cut_short_is_taught_again(config: ColdStartConfig, folder: Path):
    before = load_policy(folder, dtype=torch.float32, device="cpu").lm_head.weight
    (folder / "cold_start.json").unlink()
    (folder / "model.safetensors").unlink()  # `before` is a map of the file that was there
    (folder / "model.safetensors").write_bytes(b"half")
    assert cold_start(config, PROMPTS) == folder
    assert torch.equal(load_policy(folder, dtype=torch.float32, device="cpu").lm_head.weight, before)


def test_of_two_runs_that_start_at_once_one_waits_for_the_others_cold_start(
    config: ColdStartConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Both would write the same files, and a mapped file that is written again ends its reader by SIGBUS.
    runs: list[Path] = []

    def slow(config: SftConfig, *arguments) -> Path:
        runs.append(config.run_dir)
        time.sleep(0.5)
        return learns_nothing(config)

    monkeypatch.setattr("rl.sft.small_policy.supervise", slow)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: cold_start(replace(config, cache_dir=tmp_path), PROMPTS), range(2)))
    assert folders[0] == folders[1] and len(runs) == 1


def learns_nothing(config: SftConfig, *_) -> Path:
    folder = config.run_dir / "checkpoints" / "step_1"
    folder.mkdir(parents=True)
    (config.run_dir / "metrics.jsonl").write_text('{"loss/objective": 1.0, "time/elapsed": 1.0}\n')
    return folder


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"updates": 13}, {"learning_rate": 1e-4}, {"kind": "moe"}], ids=lambda c: next(iter(c))
)
def test_other_choices_have_another_folder(monkeypatch, config: ColdStartConfig, folder: Path, changed: dict):
    monkeypatch.setattr("rl.sft.small_policy.supervise", learns_nothing)
    assert cold_start(replace(config, **changed), PROMPTS) != folder


@pytest.mark.parametrize(
    "others",
    [prompts("1=1", "2=3"), prompts("1=1", "2=2", "3=3"), [replace(PROMPTS[0], images=PROMPTS[1].images), PROMPTS[1]]],
    ids=["answer", "number", "image"],
)
def test_other_prompts_have_another_folder(monkeypatch, config: ColdStartConfig, folder: Path, others: list[Prompt]):
    monkeypatch.setattr("rl.sft.small_policy.supervise", learns_nothing)
    assert cold_start(config, others) != folder


@pytest.mark.parametrize(
    "shown",
    [["a", "b"], ["a", Observation(text="b")], ["a", Observation(text="b", role="tool")]],
    ids=["two turns", "an observation", "a tool's observation"],
)
def test_the_same_words_in_other_roles_have_another_folder(monkeypatch, config: ColdStartConfig, shown: list):
    monkeypatch.setattr("rl.sft.small_policy.supervise", learns_nothing)
    folders = {cold_start(config, PROMPTS, lambda prompt, parts=parts: parts) for parts in (["ab"], shown)}
    assert len(folders) == 2


def test_a_prompt_without_an_answer_is_named(tmp_path: Path):
    config = ColdStartConfig(updates=1, batch_size=2, threads=1, cache_dir=tmp_path)
    with pytest.raises(
        ValueError, match="prompt 'sum-1' has no answer to train on: a cold start needs prompts with answers"
    ):
        cold_start(config, prompts("1=1", None))
    assert list(tmp_path.glob("*/cold_start.json")) == []


def test_a_supervised_batch_marks_the_answer_and_its_end():
    batch = batch_of(*PROMPTS)
    # start u <vision> image </vision> s u m ? end start a | 1 = 1 end: 12 tokens of prompt, 4 to learn
    assert batch.tokens_BL.shape == (2, 16)
    assert [row.nonzero()[:, 0].tolist() for row in batch.mask_BT] == [[11, 12, 13, 14]] * 2
    assert small_processor().tokenizer.decode(batch.tokens_BL[1, 12:]) == "2=2<|im_end|>"
    assert len(batch.vision.grid_U3) == 2


def test_the_loss_is_the_mean_over_all_tokens_that_are_shown():
    logprobs_BT = torch.tensor([[0.5, 0.25, 0.1], [0.125, 1.0, 0.1]]).log().requires_grad_()
    mask_BT = torch.tensor([[True, True, False], [True, False, False]])
    loss, _ = negative_log_likelihood(logprobs_BT, logprobs_BT.detach(), torch.ones(2), mask_BT)
    assert loss.item() == pytest.approx((1 + 2 + 3) / 3 * np.log(2))  # 1/2, 1/4 and 1/8
    half, _ = negative_log_likelihood(logprobs_BT, logprobs_BT.detach(), torch.ones(2), mask_BT, num_tokens=6)
    assert half.item() == pytest.approx(loss.item() / 2)
    loss.backward()
    assert logprobs_BT.grad.tolist() == [
        [pytest.approx(-1 / 3), pytest.approx(-1 / 3), 0],
        [pytest.approx(-1 / 3), 0, 0],
    ]


def test_a_run_that_was_killed_ends_with_the_weights_that_it_would_have_had(fresh: Path, tmp_path: Path):
    asked = prompts("1=1", "2=2", "3=3", "4=4", "5=5")
    whole = supervise(choices(fresh, tmp_path / "whole"), asked, eval_prompts=PROMPTS)
    calls = 0

    def kills(prompt: Prompt) -> list[str]:
        nonlocal calls
        calls += 1
        if calls > 2 + 2 * 4:  # two held-out prompts, and four updates of two
            raise KeyboardInterrupt
        return [prompt.answer]

    options = choices(fresh, tmp_path / "killed", resume="auto")
    with pytest.raises(KeyboardInterrupt):
        supervise(options, asked, kills, eval_prompts=PROMPTS)
    assert len(losses(tmp_path / "killed")) == 4  # one more than the checkpoint, which is written again
    resumed = supervise(options, asked, eval_prompts=PROMPTS)
    assert resumed.name == "step_6"
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    timeless = [
        [
            {name: value for name, value in row.items() if not name.startswith(("time/", "memory/"))}
            for row in read_metrics(run)
        ]
        for run in (tmp_path / "whole", tmp_path / "killed")
    ]
    assert timeless[0] == timeless[1]
    assert [row["step"] for row in timeless[0] if "eval/loss" in row] == [0, 3, 6]
    assert supervise(options, asked) == resumed  # nothing left to do


def test_a_cold_start_that_was_killed_goes_on(tmp_path: Path):
    config = ColdStartConfig(updates=6, batch_size=1, threads=1, cache_dir=tmp_path)
    killed = False

    def kills_once(prompt: Prompt) -> list[str]:
        nonlocal killed
        rows = [row for file in tmp_path.glob("*/run/metrics.jsonl") for row in file.read_text().splitlines()]
        if not killed and len(rows) == 4:
            while not any(tmp_path.glob("*/run/checkpoints/step_4")):  # it is written while training goes on
                time.sleep(0.01)
            killed = True
            raise KeyboardInterrupt
        return [prompt.answer]

    with pytest.raises(KeyboardInterrupt):
        cold_start(config, PROMPTS, kills_once)
    folder = cold_start(config, PROMPTS, kills_once)
    assert (folder / "cold_start.json").is_file()
    assert [row["step"] for row in read_metrics(folder / "run")] == list(range(1, 7))
    assert not (folder / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "learner",
    [
        LearnerConfig(threads=1, dtype="float32", packing=False),
        LearnerConfig(threads=1, dtype="float32", gradient_checkpointing=True),
        LearnerConfig(threads=1, dtype="float32", microbatch_tokens=64),
    ],
    ids=["padded", "checkpointing", "small microbatches"],
)
def test_how_a_batch_is_computed_does_not_change_what_is_learnt(fresh: Path, tmp_path: Path, learner: LearnerConfig):
    asked = prompts("1=1", "22=22", "333=333", "4=4")
    for name, its in (("a", LearnerConfig(threads=1, dtype="float32")), ("b", learner)):
        supervise(choices(fresh, tmp_path / name, batch_size=4, steps=3, learner=its), asked)
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), abs=1e-4)
    assert losses(tmp_path / "a")[-1] < losses(tmp_path / "a")[0] - 0.5


def test_half_precision_learns_about_the_same(fresh: Path, tmp_path: Path):
    for dtype in ("float32", "bfloat16"):
        supervise(choices(fresh, tmp_path / dtype, steps=3, learner=LearnerConfig(threads=1, dtype=dtype)), PROMPTS)
    assert losses(tmp_path / "bfloat16") == pytest.approx(losses(tmp_path / "float32"), abs=0.1)
    assert losses(tmp_path / "bfloat16") != losses(tmp_path / "float32")


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(fresh: Path, tmp_path: Path):
    # With AdamW's own eps, what is compared is what it makes of the rounding of gradients that are 0.
    optimizer = OptimizerConfig(learning_rate=3e-3, warmup_updates=1, eps=1e-5)
    for name, ranks in (("one", 1), ("two", 2)):
        options = {
            "steps": 3,
            "optimizer": optimizer,
            "learner": LearnerConfig(threads=1, dtype="float32", cpu_ranks=ranks),
        }
        last = supervise(choices(fresh, tmp_path / name, **options), PROMPTS, eval_prompts=PROMPTS)
    rows = [read_metrics(tmp_path / name) for name in ("one", "two")]
    for key in ("loss/objective", "eval/loss"):
        of_one, of_two = ([row[key] for row in its if key in row] for its in rows)
        assert of_two == pytest.approx(of_one, abs=1e-4)
    assert load_policy(last, dtype=torch.float32, device="cpu").config.model_type == "qwen3_vl"


def test_what_is_too_long_is_skipped_and_counted(fresh: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    asked = prompts("1=1", "2=2", "3" * 100)
    supervise(choices(fresh, tmp_path, steps=3), asked)
    assert "113 tokens with the demonstration exceed max_tokens = 64: raise it, or shorten" in caplog.text
    assert read_metrics(tmp_path)[-1]["rollout/prompts_skipped"] >= 1


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"steps": 0}, "steps must be > 0, got 0"),
        (
            {"max_tokens": 20_000},
            "learner.microbatch_tokens = 16384 cannot hold the longest sequence, max_tokens = 20000",
        ),
        ({"optimizer": OptimizerConfig(learning_rate=0.0)}, "optimizer.learning_rate must be > 0, got 0.0"),
    ],
)
def test_choices_that_cannot_work_are_refused(fresh: Path, tmp_path: Path, changed: dict, told: str):
    with pytest.raises(ValueError, match=told):
        supervise(choices(fresh, tmp_path, **changed), PROMPTS)


def test_a_run_of_other_choices_is_not_gone_on_with(fresh: Path, tmp_path: Path):
    supervise(choices(fresh, tmp_path, steps=1), PROMPTS)
    with pytest.raises(ValueError, match="already holds a run .step_1.: pass --resume auto to continue it"):
        supervise(choices(fresh, tmp_path), PROMPTS)
    with pytest.raises(ValueError, match=r"is of another config: batch_size = 1 \(was 2\)"):
        supervise(choices(fresh, tmp_path, batch_size=1, resume="auto"), PROMPTS)


def test_reasoning_is_a_thought_before_the_answer():
    prompt = Prompt(id="a", messages=[], answer="4", columns={"solution": " 2 and 2. ", "note": "x"})
    assert reasoned_answer()(prompt) == ["<think>\n2 and 2.\n</think>\n\n4"]
    assert reasoned_answer("note", "{reasoning}: {answer}")(prompt) == ["x: 4"]
    with pytest.raises(
        ValueError, match="'a' has no reasoning in why; its columns: solution, note: name the one that has it"
    ):
        reasoned_answer("why")(prompt)


def test_a_thought_that_the_chat_template_has_opened_is_not_opened_twice():
    processor = small_processor()
    [prompt] = prompts("4")
    shown = ["<think>\nyes\n</think>\n\n4"]
    assert learnt_text(processor, prompt, shown) == "<think>\nyes\n</think>\n\n4<|im_end|>"
    processor.chat_template += "{%- if add_generation_prompt -%}{{- '<think>\n' -}}{%- endif -%}"
    assert learnt_text(processor, prompt, shown) == "yes\n</think>\n\n4<|im_end|>"


def learnt_text(processor, prompt: Prompt, shown: list[str]) -> str:
    sample = encode_demonstration(processor, prompt, shown)
    return processor.tokenizer.decode(sample.token_ids[sample.loss_mask])


def test_a_lesson_is_made_once():
    calls = []
    lessons = DemonstrationEncoder(
        small_processor(), lambda prompt: calls.append(prompt.id) or [prompt.answer], max_tokens=64
    )
    assert [lessons.accept(prompt) for prompt in PROMPTS] == [None, None]
    assert [sample.prompt_id for sample in lessons.take(PROMPTS)] == calls == ["sum-0", "sum-1"]
