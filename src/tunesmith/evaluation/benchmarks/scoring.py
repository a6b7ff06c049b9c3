"""Compares what lm-evaluation-harness says of both models, item by item.

The harness compares models with an unpaired test, though both answer the same items (its issue 3831). Its log has the
score of each item. So the interval and the test are ours: paired, as in the verdict. This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tunesmith.evaluation.compare import Level, compare_alone
from tunesmith.evaluation.metrics.base import RowScores
from tunesmith.evaluation.statistics import holm

COMPARED = ("base", "tuned", "difference", "interval", "p_value", "verdict", "reason")


def compared(
    base: Mapping[str, Any], tuned: Mapping[str, Any], aggregations: Mapping[str, Mapping[str, str]], level: Level
) -> list[dict[str, Any]]:
    """One entry for each metric of each task.

    Args:
        base: what the harness returned for the base, with its log of items.
        tuned: the same for the tuned model.
        aggregations: how each task makes a metric of its items, by the harness's name; others have no interval.
        level: how sure the intervals must be.

    Returns:
        ``{task, metric, filter, items, shots, higher_is_better, base, tuned, difference, interval, p_value,
        adjusted_p_value, verdict, reason}``. ``interval`` and what follows are None where the metric is no mean over
        items. ``adjusted_p_value`` is corrected for their number (Holm).
    """
    found = []
    for entry in _entries(tuned):
        task, metric, name = entry["task"], entry["metric"], entry["filter"]
        values = {"base": _value(base, entry), "tuned": _value(tuned, entry)}
        items = [_items(of, task, metric, name) for of in (base, tuned)]
        scores = [_scores(each, aggregations.get(task, {}).get(metric)) for each in items]
        facts: dict[str, Any] = dict.fromkeys(COMPARED) | values
        facts["difference"] = values["tuned"] - values["base"]
        if scores[0] is not None and scores[1] is not None:
            # compare.py knows by the name which direction is better.
            higher, kind = entry["higher_is_better"], scores[0][0]
            pair = (scores[0][1], scores[1][1])
            facts = dict(compare_alone("accuracy" if higher or higher is None else kind, *pair, level))
            facts = {key: facts[key] for key in COMPARED} | ({"verdict": None} if higher is None else {})
        found.append({**entry, "items": len(items[1]), **facts, "adjusted_p_value": None})
    tested = [each for each in found if each["p_value"] is not None]
    for each, p_value in zip(tested, holm([each["p_value"] for each in tested]), strict=True):
        each["adjusted_p_value"] = p_value
    return found


def values(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same of a model without a base: ``value`` alone."""
    return [
        {
            **entry,
            "items": len(_items(found, entry["task"], entry["metric"], entry["filter"])),
            "value": _value(found, entry),
        }
        for entry in _entries(found)
    ]


def _entries(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metrics of each task, in the harness's order."""
    entries = []
    for task in found["samples"]:
        for key, value in found["results"][task].items():
            metric, _, name = key.partition(",")
            if not name or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            higher = found["higher_is_better"].get(task, {}).get(metric)
            shots = found["n-shot"].get(task, 0)
            entries.append({"task": task, "metric": metric, "filter": name, "shots": shots, "higher_is_better": higher})
    return entries


def _value(found: Mapping[str, Any], entry: Mapping[str, Any]) -> float:
    return float(found["results"][entry["task"]][f"{entry['metric']},{entry['filter']}"])


def _items(found: Mapping[str, Any], task: str, metric: str, name: str) -> list[Any]:
    """What each item adds to a metric, in the order of the documents."""
    lines = [each for each in found["samples"][task] if each["filter"] == name and metric in each]
    return [each[metric] for each in sorted(lines, key=lambda each: each["doc_id"])]


def _scores(items: Sequence[Any], aggregation: str | None) -> tuple[str, RowScores] | None:
    """Scores for compare.py, with the kind of metric that they are; None for what is no mean or ratio over items.

    Perplexities are exponentials of a ratio. Their items are a log-likelihood, alone or with its number of words or
    bytes.
    """
    if not items:
        return None
    pairs = aggregation in ("weighted_perplexity", "bits_per_byte")
    try:
        table = np.array([each if pairs else (each, 1.0) for each in items], dtype=np.float64)  # [items, 2]
    except (TypeError, ValueError):
        return None
    if table.ndim != 2 or table.shape[1] != 2 or not np.isfinite(table).all() or not (table[:, 1] > 0).all():
        return None
    total, weight = table.T
    if aggregation == "mean":
        return "loss", RowScores(total, weight)
    if aggregation in ("perplexity", "weighted_perplexity"):
        return "perplexity", RowScores(-total, weight)
    if aggregation == "bits_per_byte":
        return "loss", RowScores(-total / math.log(2), weight)
    return None
