"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290), by the formulas of TRL's DPOTrainer.

A log-ratio is an answer's log-probability under the model less that under the untuned model; the loss looks at the
chosen answer's log-ratio less the rejected one's. TRL 1.16 ignores ``label_smoothing`` under ``sigmoid``: here it is
the conservative loss of the authors' code, which earlier releases of TRL had, and their ``aot`` still is for one pair.
"""

from __future__ import annotations

from torch import Tensor, relu
from torch.nn.functional import logsigmoid

from tunesmith.recipe.objectives import DpoSettings
from tunesmith.training.objectives.preference import PreferenceObjective, Sums


class Dpo(PreferenceObjective):
    """``loss_type`` is sigmoid, robust (Chowdhury et al. 2024), hinge (SLiC, Zhao et al. 2023) or ipo (Azar et al.)."""

    name = "dpo"

    def __init__(self, settings: DpoSettings) -> None:
        self.settings = settings

    def losses(self, sums: Sums) -> Tensor:
        """See the base."""
        beta, smoothing = self.settings.beta, self.settings.label_smoothing
        ratios = sums.logprobs - sums.reference
        if self.settings.loss_type == "ipo":  # by token, which the authors confirmed to TRL's
            means = ratios / sums.labels
            return (means[:, 0] - means[:, 1] - 1 / (2 * beta)) ** 2
        margin = beta * (ratios[:, 0] - ratios[:, 1])
        if self.settings.loss_type == "hinge":
            return relu(1 - margin)
        if self.settings.loss_type == "robust":
            clean, flipped = (1 - smoothing) * logsigmoid(margin), smoothing * logsigmoid(-margin)
            return (flipped - clean) / (1 - 2 * smoothing)
        if not smoothing:
            return -logsigmoid(margin)
        return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)

    def rewards(self, sums: Sums) -> tuple[Tensor, Tensor]:
        """``beta`` times the log-ratios."""
        rewards = self.settings.beta * (sums.logprobs - sums.reference)
        return rewards[:, 0], rewards[:, 1]
