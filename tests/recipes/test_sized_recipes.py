"""Recipes with presets: what a published size is given, on small files that are laid out as the public datasets are."""

from __future__ import annotations

import io
import runpy
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Sequence, Value
from datasets import Image as ImageFeature
from PIL import Image
from rich.console import Console

from policies.model_sizes import PUBLISHED
from recipes import cold_start, distill
from recipes.cold_start import ColdStart, sft_config
from recipes.distill import Distill
from recipes.general_rl import GeneralRl
from recipes.reasoning_rl import ReasoningRl
from recipes.thinking_with_images import ThinkingWithImages, rewards_of
from rewards import Score
from rl.cli import main, parse
from rl.config import check_config
from rl.hardware.memory import plan_learner
from rl.hardware.presets import PRESETS, PresetConfig, preset_plan, print_plan
from rl.sft.config import check_sft
from rollout import Completion, Done, Observation, Turn
from rollout.data.mixture import open_stream

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")

STRING = Value("string")
IMAGE = ImageFeature()


def picture() -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (200, 100)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small datasets, each split a parquet file."""
    folder = tmp_path_factory.mktemp("data")
    box = {"image": picture(), "bbox": [20.0, 10.0, 100.0, 50.0], "answer": ["the left one"], "question": "?"}
    made = {
        "ChartQA": (
            {"image": IMAGE, "query": STRING, "label": Sequence(STRING)},
            [{"image": picture(), "query": "How much?", "label": ["4.5"]}],
            ("train", "test"),
        ),
        "RefCOCO": (
            {"image": IMAGE, "bbox": Sequence(Value("float64")), "answer": Sequence(STRING), "question": STRING},
            [box],
            ("val", "testA"),
        ),
        "geometry3k": (
            {"images": Sequence(IMAGE), "problem": STRING, "answer": STRING},
            [{"images": [picture()], "problem": "<image>Find x.", "answer": "3"}],
            ("train", "test"),
        ),
        "gsm8k": (
            {"question": STRING, "answer": STRING},
            [{"question": "How many?", "answer": "So many. #### 72"}],
            ("train", "test"),
        ),
        "looks": (
            {"image": IMAGE, "question": STRING, "answer": STRING, "tool_calls": Value("int64")},
            [{"image": picture(), "question": "What is there?", "answer": "x", "tool_calls": 2}],
            ("train",),
        ),
    }
    for name, (features, rows, splits) in made.items():
        for split in splits:
            (folder / name).mkdir(exist_ok=True)
            Dataset.from_list(rows * 30, features=Features(features)).to_parquet(folder / name / f"{split}.parquet")
    return folder


def handed_to_train(name: str, options: list[Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    given: dict[str, Any] = {}
    monkeypatch.setattr("rl.train", lambda config, **rest: given.update(rest, config=config), raising=False)
    monkeypatch.setattr("rl.run_dir.summary.print_result", lambda result: None)
    # What checks the options before the recipe asks for GPUs, which are not here.
    monkeypatch.setattr("rl.preflight.check_options", lambda config: None)
    monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
    runpy.run_module(f"recipes.{name}", run_name="__main__", alter_sys=True)
    return given


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        ("general_rl", {"chartqa": 16, "refcoco": 8, "clock": 4, "count": 4}),
        ("distill", {"geometry3k": 16, "gsm8k": 8, "chartqa": 8}),
        # Of 32 in a minibatch, the rest puzzles.
        ("reasoning_rl", {"geometry3k": 10, "gsm8k": 6, "refcoco": 6}),
    ],
)
def test_a_preset_mixes_public_tasks_in_every_minibatch(
    name: str, ratio: dict[str, int], data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if name == "reasoning_rl":
        pytest.importorskip("reasoning_gym", reason="an extra, for it needs a C compiler")
    given = handed_to_train(name, ["--preset", "8B", "--data-dir", data_dir, "--run-dir", tmp_path], monkeypatch)
    config = given["config"]
    assert (config.model, config.optimizer.learning_rate) == ("Qwen/Qwen3-VL-8B-Instruct", 1e-6)
    stream = open_stream(given["prompts"], batch_size=128, num_minibatches=4, seed=0)
    batch = stream.next_batch()
    for start in range(0, 128, 32):
        counts = Counter(prompt.task for prompt in batch[start : start + 32])
        for task, least in ratio.items():
            assert least - 1 <= counts[task] <= least + 1
    for prompt in {prompt.task: prompt for prompt in batch}.values():
        verdicts = [
            given["reward"](prompt, Completion(text=text)) for text in (f"\\boxed{{{prompt.answer}}}", "I do not know.")
        ]
        right, wrong = (each if isinstance(each, Score) else Score(reward=each) for each in verdicts)
        assert right.error is None and wrong.error is None
        assert right.reward > wrong.reward + 0.5, prompt.task


@pytest.mark.parametrize("size", PRESETS)
@pytest.mark.parametrize("kind", [GeneralRl, ReasoningRl, ThinkingWithImages, Distill])
def test_every_preset_of_every_recipe_works_and_fits(kind: type[PresetConfig], size: str):
    config, _, plan = preset_plan(parse(kind, ["--preset", size]), size)
    check_config(config)
    assert plan.fits, plan.problems
    assert config.learner.gpus == sum(PRESETS[size].gpus) - config.teacher.gpus_per_engine


@pytest.mark.parametrize(
    ("size", "teacher", "gpus"),
    [("2B", "Qwen/Qwen3-VL-32B-Instruct", 2), ("32B", "Qwen/Qwen3-VL-235B-A22B-Instruct", 8)],
)
def test_a_preset_of_distillation_has_a_larger_teacher_whose_memory_is_planned_too(size: str, teacher: str, gpus: int):
    config = parse(Distill, ["--preset", size])
    assert (config.teacher.model, config.teacher.gpus_per_engine) == (teacher, gpus)
    console = Console(file=io.StringIO(), width=150)
    print_plan(config, console)
    told = console.file.getvalue()
    assert "a teacher's GPU of 80.0 GiB" in told and "does not fit" not in told


def test_the_largest_size_has_no_teacher_and_is_told_so():
    with pytest.raises(
        ValueError, match=r"teacher.model = None: there is no teacher to distill; name one \(preset 235B-A22B"
    ):
        distill.run(parse(Distill, ["--preset", "235B-A22B"]))


@pytest.mark.parametrize("size", PRESETS)
def test_every_preset_of_the_cold_start_works_and_fits(size: str):
    begin = time.process_time()
    config = parse(ColdStart, ["--preset", size, "--data", "solved.jsonl"])
    chosen = sft_config(config)
    check_sft(chosen)
    plan = plan_learner(chosen.learning_options(), PUBLISHED[size], PRESETS[size].machine, group_size=1)
    assert time.process_time() - begin < 2
    assert plan.fits, plan.problems
    assert (chosen.model, chosen.learner.gpus) == (PRESETS[size].model, sum(PRESETS[size].gpus))
    assert (chosen.max_tokens, config.data) == (16384, "solved.jsonl")
    assert not plan.engine


def test_a_cold_start_of_30b_does_not_fit_eight_gpus_without_offload():
    chosen = sft_config(parse(ColdStart, ["--preset", "30B-A3B", "--learner.no-offload"]))
    plan = plan_learner(chosen.learning_options(), PUBLISHED["30B-A3B"], PRESETS["30B-A3B"].machine, group_size=1)
    assert not plan.fits and "learner.offload" in plan.problems[0]
    # 16 bytes for each of 31.07G parameters, over 8 ranks
    assert plan.learner_kept / 1e9 == pytest.approx(16 * 31.07 / 8, rel=1e-3)


def test_the_cold_starts_plan_is_printed_and_nothing_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for options, code, told in (
        (["--preset", "8B", "--plan"], 0, "8B: Qwen/Qwen3-VL-8B-Instruct on 1 × 8 GPUs of 80 GiB"),
        (["--preset", "8B", "--plan", "--max-tokens", "99999"], 2, "learner.microbatch_tokens = 20480 cannot hold"),
        (["--plan"], 2, "--plan is for GPUs, but preset small runs on the CPU"),
        (["--preset", "8B", "--model", "small", "--data", "x.jsonl"], 2, "preset = 8B is for --model FOLDER"),
        (["--preset", "8B"], 2, "--data is needed with a preset: data = digit_sums is for the small policy"),
    ):
        monkeypatch.setattr(sys, "argv", ["cold_start", *options])
        monkeypatch.setattr("rl.sft.supervise", lambda *args: pytest.fail("it ran"))
        with pytest.raises(SystemExit) if code else nullcontext() as ended:
            main(cold_start.run, ColdStart)
        assert not code or ended.value.code == code
        words = capsys.readouterr()
        assert told in (words.err if code else words.out)


@pytest.mark.parametrize("kind", [GeneralRl, ReasoningRl, ThinkingWithImages])
def test_the_small_choices_pass_their_own_check(kind: type[PresetConfig]):
    check_config(kind())


def test_thinking_with_images_tells_the_tool_and_counts_its_calls(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ["--preset", "8B", "--data", data_dir / "looks", "--run-dir", tmp_path]
    given = handed_to_train("thinking_with_images", options, monkeypatch)
    prompt = given["prompts"][0]
    assert len(given["prompts"]) + len(given["eval_prompts"]) == 30
    assert [message["role"] for message in prompt.messages] == ["system", "user"]
    tool = given["environment"]()
    tool.reset(prompt)
    call = '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 500, 500]}}\n</tool_call>'
    assert call.replace("[0, 0, 500, 500]", "[left, top, right, bottom]") in prompt.messages[0]["content"][0:10_000]
    seen = tool.step(Completion(text=call))
    assert isinstance(seen, Observation) and len(seen.images) == 1
    assert isinstance(tool.step(Completion(text="x")), Done)

    def episode(text: str, calls: int) -> Completion:
        looks = [Turn(text=call, start=0, stop=1, observation=seen) for _ in range(calls)]
        return Completion(text=text, turns=[*looks, Turn(text=text, start=1, stop=2)])

    rewards = {
        (text, calls): given["reward"](prompt, episode(text, calls)).reward
        for text in ("x", "y")
        for calls in (0, 1, 2)
    }
    # 1 for the answer, and of .2 for the calls as much as they are near to 2
    assert rewards == pytest.approx(
        {("x", 0): 1.0, ("x", 1): 1.1, ("x", 2): 1.2, ("y", 0): 0.0, ("y", 1): 0.1, ("y", 2): 0.2}
    )
    limits = given["config"].rollout
    assert (limits.max_turns, limits.max_images) == (9, 9)
    assert limits.max_turn_tokens > 1000


def test_a_judge_needs_both_its_address_and_its_name():
    with pytest.raises(ValueError, match="judge_url = http://x/v1 and judge_model = None: give both, or neither"):
        rewards_of(replace(ThinkingWithImages(), judge_url="http://x/v1"))
    reward = rewards_of(replace(ThinkingWithImages(), judge_url="http://localhost:1/v1", judge_model="m"))
    assert callable(reward)


def test_a_preset_without_data_to_look_at_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    with pytest.raises(SystemExit):
        handed_to_train("thinking_with_images", ["--preset", "2B"], monkeypatch)
    assert "--data is needed with a preset" in capsys.readouterr().err.replace("\n", " ")
