"""The rows that the bootstrap draws, for tests that compute a metric of each resample anew."""

from __future__ import annotations

import numpy as np

from tunesmith.evaluation.intervals import drawing_order
from tunesmith.evaluation.metrics.base import Scores


def drawn_rows(base: Scores, tuned: Scores, *, resamples: int, seed: int) -> np.ndarray:
    """The numbers of the rows of each resample, int [resamples, rows], of scores without groups."""
    order = drawing_order(np.concatenate([base.statistics, tuned.statistics], axis=1))
    return order[np.random.default_rng(seed).integers(len(order), size=(resamples, len(order)))]
