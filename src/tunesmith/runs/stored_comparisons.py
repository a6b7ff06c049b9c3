"""Checks the shape of comparisons.jsonl before anything of it is shown, as stored_shapes.py does for other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.runs.folder import Run
from tunesmith.runs.run_files import COMPARISONS
from tunesmith.runs.stored_shapes import checked_lines, is_of, verdict_fault


def comparison_lines(run: Run) -> list[dict[str, Any]]:
    """What `compare` kept in the run. Raises RunError if a line cannot be shown."""
    return checked_lines(run, COMPARISONS, comparison_fault)


def comparison_fault(found: Any) -> str | None:
    """Of a line of comparisons.jsonl."""
    if not isinstance(found, Mapping) or not isinstance(found.get("time"), str):
        return "It lacks time."
    if found.get("data") is not None and not isinstance(found["data"], str):
        return "data is not a text."
    models, notes, values, pairs = (found.get(name) for name in ("models", "notes", "metrics", "pairs"))
    if not isinstance(models, list) or not all(isinstance(each, Mapping) for each in models):
        return "It has no models."
    names = [each.get("name") for each in models]
    if not all(isinstance(name, str) for name in names):
        return "A model has no name."
    if not isinstance(notes, list) or not all(isinstance(each, str) for each in notes):
        return "notes is not a list of texts."
    if not isinstance(values, Mapping) or not all(isinstance(each, Mapping) for each in values.values()):
        return "It has no metrics."
    if not all(is_of(float, value) for each in values.values() for value in each.values()):
        return "The value of a metric is not a number."
    if not isinstance(pairs, list) or not all(isinstance(each, Mapping) for each in pairs):
        return "It has no pairs."
    if not is_of(float, found.get("confidence")):
        return "It lacks confidence."
    return next(filter(None, (_pair_fault(each, names) for each in pairs)), None)


def _pair_fault(found: Mapping[str, Any], names: Sequence[Any]) -> str | None:
    if not all(found.get(name) in names for name in ("from", "to")):
        return "A pair does not name its models."
    verdict = found.get("verdict")
    if (fault := verdict_fault(verdict)) is not None:
        return fault
    assert isinstance(verdict, Mapping)
    if not verdict["metrics"]:
        return "A pair has no metrics."
    decides = verdict["metrics"][verdict["decided_by"]]
    return None if is_of(float, decides.get("adjusted_p_value")) else "A pair has no p-value."
