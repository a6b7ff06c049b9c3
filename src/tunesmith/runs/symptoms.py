"""What looks wrong in a run's metrics so far, in plain words, each thing once. Lines of metrics.jsonl in, messages out.

Losses are noisy, so every rule asks for more than noise would do, and the noise is measured on the curve itself (see
``_Curve.noise``). The thresholds stand below, each with its reason.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["overfitting", "flat", "gradient_spike", "learning_rate"]

WINDOW = 5  # lines of training loss before and after a turn, and at the beginning

# The validation loss has turned: its last evaluations are all above the lowest by at least this share of it, this many
# nats and this many deviations, while the training loss went on falling.
TURNED_EVALUATIONS, TURNED_SHARE, TURNED_NATS, TURNED_DEVIATIONS = 2, 0.05, 0.02, 4.0

# Flat: after this many steps and lines at full learning rate, the last third is surely (within this many errors of the
# means) less than this share away from the first third and the first lines. So small a loss has nowhere to fall.
FLAT_STEPS, FLAT_LINES, FLAT_SHARE, FLAT_ERRORS, SMALL_LOSS = 50, 15, 0.04, 4.0, 0.05

# A spike: a gradient norm this many times the median of the steps before it (this many of them at least and at most),
# and as many deviations of their logarithms above it: norms that vary by nature do so on a logarithmic scale.
SPIKE_TIMES, SPIKE_DEVIATIONS, SPIKE_STEPS, SPIKE_WINDOW = 10.0, 6.0, 8, 50

# The loss rises at full learning rate: the median of a window is above the lowest window's by this share, this many
# nats and this many errors of such a median (the lowest of many lies some errors below what it stands for).
RISE_WINDOW, RISE_LINES, RISE_SHARE, RISE_NATS, RISE_ERRORS = 11, 22, 0.15, 0.1, 10.0


@dataclass(frozen=True, slots=True)
class Symptom:
    """One thing that looks wrong: what, at which step it was seen, and what to do, in words."""

    kind: Kind
    step: int
    text: str


class _Curve:
    """Points (step, value) of a curve, with what the rules ask of all of them kept up to date."""

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
        if len(self.values) >= RISE_WINDOW and (self.lowest is None or self.place < self.lowest[1]):
            self.lowest = step, self.place

    @property
    def place(self) -> float:
        """The median of the last RISE_WINDOW values."""
        return statistics.median(self.values[-RISE_WINDOW:])

    @property
    def noise(self) -> float:
        """The standard deviation of what is not trend, from how far values are from the middle of their neighbours.

        The median makes a turn or a spike play no part; of normal noise, it is 0.6745 times root 6 deviations.
        """
        count = len(self._bends)
        middle = (self._bends[(count - 1) // 2] + self._bends[count // 2]) / 2 if count else 0.0
        return middle / (0.6745 * math.sqrt(6))

    def before(self, step: int) -> list[float]:
        """The last WINDOW values up to a step."""
        end = bisect.bisect_right(self.steps, step)
        return self.values[max(end - WINDOW, 0) : end]


@dataclass(slots=True)
class _Seen:
    """The lines so far. ``settled`` is the training loss since the learning rate was at its highest.

    ``norms`` are the gradient norms of the last steps, up to ``norm_step``.
    """

    loss: _Curve = field(default_factory=_Curve)
    validation: _Curve = field(default_factory=_Curve)
    settled: _Curve = field(default_factory=_Curve)
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=SPIKE_WINDOW + 1))
    norm_step: int = 0
    rate: float = -math.inf


class Watch:
    """Hears lines of metrics as they come and says what is new. Of ``already``, lines of before, nothing is said again:

    a continued run repeats no warning."""

    def __init__(self, already: Iterable[Mapping[str, Any]] = ()) -> None:
        self._seen = _Seen()
        self.found: list[Symptom] = []
        for line in already:
            self.see(line)

    def see_norm(self, step: int, norm: float) -> list[Symptom]:
        """Takes the gradient norm of the next step and gives what it shows for the first time.

        The line of metrics that has this step among its own does not count it again.
        """
        seen = self._seen
        if step <= seen.norm_step or not math.isfinite(norm):
            return []
        seen.norms.append(norm)
        seen.norm_step = step
        return self._new(["gradient_spike"])

    def see(self, line: Mapping[str, Any]) -> list[Symptom]:
        """Takes the next line of metrics.jsonl and gives what it shows for the first time."""
        seen, step = self._seen, line["step"]
        new = [found for at, norm in norms_of(line) for found in self.see_norm(at, norm)]
        if math.isfinite(line.get("eval_loss", math.nan)):
            seen.validation.add(step, line["eval_loss"])
        if math.isfinite(line.get("loss", math.nan)):
            if (rate := line.get("learning_rate", 0.0)) > seen.rate:
                seen.settled, seen.rate = _Curve(), rate  # still warming up
            seen.loss.add(step, line["loss"])
            seen.settled.add(step, line["loss"])
        return [*new, *self._new(OF_LINES)]

    def _new(self, kinds: Iterable[Kind]) -> list[Symptom]:
        said = {symptom.kind for symptom in self.found}
        new = [found for kind in kinds if kind not in said and (found := RULES[kind](self._seen)) is not None]
        self.found += new
        return new


def norms_of(line: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(step, gradient norm) of every step of a line of metrics; of the last one alone where it has no more."""
    norms = line.get("grad_norms") or ([line["grad_norm"]] if "grad_norm" in line else [])
    return list(enumerate(norms, start=line["step"] - len(norms) + 1))


