"""The interval of a difference: it holds the truth as often as it says, also where few rows differ."""

from __future__ import annotations

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from scipy import stats

from tunesmith.evaluation.compare import Level, compare_alone
from tunesmith.evaluation.intervals import bootstrap_differences
from tunesmith.evaluation.metrics.answers import score_answers, text_metrics
from tunesmith.evaluation.metrics.base import RowScores, RowStatistics, Scores
from tunesmith.evaluation.metrics.classification import extremes_of_labels, macro_f1
from tunesmith.evaluation.statistics import score_interval, widened_tail
from tunesmith.recipe.settings import EvaluationSettings


def f1_statistics(predicted, truths, labels):
    """True positives, false alarms and misses of each label: float64 [..., 3 labels]."""
    one_hot, right = np.eye(labels), (predicted == truths)[..., None]
    return np.concatenate([one_hot[truths] * right, one_hot[predicted] * ~right, one_hot[truths] * ~right], axis=-1)


def label_population(labels, together, seed, groups=4000):
    """Groups of rows that two models answer much alike, the second a little better: [groups, rows, 3 labels] each."""
    random = np.random.default_rng(seed)
    shape = groups, together
    truths = np.broadcast_to(random.integers(labels, size=(groups, 1)), shape)
    hard, other = (
        random.normal(size=(groups, 1)) * 0.9 + random.normal(size=shape) * 0.4,
        random.integers(labels - 1, size=shape),
    )
    wrong = (truths + 1 + other) % labels
    models = []
    for gain in (0.6, 0.75):
        right = hard + 0.15 * random.normal(size=shape) + gain > 0
        models.append(f1_statistics(np.where(right, truths, wrong), truths, labels))
    return models


def f1_scores(statistics):
    """Scores of drawn groups, [groups, rows, 3 labels]."""
    groups, rows, _ = statistics.shape
    flat = statistics.reshape(groups * rows, -1)
    numbers = np.repeat(np.arange(groups), rows) if rows > 1 else None
    return RowStatistics(flat, macro_f1, macro_f1(flat), numbers, extremes_of=extremes_of_labels)


@pytest.mark.parametrize(("labels", "groups", "together"), [(2, 40, 1), (5, 40, 1), (20, 60, 1), (5, 20, 4)])
def test_the_interval_of_macro_f1_holds_the_true_difference_where_few_rows_differ(labels, groups, together):
    base, tuned = label_population(labels, together, seed=labels)
    whole = [each.sum(axis=(0, 1)) for each in (base, tuned)]
    truth = float(macro_f1(whole[1]) - macro_f1(whole[0]))
    assert 0.01 < truth < 0.1
    random, trials, inside, of_bootstrap, said = np.random.default_rng(1), 200, 0, 0, 0
    tail = widened_tail(0.025, groups)
    for trial in range(trials):
        drawn = random.integers(len(base), size=groups)
        pair = f1_scores(base[drawn]), f1_scores(tuned[drawn])
        found = compare_alone("macro_f1", *pair, Level(resamples=200, seed=trial))
        low, high = found["interval"]
        inside += low <= truth <= high
        said += found["verdict"] == "worse"
        low, high = np.quantile(bootstrap_differences(*pair, resamples=200, seed=trial), [tail, 1 - tail])
        of_bootstrap += low <= truth <= high
    assert inside / trials >= 0.94
    assert of_bootstrap / trials < 0.93, "the percentile bootstrap alone does not"
    assert said / trials <= 0.025


def test_the_interval_is_the_wider_of_bootstrap_and_students_t_on_each_side():
    base, tuned = (f1_scores(each[:80]) for each in label_population(5, 1, seed=3))
    found = compare_alone("macro_f1", base, tuned, Level(resamples=400, seed=2))
    tail = widened_tail(0.025, 80)
    low, high = np.quantile(bootstrap_differences(base, tuned, resamples=400, seed=2), [tail, 1 - tail])
    reach = found["standard_error"] * stats.t.isf(0.025, 79)  # type: ignore[operator]
    expected = [min(low, found["difference"] - reach), max(high, found["difference"] + reach)]
    assert found["interval"] == pytest.approx(expected)


def test_a_rate_of_independent_rows_has_tangos_interval_however_many_differ():
    base, tuned = np.repeat([0.0, 1.0, 0.0, 1.0], [12, 5, 30, 33]), np.repeat([1.0, 0.0, 0.0, 1.0], [12, 5, 30, 33])
    ones = np.ones(80)
    found = compare_alone("exact_match", RowScores(base, ones), RowScores(tuned, ones), Level(resamples=100))
    assert found["interval"] == score_interval(12, 5, 80, 0.95)


