"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306), by the formulas of TRL's KTOTrainer.

The loss needs an estimate of the KL divergence, of how far the model has moved from the untuned one. It is measured on
prompts with answers that belong to other prompts: in a group of examples, each prompt gets the answer of the example
before it, and the first one that of the last. The estimate depends on the group, so a group is a micro-batch, as in
TRL, and is never regrouped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.batches.layout import Batch, LayoutName, lay_out
from tunesmith.data.chat.template import Encoded
from tunesmith.recipe.objectives import KtoSettings
from tunesmith.training.objectives.preference import PreferenceObjective, Sums


class Kto(PreferenceObjective):
    """The second row of an example is its prompt with the answer of another example.

    Args:
        settings: of the recipe.
        group: examples in a micro-batch. The last one of a step can be smaller.
        longest: a prompt with another answer is cut to this many tokens.
    """

    name = "kto"
    answers = 1
    decides = "loss"

    def __init__(self, settings: KtoSettings, *, group: int, longest: int) -> None:
        self.settings, self.indivisible, self.longest = settings, group, longest

    def rows(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        """Each row, followed by its prompt with the answer of the row before it in the group."""
        made = []
        for start in range(0, len(encoded), self.indivisible):
            group = encoded[start : start + self.indivisible]
            for number, row in enumerate(group):
                made += [row, _with_answer_of(row, group[number - 1], self.longest)]
        return made

    def losses(self, sums: Sums) -> Tensor:
        """The loss of each example [examples]; see ``_group_losses``."""
        ratios, size = sums.log_ratios(), self.indivisible  # [examples, 2]: own answer, another's
        groups = zip(ratios.split(size), sums.desirable.split(size), strict=True)
        return torch.cat([self._group_losses(*group) for group in groups])

    def _group_losses(self, ratios: Tensor, desirable: Tensor) -> Tensor:
        """``ratios`` [group, 2] and ``desirable`` bool [group] give losses [group]."""
        settings = self.settings
        # The KL estimate: the mean log-ratio of answers under other prompts, without gradient, at least 0.
        moved = ratios[:, 1].mean().detach().clamp(min=0)
        # How much more the model prefers a desirable answer, or avoids an undesirable one, than that [group].
        gain = settings.beta * torch.where(desirable, ratios[:, 0] - moved, moved - ratios[:, 0])
        weight = torch.where(desirable, settings.desirable_weight, settings.undesirable_weight)
        return weight * (1 - torch.sigmoid(gain))

    def scores(self, sums: Sums) -> dict[str, Tensor]:
        """Only the loss, because there are no pairs to compare."""
        return {"loss": self.losses(sums)}

    def batches(self, rows: Sequence[Encoded], *, budget: int, layout: LayoutName) -> list[Batch]:
        """One micro-batch for each group, whatever the budget is."""
        size = self.indivisible * self.together
        groups = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        return [lay_out(rows, group, layout=layout) for group in groups]


def _with_answer_of(row: Encoded, other: Encoded, longest: int) -> Encoded:
    """The prompt of a row with the answer of another, cut at the right end."""
    prompt, start = int(np.argmax(row.supervised)), int(np.argmax(other.supervised))
    return replace(
        row,
        ids=np.concatenate([row.ids[:prompt], other.ids[start:]])[:longest],
        supervised=np.concatenate([row.supervised[:prompt], other.supervised[start:]])[:longest],
    )
