"""The lines below a verdict."""

from __future__ import annotations

from typing import Any

from tunesmith.evaluation.below_verdict import lines_below, slice_lines

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


def test_the_worst_slices_are_one_line() -> None:
    each = {"by": "label", "rows": 20, "base": 1.0, "tuned": 0.25, "tuned_interval": [0.11, 0.47]}
    found = [{**each, "name": name} for name in ("a", "b", "c", "d")]
    (line,) = slice_lines({"sliced_by": "exact_match", "slices": found})
    assert line.startswith(
        "Worst slices by exact_match: label 'a' 1 -> 0.25 (20 rows, interval 0.11 to 0.47), label 'b'"
    )
    assert line.endswith("; 4 slices in all.")
