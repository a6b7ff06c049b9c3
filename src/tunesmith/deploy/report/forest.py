"""The metrics of a verdict as a forest plot: tuned minus base with its interval, a line at zero, and the verdict.

Metrics that are shares stand on one axis, in points of a hundred, and scores from 0 to 1 on another one. Every other
metric has an axis of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunesmith.evaluation.headline import RATES
from tunesmith.evaluation.wording import lower_is_better
from tunesmith.runs.drawing import Axis, Picture, labelled, ticks, widened
from tunesmith.runs.plain_text import between
from tunesmith.safe_text import without_known_secrets

WIDTH, NAMES, PLOT_END = 760, 210, 560  # pixels: of the picture, of the names, and where the plots end
ROW, AXIS, TOP = 30, 40, 8  # pixels: height of a metric, of the axis below, and above the first metric
LONGEST_NAME = 26  # characters
_UNIT = (  # metrics from 0 to 1 that are no shares of rows
    "macro_f1", "json_fields", "json_field_f1", "rouge1", "rouge2", "rougeL", "edit_similarity", "answer_length",
)  # fmt: skip


def forest(verdict: Mapping[str, Any]) -> Picture | None:
    """The picture; None if no metric has a finite interval."""
    panels = _panels(verdict["metrics"])
    if not panels:
        return None
    height = TOP + sum(len(panel) * ROW + AXIS for panel in panels)
    confidence = f"{100 * verdict['confidence']:g}%"
    picture = Picture(
        WIDTH, height, f"Differences between tuned and base model with {confidence} intervals; figures in the table"
    )
    top = float(TOP)
    for panel in panels:
        _draw(picture, panel, top, verdict["decided_by"])
        top += len(panel) * ROW + AXIS
    return picture


def points(name: str) -> bool:
    """Whether differences of a metric are told in points of a hundred."""
    return name in RATES


def _panels(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metrics that share an axis, by name, in the order in which the first of each stands in the verdict."""
    panels: list[dict[str, Any]] = []
    shared: dict[bool, dict[str, Any]] = {}  # by whether they are told in points
    for name, found in metrics.items():
        if not all(math.isfinite(each) for each in (found["difference"], *found["interval"])):
            continue
        if not points(name) and name not in _UNIT:
            panels.append({name: found})
            continue
        if points(name) not in shared:
            panels.append(shared.setdefault(points(name), {}))
        shared[points(name)][name] = found
    return panels


def _draw(picture: Picture, panel: Mapping[str, Any], top: float, decided_by: str) -> None:
    factor = 100 if all(map(points, panel)) else 1
    ends = [0.0, *(factor * end for found in panel.values() for end in (*found["interval"], found["difference"]))]
    bottom = top + ROW * len(panel)
    x = Axis(*widened(min(ends), max(ends)), NAMES, PLOT_END)
    columns = labelled(ticks(x.low, x.high, 6))
    unit = "points" if factor == 100 else "score" if len(panel) > 1 else _short(next(iter(panel)))
    unit = f"difference in {unit} (tuned minus base)"
    for label, value in columns:
        at = x.at(value)
        picture.add("line", class_="grid", x1=at, x2=at, y1=top, y2=bottom, stroke="#e3e3e3")
        picture.add("text", label, x=at, y=bottom + 15, text_anchor="middle", fill="#555")
    picture.add("text", unit, x=float(PLOT_END), y=bottom + 30, text_anchor="end", fill="#555")
    picture.add("line", class_="zero", x1=x.at(0), x2=x.at(0), y1=top, y2=bottom, stroke="#555", stroke_dasharray="4 3")
    for number, (name, found) in enumerate(panel.items()):
        _row(picture, x, top + ROW * (number + 0.5), name, found, factor, decides=name == decided_by)


def _row(
    picture: Picture, x: Axis, y: float, name: str, found: Mapping[str, Any], factor: int, *, decides: bool
) -> None:
    low, high = (factor * end for end in found["interval"])
    said = f"{factor * found['difference']:+.3g} ({between((low, high))})"
    weight = {"font_weight": "bold"} if decides else {}
    more = " ↓" if lower_is_better(name) else ""
    picture.add("text", f"{_short(name)}{more}", class_="name", x=8, y=y + (0 if decides else 4), **weight)
    if decides:
        picture.add("text", "decides", x=8, y=y + 13, fill="#555")
    title = f"{without_known_secrets(name)}: {said}, {found.get('verdict', '')}"
    begin, end = x.at(low), x.at(high)
    picture.add("line", class_="span", x1=begin, x2=end, y1=y, y2=y, stroke="#1f6feb", stroke_width=2, title=title)
    for at in (begin, end):
        picture.add("line", class_="span", x1=at, x2=at, y1=y - 5, y2=y + 5, stroke="#1f6feb", stroke_width=2)
    evidence = found.get("verdict") in ("better", "worse", "no worse")
    look = "point sure" if evidence else "point unsure"  # filled, or a ring
    fill = "#1f6feb" if evidence else "#ffffff"
    picture.add(
        "circle", class_=look, cx=x.at(factor * found["difference"]), cy=y, r=5, fill=fill, stroke="#1f6feb",
        stroke_width=2, title=title,
    )  # fmt: skip
    picture.add("text", str(found.get("verdict", "")), class_="name", x=PLOT_END + 14, y=y - 2, **weight)
    picture.add("text", said, x=PLOT_END + 14, y=y + 12, fill="#555")


def _short(name: str) -> str:
    name = without_known_secrets(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
