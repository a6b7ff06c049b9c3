"""Held-out answers of which some are preferred, scored example by example from the log-probabilities of their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from tunesmith.data.batches.layout import Batch, LayoutName
from tunesmith.data.chat.template import Encoded
from tunesmith.evaluation.metrics.base import RowScores
from tunesmith.evaluation.metrics.tokens import TokenScores


class PreferenceScoring(Protocol):
    """What a judge asks of a preference objective; ``training/objectives/preference.py`` has the real ones."""

    answers: int
    together: int
    refers: bool
    decides: str

    def rows(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        """The rows that are laid out of some examples."""
        ...

    def share(self, rows: Sequence[Encoded]) -> float:
        """Examples for each label that is learned by likelihood."""
        ...

    def batches(self, rows: Sequence[Encoded], *, budget: int, layout: LayoutName) -> list[Batch]:
        """The rows as micro-batches, those of an example together."""
        ...

    def by_example(self, nll_sum: np.ndarray, labels: np.ndarray, known: Mapping[str, np.ndarray], share: float) -> Any:
        """Sums of log-probabilities by example, as ``scores`` takes them."""
        ...

    def scores(self, sums: Any) -> dict[str, Tensor]:
        """Each metric of each example [examples]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Preferences:
    """What a task's rows are to an objective.

    ``desirable`` bool [examples]; ``share`` as the objective computes it of these rows; ``reference`` float64 [rows] is
    the untuned model's log-probability of each row, None as long as it was not measured.
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
        """Whether the loss cannot be taken yet."""
        return self.objective.refers and self.reference is None

    def batches(self, rows: Sequence[Encoded], *, budget: int, layout: LayoutName) -> list[Batch]:
        """The rows laid out, those of an example together."""
        return self.objective.batches(rows, budget=budget, layout=layout)

    def scores(self, tokens: TokenScores, groups: Sequence[int]) -> dict[str, RowScores]:
        """Every metric of the objective on every example.

        Args:
            tokens: of every row.
            groups: by row.
        """
        assert not self.lacks_reference, "scored before the untuned model was measured"
        reference = np.zeros_like(tokens.nll_sum) if self.reference is None else self.reference
        known = {"reference": reference, "desirable": self.desirable}
        sums = self.objective.by_example(tokens.nll_sum, tokens.tokens, known, self.share)
        of_examples = np.asarray(groups)[:: self.together]
        return {name: _row_scores(values, of_examples) for name, values in self.objective.scores(sums).items()}


def _row_scores(values: Tensor, groups: np.ndarray) -> RowScores:
    total = values.double().numpy()
    return RowScores(total, np.ones_like(total), groups)
