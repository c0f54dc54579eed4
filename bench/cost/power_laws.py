"""Fits of measured seconds: a constant and a power of one size, a cost linear in several sizes; the first bottleneck."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.optimize import nnls

EXPONENTS = np.arange(0.5, 3.001, 0.05)
"""Exponents that a fit tries."""
FLAT = 1.25
"""Seconds that grow by less than this factor over all sizes count as constant: noise would choose their exponent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """Seconds as constant + factor × size^exponent."""

    constant: float
    factor: float
    exponent: float
    """0 if the seconds count as constant."""
    slope: float
    """Slope of all points on logarithmic axes, the constant included."""
    constant_share: float
    """Share of the constant at the largest size."""
    error: float
    """Root mean square of the relative errors."""

    def seconds(self, size: float) -> float:
        """Returns the fitted seconds."""
        return self.constant + self.factor * size**self.exponent


def fit_power(sizes: Sequence[float], seconds: Sequence[float]) -> PowerLaw:
    """Fits a power law with a constant by least squares of relative errors; constant and factor are not negative.

    Args:
        sizes: The sizes, ascending, at least four: a fit has three numbers.
        seconds: The measured seconds, above 0.
    """
    x, y = np.asarray(sizes, float), np.asarray(seconds, float)
    slope = float(np.polyfit(np.log(x), np.log(y), 1)[0])
    if y.max() < FLAT * y.min():
        constant = float(np.sum(1 / y) / np.sum(1 / y**2))
        error = float(np.sqrt(np.mean((constant / y - 1) ** 2)))
        return PowerLaw(constant=constant, factor=0.0, exponent=0.0, slope=slope, constant_share=1.0, error=error)
    fits = []
    for exponent in EXPONENTS.tolist():
        columns = np.stack([1 / y, x**exponent / y], axis=1)
        (constant, factor), residual = nnls(columns, np.ones_like(y))
        fits.append((float(residual), exponent, float(constant), float(factor)))
    residual, best, constant, factor = min(fits)
    share = constant / (constant + factor * x[-1] ** best)
    return PowerLaw(
        constant=constant,
        factor=factor,
        exponent=best,
        slope=slope,
        constant_share=float(share),
        error=residual / math.sqrt(len(x)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialCost:
    """Seconds of one process for a batch: a sum over its prompts, samples, tokens and pixels."""

    per_step: float
    per_prompt: float
    per_sample: float
    per_token: float
    """For each token of each response."""
    per_pixel: float
    """For each pixel of each prompt's picture."""

    def seconds(self, *, prompts: float, samples: float, tokens: float, pixels: float) -> float:
        """Returns the seconds for a batch; tokens are those of all responses, pixels those of all pictures."""
        return self.per_step + self.of_samples(samples, tokens) + self.of_prompts(prompts, pixels)

    def of_samples(self, samples: float, tokens: float) -> float:
        """Returns the seconds for samples and their tokens alone."""
        return samples * self.per_sample + tokens * self.per_token

    def of_prompts(self, prompts: float, pixels: float) -> float:
        """Returns the seconds for prompts and their pictures alone."""
        return prompts * self.per_prompt + pixels * self.per_pixel


def fit_serial(rows: Sequence[Mapping[str, float]], name: str) -> SerialCost:
    """Fits a cost to measured batches by least squares of relative errors; no part of it is negative.

    Args:
        rows: Batches with `prompts`, `group_size`, `response_tokens`, `image_side` and the measured seconds.
        name: Where a row has the seconds.
    """
    y = np.array([row[name] for row in rows])
    columns = []
    for row in rows:
        samples = row["prompts"] * row["group_size"]
        pixels = row["prompts"] * row["image_side"] ** 2
        columns.append([1, row["prompts"], samples, samples * row["response_tokens"], pixels])
    matrix = np.array(columns, float) / y[:, None]
    scale = matrix.max(0)
    parts, _ = nnls(matrix / scale, np.ones_like(y))
    names = [field.name for field in fields(SerialCost)]
    return SerialCost(**dict(zip(names, (float(part) for part in parts / scale), strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """The phase that takes most of a step at the largest size of an axis."""

    phase: str
    share: float
    """Its share of the step there."""
    since: float
    """The smallest size from which on it is the largest."""
    size: float
    """The largest size."""


def bottleneck(sizes: Sequence[float], phases: Mapping[str, Sequence[float]]) -> Bottleneck:
    """Returns the largest phase at the largest size.

    Args:
        sizes: The sizes, ascending.
        phases: Phase → its seconds at each size.
    """
    largest = []
    for place in range(len(sizes)):
        there = {phase: seconds[place] for phase, seconds in phases.items()}
        largest.append(max(there, key=there.__getitem__))
    since = len(sizes) - 1
    while since and largest[since - 1] == largest[-1]:
        since -= 1
    total = sum(seconds[-1] for seconds in phases.values())
    return Bottleneck(phase=largest[-1], share=phases[largest[-1]][-1] / total, since=sizes[since], size=sizes[-1])
