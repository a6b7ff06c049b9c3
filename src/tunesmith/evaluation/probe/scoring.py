"""What the answers to a probe say: rates, what was lost and gained, and whether the tuned model is no worse.

Base and tuned model answer the same items, so they are compared item by item: with the paired interval of compare.py,
McNemar's exact test and two one-sided tests. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from tunesmith.evaluation.compare import Level, compare_alone
from tunesmith.evaluation.metrics.base import row_scores
from tunesmith.evaluation.probe.items import ProbeItems
from tunesmith.evaluation.probe.wording import NOTHING_RIGHT
from tunesmith.evaluation.statistics import holm
from tunesmith.evaluation.verdict import Equivalence, Judgement

MARGIN = 0.02  # of the share of right answers: 2 points
METRIC = "probe"  # the share of right answers


class KindResult(TypedDict):
    """One kind of items. ``base`` and ``tuned`` are shares of right answers; ``adjusted_p_value`` is by Holm."""

    kind: str
    items: int
    base: float
    tuned: float
    difference: float
    interval: list[float]
    p_value: float
    adjusted_p_value: float


class ProbeResult(TypedDict):
    """What verdict.json keeps of a probe. ``lost`` and ``gained`` are ids of items that only one model has right.

    ``verdict`` is `worse`, `better`, `no worse` (it was shown) or `no evidence`, which is not the same. ``kinds`` are
    in the order of their differences, the worst first.
    """

    name: str
    items: int
    base: float
    tuned: float
    difference: float
    interval: list[float]
    confidence: float
    verdict: Judgement
    reason: str | None
    p_value: float
    equivalence: Equivalence | None
    lost: list[str]
    gained: list[str]
    kinds: list[KindResult]


class ProbeValues(TypedDict):
    """The same of a model without a base: shares of right answers, the lowest first."""

    name: str
    items: int
    value: float
    kinds: list[dict[str, Any]]


def compared(
    probe: ProbeItems,
    base: Sequence[str],
    tuned: Sequence[str],
    *,
    margin: float = MARGIN,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> ProbeResult:
    """Compares the answers of both models, in the order of the items.

    Args:
        probe: the items.
        base: the base's answers.
        tuned: the tuned model's answers.
        margin: the loss of right answers that is still no loss, as a share of the items.
        confidence: of the intervals and the tests.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: a pattern of a user's file takes too long.
    """
    before, after = rights(probe, base), rights(probe, tuned)  # bool [items] each
    level = Level(confidence, resamples, seed, margin)
    found = compare_alone(METRIC, row_scores(before), row_scores(after), level)  # type: ignore[arg-type]
    if found["bound"] == "floor" and found["verdict"] != "worse":  # what was never there cannot be lost
        found["verdict"], found["reason"] = "no evidence", NOTHING_RIGHT
    ids = np.array([item.id for item in probe.items])
    return ProbeResult(
        name=probe.name,
        items=len(ids),
        base=found["base"],
        tuned=found["tuned"],
        difference=found["difference"],
        interval=found["interval"],
        confidence=confidence,
        verdict=found["verdict"],
        reason=found["reason"],
        p_value=found["p_value"],
        equivalence=found["equivalence"],
        lost=ids[before & ~after].tolist(),
        gained=ids[~before & after].tolist(),
        kinds=_kinds(probe, before, after, Level(confidence, resamples, seed)),
    )


def values(probe: ProbeItems, answers: Sequence[str]) -> ProbeValues:
    """The shares of right answers of one model, over all items and by kind."""
    right = rights(probe, answers)
    kinds = [{"kind": kind, "items": len(rows), "value": float(right[rows].mean())} for kind, rows in _rows(probe)]
    kinds.sort(key=lambda each: each["value"])
    return ProbeValues(name=probe.name, items=len(right), value=float(right.mean()), kinds=kinds)


def rights(probe: ProbeItems, answers: Sequence[str]) -> np.ndarray:
    """Whether each answer is right, bool [items]."""
    return np.array([item.is_right(answer) for item, answer in zip(probe.items, answers, strict=True)], dtype=bool)


def _rows(probe: ProbeItems) -> list[tuple[str, np.ndarray]]:
    """Each kind with the numbers of its items, int [items of the kind]."""
    kinds = np.array([item.kind for item in probe.items])
    return [(kind, np.flatnonzero(kinds == kind)) for kind in dict.fromkeys(kinds.tolist())]


def _kinds(probe: ProbeItems, before: np.ndarray, after: np.ndarray, level: Level) -> list[KindResult]:
    kinds = []
    for kind, rows in _rows(probe):
        found = compare_alone(METRIC, row_scores(before[rows]), row_scores(after[rows]), level)  # type: ignore[arg-type]
        facts = {name: found[name] for name in ("base", "tuned", "difference", "interval", "p_value")}
        kinds.append({"kind": kind, "items": len(rows), **facts})
    for each, p_value in zip(kinds, holm([each["p_value"] for each in kinds]), strict=True):
        each["adjusted_p_value"] = p_value
    return sorted(kinds, key=lambda each: each["difference"])
