"""The verdict: its statistics, against scipy and by simulation, and its words."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats
from tests.evaluation.drawn import drawn_rows

from tunesmith.evaluation import intervals as module
from tunesmith.evaluation.compare import compare
from tunesmith.evaluation.intervals import bootstrap_differences, least_groups
from tunesmith.evaluation.metrics.base import RowScores, row_scores
from tunesmith.evaluation.statistics import score_interval, widened_tail
from tunesmith.evaluation.wording import sentence


def losses(mean, rows=200, seed=0, groups=None):
    """Rows of unequal length whose loss varies around a mean."""
    random = np.random.default_rng(seed)
    tokens = random.integers(1, 60, size=rows).astype(float)
    return RowScores(tokens * random.gamma(4.0, mean / 4.0, size=rows), tokens, groups)


def shifted(scores, by, seed=1):
    random = np.random.default_rng(seed)
    noise = random.normal(by, 0.3, size=len(scores))
    return RowScores(scores.total + noise * scores.weight, scores.weight, scores.groups)


def rates(values, groups=None):
    return row_scores(values, groups)


def one(base, tuned, **arguments):
    verdict = compare({"loss": base}, {"loss": tuned}, **arguments)
    return verdict["metrics"]["loss"]


def test_values_are_ratios_of_sums():
    base = RowScores(np.array([10.0, 1.0]), np.array([1.0, 9.0]))
    tuned = RowScores(np.array([2.0, 3.0]), np.array([1.0, 9.0]))
    found = one(base, tuned)
    assert (found["base"], found["tuned"]) == (1.1, 0.5)
    assert found["difference"] == pytest.approx(-0.6)
    assert found["rows"] == 2


def test_the_interval_is_that_of_scipys_paired_percentile_bootstrap():
    base = losses(2.0, rows=80)
    tuned = shifted(base, -0.1)

    def statistic(base_total, tuned_total, tokens, axis):
        return tuned_total.sum(axis) / tokens.sum(axis) - base_total.sum(axis) / tokens.sum(axis)

    reference = stats.bootstrap(
        (base.total, tuned.total, base.weight),
        statistic,
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(7),
        vectorized=True,
    )
    found = one(base, tuned, resamples=20_000)
    spread = float(reference.standard_error)
    assert found["interval"] == pytest.approx(list(reference.confidence_interval), abs=0.12 * spread)
    assert bootstrap_differences(base, tuned, resamples=20_000).std(ddof=1) == pytest.approx(spread, rel=0.05)


def test_a_95_percent_interval_covers_the_true_difference_in_about_95_percent_of_samples():
    random = np.random.default_rng(3)
    tokens = random.integers(5, 40, size=100_000).astype(float)
    difficulty = random.gamma(4.0, 0.5, size=100_000)
    gain = random.normal(-0.2, 0.5, size=100_000)
    truth = (gain * tokens).sum() / tokens.sum()
    inside = 0
    for trial in range(300):
        rows = random.integers(100_000, size=80)
        base = RowScores(difficulty[rows] * tokens[rows], tokens[rows])
        tuned = RowScores((difficulty + gain)[rows] * tokens[rows], tokens[rows])
        low, high = np.quantile(bootstrap_differences(base, tuned, resamples=500, seed=trial), [0.025, 0.975])
        inside += low <= truth <= high
    assert 0.90 <= inside / 300 <= 0.985


def test_without_a_difference_few_verdicts_claim_one():
    random = np.random.default_rng(5)
    claims = 0
    for trial in range(300):
        base, tuned = (rates((random.random(60) < 0.3).astype(float)) for _ in range(2))
        claims += one(base, tuned, resamples=500, seed=trial)["verdict"] != "no evidence"
    assert claims / 300 <= 0.09


def test_swapping_base_and_tuned_turns_the_sign_and_the_verdict():
    base = losses(2.0)
    tuned = shifted(base, -0.2)
    forward, backward = one(base, tuned), one(tuned, base)
    assert (forward["verdict"], backward["verdict"]) == ("better", "worse")
    assert backward["difference"] == -forward["difference"]
    assert backward["interval"] == pytest.approx([-forward["interval"][1], -forward["interval"][0]], abs=1e-12)


def test_pairing_finds_a_small_gain_that_the_spread_of_rows_would_hide():
    base = losses(2.0, rows=100)
    tuned = RowScores(base.total - 0.02 * base.weight, base.weight)
    assert one(base, tuned)["verdict"] == "better"
    assert one(base, tuned)["interval"] == pytest.approx([-0.02, -0.02])
    shuffled = np.random.default_rng(0).permutation(100)
    unpaired = RowScores(tuned.total[shuffled], tuned.weight[shuffled])
    assert one(base, unpaired)["verdict"] == "no evidence"


def test_higher_is_better_for_rates_and_lower_for_losses():
    low, high = losses(1.0), losses(2.0)
    verdict = compare(
        {"loss": high, "token_accuracy": rates([0.0] * 200), "exact_match": rates([1.0] * 200)},
        {"loss": low, "token_accuracy": rates([1.0] * 200), "exact_match": rates([0.0] * 200)},
        metrics=["exact_match", "token_accuracy", "perplexity", "loss"],
        resamples=200,
    )
    assert [(name, found["verdict"]) for name, found in verdict["metrics"].items()] == [
        ("exact_match", "worse"),
        ("token_accuracy", "better"),
        ("perplexity", "better"),
        ("loss", "better"),
    ]
    assert verdict["verdict"] == "worse" and verdict["decided_by"] == "exact_match"
    low, high = verdict["metrics"]["token_accuracy"]["interval"]
    assert 0.95 < low < 1 and high == pytest.approx(1)


def test_perplexity_is_the_exponential_in_every_resample():
    base = losses(2.0, rows=50)
    tuned = shifted(base, -0.2)
    verdict = compare({"loss": base}, {"loss": tuned}, metrics=["perplexity"], resamples=500)
    found = verdict["metrics"]["perplexity"]
    assert found["base"] == math.exp(base.value) and found["tuned"] == math.exp(tuned.value)
    assert found["difference"] == math.exp(tuned.value) - math.exp(base.value)
    drawn = drawn_rows(base, tuned, resamples=500, seed=0)
    ratio = [scores.total[drawn].sum(1) / scores.weight[drawn].sum(1) for scores in (base, tuned)]
    ends = [widened_tail(0.025, 50), 1 - widened_tail(0.025, 50)]
    low, high = np.quantile(np.exp(ratio[1]) - np.exp(ratio[0]), ends)
    reach = found["standard_error"] * stats.t.isf(0.025, 49)
    ends = [min(low, found["difference"] - reach), max(high, found["difference"] + reach)]
    assert found["interval"] == pytest.approx(ends)
    assert list(verdict["metrics"]) == ["perplexity", "loss"]


def test_a_perplexity_beyond_float64_is_still_json():
    base, tuned = losses(5000.0), losses(2.0)
    verdict = compare({"loss": base}, {"loss": tuned}, metrics=["perplexity"], resamples=200)
    json.dumps(verdict, allow_nan=False)
    assert verdict["verdict"] == "better"


def test_the_first_metric_decides_and_loss_is_always_there():
    scores = {"loss": losses(2.0), "exact_match": rates([0.0, 1.0] * 100)}
    verdict = compare(scores, scores, metrics=["exact_match"], resamples=200)
    assert list(verdict["metrics"]) == ["exact_match", "loss"] and verdict["decided_by"] == "exact_match"
    verdict = compare(scores, scores, resamples=200)
    assert list(verdict["metrics"]) == ["loss"] and verdict["decided_by"] == "loss"
    assert set(verdict) >= {"verdict", "metrics", "rows"} and verdict["rows"] == 200
    assert json.loads(json.dumps(verdict, allow_nan=False)) == verdict


def test_equal_scores_are_no_evidence():
    found = one(losses(2.0), losses(2.0))
    assert found["verdict"] == "no evidence" and found["interval"] == [0.0, 0.0]
    assert found["reason"] is not None and found["reason"].startswith("Both models score the same")


def test_a_difference_of_rounding_is_no_evidence():
    base = losses(2.0)
    tuned = RowScores(base.total * (1 - 1e-8), base.weight)
    found = one(base, tuned)
    assert found["interval"][1] < 0 and found["verdict"] == "no evidence"


@pytest.mark.parametrize(
    ("rows", "expected"), [(1, "no evidence"), (2, "no evidence"), (5, "no evidence"), (6, "better")]
)
def test_a_handful_of_rows_is_no_evidence_even_if_all_improve(rows, expected):
    found = one(losses(2.0, rows=rows), losses(2.0, rows=rows))
    assert found["verdict"] == "no evidence"
    base = losses(2.0, rows=rows)
    found = one(base, RowScores(base.total / 2, base.weight))
    assert found["interval"][1] < 0 and found["verdict"] == expected
    assert (found["reason"] is None) == (expected == "better")


def test_few_differing_rows_among_many_equal_ones_are_no_evidence():
    base = rates([0.0] * 100)
    five, six = (rates([1.0] * count + [0.0] * (100 - count)) for count in (5, 6))
    verdict = compare({"m": base, "loss": losses(1, 100)}, {"m": five, "loss": losses(1, 100)}, metrics=["m"])
    assert verdict["metrics"]["m"]["interval"][0] > 0
    assert verdict["verdict"] == "no evidence"
    assert (
        verdict["reason"] == "Only 5 of 100 rows differ; at least 6 rows must differ for a verdict at 95% confidence."
    )
    verdict = compare({"m": base, "loss": losses(1, 100)}, {"m": six, "loss": losses(1, 100)}, metrics=["m"])
    assert verdict["verdict"] == "better"


@pytest.mark.parametrize(("confidence", "groups"), [(0.75, 3), (0.9, 5), (0.95, 6), (0.99, 8), (0.999, 11)])
def test_so_many_groups_must_differ_that_a_coin_would_hardly_put_them_on_one_side(confidence, groups):
    assert least_groups(confidence) == groups
    assert 2.0 ** (1 - groups) <= 1 - confidence + 1e-12 < 2.0 ** (2 - groups)


def test_rows_of_a_group_are_resampled_together():
    values = np.random.default_rng(2).normal(0.15, 1.0, size=20)
    alone = rates([0.0] * 20), rates(values)
    copies = np.repeat(np.arange(20), 10)
    together = rates([0.0] * 200, groups=copies), rates(values[copies], groups=copies)
    assert bootstrap_differences(*together, resamples=500) == pytest.approx(
        bootstrap_differences(*alone, resamples=500)
    )
    ungrouped = rates([0.0] * 200), rates(values[copies])
    narrow, wide = (np.ptp(bootstrap_differences(*pair, resamples=2000)) for pair in (ungrouped, together))
    assert wide > 2 * narrow
    assert compare({"loss": together[0]}, {"loss": together[1]}, resamples=500)["rows"] == 200


def test_group_numbers_need_no_order():
    values = np.random.default_rng(2).normal(size=6)
    one_way = rates([0.0] * 6, groups=[0, 1, 2, 0, 1, 2]), rates(values, groups=[0, 1, 2, 0, 1, 2])
    other = rates([0.0] * 6, groups=[7, 8, 9, 7, 8, 9]), rates(values, groups=[7, 8, 9, 7, 8, 9])
    assert np.array_equal(bootstrap_differences(*one_way, resamples=50), bootstrap_differences(*other, resamples=50))


def test_the_interval_depends_on_the_seed_and_not_on_how_memory_is_cut(monkeypatch):
    base = losses(2.0, rows=50)
    tuned = shifted(base, 0.0)
    whole = bootstrap_differences(base, tuned, resamples=1000, seed=4)
    assert not np.array_equal(whole, bootstrap_differences(base, tuned, resamples=1000, seed=5))
    monkeypatch.setattr(module, "_COUNTS_AT_A_TIME", 7 * 50)
    assert np.array_equal(whole, bootstrap_differences(base, tuned, resamples=1000, seed=4))


def test_a_wider_confidence_gives_a_wider_interval():
    base = losses(2.0)
    tuned = shifted(base, -0.1)
    narrow, wide = one(base, tuned, confidence=0.8)["interval"], one(base, tuned, confidence=0.99)["interval"]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_sentence_says_it_in_plain_words():
    base, tuned = rates([0.0] * 97 + [1.0] * 3), rates([1.0] * 90 + [0.0] * 7 + [1.0] * 3)
    scores = {"loss": losses(2.0, rows=100)}
    verdict = compare({**scores, "json_exact": base}, {**scores, "json_exact": tuned}, metrics=["json_exact"])
    low, high = verdict["metrics"]["json_exact"]["interval"]
    assert sentence(verdict) == (
        "Better than the base: json_exact 0.03 -> 0.93 on 100 held-out rows "
        f"(difference +0.9, 95% interval {low:+.3g} to {high:+.3g})."
    )
    same = compare({"loss": losses(2.0, rows=1)}, {"loss": losses(2.0, rows=1)})
    assert sentence(same) == (
        f"No evidence that the tuned model is better or worse than the base: loss {losses(2.0, rows=1).value:.4g} -> "
        f"{losses(2.0, rows=1).value:.4g} on 1 held-out row (difference +0, 95% interval +0 to +0, lower is better). "
        "There is only 1 row, too few to show any difference: at least 6 rows must differ for a verdict at 95% "
        "confidence. "
        "This is about the loss alone, not about whether answers are right."
    )
    assert sentence(compare({"loss": losses(1.0)}, {"loss": losses(3.0)})).startswith("Worse than the base: loss ")


def test_the_sentence_says_of_which_rows_it_is_and_how_many_were_trained_on():
    verdict = compare({"loss": losses(3.0)}, {"loss": losses(1.0)})
    rows = verdict["rows"]
    text = sentence({**verdict, "data": "rows.jsonl", "trained_on": 6})
    assert f" on {rows} rows of rows.jsonl (difference" in text and "held-out" not in text
    assert text.endswith("The run was trained on 6 rows of them.")
    assert f"on {rows} held-out rows (" in sentence({**verdict, "data": None, "trained_on": None})
    assert " on 1 row given in Python (difference" in sentence({**verdict, "rows": 1, "data": "rows given in Python"})


def test_too_few_rows_are_said_to_be_too_few() -> None:
    verdict = compare({"loss": row_scores([2.0] * 3)}, {"loss": row_scores([1.0] * 3)}, resamples=200)
    assert verdict["verdict"] == "no evidence"
    assert verdict["reason"] == (
        "There are only 3 rows, too few to show any difference: at least 6 rows must differ for a verdict at 95% "
        "confidence."
    )
    random = np.random.default_rng(0)
    base, tuned = random.gamma(8.0, 0.25, size=(2, 3))
    verdict = compare({"loss": row_scores(base)}, {"loss": row_scores(tuned)}, resamples=200)
    assert verdict["metrics"]["loss"]["detectable"] is None and "80 times in 100" not in sentence(verdict)
    groups = RowScores(np.ones(4), np.ones(4), np.zeros(4, dtype=int))
    reason = compare({"loss": groups}, {"loss": groups}, resamples=200)["reason"]
    assert str(reason).startswith(
        "There is only 1 independent group of rows, too few to show any difference: at least 6 g"
    )


def test_a_difference_within_rounding_is_said_to_be_none() -> None:
    base = losses(6.0, rows=19)
    noise = np.random.default_rng(1).normal(0.0, 2e-8, size=19)
    verdict = compare({"loss": base}, {"loss": RowScores(base.total * (1 + noise), base.weight)}, resamples=200)
    assert verdict["verdict"] == "no evidence" and verdict["metrics"]["loss"]["difference"] != 0
    assert verdict["reason"] == "Nothing changed: the difference is within rounding."
    assert verdict["metrics"]["loss"]["detectable"] is None, "so no number of rows is advised"
    assert "80 times in 100" not in sentence(verdict)


def test_groups_of_which_none_differs_leave_an_interval_of_some_width() -> None:
    groups = np.repeat(np.arange(10), 4)  # 10 groups of 4 rows
    none = RowScores(np.zeros(40), np.ones(40), groups)
    found = compare({"loss": none, "json_exact": none}, {"loss": none, "json_exact": none}, metrics=["json_exact"])
    low, high = found["metrics"]["json_exact"]["interval"]
    # Tango's interval of 0 of 10 groups: z^2 / (10 + z^2) to either side.
    assert high == pytest.approx(1.959964**2 / (10 + 1.959964**2), abs=1e-6)
    assert low == pytest.approx(-high)


def test_a_mean_of_scores_of_which_few_differ_has_an_interval_beyond_what_was_seen() -> None:
    base = np.full(50, 0.25)
    tuned = base.copy()
    tuned[0] = 0.75
    ones = np.ones(50)
    loss = RowScores(ones, ones)
    found = compare(
        {"loss": loss, "json_fields": RowScores(base, ones)},
        {"loss": loss, "json_fields": RowScores(tuned, ones)},
        metrics=["json_fields"],
    )
    low, high = found["metrics"]["json_fields"]["interval"]
    # Half of the interval of 1 row of 50, as the row that changed did so by half.
    assert [low, high] == pytest.approx([each / 2 for each in score_interval(1, 0, 50, 0.95)])
    assert low < -0.02 and high > 0.05
    assert found["metrics"]["json_fields"]["verdict"] == "no evidence"


def test_rows_that_all_change_in_one_direction_leave_room_for_others() -> None:
    ones = np.ones(30)
    loss, wrong, right = RowScores(ones, ones), RowScores(np.zeros(30), ones), RowScores(ones, ones)
    found = compare({"loss": loss, "exact_match": wrong}, {"loss": loss, "exact_match": right}, metrics=["exact_match"])
    low, high = found["metrics"]["exact_match"]["interval"]
    assert 0.75 < low < 0.8 and high == pytest.approx(1)  # 3 of 30 may be lost
    assert found["verdict"] == "better"


@pytest.mark.parametrize("kind", ["loss", "groups", "rate"])
def test_the_interval_does_not_depend_on_the_order_of_the_rows_or_the_numbers_of_their_groups(kind):
    groups = np.arange(120) // 3 if kind == "groups" else None
    if kind == "rate":
        base, tuned = (rates(np.random.default_rng(seed).random(120) < share) for seed, share in ((0, 0.4), (1, 0.6)))
    else:
        base = losses(2.0, rows=120, groups=groups)
        tuned = shifted(base, -0.1)
    order = np.random.default_rng(5).permutation(120)
    renamed = None if groups is None else 100 - groups[order]
    mixed = [RowScores(each.total[order], each.weight[order], renamed) for each in (base, tuned)]
    assert one(*mixed)["interval"] == pytest.approx(one(base, tuned)["interval"], rel=1e-9, abs=1e-12)


def preferences(base, tuned, fall=0.1, **arguments):
    """A verdict on pairs: whether each model prefers the chosen answer, and losses that fall by so much."""
    random = np.random.default_rng(0)
    before = row_scores((0.69 + random.normal(0, 0.01, len(base))).tolist())
    after = row_scores((before.total - fall + random.normal(0, 0.01, len(base))).tolist())
    metrics = arguments.pop("metrics", ["preference_accuracy"])
    margins = (row_scores([0.0] * len(base)), row_scores(random.normal(1, 0.1, len(base)).tolist()))
    scores = [
        {"loss": loss, "preference_accuracy": rates(right), "reward_margin": margin}
        for loss, right, margin in zip((before, after), (base, tuned), margins, strict=True)
    ]
    return compare(*scores, metrics=metrics, **arguments)


def test_a_loss_of_pairs_that_fell_while_no_pair_changed_sides_is_no_verdict_but_is_said():
    for right in (0, 1):  # at the floor and at the ceiling
        verdict = preferences([right] * 18, [right] * 18)
        assert verdict["metrics"]["loss"]["verdict"] == "better"
        assert (verdict["verdict"], verdict["decided_by"]) == ("no evidence", "preference_accuracy")
        counts = f"the chosen answer is the likelier one in {18 * right} (base: {18 * right})."
        assert f"The loss fell, but of 18 pairs none changed sides: {counts}" in sentence(verdict)
    few = preferences([0] * 18, [0] * 16 + [1] * 2)
    assert few["verdict"] == "no evidence"
    assert "of 18 pairs 2 changed to the chosen answer and 0 away from it" in str(few["reason"])


def test_pairs_that_changed_sides_and_what_was_asked_for_decide():
    moved = preferences([0] * 18, [0] * 6 + [1] * 12)
    assert (moved["verdict"], moved["decided_by"], moved["reason"]) == ("better", "preference_accuracy", None)
    asked = preferences([0] * 18, [0] * 18, metrics=["loss"])
    assert (asked["verdict"], asked["decided_by"]) == ("better", "loss")
    assert str(asked["reason"]).startswith("The loss fell, but of 18 pairs none changed sides")
    margin = preferences([0] * 18, [0] * 18, metrics=["preference_accuracy", "reward_margin"])
    assert (margin["verdict"], margin["decided_by"]) == ("better", "reward_margin")
    assert str(margin["reason"]).startswith("The loss fell, but of 18 pairs none changed sides")
    rose = preferences([0] * 18, [0] * 18, fall=-0.1)
    assert (rose["verdict"], rose["decided_by"]) == ("worse", "loss")  # damage is never no evidence
