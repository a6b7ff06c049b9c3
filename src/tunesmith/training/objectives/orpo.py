"""Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691), by the formulas of TRL's ORPOTrainer.

Two means: the negative log-likelihood of the chosen rows' tokens over those tokens, and the loss of the odds ratio over
the pairs. Both are the step's, whatever its micro-batches: each pair's likelihood is weighted by the step's pairs over
its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunesmith.data.batches.layout import Batch, LayoutName
from tunesmith.data.chat.template import Encoded
from tunesmith.recipe.objectives import OrpoSettings
from tunesmith.training.objectives.preference import PreferenceObjective, Sums

LOG_HALF = -0.6931471805599453


class Orpo(PreferenceObjective):
    """With ``nll_tokens: all`` a third row of each pair has the labels of the chosen row that are not its answer."""

    name = "orpo"
    refers = False

    def __init__(self, settings: OrpoSettings) -> None:
        self.settings = settings
        self.together = 3 if settings.nll_tokens == "all" else 2

    def rows(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        """See the base."""
        if self.together == 2:
            return list(encoded)
        pairs = zip(encoded[::2], encoded[1::2], strict=True)
        return [row for chosen, rejected in pairs for row in (chosen, rejected, _rest(chosen))]

    def batches(self, rows: Sequence[Encoded], *, budget: int, layout: LayoutName) -> list[Batch]:
        """See the base. A third row is no row of its own, so its tokens are not counted."""
        made = super().batches(rows, budget=budget, layout=layout)
        if self.together == 2:
            return made
        of_batches = [torch.unique(batch.edges.row // self.together).tolist() for batch in made]
        counts = [sum(len(rows[3 * pair].ids) + len(rows[3 * pair + 1].ids) for pair in pairs) for pairs in of_batches]
        return [replace(batch, tokens=count) for batch, count in zip(made, counts, strict=True)]

    def losses(self, sums: Sums) -> Tensor:
        """See the base."""
        mean = sums.mean()
        odds = (mean[:, 0] - mean[:, 1]) - (_log1mexp(mean[:, 0]) - _log1mexp(mean[:, 1]))
        likelihood = sums.logprobs[:, 0] + (sums.logprobs[:, 2] if self.together == 3 else 0.0)
        return -likelihood * sums.share - self.settings.beta * logsigmoid(odds)

    def rewards(self, sums: Sums) -> tuple[Tensor, Tensor]:
        """``beta`` times the mean log-probabilities."""
        rewards = self.settings.beta * sums.mean()
        return rewards[:, 0], rewards[:, 1]

    def likelihood(self, sums: Sums) -> Tensor:
        """By token, as the objective compares them."""
        return sums.mean()

    def share(self, rows: Sequence[Encoded]) -> float:
        """See the base."""
        learned = [row for number, row in enumerate(rows) if number % self.together != 1]
        return (len(rows) // self.together) / sum(int(row.supervised.sum()) for row in learned)


def _rest(row: Encoded) -> Encoded:
    others = ~row.supervised
    others[0] = False  # nothing stands before the first token that could predict it
    return replace(row, supervised=others)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of x below 0, without cancellation (Maechler 2012)."""
    return torch.where(x < LOG_HALF, torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x)))
