"""What a range test shows, on curves of which it is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from tunesmith.runs.rate_curve import Ended, Point, RateCurve, growing_rate, has_diverged, rate_curve, smooth

STEPS = 60
RATE = growing_rate(1e-6, 1e-1, STEPS)


def judged(
    loss: Callable[[float], float], *, noise: float = 0.0, steps: int = STEPS, seed: int = 0, ended: Ended | None = None
) -> RateCurve:
    """The curve of a loss as a function of the rate, with normal noise."""
    draw = random.Random(seed)
    points = [Point(step, RATE(step), loss(RATE(step)) + draw.gauss(0, noise), 1.0) for step in range(1, steps + 1)]
    return rate_curve(points, steps=STEPS, ended=ended)


def falls(rate: float) -> float:
    """From 4 to 2, fastest at 1e-3."""
    return 2 + 2 / (1 + (rate / 1e-3) ** 2)


def falls_and_turns(rate: float) -> float:
    return falls(rate) + (rate / 2e-2) ** 2


def test_the_rate_grows_by_the_same_factor_from_the_first_to_the_last() -> None:
    rates = [RATE(step) for step in range(1, STEPS + 1)]
    assert (rates[0], rates[-1]) == (1e-6, pytest.approx(1e-1))
    assert {round(after / before, 9) for before, after in pairwise(rates)} == {round(1e5 ** (1 / 59), 9)}


@pytest.mark.parametrize("seed", range(5))
def test_the_suggestion_is_a_tenth_of_where_the_loss_falls_fastest(seed: int) -> None:
    curve = judged(falls_and_turns, noise=0.02, seed=seed)
    assert curve.steepest_rate and 5e-4 < curve.steepest_rate < 2e-3
    assert curve.suggestion == pytest.approx(curve.steepest_rate / 10, rel=0.06)


def test_the_reason_says_that_the_suggestion_is_a_starting_point() -> None:
    curve = judged(falls)
    assert curve.suggestion == pytest.approx(1e-4, rel=0.2)
    assert "The loss falls fastest at" in curve.reason and "(4 -> 2 at its lowest)" in curve.reason
    assert "as a starting point" in curve.reason and "noise in the loss moves it" in curve.reason


@pytest.mark.parametrize("loss", [lambda rate: 4.0, lambda rate: 4 + (rate / 1e-2) ** 2])
def test_a_loss_that_never_falls_gets_no_suggestion(loss: Callable[[float], float]) -> None:
    curve = judged(loss)
    assert (curve.steepest_rate, curve.suggestion) == (None, None)
    assert "because the loss never falls" in curve.reason


def test_an_explosion_does_not_reach_back_to_calm_steps() -> None:
    calm = judged(lambda rate: falls(rate) + (8 if rate > 2e-2 else 0))
    wild = judged(lambda rate: falls(rate) + (1e30 if rate > 2e-2 else 0))
    assert calm.steepest == wild.steepest is not None


def test_too_few_steps_tell_nothing() -> None:
    curve = judged(falls, steps=4, ended="not finite")
    assert (curve.suggestion, curve.ended) == (None, "not finite")
    assert "begin at a lower rate" in curve.reason
    assert len(curve.to_json()["points"]) == 4


def test_a_test_ends_when_losses_in_a_row_are_four_times_the_lowest() -> None:
    calm = [4.0, 3.0, 2.5, 2.0, 2.0, 2.0]
    assert not has_diverged([*calm, 9.0, 9.0])
    assert has_diverged([*calm, 9.0, 9.0, 9.0])
    assert not has_diverged([*calm, 9.0, 2.0, 9.0]), "one of them is low"
    assert not has_diverged([*calm, 7.9, 7.9, 7.9]), "not four times the lowest"
    assert not has_diverged([4.0, 4.0, 0.1, 0.1, 0.1, 0.5, 0.5, 0.5]), "below the first loss"


def test_smoothing_keeps_a_constant_and_the_middle_of_a_line() -> None:
    assert smooth([2.0] * 9, 2.0) == pytest.approx([2.0] * 9)
    line = [float(number) for number in range(21)]
    assert smooth(line, 2.0)[10] == pytest.approx(10.0)


def test_everything_in_json_is_plain() -> None:
    found = judged(falls_and_turns).to_json()
    assert found["suggestion"] and found["points"][0].keys() == {
        "step", "learning_rate", "loss", "grad_norm", "smoothed",
    }  # fmt: skip
    assert all(math.isfinite(value) for point in found["points"] for value in point.values())


def test_a_drop_behind_the_turn_is_not_where_the_loss_falls_fastest() -> None:
    curve = judged(lambda rate: falls(rate) + (5 if 1e-2 < rate < 3e-2 else 1 if rate >= 3e-2 else 0))
    assert curve.steepest_rate == pytest.approx(1e-3, rel=0.3)
