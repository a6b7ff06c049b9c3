"""Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691), by the formulas of TRL's ORPOTrainer.

The loss is a sum of two means: the negative log-likelihood over the tokens of the chosen rows, and the odds-ratio loss
over the pairs. Both are means over the whole step, whatever its micro-batches: the likelihood of a pair is weighted by
the step's number of pairs divided by its number of tokens.
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
    """With ``nll_tokens: all``, each pair has a third row: the chosen row, with labels on all tokens but its answer."""

    name = "orpo"
    refers = False

    def __init__(self, settings: OrpoSettings) -> None:
        self.settings = settings
        self.together = 3 if settings.nll_tokens == "all" else 2

    def rows(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        """The pairs, with the third row where ``nll_tokens`` is ``all``."""
        if self.together == 2:
            return list(encoded)
        pairs = zip(encoded[::2], encoded[1::2], strict=True)
        return [row for chosen, rejected in pairs for row in (chosen, rejected, _rest(chosen))]

    def batches(self, rows: Sequence[Encoded], *, budget: int, layout: LayoutName) -> list[Batch]:
        """As in the base class, but the tokens of a third row are not counted, because they are the chosen row's."""
        made = super().batches(rows, budget=budget, layout=layout)
        if self.together == 2:
            return made
        of_batches = [torch.unique(batch.edges.row // self.together).tolist() for batch in made]
        counts = [sum(len(rows[3 * pair].ids) + len(rows[3 * pair + 1].ids) for pair in pairs) for pairs in of_batches]
        return [replace(batch, tokens=count) for batch, count in zip(made, counts, strict=True)]

    def losses(self, sums: Sums) -> Tensor:
        """The loss of each pair [pairs]: negative log-likelihood, and ``beta`` times the odds-ratio loss."""
        mean = sums.mean()  # [pairs, together]: log p by token
        # The log of the ratio of the odds p / (1 - p) of the chosen and the rejected answer [pairs].
        odds = (mean[:, 0] - mean[:, 1]) - (_log1mexp(mean[:, 0]) - _log1mexp(mean[:, 1]))
        # The log-likelihood of the labels of the chosen row, with the third row's where there is one [pairs].
        likelihood = sums.logprobs[:, 0] + (sums.logprobs[:, 2] if self.together == 3 else 0.0)
        return -likelihood * sums.share - self.settings.beta * logsigmoid(odds)

    def rewards(self, sums: Sums) -> tuple[Tensor, Tensor]:
        """``beta`` times the mean log-probabilities."""
        rewards = self.settings.beta * sums.mean()  # [pairs, together]
        return rewards[:, 0], rewards[:, 1]

    def likelihood(self, sums: Sums) -> Tensor:
        """The mean by token, by which the objective compares answers."""
        return sums.mean()

    def share(self, rows: Sequence[Encoded]) -> float:
        """The pairs of a step divided by the labels of its chosen and third rows."""
        learned = [row for number, row in enumerate(rows) if number % self.together != 1]
        return (len(rows) // self.together) / sum(int(row.supervised.sum()) for row in learned)


def _rest(row: Encoded) -> Encoded:
    others = ~row.supervised
    others[0] = False  # no token before the first one could predict it
    return replace(row, supervised=others)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x below 0, without cancellation (Maechler 2012): one form for each side of log(1/2)."""
    return torch.where(x < LOG_HALF, torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x)))
