"""Recipes as a user meets them: help, mistyped options, bad values, what their rewards give. No engine starts."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from policies.loading import load_policy, load_processor, vision_token_ids
from policies.small.qwen3_vl import small_processor
from recipes import sapo_minimal
from recipes.custom_reward import CustomReward, my_reward
from recipes.digit_sums import DigitSums, sum_is_right
from recipes.distill import Distill
from recipes.easy_vqa import EasyVqa
from rewards.loading import load_reward
from rl.config import LearnerConfig, TrainConfig, check_config
from rl.config.checks import OBJECTIVE_NAMES
from rl.learner import Learner
from rl.run_dir.tracker import read_metrics
from rl.samples import make_samples
from rl.sapo import sapo_loss
from rollout import Completion, Group, Prompt
from rollout.data.prompts import blind, prompts_from
from rollout.rendering import fits_context
from rollout.tasks.digit_sums import digit_sums, to_prompt

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")

ROOT = Path(__file__).parents[2]
TRAIN_NOTHING = {"carry_weights", "check_data", "evaluate", "measure_pass_rate", "select"}
RECIPES = sorted({path.stem for path in (ROOT / "recipes").glob("[a-z]*.py")} - TRAIN_NOTHING)
TRAINED_BY_TRAIN = [
    "custom_reward",
    "digit_sums",
    "distill",
    "easy_vqa",
    "general_rl",
    "grid_game",
    "guess_number",
    "reasoning_rl",
    "word_tasks",
    "zoom",
]
RESUMABLE = [*TRAINED_BY_TRAIN, "thinking_with_images"]
PICTURE = Image.new("RGB", (192, 64))
SUM = Prompt(
    id="a", messages=[], images=[PICTURE], answer="3+5+9=17", columns={"digits": [3, 5, 9], "sum": 17, "digit_ids": []}
)


@dataclass(frozen=True)
class Ended:
    """How a program ended: 0 is well, 2 a mistake of the user's."""

    status: int
    out: str
    err: str


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs a recipe as `python -m recipes.NAME OPTIONS` does, in this process; Ray and a cold start fail the test."""

    def forbidden(*args: Any, **options: Any) -> None:
        raise AssertionError("this must have been refused before")

    monkeypatch.setattr("ray.init", forbidden)
    monkeypatch.setattr("rl.sft.small_policy.save_small_policy", forbidden)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.delenv("RL_TRACEBACK", raising=False)

    def run(name: str, *options: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        status: Any = 0
        try:
            runpy.run_module(f"recipes.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            status = ended.code
        return Ended(int(status or 0), *capsys.readouterr())

    return run


def sentence(ended: Ended) -> str:
    """The one line by which a recipe refuses a bad value."""
    assert (ended.status, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.parametrize("name", RECIPES)
def test_help_shows_the_options_that_work_everywhere(recipe: Callable[..., Ended], name: str) -> None:
    ended = recipe(name, "--help")
    assert ended.status == 0
    options = set(re.findall(r"(?<=[ │])--[a-z.-]+", ended.out))
    assert options >= {"--steps", "--run-dir", "--seed"}
    assert ("--reward" in options) == (name != "cold_start")
    assert ("--resume" in options) == (name in RESUMABLE or name == "cold_start")
    assert "no --reward" in ended.out or name != "cold_start"


@pytest.mark.parametrize("name", [*RECIPES, "carry_weights"])
def test_unknown_option_is_named(recipe: Callable[..., Ended], name: str) -> None:
    ended = recipe(name, "--tau-negative", "1.05")
    assert ended.status == 2
    assert "--tau-negative" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--tau-neg 0", "tau_neg must be > 0, got 0.0"),
        ("--tau-pos -1", "tau_pos must be > 0, got -1.0"),
        ("--objective ppo", f"objective must be one of {', '.join(OBJECTIVE_NAMES)}, or FILE.py:FUNCTION, got 'ppo'"),
        (
            "--group-size 1",
            "group_size must be >= 2, got 1: an advantage compares a completion with its siblings",
        ),
        (
            "--num-minibatches 17",
            "num_minibatches = 17 exceeds prompts_per_step = 16: each minibatch uses whole groups",
        ),
        (
            "--resume {folder}",
            "--resume {folder}: no checkpoint there (loop.json is missing); pass a checkpoints/step_N folder",
        ),
        (
            "--run-dir {folder}/run",
            "{folder}/run already holds a run (step_5): pass --resume auto to continue it, or another --run-dir",
        ),
        (
            "--reward {folder}/none.py:score",
            "reward '{folder}/none.py:score': there is no file {folder}/none.py; give the path of a Python file",
        ),
        ("--objective grpo --tau-neg 2", "objective 'grpo' does not take tau_neg = 2: leave it out"),
        ("--objective sapo --clip-low 0.2", "objective 'sapo' does not take clip_low = 0.2: leave it out"),
    ],
)
def test_bad_value_is_told_in_one_sentence_before_the_cold_start(
    recipe: Callable[..., Ended], tmp_path: Path, option: str, told: str
) -> None:
    (tmp_path / "run" / "checkpoints" / "step_5").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step_5" / "loop.json").write_text("{}")
    ended = recipe("digit_sums", "--run-dir", tmp_path / "new", *option.format(folder=tmp_path).split())
    assert sentence(ended) == told.format(folder=tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_missing_model_is_told_in_one_sentence_before_ray_starts(
    recipe: Callable[..., Ended], tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "[bold]policy"  # brackets are markup to the terminal, and must be shown all the same
    told = sentence(recipe(name, "--run-dir", tmp_path, "--model", folder))
    assert told == f"model folder '{folder}' does not exist; pass a folder with config.json or a hub name"


def test_a_cold_start_without_updates_is_refused(recipe: Callable[..., Ended], tmp_path: Path) -> None:
    told = sentence(recipe("cold_start", "--run-dir", tmp_path, "--steps", 0))
    assert told == "updates of the cold start must be > 0, got 0"


def test_bad_value_in_a_process_of_its_own_neither_shows_a_traceback_nor_loads_torch() -> None:
    code = "import runpy, sys; sys.argv = ['digit_sums', '--tau-neg', '0']\n"
    code += "try: runpy.run_module('recipes.digit_sums', run_name='__main__', alter_sys=True)\n"
    code += "finally: print(*{'torch', 'ray', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (2, "")
    assert done.stderr == "error: tau_neg must be > 0, got 0.0\n"


@pytest.mark.parametrize("kind", [DigitSums, EasyVqa, CustomReward, Distill])
def test_choices_of_a_recipe_pass_their_own_check(kind: type[TrainConfig]) -> None:
    check_config(kind())


@pytest.mark.parametrize("name", TRAINED_BY_TRAIN)
def test_a_recipe_hands_train_its_prompts_its_reward_and_held_out_prompts(
    recipe: Callable[..., Ended], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("rl.train", lambda config, **rest: given.update(rest, config=config), raising=False)
    monkeypatch.setattr("rl.sft.small_policy.cold_start", lambda choices, prompts, *demonstrate: Path("taught"))
    monkeypatch.setattr("policies.small.language_models.smollm2_policy", lambda folder: Path("taught"))
    monkeypatch.setattr("rl.run_dir.summary.print_result", lambda result: None)
    assert recipe(name, "--run-dir", tmp_path / "run", "--seed", 7, "--steps", 9).status == 0

    config, prompts, held_out = given["config"], given["prompts"], given["eval_prompts"]
    assert (config.model, config.seed, config.steps, config.run_dir) == ("taught", 7, 9, tmp_path / "run")
    assert prompts[0].id != held_out[0].id
    prompt = prompts[0]
    right = Completion(text=prompt.answer, token_ids=np.zeros(len(prompt.answer) + 1, np.int32))
    if environment := given.get("environment"):
        played = environment()
        played.reset(prompt)
        right = replace(right, outcome=played.step(right).outcome)
    for reward, expected in (
        (given["reward"](prompt, right), 1.0),
        (given["reward"](prompt, Completion(text="")), 0.0),
    ):
        assert getattr(reward, "reward", reward) == expected
    first = [prompts[i] for i in range(min(500, len(prompts)))]
    longest = max(first, key=lambda prompt: len(str(prompt.messages)))
    rollout = config.rollout
    accept = fits_context(small_processor(), max_model_len=rollout.max_model_len, max_tokens=rollout.max_tokens)
    assert accept(longest) is None
    assert all(len(prompt.answer) + 1 <= rollout.max_tokens for prompt in first)


@pytest.mark.parametrize(
    ("text", "reward", "terms"),
    [
        ("3+5+9=17", 1.0, 1.0),
        ("3+5+8=17", 1.0, 0.0),
        ("3+5+9=16", 0.0, 1.0),
        ("=17", 1.0, 0.0),
        ("17", 1.0, 0.0),
        ("3+5+9=17=18", 0.0, 0.0),
        ("3+5+9=17 ", 1.0, 1.0),
        ("3+5+9", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_sum_is_right_rewards_the_number_behind_the_last_equals_sign(text: str, reward: float, terms: float) -> None:
    score = sum_is_right(SUM, Completion(text=text))
    assert (score.reward, score.parts) == (reward, {"terms": terms})


@pytest.mark.parametrize(
    ("text", "num_tokens", "expected"),
    [
        ("3+5+9=17", 9, 1.0),
        ("3+5+8=17", 9, 0.5 * 2 / 3 + 0.5),
        ("3+5+9=16", 9, 0.5),
        ("17", 3, 0.5),
        ("3+5=8", 6, 0.5 * 2 / 3),
        ("3+5+9+0=17", 11, 1.0 - 0.02),
        ("", 1, 0.0),
    ],
)
def test_partial_credit_of_the_template(text: str, num_tokens: int, expected: float) -> None:
    completion = Completion(text=text, token_ids=np.zeros(num_tokens, np.int32))
    assert my_reward(SUM, completion).reward == pytest.approx(expected)


def test_the_template_looks_at_the_picture_and_reports_its_parts() -> None:
    of_two = replace(SUM, images=[Image.new("RGB", (128, 64))], answer="3+5=8", columns={"digits": [3, 5], "sum": 8})
    score = my_reward(of_two, Completion(text="3+4=8", token_ids=np.zeros(8, np.int32)))
    assert score.parts == {"digits": 0.5, "sum": 1.0, "tokens_too_many": 2}
    assert score.reward == pytest.approx(0.25 + 0.5 - 0.02)


def test_the_template_works_as_a_reward_file_and_needs_no_torch() -> None:
    completion = Completion(text="3+5+9=17")
    assert load_reward(f"{ROOT}/recipes/custom_reward.py:my_reward")(SUM, completion).reward == 1.0
    code = "import sys; from rewards.loading import load_reward; load_reward('recipes/custom_reward.py:my_reward')\n"
    code += "print(*{'torch', 'ray', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_cold_start_prints_loss_and_folder_and_finds_it_again(
    recipe: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policies.small.qwen3_vl import save_small_policy

    options = ["--run-dir", tmp_path, "--batch-size", 2, "--learner.threads", 1, "--kind", "moe", "--data", "easy_vqa"]
    options += ["--held-out", 2]
    monkeypatch.setattr("rl.sft.small_policy.save_small_policy", save_small_policy)
    first = recipe("cold_start", *options, "--steps", 2)
    assert first.status == 0
    numbers = r"\d\.\d{3} → \d\.\d{3} nats per token"
    assert re.search(rf"loss {numbers}, in \d+ s\nheld-out loss {numbers}\npolicy: ", first.out)
    folder = Path(first.out.split("policy: ")[1].strip())
    assert folder.parent == tmp_path
    assert load_policy(folder, dtype=torch.float32, device="cpu").config.model_type == "qwen3_vl_moe"

    def forbidden(*args: Any, **options: Any) -> None:
        raise AssertionError("made twice")

    monkeypatch.setattr("rl.sft.small_policy.save_small_policy", forbidden)
    assert recipe("cold_start", *options, "--updates", 2).out.splitlines()[-3:] == first.out.splitlines()[-3:]


@pytest.mark.slow
def test_cold_start_teaches_any_policy_any_rows_with_their_reasoning(
    recipe: Callable[..., Ended], dense_policy: Path, tmp_path: Path
) -> None:
    rows = [{"problem": f"{n}+1", "solution": f"one more than {n}", "label": str(n + 1)} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_dir = tmp_path / "run"
    options = ["--model", dense_policy, "--run-dir", run_dir, "--data", tmp_path / "rows.jsonl", "--held-out", 2]
    options += "--question problem --answer label --reasoning solution --batch-size 2 --learning-rate 1e-3".split()
    first = recipe("cold_start", *options, "--steps", 3)
    assert first.out.splitlines()[-1] == f"policy: {run_dir}/checkpoints/step_3"
    assert re.search(r"held-out loss 5\.\d{3} → [1-4]\.\d{3} nats per token", first.out)
    learnt = read_metrics(run_dir)[1]["loss/tokens"]
    # Of each of two rows: <think> newline, "one more than N", newline </think> two newlines, the answer and its end.
    assert learnt == 2 * (8 + 15 + 11 + 1 + 1)
    assert sentence(recipe("cold_start", *options, "--steps", 5)).endswith(
        "already holds a run (step_3): pass --resume auto to continue it, or another --run-dir"
    )
    assert recipe("cold_start", *options, "--steps", 5, "--resume", "auto").out.splitlines()[-1].endswith("step_5")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--data {folder}/none.jsonl", "there is no file or folder {folder}/none.jsonl: give a .parquet"),
        (
            "--data {folder}/rows.jsonl --held-out 1 --question problem --answer problem",
            "held_out = 1 leaves none of the 1 rows to train on: lower it",
        ),
        (
            "--data {folder}/rows.jsonl --held-out 0",
            "to_prompt asks for column 'question', but the dataset has 'problem': name one of these",
        ),
        ("--data {folder}/rows.jsonl --split test", "has no split 'test': name one of 'rows'"),
        ("--learner.dtype bfloat16", "is for --model FOLDER: the small policy is made in float32 in one process"),
    ],
)
def test_what_cold_start_cannot_learn_from_is_told_in_one_sentence(
    recipe: Callable[..., Ended], tmp_path: Path, options: str, told: str
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"problem": "1+1"}\n')
    ended = recipe("cold_start", "--run-dir", tmp_path / "run", *options.format(folder=tmp_path).split())
    assert ended.status == 2
    assert told.format(folder=tmp_path) in ended.err


def test_loss_of_the_minimal_recipe_and_its_gradient_are_those_of_the_library() -> None:
    generator = torch.Generator().manual_seed(0)
    old_BT = -torch.rand(6, 5, generator=generator)
    new_BT = (old_BT + torch.randn(6, 5, generator=generator)).requires_grad_()
    mask_BT = torch.arange(5)[None, :] < torch.tensor([5, 4, 3, 2, 1, 5])[:, None]
    advantages_B = torch.tensor([1.3, -0.7, 0.0, -2.0, 0.4, 1.0])
    ours = sapo_minimal.sapo_loss(new_BT, old_BT, advantages_B, mask_BT)
    theirs, _ = sapo_loss(new_BT, old_BT, advantages_B, mask_BT)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    (our_gradient,) = torch.autograd.grad(ours, new_BT)
    (their_gradient,) = torch.autograd.grad(theirs, new_BT)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=1e-6)


def test_log_probabilities_of_the_minimal_recipe_are_those_of_the_learner(dense_policy: Path) -> None:
    prompts = list(prompts_from(digit_sums("test", num_prompts=3), to_prompt))
    processor = load_processor(dense_policy)
    policy = load_policy(dense_policy, dtype=torch.float32, device="cpu").eval()
    responses_BT = torch.randint(0, 256, (3, 6), generator=torch.Generator().manual_seed(0))
    inputs = sapo_minimal.model_inputs(processor, prompts)
    banned_ids = vision_token_ids(processor)
    grey = sapo_minimal.model_inputs(processor, [blind(prompt) for prompt in prompts])
    with torch.no_grad():
        ours_BT = sapo_minimal.response_logprobs(policy, inputs, responses_BT, banned_ids)
        unseeing_BT = sapo_minimal.response_logprobs(policy, grey, responses_BT, banned_ids)
    assert (unseeing_BT - ours_BT).abs().max() > 1e-3

    groups = [
        Group(
            prompt=prompt,
            prompt_token_ids=ids.numpy(),
            completions=[Completion(text="", token_ids=response.numpy(), logprobs=np.zeros(6, np.float32))],
        )
        for prompt, ids, response in zip(prompts, inputs["input_ids"], responses_BT, strict=True)
    ]
    learner = Learner(TrainConfig(model="", learner=LearnerConfig(dtype="float32")), dense_policy)
    samples = make_samples(groups, [[sum_is_right(g.prompt, g.completions[0])] for g in groups])
    (batch,) = learner.make_microbatches([sample for group in samples for sample in group])
    (theirs_BT,) = learner.old_logprobs([batch])
    torch.testing.assert_close(ours_BT, theirs_BT[:, -6:], rtol=0, atol=2e-5)


def test_the_minimal_recipe_learns_and_leaves_a_policy_that_loads(
    recipe: Callable[..., Ended], dense_policy: Path, tmp_path: Path
) -> None:
    (tmp_path / "my_reward.py").write_text("def short(prompt, completion): return -len(completion.token_ids)")
    options = "--steps 2 --prompts-per-step 2 --group-size 3".split()
    paths = ["--model", dense_policy, "--run-dir", tmp_path / "run", "--reward", f"{tmp_path}/my_reward.py:short"]
    ended = recipe("sapo_minimal", *options, *paths)
    assert ended.status == 0
    assert re.findall(r"step +(\d+)  reward -\d+\.\d+  \d+\.\d s\n", ended.out) == ["1", "2"]
    before, after = (
        load_policy(folder, dtype=torch.float32, device="cpu").lm_head.weight
        for folder in (dense_policy, tmp_path / "run")
    )
    assert 0 < (before - after).abs().max() < 1e-3
