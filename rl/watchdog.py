"""The watchdog: signs of a collapse in the metrics of the last steps, before the held-out score shows it.

A sign compares the mean of a metric over the last `WINDOW` steps with a bound, or with the best such mean before. The bounds lie
a tenth beyond all that healthy runs of the grid have shown. `python -m bench.gates.watchdog` fits them on half of the runs, and
tests them on the other half.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

WINDOW = 5
"""Steps of a mean."""
SIGNS_NEEDED = 1
"""Signs at once that make an alarm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One sign of a collapse."""

    metric: str
    """Name in `metrics.jsonl`."""
    kind: Literal["above", "below", "rise", "fall"]
    """above, below: the mean against the bound. rise, fall: its ratio to the smallest, or largest, mean before."""
    bound: float
    text: str
    """The sign in words, with `{value}`."""

    def value(self, means: list[float]) -> float | None:
        """Returns what is compared with the bound, given the means so far; None as long as there are too few."""
        before = means[:-WINDOW]
        if not before:
            return None
        if self.kind in ("above", "below"):
            return means[-1]
        reference = before[self.reference(before)]
        return means[-1] / reference if reference > 0 else None

    def reference(self, before: list[float]) -> int:
        """Returns the index of the mean that a rise or a fall is measured from: the last smallest or largest one."""
        best = min(before) if self.kind == "rise" else max(before)
        return len(before) - 1 - before[::-1].index(best)

    def is_shown(self, value: float | None) -> bool:
        """Returns True if a value is beyond the bound."""
        if value is None:
            return False
        return value > self.bound if self.kind in ("above", "rise") else value < self.bound


SIGNS = (
    Sign(
        metric="policy/entropy",
        kind="rise",
        bound=1.9,
        text="the entropy is {value:.2f} times its smallest",
    ),
    Sign(
        metric="reward/mean",
        kind="fall",
        bound=0.44,
        text="the reward is {value:.2f} of its best",
    ),
    Sign(
        metric="policy/ratio_p01",
        kind="below",
        bound=0.46,
        text="one token in a hundred has become {value:.2f} times as likely within a step",
    ),
    Sign(
        metric="policy/negative_below_half",
        kind="above",
        bound=0.42,
        text="{value:.0%} of the sequences with a negative advantage have less than half of their weight",
    ),
    Sign(
        metric="rollout/response_tokens",
        kind="rise",
        bound=1.23,
        text="responses are {value:.2f} times as long as before",
    ),
    Sign(
        metric="policy/log_ratio_variance",
        kind="rise",
        bound=74.0,
        text="the spread of ratios inside a response is {value:.0f} times its smallest",
    ),
)
ADVICE = (
    "make fewer updates of a step (num_minibatches), switch the off-policy sequence mask on (correction.off_policy_threshold 0.1), "
    "or lower optimizer.learning_rate"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """An alarm."""

    step: int
    """Its step."""
    good_until: int
    """Last step before the trouble began: a window before a sign, or before the mean that a rise or a fall is measured from."""
    text: str
    """The signs, and what to try."""


class Watchdog:
    """Watches the metrics of a run.

    Args:
        rows: The run's metrics so far, a row with its `step` for each step.
        signs: The signs.
        needed: Signs that make an alarm.
    """

    def __init__(
        self, rows: Iterable[Mapping[str, float]] = (), *, signs: Sequence[Sign] = SIGNS, needed: int = SIGNS_NEEDED
    ) -> None:
        self._signs, self._needed = signs, needed
        self._last: dict[str, deque[float]] = {sign.metric: deque(maxlen=WINDOW) for sign in signs}
        self._means: dict[str, list[float]] = {sign.metric: [] for sign in signs}
        self._steps: dict[str, list[int]] = {sign.metric: [] for sign in signs}
        self._since: dict[str, int] = {}
        self._is_alarmed = False
        for row in rows:
            self.watch(int(row["step"]), row)

    def watch(self, step: int, metrics: Mapping[str, float]) -> Alarm | None:
        """Takes one step's metrics.

        Returns:
            An alarm when enough signs come together; None while they stay, and without them.
        """
        shown: dict[str, str] = {}
        good: list[int] = []
        for sign in self._signs:
            if sign.metric not in metrics:  # an evaluation's row, or an objective without ratios
                continue
            last, means = self._last[sign.metric], self._means[sign.metric]
            last.append(float(metrics[sign.metric]))
            if len(last) == WINDOW:
                means.append(fmean(last))
                self._steps[sign.metric].append(step)
            if sign.is_shown(value := sign.value(means)):
                shown[sign.metric] = sign.text.format(value=value)
                since = self._since.get(sign.metric, step)
                if sign.kind in ("rise", "fall"):
                    since = self._steps[sign.metric][sign.reference(means[:-WINDOW])]
                good.append(since - WINDOW)  # a mean of steps 1 to 5 is of the policies after steps 0 to 4
        self._since = {metric: self._since.get(metric, step) for metric in shown}
        was_alarmed, self._is_alarmed = self._is_alarmed, len(shown) >= self._needed
        if was_alarmed or not self._is_alarmed:
            return None
        text = f"step {step}: a collapse may be ahead: {', and '.join(shown.values())}: {ADVICE}"
        return Alarm(step=step, good_until=max(0, min(good)), text=text)
