"""Metrics of label likelihoods, by hand: probabilities, predictions, the Brier score, and the error of calibration."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score
from tests.evaluation.drawn import drawn_rows

from tunesmith.errors import RecipeError
from tunesmith.evaluation.compare import compare
from tunesmith.evaluation.intervals import bootstrap_differences
from tunesmith.evaluation.metrics import base as protocol
from tunesmith.evaluation.metrics.answers import LIKELIHOODS, check_metrics_exist, likelihood_metrics
from tunesmith.evaluation.metrics.by_likelihood import ByLikelihood, LikelihoodRows
from tunesmith.evaluation.metrics.calibration import BrierScore, CalibrationError, bins_for, bins_of, reliability
from tunesmith.evaluation.pairs import Scored, values
from tunesmith.evaluation.wording import lower_is_better
from tunesmith.recipe.settings import LIKELIHOOD_METRICS, EvaluationSettings


def rows_of(probabilities: Any, truths: list[int], **given: Any) -> LikelihoodRows:
    """Rows whose labels have these probabilities; the likelihoods of a row are scaled down, as answers' are."""
    log = np.log(np.asarray(probabilities, dtype=np.float64)) - 40.0
    return LikelihoodRows(log, np.array(truths), [f"label {n}" for n in range(log.shape[1])], **given)


def two(confidence: list[float], right: list[int]) -> LikelihoodRows:
    """Rows of two labels, of which the first is the likelier one with this probability."""
    return rows_of([[each, 1 - each] for each in confidence], [1 - each for each in right])


def random_rows(rows: int, seed: int = 0, labels: int = 4) -> LikelihoodRows:
    random = np.random.default_rng(seed)
    return LikelihoodRows(
        random.normal(-20, 2, (rows, labels)), random.integers(labels, size=rows), [*"abcdefgh"[:labels]]
    )


def test_probabilities_are_those_of_the_labels_among_each_other() -> None:
    rows = rows_of([[0.02, 0.06], [0.5, 0.5]], [0, 1])
    np.testing.assert_allclose(rows.probabilities, [[0.25, 0.75], [0.5, 0.5]], rtol=1e-12)
    far = LikelihoodRows(np.array([[-2000.0, -1000.0]]), np.array([1]), ["a", "b"])
    assert far.probabilities.tolist() == [[0.0, 1.0]]


def test_the_brier_score_by_hand() -> None:
    """(0.3 - 1)^2 + 0.7^2 = 0.98, and 0.2^2 + (0.7 - 1)^2 + 0.1^2 = 0.14."""
    found = BrierScore().scores(rows_of([[0.3, 0.7], [0.5, 0.5]], [0, 1]))
    assert found.of_rows.tolist() == pytest.approx([0.98, 0.5]) and found.value == pytest.approx(0.74)
    three = BrierScore().scores(rows_of([[0.2, 0.7, 0.1]], [1]))
    assert three.value == pytest.approx(0.14)


def test_the_calibration_error_by_hand() -> None:
    """20 rows a bin. The first: 0.6 with 2 right is 0.5 off, and chance adds 0.1 * 0.9 / 19 to its square.

    The second: 0.9 with 19 right is 0.05 off, which is what chance does: 0.05^2 = 0.05 * 0.95 / 19.
    """
    rows = two([0.6] * 20 + [0.9] * 20, [1] * 2 + [0] * 18 + [1] * 19 + [0])
    found = CalibrationError().scores(rows)
    assert found.value == pytest.approx(((0.5**2 - 0.1 * 0.9 / 19) / 2) ** 0.5)
    assert found.of_rows[[0, 10]].tolist() == pytest.approx([0.4, 0.6])
    (low, high) = found.details["calibration"]["bins"]
    assert low == {"rows": 20, "confidence": pytest.approx(0.6), "right": 0.1}
    assert high == {"rows": 20, "confidence": pytest.approx(0.9), "right": 0.95}
    assert found.details["calibration"]["labels"] == 2
    assert json.loads(json.dumps(found.details)) == found.details


def test_the_calibration_error_is_not_raised_by_chance() -> None:
    """The squares are right on average, sure or unsure; a calibrated model has 0 about every second time."""
    random = np.random.default_rng(0)
    for confidence, off in ((0.6, 0.0), (0.97, 0.0), (0.6, 0.2), (0.9, 0.3)):
        found = []
        for _ in range(400):
            sure = confidence + random.uniform(-0.02, 0.02, 200)
            right = random.random(200) < sure - off
            found.append(CalibrationError().scores(two(sure.tolist(), right.astype(int).tolist())).value)
        if off:
            assert np.mean(np.square(found)) == pytest.approx(off**2, rel=0.05), confidence
        else:
            assert 0.4 < np.mean(np.array(found) == 0) < 0.75, confidence


def test_bins_with_one_row_or_none_say_nothing() -> None:
    assert CalibrationError().scores(two([0.8], [0])).value == 0
    apart = two([0.9] * 39 + [0.95], [1] * 39 + [0])  # the second bin has one row
    of_many = 0.1**2  # all alike, so chance adds nothing
    assert CalibrationError().scores(apart).value == pytest.approx((39 * of_many / 40) ** 0.5)


