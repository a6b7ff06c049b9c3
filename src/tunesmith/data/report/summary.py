"""The data in figures: lengths, labels, scripts and languages, and how much of it is the same thing again."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunesmith.data.checks.scan import Scan
from tunesmith.data.checks.scripts import UNKNOWN
from tunesmith.data.report.findings import labels_of

_QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1.0}
_HISTOGRAM_BARS = 24
OPENINGS_SHOWN, CLUSTERS_SHOWN = 12, 12


def lengths(values: np.ndarray, unit: str, longest_row: str) -> dict[str, Any]:
    """Quantiles and a histogram of whole numbers, ``{unit, quantiles, histogram: [{from, to, rows}], longest}``.

    A quantile is the length of a row that there is; ``to`` is the first length behind a bar.
    """
    ordered = np.sort(values)
    at = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in _QUANTILES.items()}
    low, high = int(ordered[0]), int(ordered[-1])
    width = max(1, -(-(high + 1 - low) // _HISTOGRAM_BARS))
    counts = np.bincount((values - low) // width)
    bars = [
        {"from": low + width * bar, "to": low + width * (bar + 1), "rows": int(count)}
        for bar, count in enumerate(counts)
    ]
    return {
        "unit": unit,
        "quantiles": {name: int(value) for name, value in at.items()},
        "histogram": bars,
        "longest": longest_row,
    }


def labels(scan: Scan) -> dict[str, Any] | None:
    """``{distinct, counts: [{label, rows}]}``, the largest first; None where answers are no labels."""
    found = labels_of(scan)
    if found is None:
        return None
    return {"distinct": len(found), "counts": [{"label": label.text, "rows": label.rows} for label in found]}


def scripts(scan: Scan) -> list[dict[str, Any]]:
    """``[{name, rows}]``, the largest first."""
    counts = np.bincount(scan.script[scan.own], minlength=len(scan.scripts))
    pairs = sorted(zip(scan.scripts, counts.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    return [{"name": name, "rows": rows} for name, rows in pairs if rows]


def languages(scan: Scan) -> dict[str, Any] | None:
    """``{sampled, counts: [{name, rows}]}``; None where no row was sampled, or no language was recognised."""
    if set(scan.languages) <= {UNKNOWN}:
        return None
    counts = sorted(scan.languages.items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "sampled": sum(scan.languages.values()),
        "counts": [{"name": name, "rows": rows} for name, rows in counts],
    }


def diversity(scan: Scan) -> dict[str, Any]:
    """``{first_words, most_frequent: [{text, rows}], clusters: [{rows, first}]}``.

    ``first_words``: different beginnings of three words, behind what all prompts have in common.
    """
    numbers, counts = np.unique(scan.opening[scan.own], return_counts=True)
    most = sorted(zip(numbers.tolist(), counts.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    openings = [
        {"text": scan.openings[number], "rows": rows}
        for number, rows in most[:OPENINGS_SHOWN]
        if number in scan.openings and rows > 1
    ]
    return {"first_words": len(numbers), "most_frequent": openings, "clusters": _clusters(scan)}


def _clusters(scan: Scan) -> list[dict[str, Any]]:
    """The largest clusters of near duplicates."""
    if scan.near is None:
        return []
    heads, sizes = np.unique(scan.near[scan.own], return_counts=True)
    largest = [number for number in np.argsort(-sizes, kind="stable")[:CLUSTERS_SHOWN] if sizes[number] > 1]
    places = scan.places(heads[largest])
    return [{"rows": int(sizes[number]), "first": place} for number, place in zip(largest, places, strict=True)]
