"""The lines below a verdict."""

from __future__ import annotations

from typing import Any

from tunesmith.evaluation.below_verdict import lines_below, slice_lines
from tunesmith.evaluation.metrics.by_likelihood import REPORT
from tunesmith.evaluation.metrics.calibration import DETAILS
from tunesmith.evaluation.not_measured import reasons_of
from tunesmith.runs.stored_shapes import verdict_fault

STILL: dict[str, Any] = {"base": 0.0, "tuned": 0.0, "difference": 0.0, "interval": [0.0, 0.0], "changed": False}


def test_a_verdict_with_nothing_beside_it_has_no_lines() -> None:
    assert lines_below({}) == slice_lines({}) == []
    effects = {"refusals": STILL, "length": {**STILL, "truth": 3.0}, "copied": STILL}
    assert lines_below({"side_effects": effects}) == []


def test_what_changed_is_one_line() -> None:
    effects = {
        "refusals": {**STILL, "tuned": 0.3, "changed": True},
        "length": {**STILL, "base": 1240.0, "tuned": 35.0, "truth": 40.0, "changed": True},
        "copied": {**STILL, "tuned": 0.25, "changed": True},
    }
    assert lines_below({"side_effects": effects}) == [
        "Also changed from base to tuned: refusals 0.0% -> 30.0% of the answers; median length 1,240 -> 35 characters "
        "(truth 40); answers copied from training rows 0.0% -> 25.0%."
    ]


def test_labels_by_likelihood_and_their_calibration_have_lines() -> None:
    known = (("a", 0.9, 20), ("b\n", 0.5, 4), ("c", 0.0, 0))
    labels = [{"label": name, "f1": f1, "rows": rows} for name, f1, rows in known]
    cells = [("a", "a", 17), ("a", "b\n", 3), ("b\n", "a", 1), ("b\n", "b\n", 3)]
    report = {
        "labels": labels,
        "confusion": [{"truth": truth, "answer": answer, "rows": rows} for truth, answer, rows in cells],
    }
    table = {
        "labels": 3,
        "bins": [{"rows": 12, "confidence": 0.61, "right": 0.5}, {"rows": 12, "confidence": 0.98, "right": 1.0}],
        "calibration_error": {"value": 0.065, "interval": [0.03, 0.12]},
    }
    details: dict[str, Any] = {
        name: {"base": each, "tuned": each} for name, each in ((REPORT, report), (DETAILS, table))
    }
    own, base, tuned = lines_below({"details": details})
    assert own == (
        "Labels by likelihood, tuned, lowest F1 first: 'b\\n' 0.50 (4 rows), 'a' 0.90 (20 rows). "
        "Most often taken for another: 'a' for 'b\\n' 3x, 'b\\n' for 'a' 1x."
    )
    assert tuned == (
        "Calibration, tuned: calibration error 0.065 (0.03 to 0.12). "
        "Confidence -> right (rows): 0.61 -> 0.50 (12), 0.98 -> 1.00 (12)."
    )
    assert base == tuned.replace("tuned", "base")
    now = {**table, "calibration_error": {"value": 0.065}}  # older runs have an interval of it
    (line,) = lines_below({"details": {DETAILS: {"tuned": now}}})
    assert line == tuned.replace(" (0.03 to 0.12)", "")
    assert verdict_fault({"metrics": {}, "verdict": "better", "details": {DETAILS: {"tuned": now}}}) is None
    found = {"metrics": {}, "verdict": "better", "details": details}
    assert verdict_fault(found) is None
    for broken in (
        {"calibration": {"tuned": {**table, "bins": [{"rows": "12"}]}}},
        {"calibration": {"tuned": {**table, "calibration_error": {"value": 1.0, "interval": [1.0]}}}},
        {REPORT: {"tuned": {**report, "labels": [{"label": 3, "f1": 1.0, "rows": 2}]}}},
        {REPORT: {"tuned": {**report, "confusion": [{"truth": "a", "answer": None, "rows": 1}]}}},
        [],
    ):
        assert str(verdict_fault({**found, "details": broken})).startswith("details: ")


def test_what_could_not_be_measured_says_why() -> None:
    verdict = {
        "metrics": {},
        "verdict": "better",
        "divergence": {"general": {"left_out": "1 is too few"}, "own_answers": {"left_out": "none"}, "confidence": 0.9},
        "memorisation": {"left_out": "3 training rows are long enough, and it takes 20"},
    }
    assert lines_below(verdict) == [
        "Divergence from the base on general text is not measured: 1 is too few.",
        "Divergence from the base on the base's own answers is not measured: none.",
        "Memorisation is not measured: 3 training rows are long enough, and it takes 20.",
    ]
    assert verdict_fault(verdict) is None
    assert str(verdict_fault({**verdict, "memorisation": {"left_out": 3}})).startswith("memorisation: ")
    now = {
        "divergence.general": "1 is too few",
        "divergence.own_answers": "none",
        "memorisation": "3 training rows are long enough, and it takes 20",
    }
    assert reasons_of(verdict) == now  # earlier versions kept them in three places
    assert lines_below({"metrics": {}, "verdict": "better", "left_out": now}) == lines_below(verdict)
    (line,) = lines_below({"baselines": {"left_out": {"linear": "the answers are not labels"}}})
    assert line == "The baseline linear is not measured: the answers are not labels."


def test_the_worst_slices_are_one_line() -> None:
    each = {"by": "label", "rows": 20, "base": 1.0, "tuned": 0.25, "tuned_interval": [0.11, 0.47]}
    found = [{**each, "name": name} for name in ("a", "b", "c", "d")]
    (line,) = slice_lines({"sliced_by": "exact_match", "slices": found})
    assert line.startswith(
        "Worst slices by exact_match: label 'a' 1 -> 0.25 (20 rows, interval 0.11 to 0.47), label 'b'"
    )
    assert line.endswith("; 4 slices in all.")
