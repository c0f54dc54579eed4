"""A reward is tried on what was recorded, and shows its faults there instead of in a run."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from rewards import Score, length_penalty
from rewards.check import Check, check, find_reward, timed
from rewards.trial.recorded import Columns, read_groups, read_recorded
from rewards.workers import runner
from rewards.workers.call import score_completions
from rl.config import TrainConfig
from rl.run_dir.tracker import Tracker
from rollout import Completion, Group, Observation, Prompt, Turn
from rollout.types import sampled_mask

ROOT = Path(__file__).parents[2]
REWARD = """
import time
from rewards import Score

def score(prompt, completion):
    match completion.text:
        case "raise":
            raise KeyError(prompt.id)
        case "hang":
            time.sleep(1000)
        case "slow":
            time.sleep(0.3)
        case "lie":
            return "yes"
        case "hoard":
            return float(len(bytearray(1 << 29)) > 0)
    right = completion.text == prompt.answer
    return Score(reward=float(right), parts={"length": len(completion.text)})

async def patient(prompt, completion):
    import asyncio
    await asyncio.sleep(0.2)
    return 1.0
"""


@pytest.fixture(autouse=True)
def half_an_extra_second_for_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_CALL_EXTRA", 0.5)


@pytest.fixture
def reward(tmp_path: Path) -> str:
    (tmp_path / "my_reward.py").write_text(REWARD)
    return f"{tmp_path / 'my_reward.py'}:score"


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: Any) -> Path:
        path = tmp_path / "answers.jsonl"
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return path

    return write


def output(reward: str, data: Path, **options: Any) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    status = check(Check(reward=reward, data=data, **options), console)
    assert isinstance(console.file, io.StringIO)
    return status, console.file.getvalue()


def line(printed: str, begin: str) -> list[str]:
    """Returns the words behind the head of the one row of numbers with this head."""
    rows = [each.strip() for each in printed.splitlines()]
    words = [row.removeprefix(begin).split() for row in rows if row.startswith(begin)]
    [found] = [numbers for numbers in words if numbers[0].isdigit()]
    return found


def test_the_spread_of_the_reward_and_of_its_parts_is_shown(reward: str, table: Callable[..., Path]) -> None:
    rows = [
        {"id": "a", "prompt": "8+9?", "completion": ["17", "17", "18", "7"], "answer": "17"},
        {"id": "b", "prompt": "1+1?", "completion": ["2", "2"], "answer": "2"},
    ]
    status, printed = output(reward, table(*rows))
    assert status == 0 and printed.startswith("score: 6 completions, 0 without a verdict (0.0%)\n")
    assert line(printed, "reward   ")[:4] == ["6", "0.667", "0.471", "0"]  # number, mean, std (√2/3), min
    assert line(printed, "reward   ")[5:] == ["1", "1", "1"]  # median, 95%, max
    assert line(printed, "part length")[:2] == ["6", "1.5"]
    assert line(printed, "seconds  ")[0] == "6"
    assert line(printed, "0  ") == ["2", "33.3%", "█" * 10]
    assert line(printed, "1  ") == ["4", "66.7%", "█" * 20]
    assert "all got the same reward, and so teach nothing: 1 of 2\n" in printed
    assert "errors" not in printed and "reference" not in printed


def test_responses_without_an_answer_are_counted(table: Callable[..., Path]) -> None:
    rows = table({"id": "a", "completion": ["B", "C", "I cannot tell."], "answer": "B"})
    status, printed = output("multiple_choice", rows)
    assert status == 0 and "responses in which no answer was found: 1 of 3\n" in printed


def test_many_different_rewards_are_shown_in_bins(tmp_path: Path, table: Callable[..., Path]) -> None:
    (tmp_path / "r.py").write_text("def score(p, c): return float(c.text)")
    _, printed = output(f"{tmp_path / 'r.py'}:score", table({"text": [str(n) for n in range(20)]}))
    assert line(printed, "0 to 1.9") == ["2", "10.0%", "█" * 3] and line(printed, "17.1 to 19") == [
        "2",
        "10.0%",
        "█" * 3,
    ]


def test_errors_are_counted_by_kind_and_a_hang_is_one(reward: str, table: Callable[..., Path]) -> None:
    rows = [
        {"id": "a", "completion": ["raise", "17", "hang", "lie"], "answer": "17"},
        {"id": "b", "completion": ["raise"], "answer": "17"},
    ]
    status, printed = output(reward, table(*rows), timeout=0.5)
    assert (status, "5 completions, 4 without a verdict (80.0%)" in printed) == (0, True)
    told = [
        each.split() for each in printed.split("errors", 1)[1].split("slowest")[0].splitlines() if " reward " in each
    ]
    assert [words[0] for words in told] == ["2", "1", "1"]
    assert "reward 'score' raised KeyError: 'a' for prompt 'a'" in printed and "raised KeyError: 'b'" not in printed
    assert "reward 'score' took longer than 0.5 s for prompt 'a'" in printed
    assert "reward 'score' returned 'yes' (str) for prompt 'a'" in printed
    assert "a: 'raise'" in printed and "b: 'raise'" in printed and "a: 'hang'" in printed


def test_a_reward_that_takes_too_much_memory_is_told_as_in_training(reward: str, table: Callable[..., Path]) -> None:
    rows = table({"id": "a", "completion": ["hoard", "17"], "answer": "17"})
    _, printed = output(reward, rows, memory_gib=0.25)
    assert "2 completions, 1 without a verdict" in printed
    assert "reward 'score' raised MemoryError for prompt 'a'" in printed
    _, printed = output(reward, rows, memory_gib=0)
    assert "2 completions, 0 without a verdict" in printed
    assert Check(reward=reward, data=rows).memory_gib == TrainConfig(model="m").reward_memory_gib


def test_without_any_verdict_the_status_is_1(reward: str, table: Callable[..., Path]) -> None:
    assert output(reward, table({"completion": "raise"}))[0] == 1


def test_the_slowest_calls_are_shown_with_their_seconds(reward: str, table: Callable[..., Path]) -> None:
    _, printed = output(reward, table({"id": "a", "completion": ["1", "2", "slow", "3"], "answer": "17"}), samples=1)
    shown = printed.split("slowest calls")[1].splitlines()
    seconds, prompt, given, response = next(each.split() for each in shown if "'" in each and "a process" not in each)
    assert (prompt, given, response) == ("a", "0", "'slow'") and 0.3 <= float(seconds) < 1.0


def test_the_seconds_of_an_async_reward_are_those_of_its_group(reward: str, table: Callable[..., Path]) -> None:
    _, printed = output(reward.replace(":score", ":patient"), table({"completion": ["1", "2", "3"]}))
    assert line(printed, "reward   ")[:2] == ["3", "1"] and "slowest groups" in printed
    assert 0.2 <= float(line(printed, "seconds  ")[1]) < 0.5


def test_a_timed_reward_scores_like_the_reward_itself() -> None:
    def length(prompt: Prompt, completion: Completion) -> Score:
        if not completion.text:
            raise ValueError("nothing")
        return Score(reward=1.0, parts={"length": len(completion.text)})

    completions, prompt = [Completion(text="abc"), Completion(text="")], Prompt(id="p", messages=[])
    plain, found = score_completions(length, prompt, completions), score_completions(timed(length), prompt, completions)
    for before, after in zip(plain, found, strict=True):
        assert (after.reward, after.error, after.failed) == (before.reward, before.error, before.failed)
        assert len(set(after.parts) - set(before.parts)) == 1 and before.parts.items() <= after.parts.items()


def test_reference_answers_are_scored_if_asked_and_those_that_got_less_are_named(table: Callable[..., Path]) -> None:
    rows = [
        {"id": name, "completion": "17", "answer": answer}
        for name, answer in (("a", "17"), ("b", "x or y"), ("c", 8.5))
    ]
    _, printed = output("numeric", table(*rows), reference=True)
    assert "reference answers as responses: 3, best reward 1, 1 got less" in printed
    [named] = [each for each in printed.split("reference answers")[1].splitlines() if "'x or y'" in each]
    assert named.split()[:2] == ["error", "b"]


def test_what_a_response_says_is_neither_markup_nor_a_command_to_the_terminal(
    reward: str, table: Callable[..., Path]
) -> None:
    text = "\x1b[31m[red]\ud800\n" + "x" * 1000
    _, printed = output(reward, table({"id": "\x1b[2J[bold]", "completion": [text, "raise"], "answer": "1"}))
    assert "\x1b" not in printed and "[red]" in printed and "·[2J[bold]" in printed and "x" * 100 not in printed
    printed.encode()


def test_a_runs_samples_are_read_as_they_were(tmp_path: Path) -> None:
    shown = Observation(text="look", images=[Image.new("RGB", (4, 4), "red")])
    turns = [Turn(text="za", start=0, stop=2, observation=shown), Turn(text="7", start=4, stop=5)]
    told = [
        Completion(
            text="7",
            turns=turns,
            outcome={"won": True},
            policy_version=3,
            finish_reason="length",
            token_ids=np.zeros(5, np.int32),
        ),
        Completion(text="8", token_ids=np.zeros(9, np.int32)),
    ]
    content = [{"type": "image"}, {"type": "text", "text": "sum?"}]
    prompt = Prompt(
        id="q",
        messages=[{"role": "user", "content": content}],
        images=[Image.new("RGB", (8, 4), "blue")],
        answer=7,
        task="digits",
    )
    group = Group(prompt=prompt, prompt_token_ids=np.zeros(1), completions=told)
    tracker = Tracker(TrainConfig(model="m", run_dir=tmp_path, wandb="disabled"), {}, 0)
    for step in (1, 2):
        tracker.save_samples(f"step_{step:06d}", [group] * step, [[Score(reward=1.0, error="e")] * 2] * step)
    assert len(read_groups(tmp_path)) == len(read_groups(tmp_path / "samples")) == 3
    assert len(read_groups(tmp_path, limit=2)) == 2
    [read] = read_groups(tmp_path / "samples" / "step_000001.jsonl")
    assert (read.prompt.id, read.prompt.messages, read.prompt.answer) == ("q", prompt.messages, 7)
    assert (read.prompt.task, dict(read.prompt.columns)) == ("digits", {})
    assert read.prompt.images[0].getpixel((0, 0)) == (0, 0, 255)
    episode, plain = read.completions
    assert (episode.text, episode.policy_version, episode.finish_reason, episode.error) == ("7", 3, "length", None)
    assert episode.outcome == {"won": True} and [turn.text for turn in episode.turns or ()] == ["za", "7"]
    seen = (episode.turns or ())[0].observation
    assert seen is not None and seen.text == "look" and seen.images[0].getpixel((0, 0)) == (255, 0, 0)
    assert (plain.text, plain.turns, len(plain.token_ids), len(plain.logprobs)) == ("8", None, 9, 9)
    assert len(episode.token_ids) == 5 and sampled_mask(episode).tolist() == [True, True, False, False, True]
    assert read_recorded(tmp_path).num_guessed == 0


def test_a_run_before_it_counted_tokens_has_as_many_as_is_likely(table: Callable[..., Path]) -> None:
    turns = [{"text": "12345", "observation": "look", "images": []}, {"text": "7"}]
    recorded = read_recorded(table({"completions": [{"text": "7", "turns": turns}, {"text": "12345678"}]}))
    episode, plain = recorded.groups[0].completions
    assert [(turn.start, turn.stop) for turn in episode.turns or ()] == [(0, 3), (3, 5)]
    assert (len(episode.token_ids), len(plain.token_ids), recorded.num_guessed) == (5, 3, 2)


def test_what_a_table_does_not_tell_of_tokens_is_guessed_and_said_once(table: Callable[..., Path]) -> None:
    row: dict[str, Any] = {"completion": ["a" * 4, "a" * 400], "answer": "17"}
    told = [row | {"num_tokens": 9}, row | {"num_tokens": [9, None]}, row | {"n": [8, 7]}, row]
    found = read_recorded(table(*told[:2]))
    assert [[len(each.token_ids) for each in group.completions] for group in found.groups] == [[9, 9], [9, 101]]
    assert (found.num_guessed, dict(found.groups[0].prompt.columns)) == (1, {})
    [named] = read_groups(table(told[2]), Columns(num_tokens="n"))
    assert [len(each.token_ids) for each in named.completions] == [8, 7]
    assert length_penalty(max_tokens=8, buffer=2)(named.prompt, named.completions[0]) == -1.0
    assert "not recorded" not in output("exact", table(told[0]))[1]
    sentence = "3 of 4 completions have no recorded number of tokens: guessed, one for every four bytes\n"
    assert output("exact", table(told[1], told[3]))[1].count(sentence) == 1


@pytest.mark.parametrize(
    ("row", "question", "texts"),
    [
        ({"prompt": "8+9?", "completion": "17"}, [{"role": "user", "content": "8+9?"}], ["17"]),
        ({"messages": [{"role": "user", "content": "?"}], "text": "17"}, [{"role": "user", "content": "?"}], ["17"]),
        ({"completions": ["17", "18"]}, [], ["17", "18"]),
        ({"completion": [{"role": "assistant", "content": "17"}]}, [], ["17"]),
        ({"completions": [{"text": "17"}, {"text": ""}]}, [], ["17", ""]),
    ],
)
def test_a_table_may_be_written_in_several_ways(
    table: Callable[..., Path], row: dict[str, Any], question: Any, texts: list[str]
) -> None:
    [group] = read_groups(table(row | {"answer": "17", "options": ["a", "b"]}))
    assert (list(group.prompt.messages), [each.text for each in group.completions]) == (question, texts)
    assert (group.prompt.id, group.prompt.answer) == ("row-1", "17")
    assert dict(group.prompt.columns) == {"options": ["a", "b"]}


def test_columns_may_have_other_names(table: Callable[..., Path]) -> None:
    columns = Columns(completion="said", question="asked", answer="truth")
    [group] = read_groups(table({"said": "17", "asked": "8+9?", "truth": "17", "answer": "?"}), columns)
    assert (group.completions[0].text, group.prompt.answer, group.prompt.columns) == ("17", "17", {"answer": "?"})
    assert group.prompt.messages[0]["content"] == "8+9?"


def test_a_parquet_file_is_read_with_its_images(tmp_path: Path) -> None:
    from datasets import Dataset

    pixels = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(pixels, "PNG")
    rows = {
        "completion": [["17", "18"], ["2"]],
        "answer": ["17", "2"],
        "images": [[{"bytes": pixels.getvalue(), "path": None}], []],
    }
    Dataset.from_dict(rows).to_parquet(tmp_path / "answers.parquet")
    first, second = read_groups(tmp_path / "answers.parquet")
    assert [each.text for each in first.completions] == ["17", "18"] and second.prompt.answer == "2"
    assert first.prompt.images[0].getpixel((0, 0)) == (255, 0, 0) and list(second.prompt.images) == []


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "answers.jsonl holds no completions; give a run's samples folder"),
        ([{"completions": []}], "answers.jsonl holds no completions; give"),
        (
            [{"completion": "1"}, "{oh"],
            r"line 2 of .*answers.jsonl is not JSON \(JSONDecodeError: .*\); write one object",
        ),
        (["[" * 100_000], "line 1 of .* is not JSON"),
        (["[1]"], r"line 1 of .* is not a JSON object but \[1\]; write one object a line"),
        (
            [{"completion": "1"}, {"solution": "1", "id": 3}],
            r"row 2 of .* has no column 'completions', 'completion' or 'text'; it has \['solution', 'id'\]",
        ),
        ([{"completion": 17}], "row 1 of .* has the completion 17; write a text, or an object with a 'text'"),
        ([{"completion": [None]}], "row 1 of .* has the completion None; write a text"),
        (
            [{"completion": ["1", "2"], "num_tokens": [1]}],
            "row 1 of .* has 2 completions and 1 numbers of tokens; write one for each",
        ),
        ([{"completion": "1", "num_tokens": -1}], "row 1 of .* has a completion of -1 tokens; write a whole number"),
        ([{"completions": [{"text": "1", "num_tokens": "9"}]}], "row 1 of .* has a completion of '9' tokens"),
        (
            [{"completion": {"text": "1", "turns": [{"text": "1", "start": 3, "stop": 2}]}}],
            "row 1 of .* has a turn from token 3 to 2; write whole numbers in order",
        ),
        ([{"completion": "1", "prompt": 3}], "row 1 of .* asks 3; write a text, or a list of chat messages"),
        ([{"completion": "1", "images": ["none.png"]}], "row 1 of .* has an image that cannot be opened: FileNotFound"),
    ],
)
def test_data_that_cannot_be_read_is_refused_in_one_sentence(
    table: Callable[..., Path], rows: list[Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        read_groups(table(*rows))


def test_files_that_are_not_there_or_of_no_known_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_text("completion\n17\n")
    (tmp_path / "answers.parquet").write_text("completion\n17\n")
    for name, told in {
        "nowhere": "there is no .*nowhere; give a run's samples folder, one of its step_",
        "": "has no step_.*.jsonl in it; give",
        "answers.csv": "answers.csv has a format that cannot be read here; give",
        "answers.parquet": "answers.parquet cannot be read as Parquet: ",
    }.items():
        with pytest.raises(ValueError, match=told):
            read_groups(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"columns": Columns(answer="truth")}, r"row 1 of .* has no column 'truth'; it has \['completion'\]"),
        ({"reference": True}, "--reference needs answers, and .* has none; name their column: --columns.answer"),
        ({"limit": -1}, "limit must be >= 0, got -1"),
        ({"workers": 0}, "num_workers must be >= 1, got 0"),
        ({"memory_gib": -1.0}, "memory_gib must be >= 0, got -1"),
        ({"reward": "numerical"}, "there is no verifier 'numerical'; give FILE.py:FUNCTION or one of .*numeric"),
        ({"reward": "weighted"}, "there is no verifier 'weighted'; "),
        ({"reward": "nowhere.py:score"}, "reward 'nowhere.py:score': there is no file"),
        ({"reward": "nowhere.py"}, "a reward is given as FILE.py:FUNCTION"),
    ],
)
def test_options_that_cannot_work_are_refused(table: Callable[..., Path], options: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"reward": "exact", "data": table({"completion": "1"})} | options
    with pytest.raises(ValueError, match=told):
        check(Check(**given), Console(file=io.StringIO()))


def test_a_name_without_a_colon_is_a_shipped_verifier() -> None:
    for name in ("exact", "math_answer", "numeric"):
        assert find_reward(name).__name__ == name  # type: ignore[attr-defined]


def test_the_command_prints_tables_and_its_status_says_how_it_went(reward: str, table: Callable[..., Path]) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rewards.check", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    path = table({"completion": ["17", "18"], "answer": "17"})
    good = run(reward, "--data", path)
    assert (good.returncode, good.stderr) == (0, "") and line(good.stdout, "reward   ")[:2] == ["2", "0.5"]
    assert max(map(len, good.stdout.splitlines())) <= 80 and "…" not in good.stdout
    bad = run(reward, "--data", path, "--columns.answer", "truth")
    told = f"error: row 1 of {path} has no column 'truth'; it has ['completion', 'answer']\n"
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", told)
