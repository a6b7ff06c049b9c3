"""What a learning-rate range test shows (Smith 2015, arXiv:1506.01186): losses at rates that grow from step to step.

Losses are noisy, and the noise is measured on the curve itself. Where the fall is no larger than noise would make it,
no rate is suggested. No torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunesmith.recipe.schedules import rate_text

Verdict = Literal["clear", "flat", "noisy", "short"]
Ended = Literal["diverged", "not finite"]

LEAST_POINTS = 5
WIDTH = 1 / 30  # standard deviation of the smoothing, as a share of all steps; one step at least
CAP = 2.0  # times the first losses: what a loss counts at most, so that an explosion does not reach back to calm steps
DIVERGED, IN_A_ROW = 4.0, 3  # so many losses above so many times the lowest, and above the first, end the test
FALL_SHARE, FALL_ERRORS = 0.02, 6.0  # of the first loss, and of errors of a smoothed loss: a smaller fall is none
RISE = 0.5  # of the fall: the loss has turned where it has lost so much of it again
MARGIN = 10  # times below the rate at which the loss turns


@dataclass(frozen=True, slots=True)
class Point:
    """A step of the test: the loss before the weights moved, by the rate with which they then did."""

    step: int
    learning_rate: float
    loss: float
    grad_norm: float


def growing_rate(low: float, high: float, steps: int) -> Callable[[int], float]:
    """The rate of a step (from 1): ``low`` at the first, ``high`` at the last, by the same factor each step."""
    return lambda step: low * (high / low) ** ((step - 1) / (steps - 1))


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether going on would show nothing more."""
    if len(losses) < LEAST_POINTS + IN_A_ROW:
        return False
    first = statistics.median(losses[:IN_A_ROW])
    return min(losses[-IN_A_ROW:]) > max(DIVERGED * min(losses), first)


@dataclass(frozen=True, slots=True)
class RateCurve:
    """A finished test, judged.

    ``cap`` is what a loss counts at most, ``smoothed`` the losses so capped under a Gaussian. ``error`` is that of a
    smoothed loss. ``best``, ``steepest`` and ``turn`` number points: the lowest smoothed loss, where it falls fastest
    before, and where it has turned up behind; None where there is none. ``ended`` says why a test ended early, and
    ``end_rate`` at which rate.
    """

    points: tuple[Point, ...]
    cap: float
    smoothed: tuple[float, ...]
    error: float
    best: int | None
    steepest: int | None
    turn: int | None
    ended: Ended | None
    end_rate: float | None

    @property
    def verdict(self) -> Verdict:
        """``clear``; or why no rate can be told: ``flat``, ``noisy``, or ``short`` of steps."""
        if self.best is None:
            return "short"
        start = self.smoothed[0]
        fall = start - self.smoothed[self.best]
        if self.steepest is None or fall <= FALL_SHARE * abs(start):
            return "flat"
        return "noisy" if fall <= FALL_ERRORS * self.error else "clear"

    @property
    def steepest_rate(self) -> float | None:
        """At which the smoothed loss falls fastest, by the logarithm of the rate."""
        return None if self.steepest is None or self.verdict != "clear" else self.points[self.steepest].learning_rate

    @property
    def turn_rate(self) -> float | None:
        """From which on the loss rises, or is not finite."""
        return self.end_rate if self.turn is None else self.points[self.turn].learning_rate

    @property
    def suggestion(self) -> float | None:
        """The lower of two: where the loss falls fastest, and a tenth of where it turns. None where nothing is clear.

        In two digits.
        """
        if self.steepest_rate is None:
            return None
        both = [self.steepest_rate, *([self.turn_rate / MARGIN] if self.turn_rate else [])]
        return float(rate_text(min(both)))

    @property
    def reason(self) -> str:
        """The suggestion, or why there is none, in words."""
        if self.best is None:
            return f"The test ended after {len(self.points)} steps, too few to tell anything: begin at a lower rate."
        fall = f"{self.smoothed[0]:.4g} -> {self.smoothed[self.best]:.4g} at best"
        if self.steepest_rate is None:
            why = f"No rate is suggested, because the loss hardly falls at any ({fall})."
            if self.verdict == "noisy":
                chance = f"chance alone makes {FALL_ERRORS * self.error:.2g}"
                why = f"No rate is suggested, because the loss is too noisy to tell ({fall}; {chance})."
            if self.turn_rate is None:
                return f"{why} It does not turn up either: try higher rates, more steps, or more rows in a step."
            return f"{why} But {self._turned}: stay at or below a tenth of that."
        falls = f"The loss falls fastest at {rate_text(self.steepest_rate)} ({fall})"
        if self.turn_rate is None:
            last = rate_text(self.points[-1].learning_rate)
            return f"{falls}, which is suggested, as it does not turn up to {last}."
        tenth = self.turn_rate / MARGIN
        which = "The first" if self.steepest_rate <= tenth else "The second"
        return f"{falls}; {self._turned}, a tenth of which is {rate_text(tenth)}. {which} is suggested: it is lower."

    @property
    def _turned(self) -> str:
        assert self.turn_rate is not None
        return f"it {'is not finite' if self.turn is None else 'turns up'} at {rate_text(self.turn_rate)}"

    def to_json(self) -> dict[str, Any]:
        """Plain values: what was seen, and what is made of it."""
        return {
            "verdict": self.verdict,
            "suggestion": self.suggestion,
            "reason": self.reason,
            "steepest": self.steepest_rate,
            "turn": self.turn_rate,
            "ended": self.ended,
            "error": self.error,
            "points": [
                {**asdict(point), "smoothed": value} for point, value in zip(self.points, self.smoothed, strict=True)
            ],
        }


