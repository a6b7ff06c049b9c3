"""Says the result of a probe in three lines, from verdict.json. This module imports neither numpy nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN = 3  # kinds
NOTHING_RIGHT = "Both models get almost nothing right, so this says nothing about lost or gained abilities."
_HEADINGS = {
    "worse": "The tuned model lost abilities",
    "better": "The tuned model gained abilities",
    "no evidence": "No evidence that the tuned model lost or gained abilities, which does not show that it is the same",
}


def probe_lines(verdict: Mapping[str, Any]) -> list[str]:
    """The rates of both models, what was lost and gained, and the worst kinds; none if no probe was asked."""
    found = verdict.get("probe")
    if found is None:
        return []
    items = found["items"]
    if "value" in found:
        parts = [_of(each["kind"], each["value"], each["items"]) for each in found["kinds"][:SHOWN]]
        right = round(found["value"] * items)
        return [f"Probe ({found['name']}): {right} of {items} answers right.", f"  worst kinds: {', '.join(parts)}"]
    base, tuned = (round(found[name] * items) for name in ("base", "tuned"))
    low, high = found["interval"]
    kinds = [
        f"{each['kind']} {round(each['base'] * each['items'])} -> {round(each['tuned'] * each['items'])} of "
        f"{each['items']} ({_points(each['interval'][0])} to {_points(each['interval'][1])})"
        for each in found["kinds"][:SHOWN]
    ]
    return [
        f"Probe ({found['name']}): {_heading(found)}: {base} -> {tuned} of {items} answers right (difference "
        f"{_points(found['difference'])} points, {100 * found['confidence']:g}% interval {_points(low)} to "
        f"{_points(high)}).",
        f"  right before, wrong now: {len(found['lost'])}; wrong before, right now: {len(found['gained'])} "
        f"(p = {found['p_value']:.2g}); {_equivalence(found)}",
        f"  worst kinds, with intervals in points: {', '.join(kinds)}",
    ]


def _heading(found: Mapping[str, Any]) -> str:
    if found.get("reason") == NOTHING_RIGHT:
        return NOTHING_RIGHT.rstrip(".")
    if found["verdict"] != "no worse":
        return _HEADINGS[found["verdict"]]
    margin = f"{100 * found['equivalence']['margin']:g} points"
    if found["equivalence"]["outcome"] == "equivalent":
        return f"The tuned model is as good as the base, within {margin}"
    return f"The tuned model is no worse than the base by more than {margin}"


def _equivalence(found: Mapping[str, Any]) -> str:
    tested = found["equivalence"]
    if tested is None or found.get("reason") == NOTHING_RIGHT:
        return "no margin was tested"
    outcome = {"equivalent": "shown, and no better either", "no worse": "shown", "not shown": "not shown"}
    return (
        f"no worse than {100 * tested['margin']:g} points: {outcome[tested['outcome']]} (p = {tested['not_worse']:.2g})"
    )


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _of(kind: str, value: float, items: int) -> str:
    return f"{kind} {round(value * items)} of {items}"
