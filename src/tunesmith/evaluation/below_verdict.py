"""What is printed below a verdict, from verdict.json: the probe, what else changed, and the worst slices.

This module imports neither numpy nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.evaluation.probe.wording import probe_lines

SHOWN = 3  # slices


def lines_below(verdict: Mapping[str, Any]) -> list[str]:
    """The lines of the probe, and one line about side effects; none if there was no probe and nothing changed."""
    return [*probe_lines(verdict), *_effects(verdict.get("side_effects") or {})]


def slice_lines(verdict: Mapping[str, Any]) -> list[str]:
    """A line with the worst slices; none if there are none."""
    found = verdict.get("slices")
    if not found:
        return []
    said = [
        f"{each['by']} {each['name']!r} {each['base']:.3g} -> {each['tuned']:.3g} ({each['rows']} rows, interval "
        f"{each['tuned_interval'][0]:.3g} to {each['tuned_interval'][1]:.3g})"
        for each in found[:SHOWN]
    ]
    more = f"; {len(found)} slices in all" if len(found) > SHOWN else ""
    return [f"Worst slices by {verdict['sliced_by']}: {', '.join(said)}{more}."]


def _effects(found: Mapping[str, Any]) -> list[str]:
    parts = []
    if found and found["refusals"]["changed"]:
        parts.append(f"refusals {_percent(found['refusals'])} of the answers")
    if found and found["length"]["changed"]:
        length = found["length"]
        parts.append(
            f"median length {length['base']:,.0f} -> {length['tuned']:,.0f} characters (truth {length['truth']:,.0f})"
        )
    if found and (copied := found.get("copied")) and copied["changed"]:
        parts.append(f"answers copied from training rows {_percent(copied)}")
    return [f"Also changed from base to tuned: {'; '.join(parts)}."] if parts else []


def _percent(found: Mapping[str, Any]) -> str:
    return f"{100 * found['base']:.1f}% -> {100 * found['tuned']:.1f}%"
