"""Damage is never no evidence: floors, answers that do not end or repeat, and a loss that rose."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.evaluation.compare import compare
from tunesmith.evaluation.damage import repeats, signs
from tunesmith.evaluation.metrics.base import RowScores, row_scores
from tunesmith.evaluation.wording import sentence

ROWS = 40
TEXTS = [f"answer {number}" for number in range(ROWS)]


def losses(mean, seed=0):
    return RowScores(np.random.default_rng(seed).gamma(8.0, mean / 8.0, size=ROWS), np.ones(ROWS))


def pairs(base, tuned):
    both = [signs(texts, stopped, TEXTS, list(range(ROWS))) for texts, stopped in (base, tuned)]
    return {name: (both[0][name], both[1][name]) for name in both[0]}


def judged(base_match, tuned_match, *, risen=1.0, signs=None, metrics=("exact_match",), **arguments):
    loss = losses(2.0)
    base = {"exact_match": row_scores(base_match), "loss": loss}
    tuned = {"exact_match": row_scores(tuned_match), "loss": RowScores(loss.total * risen, loss.weight)}
    return compare(base, tuned, metrics=list(metrics), signs=signs, resamples=500, **arguments)


@pytest.mark.parametrize(
    "text",
    [
        "the the the the the the the the",
        "no! " * 9,
        "a" * 24,
        "x, then again. " * 5,
    ],
)
def test_text_that_ends_in_repetition_is_found(text):
    assert repeats(text) and repeats(f"It began well. {text}")


@pytest.mark.parametrize(
    "text", ["", "yes yes yes", "1" + "0" * 40, "one two three four five six seven eight", "a" * 23]
)
def test_other_text_does_not_repeat(text):
    assert not repeats(text)


def test_a_repetition_that_the_reference_answer_has_is_none():
    line = "-" * 40
    assert signs([line, line], [True, True], [line, "a title"], [0, 1])["repetition"].total.tolist() == [0.0, 1.0]


def test_digits_repeat_in_an_answer_of_many_times_the_references_length():
    zeros = "0" * 32
    made = signs([zeros, "1" + zeros, zeros], [False] * 3, ["0", "1" + "0" * 30, zeros], [0, 1, 2])
    assert made["repetition"].total.tolist() == [1.0, 0.0, 0.0]


def test_noise_at_the_floor_is_worse_and_not_no_evidence():
    noise = pairs((TEXTS, [True] * ROWS), (["zq " * 20] * ROWS, [False] * ROWS))
    verdict = judged([0.0] * ROWS, [0.0] * ROWS, risen=5.0, signs=noise)
    assert verdict["verdict"] == "worse" and verdict["decided_by"] == "loss"
    assert verdict["cannot_tell"] == ["exact_match"] and verdict["metrics"]["exact_match"]["bound"] == "floor"
    text = sentence(verdict)
    assert text.startswith(
        f"Worse than the base: the loss rose from {losses(2.0).value:.4g} to {5 * losses(2.0).value:.4g}, "
        "40 of 40 answers do not end (base: 0 of 40), and 40 of 40 answers end in repetition (base: 0 of 40). "
        "exact_match cannot tell the models apart: both are at its floor (0 for both). What decided: loss "
    )


def test_at_the_ceiling_the_next_metric_decides():
    verdict = judged([1.0] * ROWS, [1.0] * ROWS, risen=0.5)
    assert (verdict["verdict"], verdict["decided_by"], verdict["cannot_tell"]) == ("better", "loss", ["exact_match"])
    assert verdict["metrics"]["exact_match"]["bound"] == "ceiling"
    assert "both are at its ceiling (1 for both)" in sentence(verdict)
    assert sentence(verdict).endswith("This is about the loss alone, not about whether answers are right.")


def test_where_no_metric_can_tell_the_first_one_says_so():
    same = {"exact_match": row_scores([0.0] * ROWS), "m": row_scores([1.0] * ROWS), "loss": losses(2.0)}
    verdict = compare(same, same, metrics=["exact_match", "m"], resamples=500)
    assert verdict["decided_by"] == "loss" and verdict["cannot_tell"] == ["exact_match", "m"]
    assert verdict["verdict"] == "no evidence"


def test_a_metric_between_its_ends_decides_itself():
    halves = [0.0, 1.0] * (ROWS // 2)
    verdict = judged(halves, halves)
    assert verdict["decided_by"] == "exact_match" and verdict["cannot_tell"] == []
    assert verdict["verdict"] == "no evidence" and verdict["damage"] == []


def test_no_difference_in_the_metric_but_answers_that_do_not_end_is_worse():
    halves = [0.0, 1.0] * (ROWS // 2)
    cut = pairs((TEXTS, [True] * ROWS), (TEXTS, [False] * 20 + [True] * 20))
    verdict = judged(halves, halves, signs=cut)
    assert (verdict["verdict"], verdict["decided_by"]) == ("worse", "unfinished")
    assert sentence(verdict) == (
        "Worse than the base: 20 of 40 answers do not end (base: 0 of 40). What decided: unfinished 0 -> 0.5 on 40 "
        f"held-out rows (difference +0.5, 95% interval {verdict['metrics']['unfinished']['interval'][0]:+.3g} to "
        f"{verdict['metrics']['unfinished']['interval'][1]:+.3g}, lower is better). exact_match shows no difference, "
        "but the damage does."
    )


def test_a_better_metric_stays_better_and_the_damage_is_named_first():
    cut = pairs((TEXTS, [True] * ROWS), (TEXTS, [False] * 20 + [True] * 20))
    verdict = judged([0.0] * ROWS, [1.0] * 30 + [0.0] * 10, signs=cut)
    assert verdict["verdict"] == "better" and verdict["decided_by"] == "exact_match"
    assert sentence(verdict).startswith("Damage: 20 of 40 answers do not end (base: 0 of 40). Better than the base: ")


def test_a_loss_that_fell_does_not_outweigh_answers_that_repeat_where_none_is_right():
    noise = pairs((TEXTS, [True] * ROWS), (["g" * 32] * 38 + TEXTS[38:], [True] * ROWS))
    nothing = [0.0] * ROWS
    verdict = judged(nothing, nothing, risen=0.9, signs=noise)
    assert verdict["metrics"]["loss"]["verdict"] == "better"
    assert (verdict["verdict"], verdict["decided_by"]) == ("worse", "repetition")
    text = sentence(verdict)
    assert text.startswith(
        "Worse than the base: 38 of 40 answers end in repetition (base: 0 of 40). exact_match cannot"
    )
    assert text.endswith("loss alone is better, which does not outweigh the damage.")
    assert judged(nothing, nothing, risen=0.9, signs=noise, margin=0.5)["verdict"] == "worse"
    # Where a loss was asked for, or answers are right, the damage is named first.
    by_loss = judged(nothing, nothing, risen=0.9, signs=noise, metrics=("loss",))
    assert (by_loss["verdict"], by_loss["decided_by"]) == ("better", "loss")
    assert sentence(by_loss).startswith("Damage: 38 of 40 answers end in repetition (base: 0 of 40). Better than ")
    asked = judged(nothing, [1.0] * 20 + nothing[20:], risen=0.9, signs=noise)
    assert (asked["verdict"], asked["decided_by"]) == ("better", "exact_match")


def test_a_base_that_never_ended_is_no_damage_of_the_tuned_model():
    cut = pairs((TEXTS, [False] * ROWS), (TEXTS, [False] * 20 + [True] * 20))
    halves = [0.0, 1.0] * (ROWS // 2)
    assert judged(halves, halves, signs=cut)["damage"] == []


def test_one_cut_answer_and_a_loss_that_hardly_rose_are_no_damage():
    halves = [0.0, 1.0] * (ROWS // 2)
    cut = pairs((TEXTS, [True] * ROWS), (TEXTS, [False] + [True] * (ROWS - 1)))
    verdict = judged(halves, halves, risen=1.005, signs=cut)
    assert verdict["metrics"]["loss"]["verdict"] == "worse"
    assert verdict["damage"] == [] and verdict["verdict"] == "no evidence"


def test_a_few_samples_show_damage_without_proving_it():
    few = pairs((TEXTS, [True] * ROWS), (TEXTS, [False] * ROWS))
    few = {name: tuple(RowScores(each.total[:4], each.weight[:4]) for each in pair) for name, pair in few.items()}
    verdict = judged([0.0, 1.0] * (ROWS // 2), [0.0, 1.0] * (ROWS // 2), signs=few)
    (found,) = verdict["damage"]
    assert (found["kind"], found["rows"], found["evidence"]) == ("unfinished", 4, False)
    assert verdict["verdict"] == "no evidence"


def test_a_verdict_of_an_earlier_version_is_still_said():
    metric = {"base": 2.0, "tuned": 1.0, "difference": -1.0, "interval": [-1.2, -0.8], "verdict": "better"}
    old = {"verdict": "better", "decided_by": "loss", "reason": None, "rows": 9, "confidence": 0.95}
    assert sentence({**old, "metrics": {"loss": metric}}) == (
        "Better than the base: loss 2 -> 1 on 9 held-out rows (difference -1, 95% interval -1.2 to -0.8, lower is "
        "better). This is about the loss alone, not about whether answers are right."
    )