def scored(name: str, answers, truths) -> Scores:
    metrics = text_metrics(EvaluationSettings(metrics=[name]))
    return score_answers(metrics, answers=answers, truths=truths, prompts=[""] * len(truths))[name]


TRUTHS = {
    "macro_f1": ["a", "b", "c", "a"] * 10,
    "json_field_f1": ['{"a": 1, "b": 2}', '{"a": 3}'] * 20,
    "bleu": ["the cat sat on the mat", "two dogs ran away from it again"] * 20,
    "chrf": ["the cat sat on the mat", "two dogs ran away from it again"] * 20,
    "json_exact": ['{"a": 1}', "[2]"] * 20,
    "edit_similarity": ["the cat", "two dogs"] * 20,
}


@pytest.mark.parametrize("name", list(TRUTHS))
def test_models_that_answer_all_rows_alike_have_an_interval_of_some_width(name):
    truths = TRUTHS[name]
    same = scored(name, [*truths[:20], *[truths[-1]] * 20], truths)
    found = compare_alone(name, same, same, Level(resamples=100))
    low, high = found["interval"]
    top = 100 if name in ("bleu", "chrf") else 1
    # As if each row counted alike: z^2 / (40 + z^2) of the scale. Rows that count more than others leave more room, and
    # a row of BLEU moves it less while other rows are wrong.
    assert (0.02 if name == "bleu" else 0.05) * top < high < 0.2 * top and low == pytest.approx(-high)
    assert found["verdict"] == "no evidence" and found["difference"] == 0.0


def test_tokens_that_are_counted_leave_room_and_a_loss_does_not():
    total, weight = np.full(40, 3.0), np.full(40, 5.0)
    counted, loss = RowScores(total, weight, counts=True), RowScores(total, weight)
    assert compare_alone("token_accuracy", counted, counted, Level(resamples=100))["interval"][1] > 0.08
    assert compare_alone("loss", loss, loss, Level(resamples=100))["interval"] == [0.0, 0.0]


def test_rounding_is_no_change():
    base, ones = np.random.default_rng(0).random(40), np.ones(40)
    same = RowScores(base, ones), RowScores(base * (1 + 1e-12), ones)
    low, high = compare_alone("json_fields", *same, Level(resamples=100))["interval"]
    assert high > 0.08 and low < -0.08


def test_few_small_changes_leave_less_room_than_few_large_ones():
    base, ones, widths = np.full(60, 0.5), np.ones(60), []
    for change in (0.05, 0.5):
        tuned = base.copy()
        tuned[:3] += change
        found = compare_alone("json_fields", RowScores(base, ones), RowScores(tuned, ones), Level(resamples=100))
        low, high = found["interval"]
        assert low < 0 < found["difference"] < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(10 * widths[0], rel=0.05)


def test_rows_of_rare_labels_leave_more_room_than_as_many_rows_of_common_ones():
    common, rare = np.repeat(np.arange(4), 10), np.repeat(np.arange(4), [34, 2, 2, 2])
    widths = []
    for truths in (common, rare):
        scores = f1_scores(f1_statistics(truths, truths, 4)[:, None])
        widths.append(np.ptp(compare_alone("macro_f1", scores, scores, Level(resamples=100))["interval"]))
    assert widths[1] > 1.3 * widths[0]


@pytest.mark.parametrize(("name", "library"), [("bleu", BLEU), ("chrf", CHRF)])
def test_wrong_and_right_answers_have_sacrebleus_own_counts(name, library):
    truths = [*TRUTHS[name][:2], "a", "it ran"]
    wrong, right = scored(name, ["on two", "", "a b", "it"], truths).extremes  # type: ignore[misc]
    counts = [library()._extract_corpus_statistics(answers, [truths]) for answers in ([""] * 4, truths)]
    assert wrong.tolist() == counts[0] and right.tolist() == counts[1]


def test_no_interval_leaves_the_scale():
    truths = np.arange(8) % 2
    base, tuned = (f1_scores(f1_statistics(each, truths, 2)[:, None]) for each in (1 - truths, truths))
    found = compare_alone("macro_f1", base, tuned, Level(resamples=100))
    assert found["difference"] == 1.0 and found["interval"][1] == 1.0 > found["interval"][0]
