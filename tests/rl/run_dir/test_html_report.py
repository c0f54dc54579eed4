"""The page that a run leaves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rl.run_dir.html_report import MAX_CHARACTERS, write_report

ROOT = Path(__file__).parents[3]


class Page(HTMLParser):
    """What a reader sees: text, pictures, and whether what is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.images, self.svgs, self._open = "", [], 0, []
        self.feed(page)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.svgs += tag == "svg"
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        if tag not in {"meta", "img", "td", "th", "li", "p"}:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"td", "th", "li", "p"}:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def completion(text: str, reward: float, **more: Any) -> dict[str, Any]:
    return {"text": text, "reward": reward, "parts": {}, "error": None, "finish_reason": "stop", **more}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three steps of two tasks, evaluated before and after; samples of the first step and the last."""
    run = tmp_path / "a <b> run"
    (run / "samples").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"model": "m<1>", "steps": 3, "objective": "sapo"}))
    rows: list[dict[str, float]] = [{"step": 0, "eval/greedy": 0.25, "eval/a/avg": 0.125, "eval/blind": 0.5}]
    for step in (1, 2, 3):
        of_tasks = {f"reward/{task}/accuracy": step / 4 for task in ("a", "b")}
        seconds = {f"time/{phase}": 1.0 * step for phase in ("generate", "score", "learn", "sync", "step")}
        told = {"reward/mean": step / 10, "reward/errors": 0.125 * (step == 2), "rollout/logprob_gap_mean": 1e-7}
        rows.append({"step": step, **of_tasks, **seconds, **told, "time/elapsed": 1800.0 * step})
    rows[-1] |= {"eval/greedy": 0.75, "eval/a/avg": 0.875, "rollout/prompts_skipped": 2}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (640, 320), "red").save(run / "samples" / "one.png")
    Image.new("RGB", (64, 64), "blue").save(run / "samples" / "shown.png")
    turns = [
        {"text": "look", "start": 0, "stop": 1, "observation": "here", "images": ["shown.png"]},
        {"text": "blue", "start": 1, "stop": 2},
    ]
    content = [{"type": "image"}, {"type": "text", "text": "Is 1 < 2?"}]
    sample = {
        "prompt_id": "a/1",
        "task": "a",
        "messages": [{"role": "system", "content": "be good"}, {"role": "user", "content": content}],
        "images": ["one.png", "gone.png"],
        "videos": [],
        "answer": "yes",
        "completions": [
            completion("<yes>", 1.0, parts={"format": 0.5}),
            completion("n" * (MAX_CHARACTERS + 7), 0.0, finish_reason="length"),
            completion("lost", 0.0, error="reward 'r' raised KeyError"),
            completion("blue", 0.5, turns=turns),
        ],
    }  # fmt: skip
    for name, prompt_id in (("step_000001", "first"), ("step_000003", "last")):
        (run / "samples" / f"{name}.jsonl").write_text(json.dumps(sample | {"prompt_id": prompt_id}) + "\n")
    return run


def test_nothing_that_a_policy_a_dataset_or_an_environment_writes_becomes_markup(run: Path) -> None:
    attack = "</p></div></details><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='x'"
    file = next((run / "samples").glob("step_000003.jsonl"))
    sample = json.loads(file.read_text())
    turn = {"text": attack, "start": 0, "stop": 1, "observation": attack, "images": []}
    answer = completion(attack, 1.0, parts={attack: 0.5}, finish_reason=attack, turns=[turn])
    sample |= {"prompt_id": attack, "task": attack, "answer": attack, "messages": [{"role": "user", "content": attack}]}
    sample["completions"] = [answer, completion(attack, 0.0, error=attack), completion(attack, 0.0, thinking=True)]
    file.write_text(json.dumps(sample) + "\n")
    (run / "config.json").write_text(json.dumps({"model": attack, "steps": 3, "objective": attack}))
    rows = (run / "metrics.jsonl").read_text() + json.dumps({"step": 3, f"eval/{attack}/avg": 0.5}) + "\n"
    (run / "metrics.jsonl").write_text(rows)
    source = write_report(run).read_text()
    page = Page(source)  # everything that is opened is closed
    assert "<script" not in source and "onerror=alert(1)>" not in source.replace("&gt;", "")
    assert page.text.count("<script>alert(1)</script>") >= 8
    assert all(image.startswith("data:image/") for image in page.images)


def test_the_page_has_all_of_a_run_and_needs_nothing_else(run: Path) -> None:
    file = write_report(run)
    assert file == run / "report.html" and [path.name for path in run.glob(".*")] == []
    source = file.read_text()
    page = Page(source)
    assert not re.search(r'(src|href)="(?!data:|#)', source) and "<script" not in source
    assert "m<1> · step 3 of 3 · objective sapo · 2 s a step (median) · 1.50 h" in page.text
    # Of nine charts those of the teacher, the gate, the groups, the gradient and the tokens have nothing to draw.
    assert page.svgs == 5
    for words in (
        "greedy0.2500.750",
        "a/avg0.1250.875",
        "12.5% of completions had no verdict",
        "2 times a prompt was skipped",
    ):
        assert words in page.text
    assert "engines failed" not in page.text
    assert page.text.index("step 3\n") < page.text.index("step 1\n")  # the last samples come first


def test_samples_are_shown_with_pictures_rewards_and_reasons(run: Path) -> None:
    source = write_report(run).read_text()
    page = Page(source)
    assert "Is 1 < 2?" in page.text and "be good" not in page.text and "reference yes" in page.text
    assert (
        len(page.images) == 4
    )  # of both samples the prompt's picture that is there, and the one that was shown in between
    assert 'best">1</span>' in source and 'worst">0</span>' in source and 'reward ">0.5</span>' in source
    for words in (
        "<yes>",
        "format 0.5",
        "no verdict: reward 'r' raised KeyError",
        " · truncated",
        "7 more",
        "lookhere",
    ):
        assert words in page.text


def test_pictures_are_made_small(run: Path) -> None:
    write_report(run)
    Image.effect_noise((1000, 500), 90).convert("RGB").save(run / "samples" / "one.png")
    assert write_report(run).stat().st_size < 600_000  # as it is, the noise alone would be 4 MB


def test_a_run_that_has_just_begun_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model": "m", "steps": 3}')
    (tmp_path / "metrics.jsonl").write_text("")
    assert "m · step 0 of 3" in Page(write_report(tmp_path).read_text()).text


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    pages = []
    for _ in range(2):
        pages.append(write_report(run).read_text())
        time.sleep(1.1)
    assert pages[0] == pages[1]


def test_the_command_writes_it_and_says_what_is_no_run(run: Path, tmp_path: Path) -> None:
    def report(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "rl.report", *words], cwd=ROOT, capture_output=True, text=True)

    assert report(run).stdout.strip() == str(run / "report.html")
    lost = report(tmp_path / "none")
    assert lost.returncode == 1 and "none has no metrics.jsonl: it is not a run's folder" in lost.stderr
    assert report().stderr.startswith("usage: python -m rl.report [-h] run_dir")
