"""BLEU and chrF over all rows, by sacrebleu, with the signature that says how they were computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.evaluation.metrics.base import AnswerRows, RowStatistics, needs_extra


class _OfSacrebleu:
    """A metric of a corpus. sacrebleu counts n-grams row by row, and makes a score of the summed counts.

    Both are what its own paired bootstrap uses (sacrebleu/significance.py).
    """

    name: str

    def __init__(self) -> None:
        needs_extra(self.name, "sacrebleu")

    def fault_of(self, truth: str) -> str | None:
        """None: any text can be compared."""
        return None

    def fault_of_all(self, truths: Sequence[str]) -> str | None:
        """None: any texts can be compared."""
        return None

    def scores(self, rows: AnswerRows) -> RowStatistics:
        """Counts of n-grams and lengths, float64 [rows, k], and the score of the corpus, from 0 to 100."""
        of_corpus, of_row = self._metrics()
        counts = of_corpus._extract_corpus_statistics(list(rows.answers), [list(rows.truths)])  # [rows][k]
        statistics = np.array(counts, dtype=np.float64)  # [rows, k]
        return RowStatistics(
            statistics,
            lambda sums: _scores_of(of_corpus, sums),
            _scores_of(of_row, statistics),
            rows.group_numbers,
            {self.name: {"signature": str(of_corpus.get_signature())}},
            self._extremes,
        )

    def _metrics(self) -> tuple[Any, Any]:
        """sacrebleu's metric of a corpus, and that of a sentence."""
        raise NotImplementedError

    def _extremes(self, statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The counts of an empty answer and of the reference answer, [rows, k] -> [rows, k] each."""
        raise NotImplementedError


class Bleu(_OfSacrebleu):
    """BLEU with sacrebleu's defaults. A row by itself has the sentence's BLEU, with its effective order."""

    name = "bleu"

    def _metrics(self) -> tuple[Any, Any]:
        from sacrebleu.metrics.bleu import BLEU

        return BLEU(), BLEU(effective_order=True)

    def _extremes(self, statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Columns: length of the answer, of the reference; matches of 1 to n words; n-grams of the answer.
        wrong, right = np.zeros_like(statistics), np.zeros_like(statistics)
        length, orders = statistics[:, 1], (statistics.shape[1] - 2) // 2
        wrong[:, 1] = right[:, 0] = right[:, 1] = length
        ngrams = np.maximum(length[:, None] - np.arange(orders), 0)  # [rows, orders] of the reference
        right[:, 2:] = np.concatenate([ngrams, ngrams], axis=1)
        return wrong, right


class ChrF(_OfSacrebleu):
    """chrF2 with sacrebleu's defaults: n-grams of up to 6 characters, no words."""

    name = "chrf"

    def _metrics(self) -> tuple[Any, Any]:
        from sacrebleu.metrics.chrf import CHRF

        return CHRF(), CHRF()

    def _extremes(self, statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Columns, for each order: n-grams of the answer, of the reference, and matches.
        wrong, right = np.zeros_like(statistics), np.repeat(statistics[:, 1::3], 3, axis=1)
        wrong[:, 1::3] = statistics[:, 1::3]
        return wrong, right


def _scores_of(metric: Any, sums: np.ndarray) -> np.ndarray:
    """The scores of summed counts, [..., k] -> [...]."""
    flat = sums.reshape(-1, sums.shape[-1]).astype(np.int64)  # [n, k]
    scores = [metric._compute_score_from_stats(each).score for each in flat.tolist()]
    return np.array(scores).reshape(sums.shape[:-1])
