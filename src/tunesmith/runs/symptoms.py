"""Finds what looks wrong in a run's metrics. It reads lines of metrics.jsonl and reports each symptom once.

Losses are noisy, so every rule asks for a larger change than noise makes. The noise is measured on the curve itself
(see ``_Curve.noise``). The thresholds are below, each with its reason.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

SymptomKind = Literal["overfitting", "flat", "gradient_spike", "learning_rate"]

WINDOW = 5  # lines of training loss before and after a turn, and at the beginning

# The validation loss has turned: its last evaluations all exceed the lowest one by at least this share of it, this many
# nats and this many standard deviations, while the training loss kept falling.
TURNED_EVALUATIONS, TURNED_SHARE, TURNED_NATS, TURNED_DEVIATIONS = 2, 0.05, 0.02, 4.0

# Flat: after this many steps and lines at full learning rate, the last third differs from the first third and the first
# lines by less than this share, even if this many standard errors are added. A loss below SMALL_LOSS cannot fall much.
FLAT_STEPS, FLAT_LINES, FLAT_SHARE, FLAT_ERRORS, SMALL_LOSS = 50, 15, 0.04, 4.0, 0.05

# A spike: a gradient norm this many times the median of the steps before it (at least and at most so many steps), and
# this many deviations of their logarithms above it, because norms vary on a logarithmic scale.
SPIKE_TIMES, SPIKE_DEVIATIONS, SPIKE_STEPS, SPIKE_WINDOW = 10.0, 6.0, 8, 50

# The loss rises at full learning rate: the median of a window exceeds the lowest window's by this share, this many nats
# and this many standard errors of a median (the lowest of many medians is some errors too low by chance).
RISE_WINDOW, RISE_LINES, RISE_SHARE, RISE_NATS, RISE_ERRORS = 11, 22, 0.15, 0.1, 10.0


@dataclass(frozen=True, slots=True)
class Symptom:
    """One thing that looks wrong. ``text`` says what it is and what to do, ``step`` is where it was seen."""

    kind: SymptomKind
    step: int
    text: str


class _Curve:
    """Points (step, value) of a curve. The values that the rules need are updated with each point."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []
        self.lowest: tuple[int, float] | None = None  # the lowest median of RISE_WINDOW neighbours, and its last step
        self._bends: list[float] = []  # sorted

    def add(self, step: int, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)
        if len(self.values) >= 3:
            bisect.insort(self._bends, abs(self.values[-3] - 2 * self.values[-2] + value))
        if len(self.values) >= RISE_WINDOW and (self.lowest is None or self.recent_median < self.lowest[1]):
            self.lowest = step, self.recent_median

    @property
    def recent_median(self) -> float:
        """The median of the last RISE_WINDOW values."""
        return statistics.median(self.values[-RISE_WINDOW:])

    @property
    def noise(self) -> float:
        """The standard deviation without the trend, by the second differences of neighbouring values.

        Their median ignores a turn or a spike. For normal noise, it is 0.6745 times root 6 standard deviations.
        """
        count = len(self._bends)
        middle = (self._bends[(count - 1) // 2] + self._bends[count // 2]) / 2 if count else 0.0
        return middle / (0.6745 * math.sqrt(6))

    def before(self, step: int) -> list[float]:
        """The last WINDOW values up to a step."""
        end = bisect.bisect_right(self.steps, step)
        return self.values[max(end - WINDOW, 0) : end]


class Watch:
    """Reads lines of metrics as they come and returns the new symptoms. ``found`` are all symptoms so far.

    ``settled`` is the training loss since the learning rate was highest. ``norms`` are the gradient norms of the last
    steps, up to ``norm_step``.

    Args:
        already: earlier lines. Their symptoms are not returned, so a continued run repeats no warning.
    """

    def __init__(self, already: Iterable[Mapping[str, Any]] = ()) -> None:
        self.found: list[Symptom] = []
        self.loss, self.validation, self.settled = _Curve(), _Curve(), _Curve()
        self.norms: deque[float] = deque(maxlen=SPIKE_WINDOW + 1)
        self.norm_step, self.rate = 0, -math.inf
        for line in already:
            self.see(line)

    def see_norm(self, step: int, norm: float) -> list[Symptom]:
        """Adds the gradient norm of the next step and returns the new symptoms.

        The later line of metrics with the same step does not count it again.
        """
        if step <= self.norm_step or not math.isfinite(norm):
            return []
        self.norms.append(norm)
        self.norm_step = step
        return self._new(["gradient_spike"])

    def see(self, line: Mapping[str, Any]) -> list[Symptom]:
        """Adds the next line of metrics.jsonl and returns the new symptoms."""
        step = line["step"]
        new = [found for at, norm in norms_of(line) for found in self.see_norm(at, norm)]
        if math.isfinite(line.get("eval_loss", math.nan)):
            self.validation.add(step, line["eval_loss"])
        if math.isfinite(line.get("loss", math.nan)):
            if (rate := line.get("learning_rate", 0.0)) > self.rate:
                self.settled, self.rate = _Curve(), rate  # still warming up
            self.loss.add(step, line["loss"])
            self.settled.add(step, line["loss"])
        return [*new, *self._new(_OF_LINES)]

    def _new(self, kinds: Iterable[SymptomKind]) -> list[Symptom]:
        said = {symptom.kind for symptom in self.found}
        new = [found for kind in kinds if kind not in said and (found := _RULES[kind](self)) is not None]
        self.found += new
        return new


def norms_of(line: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(step, gradient norm) of every step of a line of metrics that was not skipped. An old line has only the last."""
    norms = line.get("grad_norms") or ([line["grad_norm"]] if "grad_norm" in line else [])
    first = line["step"] - len(norms) + 1
    return [(step, norm) for step, norm in enumerate(norms, start=first) if norm is not None]


def symptoms(lines: Iterable[Mapping[str, Any]]) -> list[Symptom]:
    """The symptoms in the lines of a run, in order. One of a curve that has passed since is none any more."""
    seen = Watch(lines)
    return [found for found in seen.found if found.kind not in _OF_LINES or _RULES[found.kind](seen) is not None]


def _overfitting(seen: Watch) -> Symptom | None:
    """The validation loss has turned while the training loss kept falling."""
    curve = seen.validation
    if len(curve.values) <= TURNED_EVALUATIONS:
        return None
    lowest = min(curve.values)
    at = curve.values.index(lowest)
    best = curve.steps[at]
    least = lowest + max(TURNED_SHARE * lowest, TURNED_NATS, TURNED_DEVIATIONS * curve.noise)
    if len(curve.values) - 1 - at < TURNED_EVALUATIONS or min(curve.values[-TURNED_EVALUATIONS:]) < least:
        return None
    before, after = seen.loss.before(best), seen.loss.before(curve.steps[-1])
    if not before or seen.loss.steps[-1] <= best or statistics.fmean(after) >= statistics.fmean(before):
        return None
    return Symptom(
        "overfitting",
        curve.steps[-1],
        f"the validation loss has risen since step {best} ({lowest:.4g} -> {curve.values[-1]:.4g}) while the training "
        "loss fell: the model memorises the rows. Train for fewer epochs, on more rows, or with a lower learning rate. "
        f"The checkpoint nearest step {best} is probably better.",
    )


def _flat(seen: Watch) -> Symptom | None:
    """The training loss does not fall."""
    steps, losses = seen.settled.steps, seen.settled.values
    if len(losses) < FLAT_LINES or steps[-1] - steps[0] < FLAT_STEPS:
        return None
    third = len(losses) // 3
    first, last = statistics.fmean(losses[:third]), statistics.fmean(losses[-third:])
    start = statistics.fmean(seen.loss.values[:WINDOW])
    error = seen.settled.noise * math.sqrt(2 / third)
    apart = max(abs(first - last), start - last)
    if last < SMALL_LOSS or apart + FLAT_ERRORS * error > FLAT_SHARE * first:
        return None
    return Symptom(
        "flat",
        steps[-1],
        f"the loss has hardly fallen in {steps[-1] - steps[0]} steps ({first:.4g} -> {last:.4g}). The learning rate "
        f"({seen.rate:.3g}) may be too low, or too little of the model trains. Check what is supervised with "
        "`tunesmith check --show`, and try three times the learning rate.",
    )


def _gradient_spike(seen: Watch) -> Symptom | None:
    """A gradient norm is far above those before it."""
    if len(seen.norms) <= SPIKE_STEPS:
        return None
    *before, norm = seen.norms
    usual = statistics.median(before)
    if usual <= 0 or norm <= SPIKE_TIMES * usual:
        return None
    deviation = 1.4826 * statistics.median(abs(math.log(max(each, 1e-30) / usual)) for each in before)
    if math.log(norm / usual) <= SPIKE_DEVIATIONS * deviation:
        return None
    return Symptom(
        "gradient_spike",
        seen.norm_step,
        f"the gradient norm of step {seen.norm_step} is {norm:.3g}, {norm / usual:.0f} times the usual {usual:.3g}. "
        "training.max_grad_norm clips a single spike. If there are more, lower the learning rate and look for unusual "
        "rows with `tunesmith check`.",
    )


def _learning_rate(seen: Watch) -> Symptom | None:
    """The training loss rises after the warm-up: the learning rate is too high."""
    curve = seen.settled
    if len(curve.values) < RISE_LINES or curve.lowest is None:
        return None
    (at, lowest), last, step = curve.lowest, curve.recent_median, curve.steps[-1]
    error = 1.2533 * curve.noise / math.sqrt(RISE_WINDOW)
    if last - lowest <= max(RISE_SHARE * lowest, RISE_NATS, RISE_ERRORS * error):
        return None
    return Symptom(
        "learning_rate",
        step,
        f"the loss rises after the warm-up ({lowest:.4g} at step {at} -> {last:.4g} at step {step}): the learning rate "
        f"({seen.rate:.3g}) looks too high. Try a third of it, or a longer warm-up (training.warmup_steps: 0.1).",
    )


_RULES: dict[SymptomKind, Callable[[Watch], Symptom | None]] = {
    "overfitting": _overfitting,
    "flat": _flat,
    "gradient_spike": _gradient_spike,
    "learning_rate": _learning_rate,
}
_OF_LINES: tuple[SymptomKind, ...] = ("overfitting", "flat", "learning_rate")  # gradient norms are checked each step
