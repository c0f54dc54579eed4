"""The page of the grid, docs/sapo_grid.md, and its pictures: all are made of the results, and never by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.gates.cells import DECISIVE, GROUP_SIZE, LEARNING_RATES, PLACES, PROMPTS_PER_STEP, STEPS
from bench.gates.tables import Results, cells_of, is_of_grid, tables
from bench.gates.watchdog import alarm_at
from rl.watchdog import SIGNS

PAGE, PICTURE = Path("docs/sapo_grid.md"), Path("docs/sapo_grid.png")
COLLAPSE = Path("docs/sapo_collapse.png")
SHOWN = ("sapo", "grpo", "one-sided τ 20 + mask")
"""Objectives of the picture of a collapse."""
PANELS = {
    "reward": "reward",
    "equal": "groups without\nvariance",
    "var": "variance of log r\nin a response",
    "gate": "mean gate",
}
"""Curve → title of its panel."""
HEAD = """# The grid of gates

This page is written by `python -m bench.gates --page`. Do not edit it.

{count} runs: {coverage}. Each has {steps} steps of {prompts} prompts × {group} completions, in float32 on CPUs. It starts from
a policy of 3.7M parameters, the same for all objectives of a seed. The learning rate is {rates} for all objectives and all N,
the optimizer updates of a step. The held-out score is the mean reward of sampled answers, over the last three measurements of
128, 128 and 256 prompts. ± is half of the 95 % interval of the mean over seeds (Student's t); the number of seeds is in
brackets. † counts collapses: runs whose score ended below half of its best. The baselines are GRPO, GSPO, GSPO with wider
bounds, and CISPO. An objective is worse at an N if its mean lies below the interval of the best baseline there.

Made on {machines}.

![Held-out scores](sapo_grid.png)

"""


def write_page(results: Results) -> None:
    """Writes the page and its picture."""
    runs = list(filter(is_of_grid, results))
    places = Counter((result["task"], result["kind"]) for result in runs)
    head = HEAD.format(
        count=len(runs),
        coverage=", ".join(f"{count} of {task}, {kind}" for (task, kind), count in places.items()),
        steps=", ".join(f"{count} ({task})" for task, count in STEPS.items()),
        prompts=PROMPTS_PER_STEP,
        group=GROUP_SIZE,
        rates=", ".join(f"{rate:g} ({task})" for task, rate in LEARNING_RATES.items()),
        machines="; ".join(sorted({result["on"] for result in runs})),
    )
    PAGE.write_text(head + "\n".join(table.markdown() for table in tables(runs)), encoding="utf-8")
    _draw(runs)
    _draw_collapse(cells_of(runs)["sums", "dense"])
    print(f"page: {PAGE}")


def _draw(runs: Results) -> None:
    """Draws the held-out scores of the decisive objectives: a thin line for each seed, a thick one for their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cells = cells_of(runs)
    panels = [(place, n) for place in PLACES for n in (32, 8) if any(key[1] == n for key in cells.get(place, {}))]
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 3.2 * len(panels)), squeeze=False, layout="constrained")
    for axis, (place, n) in zip(axes[:, 0], panels, strict=True):
        for index, name in enumerate(DECISIVE):
            _draw_runs(axis, cells[place].get((name, n), []), f"C{index}", name)
        axis.set(title=f"{', '.join(place)}, N = {n}", xlabel="step", ylabel="held-out score", ylim=(0, 1))
        axis.grid(alpha=0.3)
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def _draw_runs(axis: Any, runs: Sequence[Mapping[str, Any]], colour: str, name: str) -> None:
    if not runs:
        return
    steps = [step for step, _ in runs[0]["held_out"]]
    curves = np.array([[score for _, score in run["held_out"]] for run in runs])
    for curve in curves:
        axis.plot(steps, curve, color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(steps, curves.mean(0), color=colour, linewidth=2, label=f"{name} ({len(runs)})")


def _draw_collapse(cells: Mapping[tuple[str, int], Results]) -> None:
    """Draws a collapse beside two runs that hold, all of seed 0 at N = 32; a dot marks the watchdog's alarm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1 + len(PANELS), 1, figsize=(9, 11), sharex=True, layout="constrained")
    for index, name in enumerate(SHOWN):
        for run in cells.get((name, 32), []):
            if run["seed"] == 0:
                _draw_run(axes, run, f"C{index}", name)
    for axis, title in zip(axes, ("held-out score", *PANELS.values()), strict=True):
        axis.set(ylabel=title)
        axis.grid(alpha=0.3)
    axes[list(PANELS).index("var") + 1].set(yscale="log")
    axes[-1].set(xlabel="step")
    figure.legend(loc="outside upper center", frameon=False, ncols=3)
    figure.savefig(COLLAPSE, dpi=110)
    plt.close(figure)


def _draw_run(axes: Sequence[Any], run: Mapping[str, Any], colour: str, name: str) -> None:
    """Draws the curves of a run: held-out scores, then running means over five steps."""
    axes[0].plot(*zip(*run["held_out"], strict=True), color=colour, label=name)
    for axis, key in zip(axes[1:], PANELS, strict=True):
        means = np.convolve(run["curves"][key], np.ones(5) / 5, mode="valid")
        axis.plot(range(5, len(means) + 5), means, color=colour)
        if key == "reward" and (alarm := alarm_at(run, SIGNS)) is not None:
            axis.plot(alarm, means[alarm - 5], "o", color=colour)
