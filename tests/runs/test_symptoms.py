"""A fault is said once and where it shows; curves that are only noisy raise no alarm."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tunesmith.runs.symptoms import _OF_LINES, _RULES, Symptom, Watch, _Curve, norms_of, symptoms

Curve = Callable[[int], float]
EVERY = 10  # steps between lines


def lines_of(
    loss: Curve,
    *,
    lines: int = 60,
    spread: float = 0.0,
    seed: int = 0,
    warmup: int = 3,
    norm: Curve = lambda _: 1.0,
    evaluation: Curve | None = None,
    schedule: str = "cosine",
) -> list[dict[str, Any]]:
    """Lines of metrics of a run: loss with normal noise of a relative spread, and an evaluation at every fifth line."""
    random = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    for number in range(1, lines + 1):
        falling = 0.5 * (1 + math.cos(math.pi * number / lines)) if schedule == "cosine" else 1.0
        rate = 1e-4 * (number / warmup if number < warmup else falling)
        value = loss(number) * (1 + spread * random.standard_normal())
        found.append({"step": EVERY * number, "loss": value, "learning_rate": rate, "grad_norm": norm(number)})
        if evaluation is not None and number % 5 == 0:
            found.append({"step": EVERY * number, "eval_loss": evaluation(number)})
    return found


def falling(number: int) -> float:
    return 1.0 + 2.0 * math.exp(-number / 12)


def kinds(lines: list[dict[str, Any]]) -> list[str]:
    return [symptom.kind for symptom in symptoms(lines)]


def test_a_validation_loss_that_turns_is_overfitting() -> None:
    lines = lines_of(falling, evaluation=lambda n: 1.2 + 0.02 * abs(n - 25))
    (found,) = symptoms(lines)
    assert found.kind == "overfitting"
    assert found.step == 350, "the second evaluation above the lowest, and by a twentieth of it"
    assert "since step 250 (1.2 -> 1.4) while the training loss fell" in found.text


def test_a_loss_that_falls_after_all_is_flat_no_more() -> None:
    lines = lines_of(lambda n: 3.0 if n < 25 else 3.0 * 0.97 ** (n - 25), schedule="constant")
    assert [found.kind for found in Watch(lines).found] == ["flat"]
    assert kinds(lines[:20]) == ["flat"]
    assert kinds(lines) == []


def test_a_validation_loss_that_rises_with_the_training_loss_is_not_overfitting() -> None:
    assert "overfitting" not in kinds(lines_of(lambda n: 1 + 0.03 * n, evaluation=lambda n: 1 + 0.03 * n))


def test_an_evaluation_that_jumps_once_is_not_overfitting() -> None:
    assert kinds(lines_of(falling, evaluation=lambda n: 1.5 if n == 30 else 1.0 + falling(n) / 10)) == []


def test_a_small_validation_loss_may_tremble() -> None:
    assert kinds(lines_of(falling, evaluation=lambda n: 0.02 if n % 2 else 0.03)) == []


def test_a_loss_that_does_not_fall_is_flat() -> None:
    found = symptoms(lines_of(lambda _: 2.0, spread=0.01))
    assert [symptom.kind for symptom in found] == ["flat"]
    assert "The learning rate (9.94e-05) may be too low" in found[0].text


def test_a_loss_that_has_fallen_and_stays_is_not_flat() -> None:
    assert kinds(lines_of(lambda n: 1.0 + 3 * math.exp(-n / 2), lines=600, spread=0.01)) == []


def test_a_loss_of_nothing_is_not_flat() -> None:
    assert kinds(lines_of(lambda _: 0.01, spread=0.1)) == []


def test_a_short_run_is_not_flat() -> None:
    assert kinds(lines_of(lambda _: 2.0, lines=11)) == []


def test_a_gradient_that_spikes_is_told_with_its_size() -> None:
    lines = lines_of(falling, norm=lambda n: 40.0 if n == 30 else 0.5 + 0.1 * (n % 3))
    (found,) = symptoms(lines)
    assert (found.kind, found.step) == ("gradient_spike", 300)
    assert "is 40, 67 times the usual 0.6" in found.text


def test_the_norm_of_every_step_is_looked_at() -> None:
    lines = lines_of(falling, lines=4)
    for line in lines:
        line["grad_norms"] = [0.5] * EVERY
    lines[2]["grad_norms"][6] = 20.0
    (found,) = symptoms(lines)
    assert (found.kind, found.step) == ("gradient_spike", 27)
    assert norms_of(lines[2])[5:8] == [(26, 0.5), (27, 20.0), (28, 0.5)]
    assert norms_of({"step": 7, "grad_norm": 2.0}) == [(7, 2.0)] and norms_of({"step": 7, "eval_loss": 2.0}) == []


def test_a_norm_that_was_seen_before_its_line_is_not_counted_again() -> None:
    watch = Watch()
    said = [found for step in range(1, 14) for found in watch.see_norm(step, 30.0 if step == 12 else 0.5)]
    assert [(found.kind, found.step) for found in said] == [("gradient_spike", 12)]
    line = {"step": 13, "loss": 1.0, "learning_rate": 1e-4, "grad_norm": 0.5, "grad_norms": [0.5] * 11 + [30.0, 0.5]}
    assert watch.see(line) == []
    assert list(watch.norms) == line["grad_norms"]


def test_a_loss_that_rises_after_warm_up_is_the_learning_rate() -> None:
    lines = lines_of(lambda n: falling(min(n, 20)) + 0.06 * max(n - 20, 0), spread=0.02, schedule="constant")
    found = symptoms(lines)
    assert [symptom.kind for symptom in found] == ["learning_rate"]
    assert 220 < found[0].step <= 350
    assert "the learning rate (0.0001) looks too high" in found[0].text


def test_a_loss_that_rises_during_warm_up_is_left_alone() -> None:
    lines = lines_of(lambda n: 1 + 0.1 * n, lines=30, warmup=40)
    assert kinds(lines) == []


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.3])
@pytest.mark.parametrize(
    "curve",
    [falling, lambda n: 2.0 - 0.01 * n, lambda n: 2.0 * n**-0.2, lambda n: 0.4 + 3 * math.exp(-n / 3)],
    ids=["exponential", "slow", "power", "fast"],
)
def test_noisy_but_fine_curves_raise_no_alarm(curve: Curve, spread: float) -> None:
    alarms = []
    for seed in range(60):
        random = np.random.default_rng(1000 + seed)
        norms, shakes = np.exp(0.7 * random.standard_normal(301)), random.standard_normal(301)
        lines = lines_of(
            curve,
            lines=60 if curve(60) > 0.5 else 300,
            spread=spread,
            seed=seed,
            norm=lambda n, norms=norms: float(norms[n]),
            evaluation=lambda n, shakes=shakes: 0.1 + curve(n) * (1 + 0.01 * float(shakes[n])),
        )
        alarms += kinds(lines)
    assert alarms == []


def test_rows_of_very_different_difficulty_raise_hardly_an_alarm() -> None:
    """One line in ten is of hard rows, with twice the loss; six of them in eleven lines do look like a rise."""
    alarms = []
    for seed in range(100):
        hard = np.random.default_rng(seed).random(101) < 0.1
        curve = [falling(n) * (2 if hard[n] else 1) for n in range(101)]
        alarms += kinds(lines_of(curve.__getitem__, lines=100, spread=0.1, seed=seed))
    assert len(alarms) <= 1


def test_each_thing_is_said_once_and_not_again_by_a_continued_run() -> None:
    lines = lines_of(falling, norm=lambda n: 40.0 if n in (30, 45) else 0.5)
    whole = Watch()
    said = [symptom for line in lines for symptom in whole.see(line)]
    assert said == whole.found == symptoms(lines) and len(said) == 1
    continued = Watch(lines[:35])
    assert continued.found == said
    assert [symptom for line in lines[35:] for symptom in continued.see(line)] == []


def test_what_is_found_does_not_depend_on_where_the_run_was_stopped() -> None:
    lines = lines_of(falling, evaluation=lambda n: 1.2 + 0.02 * abs(n - 25), norm=lambda n: 9.0 if n == 50 else 0.1)
    watch = Watch()
    for stopped in (0, 10, 30, 45, 60):
        watch = Watch(lines[:stopped])
        for line in lines[stopped:]:
            watch.see(line)
        assert watch.found == symptoms(lines)
    assert [symptom.kind for symptom in watch.found] == ["overfitting", "gradient_spike"]


def test_lines_without_numbers_are_borne() -> None:
    assert symptoms([]) == []
    lines = [{"step": n, "loss": math.nan, "learning_rate": 1e-4} for n in range(1, 80)]
    assert symptoms(lines) == []


def test_noise_is_measured_beside_a_trend() -> None:
    curve = _Curve()
    for n, x in enumerate(np.random.default_rng(0).standard_normal(4000)):
        curve.add(n, 5 - 0.01 * n + 0.2 * x)
    assert curve.noise == pytest.approx(0.2, rel=0.05)
    assert _Curve().noise == 0.0


def test_a_long_run_is_watched_in_no_time() -> None:
    lines = lines_of(falling, lines=5_000, spread=0.1, evaluation=lambda n: 1.0 + falling(n) / 10)
    begin = time.process_time()
    assert kinds(lines) == []
    assert time.process_time() - begin < 10, "about half a millisecond a line"


def test_every_rule_has_its_kind() -> None:
    found = Symptom("flat", 3, "text")
    assert found.kind in _RULES and [rule.__name__[1:] for rule in _RULES.values()] == list(_RULES)
    assert {*_OF_LINES, "gradient_spike"} == set(_RULES)
