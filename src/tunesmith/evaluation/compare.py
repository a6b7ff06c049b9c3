"""Compares base and tuned model on the same rows: differences, paired bootstrap intervals, and the verdict.

The interval is the percentile bootstrap (Efron and Tibshirani 1993, chapter 13) of tuned minus base. Both models are
resampled together, and so are the rows of one group. A resample sums the statistics of its rows, and ``of_sums`` of a
metric gives its value: the loss is a ratio of sums in every resample, and macro F1 is computed anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, TypedDict

import numpy as np

from tunesmith.evaluation.metrics.base import Scores
from tunesmith.recipe.settings import LOWER_IS_BETTER

Judgement = Literal["better", "no evidence", "worse"]
LARGEST_EXPONENT = 700.0  # exp of a larger loss overflows float64, and JSON has no infinity
STARTED_FROM = "the adapter it started from"  # a verdict's base_model if training continued from an adapter
_COUNTS_AT_A_TIME = 1 << 21  # int64 counts held in memory at a time: 16 MiB
_ROUNDING = 1e-6  # two fp32 passes over the same weights can differ by this much, relatively


class MetricVerdict(TypedDict):
    """One metric in verdict.json. ``difference`` is tuned minus base, and ``interval`` is its [low, high]."""

    base: float
    tuned: float
    difference: float
    interval: list[float]
    verdict: Judgement
    reason: str | None
    rows: int


class Verdict(TypedDict):
    """The content of verdict.json. ``verdict``, ``reason`` and ``rows`` are those of the metric ``decided_by``.

    ``base_model`` says what the tuned model was compared with. ``data`` names the rows where they are not the run's own
    held-out rows, and ``trained_on`` says how many of them the run was trained on, if that is known.
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
    data: NotRequired[str | None]
    trained_on: NotRequired[int | None]


def compare(
    base: Mapping[str, Scores],
    tuned: Mapping[str, Scores],
    *,
    metrics: Sequence[str] = (),
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Verdict:
    """The verdict over scores of the same rows in the same order.

    Args:
        base: Scores of the base by metric name. ``perplexity`` is computed from ``loss``.
        tuned: the same for the tuned model.
        metrics: names in the order of verdict.json. The first one decides, or ``loss`` if none is named. ``loss`` is
            always included, at the end if it is not named.
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
        found[name] = _metric_verdict(name, base[source], tuned[source], differences, confidence)
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
    base: Scores, tuned: Scores, *, exponential: bool = False, resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Tuned minus base in each resample of the groups, drawn with replacement: float64 [resamples].

    With ``exponential`` it is the difference of the exponentials of both values, which makes perplexity of loss.
    """
    sums = _group_sums(base, tuned)  # [groups, 2 k]
    groups, k = len(sums), sums.shape[1] // 2
    whole = np.array_equal(sums, np.rint(sums))
    random = np.random.default_rng(seed)
    chunk = max(1, _COUNTS_AT_A_TIME // groups)  # resamples at a time, so that memory stays bounded
    differences = []
    for start in range(0, resamples, chunk):
        number = min(chunk, resamples - start)
        # Each resample draws as many groups as there are: group numbers [number, groups], offset by resample.
        drawn = random.integers(groups, size=(number, groups)) + np.arange(number)[:, None] * groups
        # How often each resample has each group [number, groups].
        counts = np.bincount(drawn.ravel(), minlength=number * groups).reshape(number, groups)
        # The sums of each resample [number, 2 k]. A BLAS product is exact for whole numbers, and others it could round
        # differently for other chunk sizes.
        totals = counts.astype(np.float64) @ sums if whole else np.einsum("ng,gk->nk", counts, sums)
        of_base, of_tuned = base.of_sums(totals[:, :k]), tuned.of_sums(totals[:, k:])  # [number] each
        differences.append(_scale(of_tuned, exponential) - _scale(of_base, exponential))
    return np.concatenate(differences)


def least_groups(confidence: float) -> int:
    """The number of groups that must differ before there can be evidence: 6 at 95%.

    If base and tuned were equally good, each differing group would favour one of them like a coin toss (Fisher's
    randomisation test). All n groups then favour the same model with probability 2 ** (1 - n). The bootstrap cannot
    see that: if two rows both improved, every resample improves, and the interval excludes 0.
    """
    return 1 + math.ceil(-math.log2(1 - confidence) - 1e-9)


def sentence(verdict: Verdict) -> str:
    """The verdict as a sentence for the terminal."""
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
    data = verdict.get("data")
    plural = "s" * (rows != 1)
    judged_on = f"{rows} held-out row{plural}" if data is None else f"{rows} row{plural} of {data}"
    text = (
        f"{heading}: {name} {found['base']:.4g} -> {found['tuned']:.4g} on {judged_on} "
        f"(difference {found['difference']:+.3g}, {100 * verdict['confidence']:g}% interval {low:+.3g} to {high:+.3g}"
        f"{direction})."
    )
    seen = f"The run was trained on {trained:,} rows of them." if (trained := verdict.get("trained_on")) else None
    return " ".join(filter(None, [text, verdict["reason"], seen]))


def _group_sums(base: Scores, tuned: Scores) -> np.ndarray:
    """The k statistics of the base, then those of the tuned model, summed by group: float64 [groups, 2 k]."""
    assert len(base) == len(tuned) > 0, f"{len(base)} rows of the base, {len(tuned)} of the tuned model"
    assert base.statistics.shape == tuned.statistics.shape, "other statistics"
    columns = np.concatenate([base.statistics, tuned.statistics], axis=1)  # [rows, 2 k]
    assert np.isfinite(columns).all(), "a score that is not finite"
    if base.groups is None:
        return columns
    assert tuned.groups is not None and np.array_equal(base.groups, tuned.groups), "groups of other rows"
    names, number = np.unique(base.groups, return_inverse=True)  # [groups], and each row's group [rows]
    sums = np.zeros((len(names), columns.shape[1]))
    np.add.at(sums, number, columns)
    return sums


def _scale(value: np.ndarray, exponential: bool) -> np.ndarray:
    return np.exp(np.minimum(value, LARGEST_EXPONENT)) if exponential else value


def _metric_verdict(
    name: str, base: Scores, tuned: Scores, differences: np.ndarray, confidence: float
) -> MetricVerdict:
    values = _scale(np.array([base.value, tuned.value]), name == "perplexity")  # [2]
    # The interval cuts off half of what the confidence leaves on each side of the differences.
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail]).tolist()
    # There is evidence if enough groups differ and the interval excludes 0 by more than rounding.
    noise = _ROUNDING * float(np.abs(values).max())
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


def _too_little(base: Scores, tuned: Scores, confidence: float) -> str | None:
    """The reason why these rows cannot be evidence whatever the interval is, or None."""
    sums = _group_sums(base, tuned)  # [groups, 2 k]
    pairs = np.stack(np.split(sums, 2, axis=1))  # [2, groups, k]: base and tuned
    # A group differs if one of its statistics does, by more than rounding.
    differing = int((np.abs(pairs[1] - pairs[0]) > _ROUNDING * np.abs(pairs).max(axis=0)).any(axis=1).sum())
    needed = least_groups(confidence)
    if differing >= needed:
        return None
    kind = "rows" if base.groups is None else "independent groups of rows"
    found = f"Only {differing} of {len(sums)} {kind} differ" if differing else "Base and tuned model score the same"
    if differing == len(sums):
        found = f"There are only {differing} {kind}"
    return f"{found}; at least {needed} must differ for a verdict at {100 * confidence:g}% confidence."