def test_bins_have_equal_numbers_of_rows_and_equal_confidences_stay_together() -> None:
    assert bins_of(np.array([0.9, 0.1, 0.5, 0.7, 0.3, 0.8]), 3).tolist() == [2, 0, 1, 1, 0, 2]
    assert bins_of(np.array([0.5, 0.5, 0.5, 0.9]), 2).tolist() == [0, 0, 0, 1]
    assert bins_of(np.array([0.1, 0.5, 0.5, 0.5]), 2).tolist() == [0, 0, 0, 0]
    assert [bins_for(rows) for rows in (1, 39, 40, 199, 200, 5000)] == [1, 1, 2, 9, 10, 10]


def test_errors_in_two_directions_do_not_cancel_out_between_bins() -> None:
    rows = two([0.6] * 20 + [0.9] * 20, [1] * 20 + [1] * 10 + [0] * 10)
    assert CalibrationError().scores(rows).value == pytest.approx(((0.4**2 + 0.4**2 - 0.5 * 0.5 / 19) / 2) ** 0.5)
    one = two([0.6] * 10 + [0.9] * 10, [1] * 10 + [1] * 5 + [0] * 5)  # one bin alone: they do inside of it
    assert CalibrationError().scores(one).value == 0


def test_a_resample_computes_the_error_anew_and_leaves_each_row_in_its_bin() -> None:
    before, after = (CalibrationError().scores(random_rows(60, seed)) for seed in (1, 2))
    found = bootstrap_differences(before, after, resamples=20, seed=5)
    drawn = drawn_rows(before, after, resamples=20, seed=5)

    def by_hand(rows: LikelihoodRows, of: np.ndarray) -> float:
        confidence = rows.probabilities.max(1)
        off = (rows.log_likelihoods.argmax(1) == rows.truths) - confidence
        number = bins_of(confidence, 3)
        bins = [off[of][number[of] == each] for each in range(3)]
        return max(0, sum(len(own) * (own.mean() ** 2 - own.var(ddof=1) / len(own)) for own in bins) / 60) ** 0.5

    for difference, of in zip(found, drawn, strict=True):
        expected = by_hand(random_rows(60, 2), of) - by_hand(random_rows(60, 1), of)
        assert difference == pytest.approx(expected, abs=1e-12)


def test_the_likeliest_label_has_scikit_learns_accuracy_and_f1() -> None:
    rows = random_rows(50, 3)
    predicted = rows.log_likelihoods.argmax(1)
    accuracy, f1 = ByLikelihood("accuracy").scores(rows), ByLikelihood("macro_f1").scores(rows)
    assert accuracy.value == pytest.approx(accuracy_score(rows.truths, predicted))
    assert f1.value == pytest.approx(f1_score(rows.truths, predicted, average="macro"))
    report = accuracy.details["classification_by_likelihood"]
    assert [each["label"] for each in report["labels"]] == ["a", "b", "c", "d"] and accuracy.details == f1.details
    assert sum(each["rows"] for each in report["confusion"]) == 50


def test_a_verdict_takes_lower_values_of_calibration_for_better() -> None:
    """The tuned model is sure and right, the base is sure and wrong."""
    base, tuned = two([0.99] * 60, [0] * 60), two([0.99] * 60, [1] * 60)
    loss = protocol.row_scores([1.0] * 60)
    metrics = (BrierScore(), CalibrationError())
    before, after = ({"loss": loss, **{each.name: each.scores(rows) for each in metrics}} for rows in (base, tuned))
    found = compare(before, after, metrics=["brier_score", "calibration_error"], resamples=200)
    assert found["verdict"] == "better" and found["decided_by"] == "brier_score"
    assert list(found["metrics"]) == ["brier_score", "loss"], "the calibration error is not compared"
    scored = {name: Scored(each) for name, each in (("base", before), ("tuned", after))}
    of_models = values(scored, [{"from": "base", "to": "tuned", "verdict": found}])["calibration_error"]
    assert of_models == {"base": pytest.approx(0.99), "tuned": pytest.approx(0.01)}
    assert [lower_is_better(name) for name in LIKELIHOOD_METRICS] == [False, False, True, True]


def test_each_name_of_a_recipe_has_its_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuple(LIKELIHOODS) == LIKELIHOOD_METRICS
    assert [each.name for each in likelihood_metrics(["loss", *LIKELIHOOD_METRICS])] == [*LIKELIHOOD_METRICS]
    monkeypatch.setattr(protocol, "find_spec", lambda package: None)
    check_metrics_exist(EvaluationSettings(metrics=["brier_score", "calibration_error"]))
    with pytest.raises(RecipeError, match="calibration_error cannot decide") as caught:
        check_metrics_exist(EvaluationSettings(metrics=["calibration_error"]))
    assert "metrics=[brier_score, calibration_error]" in str(caught.value)
    with pytest.raises(RecipeError, match="likelihood_accuracy needs a package"):
        check_metrics_exist(EvaluationSettings(metrics=["likelihood_accuracy"]))


def test_a_row_alone_has_a_table() -> None:
    assert reliability(two([0.8], [1]))["bins"] == [{"rows": 1, "confidence": pytest.approx(0.8), "right": 1.0}]
