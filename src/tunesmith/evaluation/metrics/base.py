"""Defines a metric: a score for each row, and a ratio of sums over the rows.

A metric over answers is a small class with a name and a ``score`` (see answers.py). Metrics over tokens come from
tokens.py. Both give RowScores, and compare.py needs nothing else. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

METRICS_KEY = "evaluation.metrics"  # the recipe key that names metrics
COMPUTE_METRICS_KEY = "evaluation.compute_metrics"


class TextMetric(Protocol):
    """Scores one answer with a number that is higher for a better answer. A rate is a fraction from 0 to 1."""

    @property
    def name(self) -> str:
        """The name in the recipe, and the key in verdict.json."""
        ...

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """The score of one answer to one prompt, given the reference answer."""
        ...

    def fault_of(self, truth: str) -> str | None:
        """The reason why no answer can be scored against this reference answer, or None."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class RowScores:
    """One metric on every row. Its value is ``total.sum() / weight.sum()``.

    Args:
        total: float64 [rows]: summed negative log-likelihood, correct tokens, or the score of the answer.
        weight: float64 [rows]: supervised tokens, or ones.
        groups: int [rows]: rows with the same number are not independent (turns of one conversation, two answers to one
            prompt) and are resampled together. None: all rows are independent.
    """

    total: np.ndarray
    weight: np.ndarray
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.total.shape == self.weight.shape and self.total.ndim == 1, "one total and one weight a row"
        assert self.groups is None or self.groups.shape == self.total.shape, "one group a row"

    def __len__(self) -> int:
        return len(self.total)

    @property
    def value(self) -> float:
        """The metric over all rows: a ratio of sums, not a mean of ratios."""
        return float(self.total.sum() / self.weight.sum())


def row_scores(scores: Sequence[float], groups: Sequence[int] | None = None) -> RowScores:
    """RowScores of a metric whose value is the mean over rows."""
    total = np.asarray(scores, dtype=np.float64)
    return RowScores(total, np.ones_like(total), None if groups is None else np.asarray(groups))
