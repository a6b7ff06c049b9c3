"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306), by the formulas of TRL's KTOTrainer.

How far the model has moved is estimated on answers that do not belong to their prompts: in a group of examples each
prompt gets the answer of the example before it, the first that of the last. The estimate depends on the group, so a
group is a micro-batch, as in TRL, and its rows are never regrouped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.batches.layout import Batch, LayoutName, lay_out
from tunesmith.data.chat.template import Encoded
from tunesmith.recipe.objectives import KtoSettings
from tunesmith.training.objectives.preference import PreferenceObjective, Sums


class Kto(PreferenceObjective):
    """The second row of an example is its prompt with another's answer.

    Args:
        group: examples of a micro-batch; the last of a step can be smaller.
        longest: tokens up to which a prompt with another's answer is kept.
    """

    name = "kto"
    answers = 1
    decides = "loss"

    def __init__(self, settings: KtoSettings, *, group: int, longest: int) -> None:
        self.settings, self.indivisible, self.longest = settings, group, longest

    def rows(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        """See the base."""
        made = []
        for start in range(0, len(encoded), self.indivisible):
            group = encoded[start : start + self.indivisible]
            for number, row in enumerate(group):
                made += [row, _with_answer_of(row, group[number - 1], self.longest)]
        return made

    def losses(self, sums: Sums) -> Tensor:
        """See the base."""
        ratios = sums.logprobs - sums.reference
        groups = [self._group_losses(*part) for part in _grouped(ratios, sums.desirable, self.indivisible)]
        return torch.cat(groups)

    def _group_losses(self, ratios: Tensor, desirable: Tensor) -> Tensor:
        settings = self.settings
        moved = ratios[:, 1].mean().detach().clamp(min=0)
        gain = settings.beta * torch.where(desirable, ratios[:, 0] - moved, moved - ratios[:, 0])
        weight = torch.where(desirable, settings.desirable_weight, settings.undesirable_weight)
        return weight * (1 - torch.sigmoid(gain))

    def scores(self, sums: Sums) -> dict[str, Tensor]:
        """The loss alone: there are no pairs to compare."""
        return {"loss": self.losses(sums)}

    def batches(self, rows: Sequence[Encoded], *, budget: int, layout: LayoutName) -> list[Batch]:
        """A batch a group, whatever the budget."""
        size = self.indivisible * self.together
        groups = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        return [lay_out(rows, group, layout=layout) for group in groups]


def _grouped(ratios: Tensor, desirable: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(ratios.split(size), desirable.split(size), strict=True)


def _with_answer_of(row: Encoded, other: Encoded, longest: int) -> Encoded:
    """The prompt of a row with what another has behind its own, cut at its right end."""
    prompt, start = int(np.argmax(row.supervised)), int(np.argmax(other.supervised))
    return replace(
        row,
        ids=np.concatenate([row.ids[:prompt], other.ids[start:]])[:longest],
        supervised=np.concatenate([row.supervised[:prompt], other.supervised[start:]])[:longest],
    )
