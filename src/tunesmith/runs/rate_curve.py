"""What a learning-rate range test shows (Smith 2015, arXiv:1506.01186): the loss at rates that grow step by step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunesmith.recipe.schedules import rate_text

Ended = Literal["diverged", "not finite"]

LEAST_POINTS = 5
WIDTH = 1 / 30  # standard deviation of the smoothing, as a share of all steps; one step at least
CAP = 2.0  # times the first losses: what a loss counts at most, so that an explosion does not reach back to calm steps
DIVERGED, IN_A_ROW = 4.0, 3  # so many losses above so many times the lowest, and above the first, end the test
MARGIN = 10  # the suggestion is so many times below the rate at which the loss falls fastest


@dataclass(frozen=True, slots=True)
class Point:
    """A step of the test: the loss before the weights moved, and the rate with which they then did."""

    step: int
    learning_rate: float
    loss: float
    grad_norm: float


@dataclass(frozen=True, slots=True)
class RateCurve:
    """A finished test.

    ``cap`` is what a loss counts at most, and ``smoothed`` are the losses so capped, under a Gaussian. ``steepest`` is
    the point at which the smoothed loss falls fastest, before its lowest; None if it does not fall. ``ended`` says why
    a test ended early.
    """

    points: tuple[Point, ...]
    cap: float
    smoothed: tuple[float, ...]
    steepest: int | None
    ended: Ended | None = None

    @property
    def steepest_rate(self) -> float | None:
        """The rate at which the smoothed loss falls fastest, by the logarithm of the rate."""
        return None if self.steepest is None else self.points[self.steepest].learning_rate

    @property
    def suggestion(self) -> float | None:
        """A tenth of the rate at which the loss falls fastest, in two digits. None if the loss does not fall."""
        return None if self.steepest_rate is None else float(rate_text(self.steepest_rate / MARGIN))

    @property
    def reason(self) -> str:
        """Explains the suggestion, or why there is none."""
        if len(self.points) < LEAST_POINTS:
            return f"No rate is suggested. The test ended after {len(self.points)} steps: begin at a lower rate."
        if self.steepest_rate is None:
            return "No rate is suggested, because the loss never falls. Try other rates or more rows in a step."
        return (
            f"The loss falls fastest at {rate_text(self.steepest_rate)} ({self.smoothed[0]:.4g} -> "
            f"{min(self.smoothed):.4g} at its lowest). A tenth of that is suggested as a starting point: "
            "noise in the loss moves it, so compare runs at a third and at three times of it."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values: what was seen, and what is suggested."""
        return {
            "suggestion": self.suggestion,
            "reason": self.reason,
            "steepest": self.steepest_rate,
            "ended": self.ended,
            "points": [
                {**asdict(point), "smoothed": value} for point, value in zip(self.points, self.smoothed, strict=True)
            ],
        }


def growing_rate(low: float, high: float, steps: int) -> Callable[[int], float]:
    """The rate of a step (from 1): ``low`` at the first, ``high`` at the last, by the same factor each step."""
    return lambda step: low * (high / low) ** ((step - 1) / (steps - 1))


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether more steps would show nothing more."""
    if len(losses) < LEAST_POINTS + IN_A_ROW:
        return False
    first = statistics.median(losses[:IN_A_ROW])
    return min(losses[-IN_A_ROW:]) > max(DIVERGED * min(losses), first)


def rate_curve(points: Sequence[Point], *, steps: int, ended: Ended | None = None) -> RateCurve:
    """The curve of the points.

    Args:
        points: of finite losses, in order.
        steps: the number that was asked for.
        ended: why there are fewer.
    """
    losses = [point.loss for point in points]
    if len(points) < LEAST_POINTS:
        return RateCurve(tuple(points), math.inf, tuple(losses), None, ended)
    cap = CAP * abs(statistics.median(losses[:IN_A_ROW]))
    smoothed = smooth([min(loss, cap) for loss in losses], max(1.0, WIDTH * steps))
    rates = [math.log(point.learning_rate) for point in points]
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    slopes = {
        at: (smoothed[at + 1] - smoothed[at - 1]) / (rates[at + 1] - rates[at - 1])
        for at in range(1, min(lowest + 1, len(smoothed) - 1))
    }
    steepest = min(slopes, key=slopes.__getitem__, default=None)
    falls = steepest is not None and slopes[steepest] < 0
    return RateCurve(tuple(points), cap, tuple(smoothed), steepest if falls else None, ended)


def smooth(values: Sequence[float], deviation: float) -> list[float]:
    """Means under a Gaussian of ``deviation`` steps, cut off at three deviations and at both ends."""
    reach = math.ceil(3 * deviation)
    smoothed = []
    for at in range(len(values)):
        near = range(max(at - reach, 0), min(at + reach + 1, len(values)))
        weights = [math.exp(-0.5 * ((at - other) / deviation) ** 2) for other in near]
        smoothed.append(sum(w * values[other] for w, other in zip(weights, near, strict=True)) / sum(weights))
    return smoothed
