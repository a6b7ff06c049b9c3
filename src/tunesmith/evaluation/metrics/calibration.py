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
NOT_COMPARED = ("calibration_error",)  # of two models; its noise depends on how sure a model is


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
    """The root mean squared distance of confidence and share of right labels over bins, without what chance adds.

    Bins have equal numbers of rows (adaptive bins: Nixon et al. 2019, arXiv:1904.01685). The plain error grows with the
    spread of the rows in a bin, so it is larger for an unsure model than for a sure one even if both are calibrated.
    So each bin's variance over its rows is taken off its squared gap (Kumar, Liang and Ma 2019, arXiv:1909.10155). A
    sum below 0 counts as 0. Models are not compared by it: the Brier score compares them.
    """

    name = "calibration_error"

    def scores(self, rows: LikelihoodRows) -> Scores:
        """Each bin has three sums: right - confidence, its square, and the rows."""
        confidence, right = _of_the_likeliest(rows)  # [rows] each
        bins = bins_for(len(confidence))
        gaps, every = right - confidence, np.arange(len(confidence))
        statistics = np.zeros((len(confidence), bins, 3))
        statistics[every, bins_of(confidence, bins)] = np.stack([gaps, gaps**2, np.ones_like(gaps)], axis=1)
        return RowStatistics(
            statistics.reshape(len(confidence), -1), _debiased, np.abs(gaps), rows.groups, {DETAILS: reliability(rows)}
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


def _debiased(sums: np.ndarray) -> np.ndarray:
    """[..., 3 bins] -> [...]. A bin of one row has no variance, so it adds nothing."""
    gaps, squares, rows = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)  # [..., bins] each
    several = np.maximum(rows, 2)
    mean = gaps / several
    # The variance of a bin's mean gap: that of its rows, over their number.
    variance = (squares - several * mean**2) / (several - 1) / several
    squared = np.where(rows > 1, mean**2 - variance, 0.0)  # expected to be the square of the true gap
    return np.sqrt(np.maximum((rows * squared).sum(axis=-1) / rows.sum(axis=-1), 0.0))
