"""Whether the probabilities of labels can be believed: the Brier score, and the calibration error with its table.

The confidence of a row is the probability of its likeliest label among the labels (by_likelihood.py). Lower is
better for both metrics.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tunesmith.evaluation.metrics.base import RowScores, RowStatistics, Scores
from tunesmith.evaluation.metrics.by_likelihood import LikelihoodRows

DETAILS = "calibration"
MOST_BINS, ROWS_OF_A_BIN = 10, 20


class BrierScore:
    """The mean squared distance of the probabilities from the truth, over all labels: 0 to 2 (Brier 1950)."""

    name = "brier_score"

    def scores(self, rows: LikelihoodRows) -> Scores:
        """Of each row: sum over the labels of (probability - 1 if it is the truth else 0) squared."""
        distances = rows.probabilities  # [rows, K]
        distances[np.arange(len(rows.truths)), rows.truths] -= 1
        total = (distances**2).sum(axis=1)  # [rows]
        return RowScores(total, np.ones_like(total), rows.groups, {DETAILS: reliability(rows)})


class CalibrationError:
    """The expected calibration error: how far confidence and share of right labels are apart, on average over bins.

    Bins have equal numbers of rows (adaptive bins: Nixon et al. 2019, arXiv:1904.01685), which is biased less than bins
    of equal width (Roelofs et al. 2022, arXiv:2012.08668). It is never below 0, so few rows make it larger than it is.
    In a resample a row stays in its bin.
    """

    name = "calibration_error"

    def scores(self, rows: LikelihoodRows) -> Scores:
        """The sums of each bin are those of right - confidence; the last statistic counts the rows."""
        confidence, right = _of_the_likeliest(rows)  # [rows] each
        number = bins_of(confidence, bins_for(len(confidence)))
        statistics = np.zeros((len(confidence), bins_for(len(confidence)) + 1))  # [rows, bins + 1]
        statistics[np.arange(len(confidence)), number] = right - confidence
        statistics[:, -1] = 1
        return RowStatistics(
            statistics, _mean_distance, np.abs(right - confidence), rows.groups, {DETAILS: reliability(rows)}
        )


def bins_for(rows: int) -> int:
    """How many bins so many rows have: 20 rows in each, and at most 10 bins."""
    return max(1, min(MOST_BINS, rows // ROWS_OF_A_BIN))


def bins_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each row, int64 [rows]: equal numbers of rows in each, the least confident first.

    Rows of the same confidence are in the same bin, so a bin may be larger, and another empty.
    """
    below = np.searchsorted(np.sort(confidence), confidence)  # rows with less confidence: [rows]
    return below * bins // len(confidence)


def reliability(rows: LikelihoodRows) -> dict[str, Any]:
    """The table of reliability as JSON: rows, mean confidence and share of right labels of each bin with rows."""
    confidence, right = _of_the_likeliest(rows)
    number = bins_of(confidence, bins_for(len(confidence)))
    own = [number == each for each in np.unique(number)]
    return {
        "labels": len(rows.labels),
        "bins": [
            {"rows": int(each.sum()), "confidence": float(confidence[each].mean()), "right": float(right[each].mean())}
            for each in own
        ],
    }


def _of_the_likeliest(rows: LikelihoodRows) -> tuple[np.ndarray, np.ndarray]:
    """The probability of each row's likeliest label, and whether that is the truth: float64 [rows] each."""
    probabilities = rows.probabilities
    right = rows.log_likelihoods.argmax(axis=1) == rows.truths
    return probabilities.max(axis=1), right.astype(np.float64)


def _mean_distance(sums: np.ndarray) -> np.ndarray:
    """[..., bins + 1] -> [...]: the weight of a bin is its share of the rows, so its own count cancels out."""
    return np.abs(sums[..., :-1]).sum(axis=-1) / sums[..., -1]
