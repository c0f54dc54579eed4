"""Asking a checkpoint several times: what is kept, what goes on after a kill, what is refused. The engines are a fake."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rewards.trial.recorded import read_groups
from rewards.types import Score
from rl.data import DataColumns
from rl.evaluation.config import CorrectConfig, SamplingRunConfig
from rl.evaluation.report import check_output, report_evaluation, report_pass_rates
from rl.evaluation.sampling import generate_and_score, sample_and_score
from rollout import Completion, Group, Prompt
from rollout.config import RolloutConfig

DATA = """
from PIL import Image
from rollout import Prompt

def prompts():
    def prompt(i):
        content = [{"type": "image"}, {"type": "text", "text": "sum?"}] if i else "text alone"
        images = [Image.new("RGB", (64, 64), (i, 0, 0))] if i else []
        return Prompt(id=f"p-{i}", messages=[{"role": "user", "content": content}], images=images, answer=str(i % 3),
                      task="even_numbers" if i % 2 == 0 else "odd_numbers")
    return [prompt(i) for i in range(12)]

def too_long():
    return prompts()[:2] + [Prompt(id="long", messages=[{"role": "user", "content": "x" * 500}])]
"""
ENVIRONMENT = """
from rollout import Done

class Once:
    def reset(self, prompt):
        if not prompt.images and prompt.id != "p-0":
            raise KeyError("picture")

    def step(self, completion):
        return Done()

class Broken(Once):
    def step(self, completion):
        raise KeyError("turn")
"""
REWARD = """
def is_answer(prompt, completion):
    if completion.text == "9":
        raise KeyError("nine")
    return float(completion.text == prompt.answer)
