"""A step of a published size on growing clusters, and where its efficiency falls below one half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from bench.cluster.inputs import Assumptions, Measured, Work
from bench.cluster.layout import Layout, Placement, layout_of
from bench.cluster.step import Terms, step_terms
from policies.model_sizes import PUBLISHED

Scaling = Literal["weak", "strong"]
WEAK_BASE = 64
"""GPUs that the batch is for with weak scaling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A step on one cluster."""

    layout: Layout
    work: Work
    terms: Terms
    batch_bytes: float
    """Bytes of the samples, which pass through the driver."""
    efficiency: float = 1.0
    """Samples per second and GPU, by the most of any smaller cluster."""
    excess: Mapping[str, float] = field(default_factory=dict)
    """Term → its seconds beyond those of perfect scaling from that cluster, without hidden terms."""

    @property
    def speed(self) -> float:
        """Samples per second and GPU."""
        return self.work.samples / self.terms.step / self.layout.gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """The inputs of the model."""

    measured: Measured
    assumptions: Assumptions
    work: Work
    """The batch; with weak scaling, that of `WEAK_BASE` GPUs."""

    def scale(self, size: str, gpus: Sequence[int], scaling: Scaling, placement: Placement) -> list[Scaled]:
        """Returns the steps of a published size on growing clusters, from the first that it fits.

        Args:
            size: A published size.
            gpus: GPUs of the clusters, ascending.
            scaling: weak: prompts grow with the GPUs. strong: the same batch on all.
            placement: colocated or separate.
        """
        found = list[Scaled]()
        for count in gpus:
            layout = layout_of(size, count, placement, self.assumptions)
            if layout is None:
                continue
            prompts = max(1, self.work.prompts * count // WEAK_BASE) if scaling == "weak" else self.work.prompts
            step = self.step(size, layout, replace(self.work, prompts=prompts))
            found.append(compared(step, max(found, key=lambda smaller: smaller.speed)) if found else step)
        return found

    def step(self, size: str, layout: Layout, work: Work) -> Scaled:
        """Returns the step of a published size on one cluster."""
        sizes = {"prompts": work.prompts, "samples": work.samples, "tokens": work.tokens, "pixels": work.pixels}
        return Scaled(
            layout=layout,
            work=work,
            terms=step_terms(PUBLISHED[size], layout, work, self.measured, self.assumptions),
            batch_bytes=self.measured.bytes.seconds(**sizes),
        )


def compared(step: Scaled, best: Scaled) -> Scaled:
    """Returns a step with its efficiency and excess by those of a smaller cluster."""
    ideal = step.work.samples / best.work.samples * best.layout.gpus / step.layout.gpus
    excess = {
        name: seconds - ideal * best.terms.seconds.get(name, 0.0)
        for name, seconds in step.terms.seconds.items()
        if name not in step.terms.hidden
    }
    return replace(step, efficiency=step.speed / best.speed, excess=excess)


def half_point(steps: Sequence[Scaled]) -> Scaled | None:
    """Returns the first step with an efficiency below one half; None if there is none."""
    return next((step for step in steps if step.efficiency < 0.5), None)


def causes(step: Scaled, most: int = 3) -> dict[str, float]:
    """Returns the terms that exceed perfect scaling most, with their excess in seconds, the largest first."""
    largest = sorted(step.excess, key=lambda name: -step.excess[name])[:most]
    return {name: step.excess[name] for name in largest if step.excess[name] > 0}
