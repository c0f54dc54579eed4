"""A step's cost by its sizes, measured on this machine, and a model of it on 8 to 4,096 GPUs.

    python -m bench.scaling
    python -m bench.scaling --no-measure --assumptions.network 25e9

Measured: steps of the real loop, with one of six sizes varied at a time; the exponent of each phase, and the first bottleneck. Also
the serial work of a process that drives many engines. Rows are kept in the JSON file, and an interrupted measurement goes on there.

Modelled: seconds of a step of published sizes on growing clusters, from the measured serial pieces, the presets' use of the GPUs,
and assumptions, which are printed. Nothing was run on such a cluster.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from bench.cluster.growth import WEAK_BASE, Growth, Scaled, Scaling, causes, half_point
from bench.cluster.inputs import Assumptions, Measured, Work
from bench.cluster.layout import Placement
from bench.cost.cases import AXES, PHASES, axis_rows, case_of, cases_of
from bench.cost.power_laws import bottleneck, fit_power, fit_serial
from bench.cost.sheets import Sheet, field_help, markdown_page, number

LEAST_POINTS = 4
"""An axis with fewer points is not fitted: a fit has three numbers."""
LEAST_SHARE = 0.03
"""Phases that never have this share of a step are not fitted."""
TABLE_WIDTH = 170
LEAST_TERM = 0.02
"""Terms that never have this share of a step are not shown."""
SCALINGS: tuple[Scaling, ...] = ("weak", "strong")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement and of the model."""

    measure: bool = True
    """Measures what the output does not have yet; else only the model is computed again."""
    steps: int = 3
    """Measured steps of each case, after one to warm up."""
    threads: int = 2
    """Threads of the learner."""
    prompts: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """Prompts of a step."""
    group_size: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """Completions of each prompt."""
    response_tokens: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    """Tokens of each completion."""
    image_side: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Pixels per side of each prompt's picture."""
    vocabulary: tuple[int, ...] = (263, 2048, 16384, 151936)
    """Tokens of the vocabulary; each takes a start of learner and engine."""
    engines: tuple[int, ...] = (1, 2, 3, 4)
    """Engines, one thread each; beyond the cores they show only what more engines cost."""
    sizes: tuple[str, ...] = ("8B", "30B-A3B", "235B-A22B")
    """Published sizes of the model."""
    gpus: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    """GPUs of the modelled clusters."""
    placements: tuple[Placement, ...] = ("colocated", "separate")
    """Placements of the model; separate generates ahead of the learner."""
    assumptions: Assumptions = field(default_factory=Assumptions)
    work: Work = field(default_factory=Work)
    output: Path = Path("bench/results/scaling.json")
    """File of rows and figures; its tables are beside it as .md."""


def main(options: Options) -> None:
    """Measures what is missing, computes the model, prints tables, and writes JSON and Markdown."""
    found = json.loads(options.output.read_text()) if options.output.exists() else {"rows": []}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.measure:
        measure_missing(options, found)
    pieces = measured_pieces(found)
    growth = Growth(measured=pieces, assumptions=options.assumptions, work=options.work)
    clusters = {
        (placement, scaling, size): growth.scale(size, options.gpus, scaling, placement)
        for placement in options.placements
        for scaling in SCALINGS
        for size in options.sizes
    }
    found |= {"measured": asdict(pieces), "assumptions": asdict(options.assumptions), "work": asdict(options.work)}
    found["clusters"] = [
        {"placement": placement, "scaling": scaling, "size": size, **figures(step)}
        for (placement, scaling, size), steps in clusters.items()
        for step in steps
    ]
    sheets = [
        *axis_sheets(found["rows"]),
        fit_sheet(found["rows"]),
        bottleneck_sheet(found["rows"]),
        piece_sheet(pieces),
        *cluster_sheets(clusters),
        half_sheet(clusters),
        stated_sheet("Assumptions of the model", options.assumptions),
        stated_sheet(f"Batch of the model; with weak scaling it is that of {WEAK_BASE} GPUs", options.work),
    ]
    Console(width=max(TABLE_WIDTH, Console().width)).print(*(sheet.rich() for sheet in sheets))
    options.output.write_text(json.dumps(found, indent=1))
    options.output.with_suffix(".md").write_text(markdown_page([introduction(options), *sheets]))