"""


class FakePool:
    """Engines that answer at once, with a digit that the seed decides; after so many prompts the power fails."""

    asked: list[str]
    fails_after: int
    options: dict[str, Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        type(self).options = options

    @classmethod
    def reset(cls, fails_after: int = 10**9) -> None:
        cls.asked, cls.fails_after = [], fails_after

    def answer(self, prompt: Prompt, sampling: Any, seeds: list[int], policy_version: int) -> Group:
        if len(self.asked) == self.fails_after:
            raise KeyboardInterrupt
        self.asked.append(prompt.id)
        completions = [
            Completion(text=str(seed % 10), token_ids=np.zeros(1 + seed % 2, np.int32), finish_reason="stop")
            for seed in seeds
        ]
        return Group(prompt=prompt, prompt_token_ids=np.zeros(1, np.int32), completions=completions)

    def start(self, group: Group) -> Future[Group]:
        future: Future[Group] = Future()
        future.set_result(group)
        return future

    def close(self) -> None:
        pass


@pytest.fixture
def config(tmp_path: Path, dense_policy: Path, monkeypatch: pytest.MonkeyPatch) -> SamplingRunConfig:
    FakePool.reset()
    monkeypatch.setattr("rl.evaluation.sampling.EnginePool", FakePool)
    monkeypatch.setattr("rl.evaluation.sampling.local_ray", nullcontext)
    monkeypatch.setattr(
        "rl.evaluation.sampling.LOOKAHEAD", 0.02
    )  # few under way, so that a failure finds some done and some not
    (tmp_path / "data.py").write_text(DATA)
    (tmp_path / "reward.py").write_text(REWARD)
    return SamplingRunConfig(
        model=str(dense_policy),
        data=f"{tmp_path}/data.py:prompts",
        reward=f"{tmp_path}/reward.py:is_answer",
        samples=4,
        run_dir=tmp_path / "run",
        rollout=RolloutConfig(dtype="float32", max_tokens=16, max_model_len=128),
    )


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def test_a_run_that_is_interrupted_goes_on_asks_nothing_twice_and_leaves_the_same_file(
    config: SamplingRunConfig,
) -> None:
    undisturbed = report_pass_rates(sample_and_score(config, "test"), None, quiet()).read_text()
    assert len(FakePool.asked) == 12

    again = replace(config, run_dir=config.run_dir.with_name("again"))
    FakePool.reset(fails_after=8)
    with pytest.raises(KeyboardInterrupt):
        sample_and_score(again, "test")
    lines = (again.run_dir / "samples" / "step_000000.jsonl").read_text().splitlines()
    done = {json.loads(line)["prompt_id"] for line in lines}
    assert 0 < len(done) <= 8
    FakePool.reset()
    found = sample_and_score(again, "test")
    assert not done & set(FakePool.asked) and len(FakePool.asked) == found.num_sampled == 12 - len(done)
    assert report_pass_rates(found, None, quiet()).read_text() == undisturbed
    assert [json.loads(line)["prompt_id"] for line in undisturbed.splitlines()] == [f"p-{i}" for i in range(12)]


def test_a_prompt_whose_line_a_kill_cut_short_is_asked_again(config: SamplingRunConfig) -> None:
    sample_and_score(config, "test")
    file = config.run_dir / "samples" / "step_000000.jsonl"
    whole = file.read_text()
    *kept, last = whole.splitlines(keepends=True)
    file.write_text("".join(kept) + last[: len(last) // 2])
    FakePool.reset()
    sample_and_score(config, "test")
    assert FakePool.asked == [json.loads(last)["prompt_id"]]
    assert file.read_text() == whole


def test_what_is_answered_needs_no_engine(config: SamplingRunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sample_and_score(config, "test")
    monkeypatch.setattr("rl.evaluation.sampling.EnginePool", None)
    second = sample_and_score(config, "test")
    assert (second.num_sampled, second.results) == (0, first.results)


def test_more_prompts_later_keep_the_answers_to_the_first(config: SamplingRunConfig) -> None:
    assert len(sample_and_score(replace(config, limit=5), "test").results) == 5
    FakePool.reset()
    assert len(sample_and_score(config, "test").results) == 12
    assert FakePool.asked == [f"p-{i}" for i in range(5, 12)]
    assert len(sample_and_score(replace(config, limit=3), "test").results) == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: replace(c, temperature=0.6), r"sampling was .*'temperature': 1.0.* and is .*'temperature': 0.6"),
        (lambda c: replace(c, samples=8), "samples was 4 and is 8"),
        (lambda c: replace(c, blind=True), "blind was False and is True"),
        (lambda c: replace(c, rollout=replace(c.rollout, max_tokens=8)), "sampling was .*'max_tokens': 16"),
    ],
)
def test_answers_to_something_else_are_not_mixed_in(
    config: SamplingRunConfig, change: Callable[..., Any], told: str
) -> None:
    sample_and_score(config, "test")
    with pytest.raises(ValueError, match=f"run has answers with other options: {told}.*; pass another --run-dir"):
        sample_and_score(change(config), "test")


def test_another_reward_or_other_data_under_the_same_name_are_something_else(config: SamplingRunConfig) -> None:
    sample_and_score(config, "test")
    sample_and_score(
        replace(config, rollout=replace(config.rollout, num_engines=1, threads_per_engine=2)), "test"
    )  # not this
    reward = Path(config.reward.partition(":")[0])
    reward.write_text(REWARD + "\n# another\n")
    with pytest.raises(ValueError, match="reward_files was"):
        sample_and_score(config, "test")
    reward.write_text(REWARD)
    data = Path(config.data.partition(":")[0])
    data.write_text(DATA.replace("sum?", "product?"))
    with pytest.raises(ValueError, match="data_files was"):
        sample_and_score(config, "test")


def test_a_mistyped_column_leaves_the_folder_to_the_right_command(config: SamplingRunConfig, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"problem": "2 + 2?", "answer": "4"}\n')
    right = replace(config, data=f"{tmp_path}/d.jsonl", columns=DataColumns(question="problem", image=None))
    with pytest.raises(ValueError, match="to_prompt asks for column 'questoin', but the dataset has"):
        sample_and_score(replace(right, columns=DataColumns(question="questoin", image=None)), "evaluate")
    assert sample_and_score(right, "evaluate").num_sampled == 1


def test_without_a_run_dir_each_choice_has_a_folder_of_its_own(
    config: SamplingRunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    free = replace(config, run_dir=None)
    folders = {
        sample_and_score(each, "test").run_dir for each in (free, free, replace(free, top_k=5), replace(free, limit=3))
    }
    assert len(folders) == 2
    assert all(folder.parent == Path("runs/test") and folder.name.startswith("dense-") for folder in folders)


def test_verifier_errors_are_shown_and_in_no_figure(config: SamplingRunConfig) -> None:
    console = quiet()
    results = report_evaluation(sample_and_score(config, "test"), console)
    rows = [json.loads(line) for line in (config.run_dir / "samples" / "step_000000.jsonl").read_text().splitlines()]
    texts = [(each["text"], row["answer"]) for row in rows for each in row["completions"]]
    lost = sum(text == "9" for text, _ in texts)
    assert lost > 0 and results["overall"]["errors"] == {"is_answer": lost}
    assert f"{lost} of 48 samples have no verdict from is_answer" in console.file.getvalue()
    assert results["overall"]["reward"] == pytest.approx(sum(text == answer for text, answer in texts) / (48 - lost))
    assert results == json.loads((config.run_dir / "results.json").read_text())
    assert set(results["tasks"]) == {"even_numbers", "odd_numbers"}
    assert set(results["overall"]["figures"]) == {"avg@4", "pass@1", "pass@2", "pass@4", "majority@4"}


def test_the_tables_fit_a_terminal_of_80_columns(config: SamplingRunConfig) -> None:
    console = Console(file=io.StringIO(), width=80)
    found = sample_and_score(config, "test")
    report_evaluation(found, console)
    file = report_pass_rates(found, None, console)
    told = console.file.getvalue()
    assert "…" not in told and "majority@4" in told and "mean over tasks" in told
    rates = [json.loads(line)["pass_rate"] for line in file.read_text().splitlines()]
    wrong, some, most, nearly, right = (
        sum(low < rate <= high for rate in rates)
        for low, high in ((-1, 0), (0, 0.5), (0.5, 0.9), (0.9, 0.999), (0.999, 1))
    )
    of_task = [
        line.split()[1:] for line in told.splitlines() if line.split()[:1] in (["even_numbers"], ["odd_numbers"])
    ][-2:]
    counts = [sum(map(int, column)) for column in zip(*of_task, strict=True)]
    assert counts == [12, wrong, some, most, nearly, right, 0]


def test_the_answers_are_read_by_the_check_of_rewards_with_their_pictures(config: SamplingRunConfig) -> None:
    sample_and_score(config, "test")
    groups = {group.prompt.id: group for group in read_groups(config.run_dir)}
    assert len(groups) == 12 and len(groups["p-5"].completions) == 4
    assert groups["p-5"].prompt.images[0].getpixel((0, 0)) == (5, 0, 0)
    plain = replace(config, run_dir=config.run_dir.with_name("plain"), pictures=False)
    sample_and_score(plain, "test")
    assert not list(plain.run_dir.glob("samples/*.png")) and len(read_groups(plain.run_dir)) == 12


def test_blind_shows_grey_pictures_and_leaves_out_prompts_without_any(config: SamplingRunConfig) -> None:
    console = quiet()
    found = sample_and_score(replace(config, blind=True), "test")
    assert found.skipped == {0: "no picture to hide"} and len(found.results) == 11
    assert read_groups(config.run_dir)[0].prompt.images[0].getpixel((0, 0)) == (128, 128, 128)
    rows = [json.loads(line) for line in report_pass_rates(found, None, console).read_text().splitlines()]
    assert {row["blind"] for row in rows} == {True} and [row["row"] for row in rows] == list(range(1, 12))
    assert "1 prompts were skipped: no picture to hide" in console.file.getvalue()


def test_what_does_not_fit_is_left_out_and_told(config: SamplingRunConfig, caplog: pytest.LogCaptureFixture) -> None:
    found = sample_and_score(replace(config, data=config.data.replace("prompts", "too_long")), "test")
    assert list(found.skipped) == [2] and "max_model_len = 128" in found.skipped[2]
    assert "prompt 'long'" in caplog.text
    only = replace(config, data=config.data.replace("prompts", "too_long"), run_dir=config.run_dir.with_name("only"))
    with pytest.raises(
        ValueError, match="no prompt of .* could be sampled; the first reason: prompt 'p-0': .*max_model_len = 60"
    ):
        sample_and_score(replace(only, rollout=replace(config.rollout, max_model_len=60, max_tokens=59)), "test")


def test_pass_rates_are_written_as_parquet_too(config: SamplingRunConfig, tmp_path: Path) -> None:
    from datasets import Dataset

    found = sample_and_score(config, "test")
    as_lines = report_pass_rates(found, None, quiet())
    as_parquet = report_pass_rates(found, tmp_path / "rates.parquet", quiet())
    assert Dataset.from_parquet(str(as_parquet)).to_list() == list(map(json.loads, as_lines.read_text().splitlines()))
    with pytest.raises(ValueError, match="output must end in .jsonl or .parquet, got rates.txt"):
        check_output(Path("rates.txt"))


def test_an_environment_is_tried_before_the_engines_start_and_handed_to_them(
    config: SamplingRunConfig, tmp_path: Path
) -> None:
    sample_and_score(config, "test")
    assert FakePool.options["episodes"] is None
    (tmp_path / "environment.py").write_text(ENVIRONMENT)
    FakePool.reset()
    played = replace(config, run_dir=tmp_path / "played", environment=f"{tmp_path}/environment.py:Once")
    sample_and_score(played, "test")
    assert FakePool.options["episodes"] is not None
    FakePool.reset()
    broken = replace(config, run_dir=tmp_path / "broken", environment=f"{tmp_path}/environment.py:Broken")
    with pytest.raises(ValueError, match="KeyError: 'turn'"):
        sample_and_score(broken, "test")
    assert FakePool.asked == []


def test_a_part_that_no_score_has_is_refused_and_the_answers_stay(config: SamplingRunConfig) -> None:
    with pytest.raises(ValueError, match="correct.part = 'accuracy' is not a part of the reward, which has: none"):
        sample_and_score(replace(config, correct=CorrectConfig(part="accuracy")), "test")
    FakePool.reset()
    assert len(sample_and_score(config, "test").results) == 12 and FakePool.asked == []


class SlowOnFirst(FakePool):
    """Answers all but the first prompt at once, and that one when it is asked the last."""

    def start(self, group: Group) -> Future[Group]:
        future: Future[Group] = Future()
        if group.prompt.id == "p-0":
            self.first = (future, group)
            return future
        future.set_result(group)
        if group.prompt.id == "p-5":
            self.first[0].set_result(self.first[1])
        return future

    def submit(self, group: Group) -> Future[list[Score]]:
        scored: Future[list[Score]] = Future()
        scored.set_result([Score(reward=1.0)] * len(group.completions))
        return scored


def test_no_more_prompts_are_drawn_than_may_be_under_way_and_the_slowest_holds_nobody_up(
    config: SamplingRunConfig,
) -> None:
    both, order = SlowOnFirst(), []
    drawn = iter([(i, Prompt(id=f"p-{i}", messages=[])) for i in range(6)])
    for number, group, scores in generate_and_score(both, both, drawn, config, max_prompts=2):
        assert len(FakePool.asked) - len(order) <= 2
        assert (group.prompt.id, len(scores)) == (f"p-{number}", 4)
        order.append(number)
    assert order[:4] == [1, 2, 3, 4] and sorted(order) == [0, 1, 2, 3, 4, 5]
