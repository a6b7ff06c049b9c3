"""What is printed below a verdict, from verdict.json: what the training broke, what else changed, labels and slices.

This module imports neither numpy nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.evaluation.divergence.wording import divergence_lines
from tunesmith.evaluation.not_measured import left_out_lines
from tunesmith.evaluation.probe.wording import probe_lines

SHOWN = 3  # slices


def lines_below(verdict: Mapping[str, Any]) -> list[str]:
    """The lines of the probe, of the divergence, of memorisation, of side effects, and of labels and their calibration.

    There are none for what nobody asked to measure; what could not be measured says why. Side effects have a line only
    where something changed.
    """
    details = verdict.get("details") or {}
    return [
        *probe_lines(verdict),
        *divergence_lines(verdict),
        *_memorisation(verdict.get("memorisation")),
        *left_out_lines(verdict),
        *_effects(verdict.get("side_effects") or {}),
        *_labels(details.get("classification_by_likelihood") or {}),
        *_calibration(details.get("calibration") or {}),
    ]


def slice_lines(verdict: Mapping[str, Any]) -> list[str]:
    """A line with the worst slices; none if there are none."""
    found = verdict.get("slices")
    if not found:
        return []
    said = [
        f"{each['by']} {each['name']!r} {each['base']:.3g} -> {each['tuned']:.3g} ({_rows(each['rows'])}, interval "
        f"{each['tuned_interval'][0]:.3g} to {each['tuned_interval'][1]:.3g})"
        for each in found[:SHOWN]
    ]
    more = f"; {len(found)} slices in all" if len(found) > SHOWN else ""
    return [f"Worst slices by {verdict['sliced_by']}: {', '.join(said)}{more}."]


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def _labels(sides: Mapping[str, Any]) -> list[str]:
    """The labels that the tuned model knows worst, and what it takes most often for another; none if all is right."""
    found = sides.get("tuned") or {"labels": [], "confusion": []}
    worst = sorted((each for each in found["labels"] if each["rows"]), key=lambda each: (each["f1"], each["label"]))
    wrong = [each for each in found["confusion"] if each["truth"] != each["answer"]]
    wrong.sort(key=lambda each: (-each["rows"], each["truth"], each["answer"]))
    if not wrong:
        return []
    said = ", ".join(f"{each['label']!r} {each['f1']:.2f} ({_rows(each['rows'])})" for each in worst[:SHOWN])
    taken = ", ".join(f"{each['truth']!r} for {each['answer']!r} {each['rows']}x" for each in wrong[:SHOWN])
    return [f"Labels by likelihood, tuned, lowest F1 first: {said}. Most often taken for another: {taken}."]


def _calibration(found: Mapping[str, Any]) -> list[str]:
    """Each model's calibration metrics with intervals, and its table: confidence -> share of right labels (rows)."""
    lines = []
    for side in ("base", "tuned"):
        if (own := found.get(side)) is None:
            continue
        metrics = [
            f"{name.replace('_', ' ')} {own[name]['value']:.3g}{_between(own[name].get('interval'))}"
            for name in ("calibration_error", "brier_score")
            if name in own
        ]
        bins = [f"{each['confidence']:.2f} -> {each['right']:.2f} ({each['rows']})" for each in own["bins"]]
        lines.append(f"Calibration, {side}: {', '.join(metrics)}. Confidence -> right (rows): {', '.join(bins)}.")
    return lines


def _between(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3g} to {interval[1]:.3g})"


def _memorisation(found: Mapping[str, Any] | None) -> list[str]:
    if found is None or "left_out" in found:  # earlier versions said there why it is not measured
        return []
    rows, beside = found["rows"], found["held_out"]
    tuned, base = (round(found[name] * rows) for name in ("tuned", "base"))
    control = f"base: {base}"
    if beside is not None:
        control += f"; of held-out rows: {round(beside['tuned'] * beside['rows'])} of {beside['rows']}"
    outcome = "The tuned model has memorised rows." if found["memorised"] else "No evidence of memorised rows."
    return [
        f"Memorisation: {tuned} of {rows} training rows come back word for word from their first "
        f"{found['first_tokens']} tokens ({control}). {outcome}"
    ]


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
