"""HTML report of a run on one page: its config, results and curves, and samples with their scores and pictures.

The page needs no other file, no network and no script. `train` writes it at every end of a run, `python -m rl.report` at any time.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rl.run_dir.files import write_atomically
from rl.run_dir.tracker import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOW = 10
"""Steps of a running mean, since one step has few prompts."""
SIDE = 256
"""Most pixels of a picture's longer side."""
MAX_CHARACTERS = 1200
"""Characters of an answer that are shown; the rest is folded."""
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
h1 { font-size: 1.4rem }
h2 { font-size: 1.1rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse }
td, th { padding: .15rem .9rem .15rem 0; text-align: right }
td:first-child { text-align: left }
img { vertical-align: top; margin-right: .6rem; border: 1px solid #ddd }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem }
.charts svg { width: 100%; height: auto }
.sample { border-top: 1px solid #ddd; padding: .8rem 0 }
.answer { margin: .3rem 0; display: flex; gap: .7rem }
.reward { min-width: 4.2rem; text-align: right; font-variant-numeric: tabular-nums }
.best { color: #0a7a33 }
.worst { color: #a8201a }
.note { color: #666 }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Lines over the steps of a run."""

    title: str
    lines: Mapping[str, str]
    """Metric name → label."""
    smooth: frozenset[str] = frozenset()
    """Metrics that are drawn as a running mean."""
    log: bool = False
    """Makes the axis logarithmic."""
    stacked: bool = False
    """Draws each line on top of the one before."""


CHARTS = (
    Chart(
        title="reward",
        lines={
            "reward/mean": "training, sampled",
            "eval/greedy": "held out, greedy",
            "eval/sampled": "held out, sampled",
            "eval/blind": "held out, grey pictures",
        },
        smooth=frozenset({"reward/mean"}),
    ),
    Chart(
        title="nats per token",
        lines={"policy/entropy": "entropy", "policy/teacher_kl": "reverse KL to the teacher"},
    ),
    Chart(
        title="SAPO's gate, mean",
        lines={"policy/gate_mean_positive": "of A > 0", "policy/gate_mean_negative": "of A ≤ 0"},
    ),
    Chart(
        title="groups without a gradient: all rewards equal",
        lines={"rollout/groups_without_variance": "share"},
        smooth=frozenset({"rollout/groups_without_variance"}),
    ),
    Chart(
        title="|log p(engine) − log p(learner)| on the same weights",
        lines={"rollout/logprob_gap_mean": "mean", "rollout/logprob_gap_max": "max"},
        log=True,
    ),
    Chart(title="gradient norm before clipping", lines={"policy/grad_norm": ""}),
    Chart(title="tokens per response", lines={"rollout/response_tokens": "mean"}),
    Chart(
        title="seconds per step",
        lines={f"time/{phase}": phase for phase in ("generate", "score", "learn", "sync")},
        stacked=True,
    ),
)
WORTH_A_LOOK = {
    "reward/errors": "of completions had no verdict in the worst step",
    "rollout/prompts_skipped": "times a prompt was skipped: unreadable or too long",
    "rollout/engine_failures": "engines failed and were replaced",
    "policy/skipped_updates": "updates were skipped because their gradient was not finite",
    "policy/lost_experts": "sequences of a step were trained without the engine's experts, lost with their node",
    "rollout/truncated": "of responses were truncated in the worst step",
}
"""Metric name → the note on its greatest value, shown if that is above 0."""


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into a run's folder, from the files there, and returns its path.

    Raises:
        ValueError: The folder holds no run.
    """
    if not (run_dir / "metrics.jsonl").is_file():
        raise ValueError(f"{run_dir} has no metrics.jsonl: it is not a run's folder")
    rows = read_metrics(run_dir)
    config = json.loads((run_dir / "config.json").read_text())
    choices = escape(json.dumps(config, indent=1))
    parts = [
        f"<h1>{escape(run_dir.resolve().name)}</h1>",
        f"<p>{_sentence(rows, config)}</p>",
        _held_out(rows),
        _notes(rows),
        "<h2>How it went</h2>",
        f'<div class="charts">{"".join(_charts(rows))}</div>',
        *_samples(run_dir / "samples"),
        f"<h2>Choices</h2><details><summary>config.json</summary><pre>{choices}</pre></details>",
    ]
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(run_dir.name)}</title><style>{STYLE}</style>"
    )
    return write_atomically(run_dir / "report.html", page + "\n".join(parts) + "</html>\n")


def _sentence(rows: Sequence[Mapping[str, float]], config: Mapping[str, Any]) -> str:
    """Returns the line on model, steps done and speed."""
    steps = [row for row in rows if "time/step" in row]
    facts = [
        f"{escape(str(config.get('model')))}",
        f"step {int(rows[-1]['step']) if rows else 0} of {config.get('steps')}",
    ]
    if "objective" in config:
        facts.append(f"objective {escape(config['objective'])}")
    if steps:
        hours = steps[-1].get("time/elapsed", 0.0) / 3600
        facts += [f"{median(row['time/step'] for row in steps):.3g} s a step (median)", f"{hours:.2f} h"]
    return " · ".join(facts)


def _held_out(rows: Sequence[Mapping[str, float]]) -> str:
    """Returns the table of the first and the last evaluation."""
    measured = [row for row in rows if any(name.startswith("eval/") for name in row)]
    if not measured:
        return ""
    first, last = measured[0], measured[-1]
    lines = [
        f"<tr><td>{escape(name.removeprefix('eval/'))}<td>{_number(first.get(name))}<td>{_number(last[name])}</tr>"
        for name in last
        if name.startswith("eval/")
    ]
    head = f"<tr><th><th>step {int(first['step'])}<th>step {int(last['step'])}</tr>"
    return f"<h2>Held out</h2><table>{head}{''.join(lines)}</table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _notes(rows: Sequence[Mapping[str, float]]) -> str:
    worst = {name: max((row.get(name, 0.0) for row in rows), default=0.0) for name in WORTH_A_LOOK}
    notes = [
        f"<li>{f'{value:.1%}' if 0 < value < 1 else f'{value:g}'} {WORTH_A_LOOK[name]}"
        for name, value in worst.items()
        if value > 0
    ]
    return f"<h2>Worth a look</h2><ul>{''.join(notes)}</ul>" if notes else ""


def _charts(rows: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """Yields an SVG for each chart that has data; the charts by task come second."""
    tasks = sorted(
        {name.split("/")[1] for row in rows for name in row if name.endswith("/accuracy") and name.count("/") == 2}
    )
    by_task = [
        Chart(title="correct, by task: training", lines={f"reward/{task}/accuracy": task for task in tasks},
              smooth=frozenset(f"reward/{task}/accuracy" for task in tasks)),
        Chart(title="correct, by task: held out", lines={f"eval/{task}/avg": task for task in tasks}),
    ]  # fmt: skip
    for chart in (CHARTS[0], *by_task, *CHARTS[1:]):
        found = {
            label: [(row["step"], row[name]) for row in rows if name in row] for name, label in chart.lines.items()
        }
        smooth = {label for name, label in chart.lines.items() if name in chart.smooth}
        drawn = {label: np.array(points, float).T for label, points in found.items() if points}
        if drawn:
            yield _svg(chart, {label: _running_mean(xy) if label in smooth else xy for label, xy in drawn.items()})


def _running_mean(points: np.ndarray) -> np.ndarray:
    """Returns [2, N]: steps, and each value averaged with up to nine before it."""
    steps, values = points
    means = [values[max(0, i + 1 - WINDOW) : i + 1].mean() for i in range(len(values))]
    return np.stack([steps, np.array(means)])


def _svg(chart: Chart, lines: Mapping[str, np.ndarray]) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.title, "font.size": 9}):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, chart, lines)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()[stream.getvalue().index("<svg") :]


def _draw(axes: Axes, chart: Chart, lines: Mapping[str, np.ndarray]) -> None:
    axes.set_title(chart.title, loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    if chart.stacked:
        steps = next(iter(lines.values()))[0]
        axes.stackplot(steps, *(values for _, values in lines.values()), labels=list(lines), linewidth=0)
    else:
        for label, (steps, values) in lines.items():
            axes.plot(steps, values, label=label, linewidth=1.3, marker="o" if len(steps) < 12 else "", markersize=3)
    if chart.log:
        axes.set_yscale("log", nonpositive="mask")
    if any(lines):
        axes.legend(frameon=False, fontsize=8)


def _samples(folder: Path) -> Iterator[str]:
    """Yields the samples of the last and the first recorded step."""
    files = sorted(folder.glob("step_*.jsonl")) if folder.is_dir() else []
    for file in dict.fromkeys([*files[-1:], *files[:1]]):
        yield f"<h2>Prompts, completions, scores: step {int(file.stem.partition('_')[2])}</h2>"
        for line in file.read_text().splitlines():
            yield _sample(folder, json.loads(line))


def _sample(folder: Path, row: Mapping[str, Any]) -> str:
    pictures = "".join(_picture(folder / name) for name in (*row["images"], *row["videos"]))
    question = "\n".join(_text(message) for message in row["messages"] if message["role"] != "system")
    rewards = [done["reward"] for done in row["completions"] if done["error"] is None]
    answers = "".join(_answer(folder, done, rewards) for done in row["completions"])
    reference = "" if row["answer"] is None else f" · reference {escape(str(row['answer']))}"
    return (
        f'<div class="sample"><p class="note">{escape(row["prompt_id"])} · {escape(row["task"])}{reference}</p>'
        f"<p>{pictures}{escape(question)}</p>{answers}</div>"
    )


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text") or "" for part in content).strip()


def _answer(folder: Path, done: Mapping[str, Any], rewards: Sequence[float]) -> str:
    """Returns a completion and its reward. If rewards of the group differ, the best is green and the worst red."""
    if done["error"] is not None:
        mark, note = "worst", f"no verdict: {escape(str(done['error']))}"
    else:
        differs = min(rewards) < max(rewards)
        mark = "" if not differs else {max(rewards): "best", min(rewards): "worst"}.get(done["reward"], "")
        note = " ".join(f"{escape(name)} {value:.3g}" for name, value in done["parts"].items())
    text = "".join(_turn(folder, turn) for turn in done["turns"]) if "turns" in done else _folded(done["text"])
    truncated = " · truncated" if done["finish_reason"] == "length" else ""
    return (
        f'<div class="answer"><span class="reward {mark}">{done["reward"]:.3g}</span>'
        f'<div>{text}<span class="note">{note}{truncated}</span></div></div>'
    )


def _turn(folder: Path, turn: Mapping[str, Any]) -> str:
    shown = "".join(_picture(folder / name) for name in turn.get("images", ()))
    observed = f"<p>{shown}{escape(turn['observation'])}</p>" if "observation" in turn else ""
    return _folded(turn["text"]) + observed


def _folded(text: str) -> str:
    """Returns the text; the end of a long one is folded."""
    rest = f"<details><summary>{len(text) - MAX_CHARACTERS} more</summary><pre>{escape(text[MAX_CHARACTERS:])}</pre></details>"
    return f"<pre>{escape(text[:MAX_CHARACTERS])}</pre>" + (rest if len(text) > MAX_CHARACTERS else "")


def _picture(file: Path) -> str:
    """Returns a picture as embedded PNG, or nothing if its file is missing."""
    if not file.is_file():
        return ""
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">'
