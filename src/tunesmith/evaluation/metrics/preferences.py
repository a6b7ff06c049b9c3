"""Scores held-out preferences, example by example, from the log-probabilities of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tunesmith.data.batches.layout import Batch, LayoutName
from tunesmith.data.chat.template import Encoded
from tunesmith.evaluation.metrics.base import RowScores, Scores
from tunesmith.evaluation.metrics.tokens import TokenScores


class PreferenceScoring(Protocol):
    """The part of a preference objective that evaluation uses; see ``training/objectives/preference.py``."""

    answers: int
    together: int
    refers: bool
    decides: str

    def rows(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        """The rows of some examples that are laid out: ``answers`` of each come in, ``together`` go out."""
        ...

    def share(self, rows: Sequence[Encoded]) -> float:
        """Examples for each label that is learned by likelihood."""
        ...

    def batches(self, rows: Sequence[Encoded], *, budget: int, layout: LayoutName) -> list[Batch]:
        """The rows as micro-batches. The rows of an example stay together."""
        ...

    def scores_of_rows(
        self, nll_sum: np.ndarray, labels: np.ndarray, *, reference: np.ndarray, desirable: np.ndarray, share: float
    ) -> dict[str, np.ndarray]:
        """Each metric of each example, float64 [examples].

        Args:
            nll_sum: negative log-likelihood of each row's labels, float64 [rows].
            labels: the number of labels of each row, float64 [rows].
            reference: the untuned model's log-probability of each row's labels, float64 [rows].
            desirable: bool [examples].
            share: as ``share`` computes it.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Preferences:
    """What a preference objective needs to know of a task's rows.

    ``desirable`` is bool [examples], and ``share`` is computed by the objective. ``reference`` is the untuned model's
    log-probability of each row, float64 [rows], or None while it is not measured.
    """

    objective: PreferenceScoring
    desirable: np.ndarray
    share: float
    reference: np.ndarray | None = None

    @property
    def together(self) -> int:
        """Rows of an example."""
        return self.objective.together

    @property
    def lacks_reference(self) -> bool:
        """Whether the loss needs a reference that is not measured yet."""
        return self.objective.refers and self.reference is None

    def scores(self, tokens: TokenScores, groups: Sequence[int]) -> dict[str, Scores]:
        """Every metric of the objective on every example. ``tokens`` and ``groups`` are those of the rows."""
        assert not self.lacks_reference, "scored before the untuned model was measured"
        reference = np.zeros_like(tokens.nll_sum) if self.reference is None else self.reference
        found = self.objective.scores_of_rows(
            tokens.nll_sum, tokens.tokens, reference=reference, desirable=self.desirable, share=self.share
        )
        of_examples = np.asarray(groups)[:: self.together]  # [examples]
        return {name: RowScores(values, np.ones_like(values), of_examples) for name, values in found.items()}