def judge(
    points: Sequence[Point], *, steps: int, ended: Ended | None = None, end_rate: float | None = None
) -> RateCurve:
    """What the points show.

    Args:
        points: of finite losses, in order.
        steps: that were asked for.
        ended: why there are fewer, and ``end_rate`` that of the step that was not finite.
    """
    losses = [point.loss for point in points]
    if len(points) < LEAST_POINTS:
        return RateCurve(tuple(points), math.inf, tuple(losses), 0.0, None, None, None, ended, end_rate)
    cap = CAP * abs(statistics.median(losses[:IN_A_ROW]))
    capped = [min(loss, cap) for loss in losses]
    deviation = max(1.0, WIDTH * steps)
    smoothed = smooth(capped, deviation)
    error = noise(capped) / math.sqrt(2 * deviation * math.sqrt(math.pi))
    best = min(range(len(smoothed)), key=smoothed.__getitem__)
    rates = [math.log(point.learning_rate) for point in points]
    slopes = {
        at: (smoothed[at + 1] - smoothed[at - 1]) / (rates[at + 1] - rates[at - 1])
        for at in range(1, min(best + 1, len(smoothed) - 1))
    }
    steepest = min(slopes, key=slopes.__getitem__) if slopes else None
    start = smoothed[0]
    rise = max(RISE * (start - smoothed[best]), FALL_ERRORS * error, FALL_SHARE * abs(start))
    turned = (at for at in range(best + 1, len(smoothed)) if smoothed[at] >= smoothed[best] + rise)
    return RateCurve(tuple(points), cap, tuple(smoothed), error, best, steepest, next(turned, None), ended, end_rate)


def smooth(values: Sequence[float], deviation: float) -> list[float]:
    """Means under a Gaussian of so many steps, cut off at three deviations and at both ends."""
    reach = math.ceil(3 * deviation)
    smoothed = []
    for at in range(len(values)):
        near = range(max(at - reach, 0), min(at + reach + 1, len(values)))
        weights = [math.exp(-0.5 * ((at - other) / deviation) ** 2) for other in near]
        smoothed.append(sum(w * values[other] for w, other in zip(weights, near, strict=True)) / sum(weights))
    return smoothed


def noise(values: Sequence[float]) -> float:
    """The standard deviation of what is not trend; see ``symptoms._Curve.noise``."""
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return statistics.median(bends) / (0.6745 * math.sqrt(6)) if bends else 0.0
