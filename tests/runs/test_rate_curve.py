"""What a range test shows, on curves of which it is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from tunesmith.runs.rate_curve import Point, RateCurve, growing_rate, has_diverged, judge, noise, smooth

STEPS = 60
RATE = growing_rate(1e-6, 1e-1, STEPS)


def judged(
    loss: Callable[[float], float], *, noise: float = 0.0, steps: int = STEPS, seed: int = 0, **ended: object
) -> RateCurve:
    """The curve of a loss as a function of the rate, with normal noise."""
    draw = random.Random(seed)
    points = [Point(step, RATE(step), loss(RATE(step)) + draw.gauss(0, noise), 1.0) for step in range(1, steps + 1)]
    return judge(points, steps=STEPS, **ended)  # type: ignore[arg-type]


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
def test_the_suggestion_is_where_the_loss_falls_fastest_or_a_tenth_of_where_it_turns(seed: int) -> None:
    curve = judged(falls_and_turns, noise=0.02, seed=seed)
    assert curve.verdict == "clear" and curve.steepest_rate and curve.turn_rate
    assert 5e-4 < curve.steepest_rate < 2e-3
    assert 1.5e-2 < curve.turn_rate < 4e-2
    assert curve.suggestion == pytest.approx(min(curve.steepest_rate, curve.turn_rate / 10), rel=0.06)


def test_a_turn_soon_behind_the_fall_asks_for_a_tenth_of_it() -> None:
    curve = judged(lambda rate: falls(rate) + (rate / 3e-3) ** 4)
    assert curve.turn_rate and curve.suggestion == pytest.approx(curve.turn_rate / 10, rel=0.06)
    assert "The second is suggested: it is lower." in curve.reason
    late = judged(lambda rate: falls(rate) + (rate / 5e-2) ** 4)
    assert late.suggestion == pytest.approx(late.steepest_rate, rel=0.06)
    assert "The first is suggested: it is lower." in late.reason


def test_a_loss_that_only_falls_has_no_turn_and_says_so() -> None:
    curve = judged(falls)
    assert curve.turn_rate is None and curve.suggestion == pytest.approx(1e-3, rel=0.2)
    assert curve.reason.endswith("which is suggested, as it does not turn up to 1.0e-1.")


@pytest.mark.parametrize("spread", [0.01, 0.3])
def test_noise_alone_seldom_suggests_anything(spread: float) -> None:
    curves = [judged(lambda rate: 4.0, noise=spread, seed=seed) for seed in range(100)]
    assert sum(curve.suggestion is not None for curve in curves) <= 3
    assert sum(curve.turn_rate is not None for curve in curves) <= 6
    assert {curve.verdict for curve in curves} <= {"flat", "noisy", "clear"}


def test_a_fall_within_the_noise_is_too_noisy_to_tell() -> None:
    curve = judged(lambda rate: 4 - 0.5 / (1 + (1e-3 / rate) ** 2), noise=0.7)
    assert (curve.verdict, curve.suggestion) == ("noisy", None)
    assert "too noisy to tell" in curve.reason


def test_a_flat_loss_says_so_and_still_names_the_rate_at_which_it_turns() -> None:
    curve = judged(lambda rate: 4 + (rate / 1e-2) ** 2, noise=0.002)
    assert (curve.verdict, curve.suggestion) == ("flat", None)
    assert curve.turn_rate and 2e-3 < curve.turn_rate < 2e-2
    assert "hardly falls" in curve.reason and "stay at or below a tenth of that" in curve.reason
    still = judged(lambda rate: 4.0)
    assert still.turn_rate is None and "try higher rates" in still.reason


def test_an_explosion_does_not_reach_back_to_calm_steps() -> None:
    calm = judged(lambda rate: falls(rate) + (8 if rate > 2e-2 else 0))
    wild = judged(lambda rate: falls(rate) + (1e30 if rate > 2e-2 else 0))
    assert calm.steepest == wild.steepest and calm.turn == wild.turn
    assert wild.turn_rate and 5e-3 < wild.turn_rate <= 2.5e-2


def test_a_step_that_was_not_finite_is_a_turn() -> None:
    curve = judged(falls, steps=50, ended="not finite", end_rate=RATE(51))
    assert curve.turn_rate == RATE(51) and curve.suggestion == pytest.approx(min(1e-3, RATE(51) / 10), rel=0.2)
    assert f"it is not finite at {RATE(51):.1e}".replace("e-0", "e-") in curve.reason


def test_too_few_steps_tell_nothing() -> None:
    curve = judged(falls, steps=4, ended="not finite", end_rate=RATE(5))
    assert (curve.verdict, curve.suggestion) == ("short", None)
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
    assert noise(line) == 0.0
    draw = random.Random(0)
    assert noise([draw.gauss(0, 0.5) for _ in range(2000)]) == pytest.approx(0.5, rel=0.1)


def test_everything_in_json_is_plain() -> None:
    found = judged(falls_and_turns).to_json()
    assert found["suggestion"] and found["points"][0].keys() == {
        "step", "learning_rate", "loss", "grad_norm", "smoothed",
    }  # fmt: skip
    assert all(math.isfinite(value) for point in found["points"] for value in point.values())


def test_a_drop_behind_the_turn_is_not_where_the_loss_falls_fastest() -> None:
    curve = judged(lambda rate: falls(rate) + (5 if 1e-2 < rate < 3e-2 else 1 if rate >= 3e-2 else 0))
    assert curve.steepest_rate == pytest.approx(1e-3, rel=0.3)
