"""Base against tuned model on the same rows: differences, paired bootstrap intervals, and the verdict.

The interval is the percentile bootstrap (Efron and Tibshirani 1993, chapter 13) of tuned minus base. Both are
resampled together, and so are rows of one group; a ratio such as the loss is a ratio of sums in every resample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, TypedDict

import numpy as np

from tunesmith.evaluation.metrics.base import LOWER_IS_BETTER, RowScores

Judgement = Literal["better", "no evidence", "worse"]
COUNTS_AT_A_TIME = 1 << 21  # int64 counts held in memory at a time: 16 MiB
ROUNDING = 1e-6  # relative differences below this are what fp32 leaves between two passes over the same weights
LARGEST_EXPONENT = 700.0  # exp of a loss beyond this is no float64; JSON has no infinity
STARTED_FROM = "the adapter it started from"  # a verdict's base_model, where training went on from an adapter


class MetricVerdict(TypedDict):
    """One metric in verdict.json. ``difference`` is tuned minus base, ``interval`` [low, high] is of it."""

    base: float
    tuned: float
    difference: float
    interval: list[float]
    verdict: Judgement
    reason: str | None
    rows: int


class Verdict(TypedDict):
    """verdict.json. ``verdict``, ``reason`` and ``rows`` are those of the metric ``decided_by``.

    ``base_model``: what the tuned model was compared with.
    """

    verdict: Judgement
    decided_by: str
    reason: str | None
    rows: int
    confidence: float
    resamples: int
    seed: int
    metrics: dict[str, MetricVerdict]
    base_model: NotRequired[str]


def compare(
    base: Mapping[str, RowScores],
    tuned: Mapping[str, RowScores],
    *,
    metrics: Sequence[str] = (),
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Verdict:
    """The verdict over scores of the same rows in the same order.

    Args:
        base: RowScores of the base by metric name; ``perplexity`` is computed from ``loss``.
        tuned: the same of the tuned model.
        metrics: names in the order of verdict.json; the first decides, ``loss`` where none is named. ``loss`` is
            always in, at the end where it is not named.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    names = [*metrics, *(["loss"] if "loss" not in metrics else [])]
    found = {}
    for name in names:
        source = "loss" if name == "perplexity" else name
        differences = bootstrap_differences(
            base[source], tuned[source], exponential=name == "perplexity", resamples=resamples, seed=seed
        )
        found[name] = _judge(name, base[source], tuned[source], differences, confidence)
    first = found[names[0]]
    return Verdict(
        verdict=first["verdict"],
        decided_by=names[0],
        reason=first["reason"],
        rows=first["rows"],
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        metrics=found,
    )


