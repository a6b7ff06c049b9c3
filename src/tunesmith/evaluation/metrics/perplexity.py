"""The exponential of the loss."""

from __future__ import annotations

import numpy as np

from tunesmith.evaluation.metrics.base import RowStatistics, TokenRows

_LARGEST_EXPONENT = 700.0  # exp of a larger loss overflows float64, and JSON has no infinity


class Perplexity:
    """The perplexity of a supervised token, over all rows. Lower is better."""

    name = "perplexity"

    def scores(self, rows: TokenRows) -> RowStatistics:
        """Statistics are those of the loss: negative log-likelihood and tokens, [rows, 2]."""
        statistics = np.stack([rows.nll_sum, rows.tokens], axis=1)
        return RowStatistics(statistics, _of_sums, _of_sums(statistics), rows.groups)


def perplexity_of(loss: np.ndarray | float) -> np.ndarray:
    """The exponential of a loss, as long as it can be written."""
    return np.exp(np.minimum(loss, _LARGEST_EXPONENT))


def _of_sums(sums: np.ndarray) -> np.ndarray:
    return perplexity_of(sums[..., 0] / sums[..., 1])
