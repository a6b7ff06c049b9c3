"""What a metric is, on one page: a score for each row, summed up as a ratio.

A metric over answers is a small class with a name and a ``score`` (see text.py); metrics over tokens come from
loss.py. Either gives RowScores, and compare.py needs nothing else. This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

WHERE = "evaluation.metrics"  # the recipe key that names metrics
LOWER_IS_BETTER = frozenset({"loss", "perplexity"})


class TextMetric(Protocol):
    """Scores one answer: a number that is better when higher, and for a rate a fraction from 0 to 1."""

    @property
    def name(self) -> str:
        """As the recipe says it, and the key in verdict.json."""
        ...

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """The score of one answer to one prompt, given the reference answer."""
        ...

    def fault_of(self, truth: str) -> str | None:
        """Why no answer can be scored against this reference answer; None where it can."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class RowScores:
    """One metric on every row. Its value is ``total.sum() / weight.sum()``.

    Args:
        total: float64 [rows]: summed negative log-likelihood, correct tokens, or the score of the answer.
        weight: float64 [rows]: supervised tokens, or ones.
        groups: int [rows]: rows of the same number are not independent (turns of one conversation, two answers to one
            prompt) and are resampled together. None: every row stands alone.
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
