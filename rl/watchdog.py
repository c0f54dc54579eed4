"""The watchdog: signs of a collapse in the metrics of the last steps, and what else deserves a sentence.

A sign compares a metric's mean over the last steps with a bound, or with the best such mean before. Signs and bounds come from the
grid of gates: `python -m bench.gates.watchdog` chooses them on half of its runs, and tests them on the other half.

A notice is a sign that announces no collapse there. Its bound lies beyond what all healthy runs of the grid have shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

SPIKE_WINDOW = 20
"""Steps before a spike that it is compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One sign of a collapse."""

    metric: str
    """Name in `metrics.jsonl`."""
    kind: Literal["above", "below", "rise", "fall", "spike"]
    """above, below: the mean against the bound. rise, fall: its ratio to the smallest, or largest, mean of whole windows before.
    spike: its ratio to the largest of the `SPIKE_WINDOW` means before."""
    bound: float
    text: str
    """The sign in words, with `{value}`."""
    window: int = 5
    """Steps of a mean."""

    def value(self, means: Sequence[float]) -> float | None:
        """Returns what is compared with the bound, given the means so far; None as long as there are too few."""
        if self.kind in ("above", "below"):
            return means[-1] if means else None
        if self.kind == "spike":
            before = means[-SPIKE_WINDOW - 1 : -1]
            return means[-1] / max(before) if len(before) == SPIKE_WINDOW and max(before) > 0 else None
        if len(means) <= self.window:
            return None
        reference = means[self.reference(means)]
        return means[-1] / reference if reference > 0 else None

    def reference(self, means: Sequence[float]) -> int:
        """Returns the index of the mean that a rise or a fall is measured from: the last smallest or largest one before."""
        before = list(means[: -self.window])
        best = min(before) if self.kind == "rise" else max(before)
        return len(before) - 1 - before[::-1].index(best)

    def is_shown(self, means: Sequence[float]) -> bool:
        """Returns True if the value is beyond the bound."""
        value = self.value(means)
        if value is None:
            return False
        return value > self.bound if self.kind in ("above", "rise", "spike") else value < self.bound


SIGNS = (Sign(metric="reward/mean", kind="fall", window=10, bound=0.67, text="the reward is {value:.2f} of its best"),)
"""The signs that a run is watched for. The grid has no other that announces more collapses without an alarm in a healthy run."""
ADVICE = (
    "make fewer updates of a step (num_minibatches), switch the off-policy sequence mask on (correction.off_policy_threshold 0.1), "
    "end a step's updates early (correction.target_kl 0.05), or lower optimizer.learning_rate"
)

NOTICES = (
    Sign(
        metric="policy/grad_norm",
        kind="spike",
        window=1,
        bound=10.0,
        text="the gradient norm is {value:.0f} times the largest of the 20 steps before: look at this step's samples; a lower "
        "optimizer.max_grad_norm limits what one step can do",
    ),
    Sign(
        metric="policy/entropy",
        kind="fall",
        window=10,
        bound=0.09,
        text="the entropy is {value:.2f} of its highest: the policy hardly explores any more; raise rollout.temperature, or make "
        "fewer updates of a step (num_minibatches)",
    ),
    Sign(
        metric="rollout/truncated",
        kind="above",
        window=10,
        bound=0.5,
        text="{value:.0%} of the responses end at rollout.max_tokens: raise it, or let the reward count length",
    ),
)
"""Signs of trouble other than a collapse."""


def gap_notice(bound: float) -> Sign:
    """Returns the notice of a gap between engine and learner that nears the bound at which the run stops."""
    text = f"engine and learner differ by {{value:.2g}} nats per token; at {bound:g} (rollout.max_logprob_gap) the run stops"
    return Sign(metric="rollout/logprob_gap_mean", kind="above", window=5, bound=bound / 2, text=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """An alarm."""

    step: int
    """Its step."""
    good_until: int
    """Last step before the trouble began: a window before the alarm, or before the mean that a rise or a fall is measured from."""
    text: str
    """The signs, and what to try."""


class Watchdog:
    """Watches the metrics of a run.

    Args:
        rows: The run's metrics so far, a row with its `step` for each step.
        signs: The signs; one of them makes an alarm.
    """

    def __init__(self, rows: Iterable[Mapping[str, float]] = (), *, signs: Sequence[Sign] = SIGNS) -> None:
        self._curves = [_Curve(sign) for sign in signs]
        self._is_alarmed = False
        for row in rows:
            self.watch(int(row["step"]), row)

    def watch(self, step: int, metrics: Mapping[str, float]) -> Alarm | None:
        """Takes one step's metrics.

        Returns:
            An alarm when a sign shows; None as long as it stays, and without signs.
        """
        # Metrics may be missing: an evaluation's row has none, and an objective of a user's may have no ratios.
        curves = [curve for curve in self._curves if curve.sign.metric in metrics]
        if not curves:
            return None
        for curve in curves:
            curve.add(step, float(metrics[curve.sign.metric]))
        shown = [curve for curve in curves if curve.sign.is_shown(curve.means)]
        was_alarmed, self._is_alarmed = self._is_alarmed, bool(shown)
        if was_alarmed or not shown:
            return None
        texts = " and ".join(curve.sign.text.format(value=curve.sign.value(curve.means)) for curve in shown)
        return Alarm(
            step=step,
            good_until=max(0, min(curve.good_until() for curve in shown)),
            text=f"step {step}: a collapse may be ahead: {texts}: {ADVICE}",
        )


class Notices:
    """Looks for what deserves a sentence and no alarm.

    Args:
        rows: The run's metrics so far, a row with its `step` for each step.
        signs: The signs.
    """

    def __init__(self, rows: Iterable[Mapping[str, float]] = (), *, signs: Sequence[Sign] = NOTICES) -> None:
        self._curves = [_Curve(sign) for sign in signs]
        self._shown: set[str] = set()
        for row in rows:
            self.watch(int(row["step"]), row)

    def watch(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Takes one step's metrics. Returns a sentence for each sign that shows now and did not before."""
        sentences = []
        for curve in self._curves:
            sign = curve.sign
            if sign.metric not in metrics:
                continue
            curve.add(step, float(metrics[sign.metric]))
            if not sign.is_shown(curve.means):
                self._shown.discard(sign.metric)
            elif sign.metric not in self._shown:
                self._shown.add(sign.metric)
                sentences.append(f"step {step}: {sign.text.format(value=sign.value(curve.means))}")
        return sentences


class _Curve:
    """The running means of one sign's metric."""

    def __init__(self, sign: Sign) -> None:
        self.sign = sign
        self.means: list[float] = []
        self._steps: list[int] = []
        self._last: deque[float] = deque(maxlen=sign.window)

    def add(self, step: int, value: float) -> None:
        self._last.append(value)
        if len(self._last) == self.sign.window:
            self.means.append(fmean(self._last))
            self._steps.append(step)

    def good_until(self) -> int:
        """Returns the last step before the trouble began: the mean of steps 1 to 5 is of the policies after steps 0 to 4."""
        is_change = self.sign.kind in ("rise", "fall")
        index = self.sign.reference(self.means) if is_change else -1
        return self._steps[index] - self.sign.window
