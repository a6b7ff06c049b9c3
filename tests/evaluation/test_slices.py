"""Slices of scores: which rows, in which order, with which intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tunesmith.evaluation.compare import Level, compare_alone
from tunesmith.evaluation.metrics.base import RowScores, RowStatistics, row_scores
from tunesmith.evaluation.slices import by_length, names_of_answers, names_of_rows, slices

LEVEL = Level(resamples=400)


def test_the_slice_with_the_lowest_score_comes_first() -> None:
    labels = ["refund"] * 20 + ["delivery"] * 20 + ["rare"] * 3
    base = row_scores([1.0] * 20 + [0.0] * 20 + [1.0] * 3)
    tuned = row_scores([0.0] * 15 + [1.0] * 5 + [1.0] * 20 + [1.0] * 3)
    found = slices("exact_match", base, tuned, {"label": labels}, LEVEL)
    assert [(each["by"], each["name"], each["rows"]) for each in found] == [
        ("label", "refund", 20),
        ("label", "delivery", 20),
    ]
    first = found[0]
    assert (first["base"], first["tuned"], first["difference"]) == (1.0, 0.25, -0.75)
    wilson = stats.binomtest(5, 20).proportion_ci(0.95, method="wilson")
    assert first["tuned_interval"] == pytest.approx([wilson.low, wilson.high])
    assert first["interval"][0] < -0.75 < first["interval"][1] < 0
    assert first["p_value"] == pytest.approx(2 * 0.5**15)
    assert first["adjusted_p_value"] == pytest.approx(2 * 0.5**15), "the larger of the two"
    assert found[1]["p_value"] == pytest.approx(2 * 0.5**20)
    assert found[1]["adjusted_p_value"] == pytest.approx(4 * 0.5**20)


def test_a_loss_is_worst_where_it_is_highest_and_weights_count() -> None:
    total = np.array([1.0, 2.0] * 10 + [3.0, 5.0] * 10)
    weight = np.array([1.0, 3.0] * 20)
    base, tuned = RowScores(total + 1, weight), RowScores(total, weight)
    found = slices("loss", base, tuned, {"source": ["a.jsonl"] * 20 + ["b.jsonl"] * 20}, LEVEL)
    assert [each["name"] for each in found] == ["b.jsonl", "a.jsonl"]
    assert found[0]["tuned"] == pytest.approx(2.0)
    assert found[1]["tuned"] == pytest.approx(0.75)
    low, high = found[0]["tuned_interval"]
    assert low < 2.0 < high
    alone = compare_alone("loss", RowScores(total[20:] + 1, weight[20:]), RowScores(total[20:], weight[20:]), LEVEL)
    assert found[0]["interval"] == alone["interval"]


def test_groups_stay_together() -> None:
    groups = np.repeat(np.arange(4), 10)
    scores = row_scores([1.0] * 10 + [0.0] * 30, groups)  # type: ignore[arg-type]
    (left, right) = slices("exact_match", scores, scores, {"source": ["a"] * 20 + ["b"] * 20}, LEVEL)
    assert (left["name"], right["name"]) == ("b", "a")
    assert right["tuned_interval"][0] < 0.1, "two groups tell little: Wilson's for 20 rows would begin at 0.3"


def test_a_dimension_with_one_slice_is_left_out() -> None:
    scores = row_scores([1.0] * 20)
    assert slices("exact_match", scores, scores, {"source": ["a"] * 20, "label": [None] * 20}, LEVEL) == []


def test_lengths_make_slices_of_equal_numbers_and_equal_lengths_stay_together() -> None:
    named = by_length([*range(1, 41)], "tokens")
    counts = {name: named.count(name) for name in named}
    assert len(counts) == 4
    assert all(9 <= count <= 11 for count in counts.values())
    assert (named[0].split()[0], named[-1].split()[2]) == ("1", "40")
    assert set(by_length([7] * 30, "tokens")) == {"7 to 7 tokens"}
    assert names_of_rows([3, 3], ["a.jsonl:1", "b.jsonl:9"])["source"] == ["a.jsonl", "b.jsonl"]


def test_answers_are_labels_only_if_they_repeat() -> None:
    prompts = ["Wo ist mein Paket geblieben, das gestern kommen sollte?"] * 4
    sources = ["a.jsonl:1"] * 4
    assert names_of_answers(prompts, ["x", "x ", "y", "y"], sources)["label"] == ["x", "x", "y", "y"]
    assert names_of_answers(prompts, ["a", "b", "c", "d"], sources)["label"] == [None] * 4
    named = names_of_answers([*prompts, "Где моя посылка, которая должна была прийти вчера?"], ["a"] * 5, ["a:1"] * 5)
    assert named.get("language", named.get("script"))[-1] in ("ru", "Cyrillic")  # type: ignore[index]


def test_a_metric_that_is_no_mean_is_computed_anew_in_each_slice() -> None:
    statistics = np.array([[1.0, 1.0, 0.0]] * 15 + [[0.0, 1.0, 1.0]] * 15)
    f1 = RowStatistics(statistics, lambda sums: 2 * sums[..., 0] / (2 * sums[..., 0] + sums[..., 2]), statistics[:, 0])
    with np.errstate(invalid="ignore"):
        found = slices("macro_f1", f1, f1, {"source": ["a"] * 10 + ["b"] * 20}, LEVEL)
    assert [(each["name"], each["tuned"]) for each in found] == [("b", pytest.approx(10 / 25)), ("a", 1.0)]
