"""Says the results of benchmarks as rows of a table, from benchmarks.jsonl. It imports neither numpy nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.runs.plain_text import between

HEADER = ("task", "metric", "items", "base", "tuned", "difference", "interval", "verdict")


def benchmark_rows(found: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """A row of a table for each metric of each task, in the order of HEADER."""
    return [_row(each) for each in found["benchmarks"]]


def heading(found: Mapping[str, Any]) -> str:
    """What was asked, in one line."""
    limit = "" if found.get("limit") is None else f", at most {found['limit']} items of each"
    return f"tasks {', '.join(found['tasks'])} of {found['target']} at {found['time']}{limit}:"


def _row(each: Mapping[str, Any]) -> tuple[Any, ...]:
    name = each["metric"] if each["filter"] == "none" else f"{each['metric']} ({each['filter']})"
    if "value" in each:
        return each["task"], name, each["items"], None, each["value"], None, None, None
    interval = None if each["interval"] is None else between(each["interval"])
    facts = (each["base"], each["tuned"], f"{each['difference']:+.3g}", interval, each["verdict"])
    return each["task"], name, each["items"], *facts
