"""Metrics that are no mean over rows: a resample of their statistics is the metric of the resampled rows."""

from __future__ import annotations

import numpy as np
from tests.evaluation.drawn import drawn_rows

from tunesmith.evaluation.compare import compare
from tunesmith.evaluation.intervals import bootstrap_differences
from tunesmith.evaluation.metrics.base import RowScores, RowStatistics


def _root_mean_square(sums):
    return np.sqrt(sums[..., 0] / sums[..., 1])


def _scores(values, groups=None):
    values = np.asarray(values, dtype=np.float64)
    statistics = np.stack([values**2, np.ones_like(values)], axis=1)
    return RowStatistics(statistics, _root_mean_square, values, groups)


def test_each_resample_is_the_metric_of_the_resampled_rows():
    random = np.random.default_rng(5)
    base, tuned = random.integers(0, 9, 20), random.integers(0, 9, 20)
    found = bootstrap_differences(_scores(base), _scores(tuned), resamples=50, seed=3)
    drawn = drawn_rows(_scores(base), _scores(tuned), resamples=50, seed=3)
    expected = np.sqrt((tuned[drawn] ** 2).mean(axis=1)) - np.sqrt((base[drawn] ** 2).mean(axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_groups_are_resampled_whole():
    values, groups = np.arange(12.0), np.repeat(np.arange(4), 3)
    found = bootstrap_differences(_scores(values * 0, groups), _scores(values, groups), resamples=30, seed=1)
    drawn = np.random.default_rng(1).integers(4, size=(30, 4))
    expected = np.sqrt((values.reshape(4, 3)[drawn] ** 2).mean(axis=(1, 2)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_ratio_of_sums_is_a_metric_of_two_statistics():
    random = np.random.default_rng(2)
    ratio = RowScores(random.random(30), random.integers(1, 9, 30).astype(float))
    general = RowStatistics(ratio.statistics, ratio.of_sums, ratio.of_rows)
    assert ratio.value == general.value == ratio.total.sum() / ratio.weight.sum()
    other = RowScores(random.random(30), ratio.weight)
    again = RowStatistics(other.statistics, other.of_sums, other.of_rows)
    one = bootstrap_differences(ratio, other, resamples=200, seed=7)
    assert one.tolist() == bootstrap_differences(general, again, resamples=200, seed=7).tolist()


def test_such_a_metric_gets_an_interval_and_a_verdict():
    loss = RowScores(np.ones(40), np.ones(40))
    base, tuned = _scores(np.full(40, 2.0)), _scores(np.arange(40) % 3 + 3.0)
    verdict = compare({"m": base, "loss": loss}, {"m": tuned, "loss": loss}, metrics=["m"], resamples=500)
    found = verdict["metrics"]["m"]
    assert found["base"] == 2.0 and found["tuned"] == np.sqrt((tuned.of_rows**2).mean())
    assert 0 < found["interval"][0] < found["difference"] < found["interval"][1]
    assert verdict["verdict"] == "better"
