"""Scores by label, length, source and language, the worst first: where the tuned model fails.

A slice is some of the rows. Its interval is Wilson's for rates, else the bootstrap of compare.py; the difference has
the paired interval. Many slices are looked at, so some look bad by chance: p-values are corrected (Holm). This module
does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np
from scipy import stats

from tunesmith.data.checks.scripts import NO_SCRIPT, UNKNOWN, knows_languages, language_of, script_of
from tunesmith.evaluation.compare import Level, compare_alone
from tunesmith.evaluation.intervals import interval_of_value
from tunesmith.evaluation.metrics.base import RowScores, RowStatistics, Scores, is_rate
from tunesmith.evaluation.statistics import holm
from tunesmith.evaluation.wording import lower_is_better

LEAST_ROWS = 10  # of a slice
MOST_LABELS = 200  # different answers; with more they are no labels
LONGEST_LABEL = 80  # characters
LENGTHS = 4  # slices of equal numbers of rows
MOST_SLICES = 40  # that are kept
RESAMPLES = 1000  # of each slice
Names = Mapping[str, Sequence[str | None]]


class SliceResult(TypedDict):
    """One slice. ``by`` is label, length, source, language or script, and ``name`` is its value.

    ``tuned_interval`` is of the tuned model's score; ``interval`` is of the difference, tuned minus base.
    """

    by: str
    name: str
    rows: int
    base: float
    tuned: float
    tuned_interval: list[float]
    difference: float
    interval: list[float]
    p_value: float
    adjusted_p_value: float


def slices(metric: str, base: Scores, tuned: Scores, names: Names, level: Level) -> list[SliceResult]:
    """The slices with at least LEAST_ROWS rows, by the tuned model's score, the worst first.

    A dimension of which all rows are one slice says nothing and is left out.

    Args:
        metric: its name.
        base: the base's scores, [rows].
        tuned: the tuned model's.
        names: by dimension, the slice of each row; None: the row is in none.
        level: how sure the intervals must be.
    """
    level = Level(level.confidence, min(level.resamples, RESAMPLES), level.seed)
    found: list[SliceResult] = []
    for by, of_rows in names.items():
        assert len(of_rows) == len(tuned), f"{by}: one slice a row"
        values = sorted({name for name in of_rows if name is not None})
        if len(values) < 2:
            continue
        for name in values:
            rows = np.array([number for number, each in enumerate(of_rows) if each == name])
            if len(rows) >= LEAST_ROWS:
                found.append(_slice(metric, by, name, scores_of(base, rows), scores_of(tuned, rows), level))
    for each, p_value in zip(found, holm([each["p_value"] for each in found]), strict=True):
        each["adjusted_p_value"] = p_value
    worst = 1 if not lower_is_better(metric) else -1
    return sorted(found, key=lambda each: (worst * each["tuned"], each["by"], each["name"]))[:MOST_SLICES]


def names_of_answers(prompts: Sequence[str], truths: Sequence[str], sources: Sequence[str]) -> Names:
    """The slices of rows with prompts and reference answers: label, length, source, and language or script."""
    by = "language" if knows_languages() else "script"
    of = language_of if by == "language" else script_of
    languages = [of(prompt) for prompt in prompts]
    return {
        "label": _labels(truths),
        "length": by_length([len(prompt) for prompt in prompts], "characters"),
        "source": _files(sources),
        by: [None if name in (UNKNOWN, NO_SCRIPT) else name for name in languages],
    }


def names_of_rows(tokens: Sequence[int], sources: Sequence[str]) -> Names:
    """The slices of rows of which only the tokens are known: length and source."""
    return {"length": by_length(tokens, "tokens"), "source": _files(sources)}


def by_length(lengths: Sequence[int], unit: str) -> list[str]:
    """Slices of about equal numbers of rows, such as ``101 to 250 characters``. Equal lengths stay together."""
    values = np.asarray(lengths)
    bounds = np.unique(np.quantile(values, np.linspace(0, 1, LENGTHS + 1)[1:], method="higher"))
    number = np.searchsorted(bounds, values)  # [rows]: the first bound that is not below the length
    names = {n: f"{values[number == n].min():,} to {values[number == n].max():,} {unit}" for n in set(number.tolist())}
    return [names[n] for n in number.tolist()]


def _labels(truths: Sequence[str]) -> list[str | None]:
    """The answers as labels if they repeat: at most half as many different ones as rows."""
    different = {truth.strip() for truth in truths}
    if len(different) > min(MOST_LABELS, len(truths) / 2) or max(map(len, different)) > LONGEST_LABEL:
        return [None] * len(truths)
    return [truth.strip() for truth in truths]


def _files(sources: Sequence[str]) -> list[str | None]:
    """``file`` of ``file:line``."""
    return [source.rpartition(":")[0] or source for source in sources]


def scores_of(scores: Scores, rows: np.ndarray) -> RowScores | RowStatistics:
    """The scores of some rows, by number, int [rows]."""
    groups = None if scores.groups is None else scores.groups[rows]
    if isinstance(scores, RowScores):
        return RowScores(scores.total[rows], scores.weight[rows], groups, counts=scores.counts)
    assert isinstance(scores, RowStatistics)
    return replace(scores, statistics=scores.statistics[rows], of_rows=scores.of_rows[rows], groups=groups, details={})


def _slice(metric: str, by: str, name: str, base: Scores, tuned: Scores, level: Level) -> SliceResult:
    found = compare_alone(metric, base, tuned, level)
    return SliceResult(
        by=by,
        name=name,
        rows=len(tuned),
        base=found["base"],
        tuned=found["tuned"],
        tuned_interval=interval_of(metric, tuned, level),
        difference=found["difference"],
        interval=found["interval"],
        p_value=found["p_value"],
        adjusted_p_value=found["p_value"],
    )


def interval_of(metric: str, scores: Scores, level: Level) -> list[float]:
    """The interval of one model's score: Wilson's of a rate, else that of the bootstrap."""
    groups = len(scores) if scores.groups is None else len(np.unique(scores.groups))
    if groups == len(scores) and is_rate(scores):
        found = stats.binomtest(int(scores.total.sum()), len(scores)).proportion_ci(level.confidence, method="wilson")
        return [float(found.low), float(found.high)]
    low, high = interval_of_value(scores, confidence=level.confidence, resamples=level.resamples, seed=level.seed)
    if metric == "perplexity":
        low, high = np.exp(np.minimum([low, high], 700.0)).tolist()
    return [low, high]