def introduction(options: Options) -> str:
    """Returns the first paragraph of the tables."""
    return (
        f"Measured: medians of {options.steps} steps on {os.cpu_count()} cores, the small policy in float32, a learner of "
        f"{options.threads} threads, engines of one. Modelled: formulas from the measured serial pieces and the assumptions below; "
        "nothing was run on such a cluster.\n"
    )


def measure_missing(options: Options, found: dict[str, Any]) -> None:
    """Measures the cases and calls that were not yet, and keeps each as soon as it is there."""
    from bench.cost.axes import measure  # imported late: the model needs neither Ray nor vLLM

    def keep(row: dict[str, float]) -> None:
        found["rows"].append(row)
        options.output.write_text(json.dumps(found, indent=1))

    done = {case_of(row) for row in found["rows"]}
    cases = cases_of({axis: getattr(options, axis) for axis in AXES})
    measure([case for case in cases if case not in done], options.steps, options.threads, keep)
    if "serial" not in found:
        from bench.cost.calls import measure_calls, measure_completions
        from bench.cost.serial import measure_serial
        from rollout.cluster import local_ray

        with local_ray():
            found |= {"calls": measure_calls(), "completions": measure_completions()}
            found["serial"] = measure_serial(options.threads)
        options.output.write_text(json.dumps(found, indent=1))


def measured_pieces(found: Mapping[str, Any]) -> Measured:
    """Returns the serial pieces that the model takes from this machine.

    Raises:
        ValueError: Nothing was measured yet.
    """
    if "serial" not in found:
        raise ValueError("nothing was measured yet: leave out --no-measure")
    rows = found["serial"]
    through_ray, *simulated = found["completions"]
    return Measured(
        handle=fit_serial(rows, "handle"),
        hand_over=fit_serial(rows, "handed"),
        divide=fit_serial(rows, "divide"),
        prepare=fit_serial(rows, "prepare"),
        bytes=fit_serial(rows, "bytes"),
        dispatch=through_ray["seconds"] + simulated[-1]["seconds"],
        **found["calls"],
    )


def size_of(row: Mapping[str, float], axis: str) -> float:
    """Returns the size that a fit takes: of pictures their pixels."""
    return row[axis] ** 2 if axis == "image_side" else row[axis]


def axis_sheets(rows: Sequence[Mapping[str, float]]) -> list[Sheet]:
    """Returns seconds, speed and memory by each axis."""
    sheets = []
    for axis in AXES:
        lines = [
            [
                number(row[axis]),
                *(f"{row[phase]:.3f}" for phase in (*PHASES, "step")),
                number(row["tokens_per_second"]),
                *(f"{row[f'{role}_bytes'] / 1e9:.2f}" for role in ("driver", "learner", "engine")),
            ]
            for row in axis_rows(rows, axis)
        ]
        head = [axis, *PHASES, "step, s", "tokens/s", "driver, GB", "learner", "engines"]
        sheets.append(Sheet(title=f"Seconds of a step by {axis}", head=head, rows=lines))
    return sheets


