"""The tests behind a verdict, against scipy, statsmodels' formulas, published examples and simulation."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, cast

import numpy as np
import pytest
from scipy import stats

from tunesmith.evaluation.compare import compare
from tunesmith.evaluation.metrics.base import RowScores, row_scores
from tunesmith.evaluation.statistics import (
    CLUSTERED,
    MCNEMAR,
    PAIRED,
    Influence,
    clustered_p_value,
    detectable,
    equivalence,
    foreseen,
    holm,
    influence,
    mcnemar,
    score_interval,
    widened_tail,
)

cached = lru_cache(mcnemar)


def mean_of(sums):
    return sums[..., 0] / sums[..., 1]


def sums_of(base, tuned, weight=None):
    weight = np.ones(len(base)) if weight is None else weight
    return np.stack([base, weight, tuned, weight], axis=1)


def judged(base, tuned, groups=None, **arguments):
    pair = row_scores(base, groups), row_scores(tuned, groups)
    steady = row_scores(np.linspace(1, 2, len(base)).tolist(), groups)
    scores = [{"m": each, "loss": steady} for each in pair]
    return compare(*scores, metrics=["m"], resamples=500, **arguments)


def test_the_influence_of_a_mean_is_the_deviation_from_it():
    random = np.random.default_rng(0)
    base, tuned = random.normal(size=30), random.normal(size=30)
    found = Influence(influence(mean_of, mean_of, sums_of(base, tuned)))
    assert found.of_groups == pytest.approx((tuned - base) - (tuned - base).mean())
    assert found.standard_error == pytest.approx((tuned - base).std(ddof=1) / math.sqrt(30))


def test_clustered_errors_are_those_of_the_group_means_where_groups_are_equal():
    random = np.random.default_rng(1)
    of_groups = random.normal(size=(25, 4)) + random.normal(size=(25, 1))  # [groups, rows]
    sums = np.stack([np.zeros(25), np.full(25, 4.0), of_groups.sum(1), np.full(25, 4.0)], axis=1)
    found = Influence(influence(mean_of, mean_of, sums)).standard_error
    assert found == pytest.approx(of_groups.mean(1).std(ddof=1) / 5)
    # Miller 2024, equation 4, with n / (n - 1) for few groups.
    residuals = of_groups - of_groups.mean()
    miller = math.sqrt((residuals.sum(1) ** 2).sum()) / of_groups.size
    assert found == pytest.approx(miller * math.sqrt(25 / 24))


def test_the_error_of_a_ratio_is_that_of_many_samples():
    random = np.random.default_rng(2)
    errors, values = [], []
    for _ in range(300):
        weight = random.integers(1, 60, size=80).astype(float)
        base = random.gamma(4.0, 0.5, size=80) * weight
        sums = sums_of(base, base + random.normal(-0.1, 0.4, size=80) * weight, weight)
        total = sums.sum(0)
        values.append(mean_of(total[2:]) - mean_of(total[:2]))
        errors.append(Influence(influence(mean_of, mean_of, sums)).standard_error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.08)


def test_mcnemars_test_is_the_sign_test_of_the_rows_that_differ():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(6, 0) == 2 * 0.5**6
    assert mcnemar(5, 0) == 2 * 0.5**5 > 0.05
    assert mcnemar(15, 4) == mcnemar(4, 15) == pytest.approx(stats.binomtest(4, 19).pvalue)


def test_rates_of_independent_rows_are_tested_by_mcnemar_and_those_of_groups_are_not():
    base, tuned = [0.0] * 20 + [1.0] * 20, [1.0] * 14 + [0.0] * 12 + [1.0] * 14
    alone = judged(base, tuned)["metrics"]["m"]
    assert alone["test"] == MCNEMAR and alone["p_value"] == mcnemar(14, 6)
    grouped = judged(base, tuned, groups=[number // 2 for number in range(40)])["metrics"]["m"]
    assert grouped["test"] == CLUSTERED and grouped["p_value"] != alone["p_value"]
    fractions = judged([each / 2 for each in base], tuned)["metrics"]["m"]
    assert fractions["test"] == PAIRED
    expected = stats.ttest_rel(tuned, [each / 2 for each in base]).pvalue
    assert fractions["p_value"] == pytest.approx(expected)


def test_a_group_alone_and_no_difference_prove_nothing():
    assert clustered_p_value(1.0, None, 1) == 1.0
    assert clustered_p_value(0.0, 0.0, 9) == 1.0
    assert clustered_p_value(-0.5, 0.0, 9) == 0.0


def test_holms_correction_is_that_of_the_paper():
    # Holm 1979: the smallest times m, the next times m - 1, and never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7]) == [0.7] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_deciding_metric_stands_alone_and_the_others_are_corrected_together():
    random = np.random.default_rng(3)
    base = {name: row_scores(random.normal(size=60).tolist()) for name in "abcd"}
    better = {
        name: row_scores((each.total + random.normal(0.27, 1.0, size=60)).tolist()) for name, each in base.items()
    }
    loss = {"loss": row_scores(random.gamma(2.0, 1.0, size=60).tolist())}
    found = compare({**base, **loss}, {**better, **loss}, metrics=list("abcd"), resamples=500)["metrics"]
    assert found["a"]["adjusted_p_value"] == found["a"]["p_value"]
    beside = [found[name] for name in ("b", "c", "d", "loss")]
    assert [each["adjusted_p_value"] for each in beside] == holm([each["p_value"] for each in beside])
    changed = [each for each in beside if each["p_value"] <= 0.05 < each["adjusted_p_value"]]
    assert changed and all(each["verdict"] == "no evidence" for each in changed)
    assert str(changed[0]["reason"]).startswith("Corrected for 4 metrics beside a (Holm), p = 0.")


def test_a_few_groups_get_the_quantiles_of_students_t():
    assert widened_tail(0.025, 10**6) == pytest.approx(0.025, rel=1e-4)
    assert widened_tail(0.025, 20) == pytest.approx(stats.norm.cdf(-2.093 * math.sqrt(20 / 19)), rel=1e-3)
    assert widened_tail(0.025, 1) == 0.025


def test_one_hundred_rows_can_show_nine_points_before_training():
    assert foreseen(100, 0.95, 0.1) == pytest.approx(0.09, abs=0.005)
    assert foreseen(1000, 0.95, 0.1) == pytest.approx(0.029, abs=0.002)
    assert foreseen(5, 0.95, 0.1) == 1.0
    assert foreseen(20, 0.95, 0.1) > 0.3  # all of them must change in one direction


@pytest.mark.parametrize(("rows", "share"), [(60, 0.3), (100, 0.1), (400, 0.2)])
def test_the_difference_that_is_foreseen_is_found_eight_times_in_ten(rows, share):
    random, difference = np.random.default_rng(4), foreseen(rows, 0.95, share)
    chances = [(share + difference) / 2, (share - difference) / 2, 1 - share]
    splits = random.multinomial(rows, chances, size=4000)
    found = np.mean([cached(gained, lost) <= 0.05 and gained > lost for gained, lost, _ in splits.tolist()])
    assert found == pytest.approx(0.8, abs=0.025)


def test_the_detectable_difference_is_found_eight_times_in_ten_after_training():
    random = np.random.default_rng(5)
    least = detectable(0.5 / math.sqrt(60), 60, 0.95)
    assert least == pytest.approx(2.8 * 0.5 / math.sqrt(60), rel=0.02)
    samples = random.normal(cast("float", least), 0.5, size=(2000, 60))
    errors = samples.std(axis=1, ddof=1) / math.sqrt(60)
    found = [clustered_p_value(value, error, 60) <= 0.05 for value, error in zip(samples.mean(1), errors, strict=True)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
    assert detectable(None, 1, 0.95) is None and detectable(0.0, 9, 0.95) is None


def within(gained, lost, rows, margin):
    changes = np.array([1.0] * gained + [-1.0] * lost + [0.0] * (rows - gained - lost))
    found = Influence(changes - changes.mean(), gained, lost)
    return equivalence(changes.mean(), found, margin=margin, differing=gained + lost, least=6, confidence=0.95)


def test_rows_that_do_not_differ_show_equivalence_only_if_they_are_many():
    assert within(0, 0, 40, 0.05)["outcome"] == "not shown"
    assert within(0, 0, 60, 0.05)["outcome"] == "equivalent"


def test_tangos_score_is_that_of_its_paper():
    # Tango 1998, table I of the crossover of contact lenses: 44 pairs, 1 and 0 that differ, a margin of 0.1.
    assert stats.norm.isf(within(0, 1, 44, 0.1)["not_worse"]) == pytest.approx(1.709, abs=0.002)


def test_the_interval_of_a_rate_that_hardly_changes_is_that_of_its_score():
    # Tango 1998, table II: 0 and 1 of 44 pairs differ.
    assert score_interval(0, 1, 44, 0.95) == pytest.approx([-0.118, 0.060], abs=0.003)
    assert score_interval(0, 0, 100, 0.95) == pytest.approx([-0.037, 0.037], abs=0.001)
    low, high = score_interval(3, 1, 60, 0.95)
    assert [-high, -low] == pytest.approx(score_interval(1, 3, 60, 0.95))
    assert judged([0.0, 1.0] * 50, [0.0, 1.0] * 50)["metrics"]["m"]["interval"] == pytest.approx(
        [-0.037, 0.037], abs=0.001
    )


def test_no_worse_is_shown_without_equivalence_where_it_may_be_much_better():
    found = within(14, 6, 100, 0.05)
    assert found["outcome"] == "no worse" and found["not_better"] > 0.05 >= found["not_worse"]


@pytest.mark.parametrize(("rows", "change"), [(100, 0.1), (300, 0.05)])
def test_a_model_that_is_worse_by_the_margin_is_rarely_called_no_worse(rows, change):
    random = np.random.default_rng(6)
    splits = random.multinomial(rows, [change, change + 0.05, 0.95 - 2 * change], size=2000)
    seen, counts = np.unique(splits, axis=0, return_counts=True)
    shown = [within(gained, lost, rows, 0.05)["outcome"] != "not shown" for gained, lost, _ in seen.tolist()]
    called = np.average(shown, weights=counts)
    assert called <= 0.065


def test_equivalence_of_a_loss_is_two_one_sided_t_tests():
    random = np.random.default_rng(7)
    base = random.gamma(4.0, 0.5, size=80)
    tuned = base + random.normal(0, 0.05, size=80)
    scores = [{"loss": row_scores(each.tolist())} for each in (base, tuned)]
    verdict: Any = compare(*scores, margin=0.02, resamples=500)
    found = verdict["metrics"]["loss"]["equivalence"]
    lower = cast("Any", stats.ttest_1samp(tuned - base, -0.02, alternative="greater")).pvalue
    upper = cast("Any", stats.ttest_1samp(tuned - base, 0.02, alternative="less")).pvalue
    assert (found["not_worse"], found["not_better"]) == pytest.approx((upper, lower))
    assert found["outcome"] == "equivalent" and verdict["verdict"] == "no worse"


def test_a_difference_that_is_shown_stays_better_or_worse_within_the_margin():
    base = RowScores(np.linspace(1, 2, 50), np.ones(50))
    tuned = RowScores(base.total + 0.001 + np.linspace(0, 1e-4, 50), np.ones(50))
    verdict: Any = compare({"loss": base}, {"loss": tuned}, margin=0.02, resamples=500)
    assert verdict["verdict"] == "worse" and verdict["metrics"]["loss"]["equivalence"]["outcome"] == "equivalent"
