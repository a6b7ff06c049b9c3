"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290), by the formulas of TRL's DPOTrainer.

The log-ratio of an answer is its log-probability under the model minus that under the untuned model. The loss depends
on the margin: the chosen answer's log-ratio minus the rejected one's. TRL 1.16 ignores ``label_smoothing`` under
``sigmoid``. Here it gives the conservative loss of the authors' code, as in earlier releases of TRL.
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
        """The loss of each pair [pairs], by its margin."""
        beta, smoothing = self.settings.beta, self.settings.label_smoothing
        ratios = sums.log_ratios()  # [pairs, 2]: chosen, rejected
        if self.settings.loss_type == "ipo":
            # The mean by token, as the authors confirmed to TRL's. The squared distance of the margin to its target.
            means = ratios / sums.labels  # [pairs, 2]
            return (means[:, 0] - means[:, 1] - 1 / (2 * beta)) ** 2
        margin = beta * (ratios[:, 0] - ratios[:, 1])  # [pairs]
        if self.settings.loss_type == "hinge":
            return relu(1 - margin)
        if self.settings.loss_type == "robust":
            # Unbiased under labels that are flipped with the probability of the smoothing.
            clean, flipped = (1 - smoothing) * logsigmoid(margin), smoothing * logsigmoid(-margin)
            return (flipped - clean) / (1 - 2 * smoothing)
        # Sigmoid: with smoothing, the mean of the loss and of the loss of the flipped pair.
        if not smoothing:
            return -logsigmoid(margin)
        return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)

    def rewards(self, sums: Sums) -> tuple[Tensor, Tensor]:
        """``beta`` times the log-ratios."""
        rewards = self.settings.beta * sums.log_ratios()  # [pairs, 2]
        return rewards[:, 0], rewards[:, 1]