def phases_of_axis(on_axis: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Returns the phases that have a share worth a fit somewhere on an axis, with their seconds."""
    return {
        phase: [max(row[phase], 1e-6) for row in on_axis]
        for phase in PHASES
        if any(row[phase] > LEAST_SHARE * row["step"] for row in on_axis)
    }


def fit_sheet(rows: Sequence[Mapping[str, float]]) -> Sheet:
    """Returns the fitted power laws: seconds = constant + factor × size^exponent."""
    lines = []
    for axis in AXES:
        on_axis = axis_rows(rows, axis)
        if len(on_axis) < LEAST_POINTS:
            continue
        sizes = [size_of(row, axis) for row in on_axis]
        for phase, seconds in {**phases_of_axis(on_axis), "step": [row["step"] for row in on_axis]}.items():
            law = fit_power(sizes, seconds)
            exponent = f"{law.exponent:.2f}" if law.exponent else "constant"
            name = "pixels" if axis == "image_side" else axis
            share = f"{law.constant_share:.2f}"
            lines.append([name, phase, f"{law.slope:.2f}", exponent, number(law.constant), share, f"{law.error:.2f}"])
    head = ["axis", "phase", "log-log slope", "exponent", "constant, s", "its share at the largest", "relative error"]
    return Sheet(title="Fits: seconds = constant + factor × size^exponent", head=head, rows=lines)


def bottleneck_sheet(rows: Sequence[Mapping[str, float]]) -> Sheet:
    """Returns the largest phase at the end of each axis."""
    lines = []
    for axis in AXES:
        on_axis = axis_rows(rows, axis)
        if not on_axis:
            continue
        worst = bottleneck([row[axis] for row in on_axis], {phase: [row[phase] for row in on_axis] for phase in PHASES})
        since = "all" if worst.since == on_axis[0][axis] else f"from {number(worst.since)}"
        lines.append([axis, number(worst.size), worst.phase, f"{worst.share:.2f}", since])
    head = ["axis", "largest", "first bottleneck", "share of the step there", "largest phase"]
    return Sheet(title="First bottlenecks", head=head, rows=lines)


def piece_sheet(pieces: Measured) -> Sheet:
    """Returns the measured serial pieces, in microseconds and bytes."""
    lines = []
    for name, meaning in field_help(Measured).items():
        value, unit = getattr(pieces, name), 1.0 if name == "bytes" else 1e6
        parts = [value, *[None] * 4] if isinstance(value, float) else list(asdict(value).values())
        lines.append([name, *("" if part is None else f"{unit * part:.2g}" for part in parts), meaning])
    head = ["piece", "each, or per step", "per prompt", "per sample", "per token", "per pixel", ""]
    return Sheet(title="Serial pieces as measured, in µs; bytes in bytes", head=head, rows=lines)


def figures(step: Scaled) -> dict[str, Any]:
    """Returns a step's figures for JSON."""
    layout = asdict(step.layout)
    return {
        "layout": layout,
        "prompts": step.work.prompts,
        "seconds": step.terms.step,
        "efficiency": step.efficiency,
        "terms": dict(step.terms.seconds),
        "hidden": sorted(step.terms.hidden),
        "batch_bytes": step.batch_bytes,
    }


Clusters = Mapping[tuple[Placement, Scaling, str], Sequence[Scaled]]


def cluster_sheets(clusters: Clusters) -> list[Sheet]:
    """Returns the predicted steps."""
    sheets = []
    for (placement, scaling, size), steps in clusters.items():
        names = [
            name
            for name in (steps[0].terms.seconds if steps else ())
            if any(step.terms.seconds[name] > LEAST_TERM * step.terms.step for step in steps)
        ]
        lines = [
            [
                f"{step.layout.gpus:,}",
                f"{step.layout.ranks:,} / {step.layout.replicas:,}",
                f"{step.layout.engines:,} × {step.layout.width}",
                f"{step.work.prompts:,}",
                *(term_text(step, name) for name in names),
                number(step.terms.step),
                f"{step.efficiency:.2f}",
                number(step.batch_bytes / 1e9),
            ]
            for step in steps
        ]
        head = ["GPUs", "ranks / replicas", "engines", "prompts", *names, "step, s", "efficiency", "batch, GB"]
        title = f"{size}, {placement}, {scaling} scaling, modelled; seconds of terms above 2 %, hidden ones in brackets"
        sheets.append(Sheet(title=title, head=head, rows=lines))
    return sheets


def term_text(step: Scaled, name: str) -> str:
    """Returns a term's seconds; in brackets if it is hidden."""
    text = number(step.terms.seconds[name])
    return f"({text})" if name in step.terms.hidden else text


def half_sheet(clusters: Clusters) -> Sheet:
    """Returns where efficiency falls below one half, and why."""
    lines = []
    for (placement, scaling, size), steps in clusters.items():
        start, half = [size, placement, scaling], half_point(steps)
        if half is None:
            lines.append([*start, "none", f"{steps[-1].efficiency:.2f}" if steps else "does not fit", ""])
            continue
        cause = ", ".join(f"{name} +{number(seconds)} s" for name, seconds in causes(half).items())
        lines.append([*start, f"{half.layout.gpus:,}", f"{half.efficiency:.2f}", cause])
    head = ["size", "placement", "scaling", "below one half at, GPUs", "efficiency there", "beyond perfect scaling"]
    return Sheet(title="Where efficiency falls below one half, modelled", head=head, rows=lines)


def stated_sheet(title: str, stated: Any) -> Sheet:
    """Returns the fields of a dataclass with their values and sources."""
    helps = field_help(type(stated))
    lines = [[name, f"{value:g}", helps[name]] for name, value in asdict(stated).items()]
    return Sheet(title=title, head=["field", "value", "meaning and source"], rows=lines)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except ValueError as error:  # a size that no run can have, or nothing measured
        raise SystemExit(str(error)) from None
