"""Several models on the same rows: each pair, corrected for being several, over what its two models share."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.evaluation.metrics.base import RowScores, row_scores
from tunesmith.evaluation.pairs import AskedPair, Scored, compare_pairs, shared_scores, values
from tunesmith.evaluation.statistics import holm, mcnemar
from tunesmith.recipe.settings import EvaluationSettings

SETTINGS = EvaluationSettings.model_validate({"resamples": 200})


def rate(right, rows=60):
    return row_scores([1.0] * right + [0.0] * (rows - right))


def scored(right, loss, tokens=""):
    per_row = RowScores(np.linspace(loss, loss + 1, 60), np.ones(60))
    return Scored({"exact_match": rate(right), "loss": per_row, "bits_per_byte": per_row}, tokens=tokens)


def pairs_of(models, named):
    return [AskedPair(one, other, models[one], models[other]) for one, other in named]


def test_every_pair_has_a_verdict_corrected_for_all_of_them():
    models = {"base": scored(20, 2.0), "a": scored(27, 1.0), "b": scored(34, 1.0)}
    asked = pairs_of(models, [("base", "a"), ("base", "b"), ("a", "b")])
    found = compare_pairs(asked, metrics=["exact_match"], settings=SETTINGS)
    assert [(each["from"], each["to"]) for each in found] == [("base", "a"), ("base", "b"), ("a", "b")]
    raw = [mcnemar(7, 0), mcnemar(14, 0), mcnemar(7, 0)]
    metrics = [each["verdict"]["metrics"]["exact_match"] for each in found]
    assert [each["adjusted_p_value"] for each in metrics] == pytest.approx(holm(raw))
    assert [each["verdict"]["verdict"] for each in found] == ["better", "better", "better"]
    assert values(models, found)["exact_match"] == {"base": 20 / 60, "a": 27 / 60, "b": 34 / 60}


def test_a_pair_that_is_better_alone_is_no_evidence_among_many():
    models = {"base": scored(20, 2.0), "a": scored(26, 2.0), "b": scored(20, 2.0), "c": scored(20, 2.0)}
    asked = pairs_of(models, [("base", "a"), ("base", "b"), ("base", "c"), ("a", "b"), ("a", "c"), ("b", "c")])
    (alone,) = compare_pairs(asked[:1], metrics=["exact_match"], settings=SETTINGS)
    assert alone["verdict"]["verdict"] == "better"
    verdict = compare_pairs(asked, metrics=["exact_match"], settings=SETTINGS)[0]["verdict"]
    assert verdict["metrics"]["exact_match"]["p_value"] == mcnemar(6, 0) < 0.05
    assert verdict["verdict"] == "no evidence"
    assert verdict["reason"] == "Corrected for 6 comparisons (Holm), p = 0.19."


def test_no_worse_is_corrected_too():
    margin = EvaluationSettings.model_validate({"resamples": 200, "margin": 0.05})
    models = {name: scored(20, 2.0) for name in ("base", "a", "b")}
    (alone,) = compare_pairs(pairs_of(models, [("base", "a")]), metrics=["exact_match"], settings=margin)
    assert alone["verdict"]["verdict"] == "no worse"
    tested = alone["verdict"]["metrics"]["exact_match"]["equivalence"]
    assert tested is not None
    p_value = tested["not_worse"]
    assert 0.05 / 3 < p_value < 0.05
    asked = pairs_of(models, [("base", "a"), ("base", "b"), ("a", "b")])
    found = compare_pairs(asked, metrics=["exact_match"], settings=margin)
    assert {each["verdict"]["verdict"] for each in found} == {"no evidence"}
    reason = found[0]["verdict"]["reason"]
    assert reason is not None and reason.startswith("Corrected for 3 comparisons (Holm), no worse by p = ")


def test_losses_of_other_tokens_are_not_compared_and_bits_per_byte_are():
    models = {"a": scored(20, 2.0, tokens="x"), "b": scored(34, 1.0, tokens="y")}
    assert [*shared_scores(models["a"], models["b"])[0]] == ["exact_match", "bits_per_byte"]
    (pair,) = compare_pairs(pairs_of(models, [("a", "b")]), metrics=["exact_match"], settings=SETTINGS)
    assert [*pair["verdict"]["metrics"]] == ["exact_match"]
    (pair,) = compare_pairs(pairs_of(models, [("a", "b")]), metrics=[], settings=SETTINGS)
    assert (pair["verdict"]["decided_by"], pair["verdict"]["verdict"]) == ("bits_per_byte", "better")
    assert [*values(models, [pair])] == ["bits_per_byte"]