def bootstrap_differences(
    base: RowScores, tuned: RowScores, *, exponential: bool = False, resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """float64 [resamples]: tuned minus base in each resample of the groups, drawn with replacement.

    With ``exponential`` it is the difference of the exponentials of both values, which makes perplexity of loss.
    """
    sums = _group_sums(base, tuned)
    groups = len(sums)
    random = np.random.default_rng(seed)
    chunk = max(1, COUNTS_AT_A_TIME // groups)
    differences = []
    for start in range(0, resamples, chunk):
        number = min(chunk, resamples - start)
        drawn = random.integers(groups, size=(number, groups)) + np.arange(number)[:, None] * groups
        counts = np.bincount(drawn.ravel(), minlength=number * groups).reshape(number, groups)
        totals = np.einsum("ng,gk->nk", counts, sums)  # [number, 4]; a BLAS product may round by the size of the chunk
        of_base, of_tuned = totals[:, 0] / totals[:, 1], totals[:, 2] / totals[:, 3]
        differences.append(_scale(of_tuned, exponential) - _scale(of_base, exponential))
    return np.concatenate(differences)


def least_groups(confidence: float) -> int:
    """How many groups must differ before any of them can be evidence: 6 at 95%.

    Were base and tuned equally good, each differing group would favour either by the toss of a coin (Fisher's
    randomisation test), so n of n on one side happen by chance with probability 2 ** (1 - n). The bootstrap does not
    know that: of two rows that both improved it never draws one that did not, and its interval excludes 0.
    """
    return 1 + math.ceil(-math.log2(1 - confidence) - 1e-9)


def sentence(verdict: Verdict) -> str:
    """The verdict in plain words, for the terminal."""
    name, rows = verdict["decided_by"], verdict["rows"]
    found = verdict["metrics"][name]
    base = STARTED_FROM if verdict.get("base_model") == STARTED_FROM else "the base"
    heading = {
        "better": f"Better than {base}",
        "no evidence": f"No evidence that the tuned model is better or worse than {base}",
        "worse": f"Worse than {base}",
    }[verdict["verdict"]]
    low, high = found["interval"]
    direction = ", lower is better" if name in LOWER_IS_BETTER else ""
    text = (
        f"{heading}: {name} {found['base']:.4g} -> {found['tuned']:.4g} on {rows} held-out row{'s' * (rows != 1)} "
        f"(difference {found['difference']:+.3g}, {100 * verdict['confidence']:g}% interval {low:+.3g} to {high:+.3g}"
        f"{direction})."
    )
    return f"{text} {verdict['reason']}" if verdict["reason"] else text


def _group_sums(base: RowScores, tuned: RowScores) -> np.ndarray:
    """float64 [groups, 4]: total and weight of the base, total and weight of the tuned model."""
    assert len(base) == len(tuned) > 0, f"{len(base)} rows of the base, {len(tuned)} of the tuned model"
    assert (base.weight > 0).all() and (tuned.weight > 0).all(), "a row without weight"
    columns = np.stack([base.total, base.weight, tuned.total, tuned.weight], axis=1).astype(np.float64)
    assert np.isfinite(columns).all(), "a score that is not finite"
    if base.groups is None:
        return columns
    assert tuned.groups is not None and np.array_equal(base.groups, tuned.groups), "groups of other rows"
    names, number = np.unique(base.groups, return_inverse=True)
    sums = np.zeros((len(names), 4))
    np.add.at(sums, number, columns)
    return sums


def _scale(value: np.ndarray, exponential: bool) -> np.ndarray:
    return np.exp(np.minimum(value, LARGEST_EXPONENT)) if exponential else value


def _judge(name: str, base: RowScores, tuned: RowScores, differences: np.ndarray, confidence: float) -> MetricVerdict:
    values = _scale(np.array([base.value, tuned.value]), name == "perplexity")
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail]).tolist()
    noise = ROUNDING * float(np.abs(values).max())
    reason = _too_little(base, tuned, confidence)
    judgement: Judgement = "no evidence"
    if reason is None and (low > noise or high < -noise):
        judgement = "better" if (low > 0) != (name in LOWER_IS_BETTER) else "worse"
    return MetricVerdict(
        base=float(values[0]),
        tuned=float(values[1]),
        difference=float(values[1] - values[0]),
        interval=[low, high],
        verdict=judgement,
        reason=reason,
        rows=len(base),
    )


def _too_little(base: RowScores, tuned: RowScores, confidence: float) -> str | None:
    """Why these rows cannot be evidence whatever the interval says; None where they can."""
    sums = _group_sums(base, tuned)
    values = sums[:, [0, 2]] / sums[:, [1, 3]]
    differing = int((np.abs(values[:, 1] - values[:, 0]) > ROUNDING * np.abs(values).max(axis=1)).sum())
    needed = least_groups(confidence)
    if differing >= needed:
        return None
    kind = "rows" if base.groups is None else "independent groups of rows"
    found = f"Only {differing} of {len(sums)} {kind} differ" if differing else "Base and tuned model score alike"
    if differing == len(sums):
        found = f"There are only {differing} {kind}"
    return f"{found}; at {100 * confidence:g}% confidence it takes {needed} that differ."