def symptoms(lines: Iterable[Mapping[str, Any]]) -> list[Symptom]:
    """All that the lines of a run show, in the order in which it was seen."""
    return Watch(lines).found


def overfitting(seen: _Seen) -> Symptom | None:
    """The validation loss has turned while the training loss went on falling."""
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
        "loss fell: the rows are being learned by heart. Train for fewer epochs, on more rows, or with a lower "
        f"learning rate; the checkpoint nearest step {best} is likely the better one.",
    )


def flat(seen: _Seen) -> Symptom | None:
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
        f"the loss has not fallen in {steps[-1] - steps[0]} steps ({first:.4g} -> {last:.4g}). The learning rate "
        f"({seen.rate:.3g}) may be too low, or too little of the model trains: see what is supervised with `tunesmith "
        "check --show`, and try a learning rate three times as high.",
    )


def gradient_spike(seen: _Seen) -> Symptom | None:
    """A gradient norm far above those before."""
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
        "One spike is clipped by training.max_grad_norm; if they come again, lower the learning rate, and look for odd "
        "rows with `tunesmith check`.",
    )


def learning_rate(seen: _Seen) -> Symptom | None:
    """The training loss rises although the warm-up is over: the learning rate is too high."""
    curve = seen.settled
    if len(curve.values) < RISE_LINES or curve.lowest is None:
        return None
    (at, lowest), last, step = curve.lowest, curve.place, curve.steps[-1]
    error = 1.2533 * curve.noise / math.sqrt(RISE_WINDOW)
    if last - lowest <= max(RISE_SHARE * lowest, RISE_NATS, RISE_ERRORS * error):
        return None
    return Symptom(
        "learning_rate",
        step,
        f"the loss rises after the warm-up ({lowest:.4g} at step {at} -> {last:.4g} at step {step}): the learning rate "
        f"({seen.rate:.3g}) looks too high. Try a third of it, or a longer warm-up (training.warmup_ratio: 0.1).",
    )


RULES: dict[Kind, Callable[[_Seen], Symptom | None]] = {
    "overfitting": overfitting,
    "flat": flat,
    "gradient_spike": gradient_spike,
    "learning_rate": learning_rate,
}
OF_LINES: tuple[Kind, ...] = ("overfitting", "flat", "learning_rate")  # gradient norms are looked at step by step
