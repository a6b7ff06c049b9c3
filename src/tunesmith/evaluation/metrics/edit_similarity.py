"""How few characters must change to make the truth of the answer, by rapidfuzz."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

from tunesmith.evaluation.metrics.base import RowMetric
from tunesmith.evaluation.metrics.normalize import normalized


class EditSimilarity(RowMetric):
    """1 - insertions, deletions and replacements over the characters of the longer text, as exact_match compares."""

    name = "edit_similarity"

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """From 0 to 1. Two empty texts score 1."""
        return Levenshtein.normalized_similarity(normalized(answer), normalized(truth))
