"""The common part of dpo, orpo and kto: sums of log-probabilities by example, and how examples become batches.

The rows of an example follow each other: the chosen answer, the rejected one, and what an objective adds. They go into
the same micro-batch, because the loss compares them. In a prefix tree they share their prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.data.batches.layout import Batch, Known, LayoutName, micro_batches
from tunesmith.data.chat.template import Encoded
from tunesmith.model.compute.logprobs import target_logprobs


@dataclass(frozen=True, slots=True)
class Sums:
    """Of some examples, row by row: the summed log-probability of the labels, and their number.

    ``reference`` is the same sum under the untuned model. ``share`` is explained at ``Known``.
    """

    logprobs: Tensor  # [examples, together]
    labels: Tensor  # [examples, together]
    reference: Tensor  # [examples, together]
    desirable: Tensor  # bool [examples]
    share: float

    def mean(self) -> Tensor:
        """The average log-probability of a label [examples, together]."""
        return self.logprobs / self.labels

    def log_ratios(self) -> Tensor:
        """The log-probability of each row under the model minus that under the untuned model [examples, together]."""
        return self.logprobs - self.reference


class PreferenceObjective:
    """The base class of dpo, orpo and kto. The loss of a step is the mean of its examples' losses.

    ``answers`` is the number of encoded rows of an example, ``together`` the number of its rows that are laid out, and
    ``indivisible`` the number of examples that stay in one micro-batch. ``refers``: the loss needs the untuned model's
    log-probabilities. ``decides`` is the metric of the verdict if the recipe names none.
    """

    name: str
    answers = 2
    together = 2
    indivisible = 1
    refers = True
    decides = "preference_accuracy"

    def rows(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        """The rows of some examples that are laid out: ``answers`` of each come in, ``together`` go out."""
        return list(encoded)

    def losses(self, sums: Sums) -> Tensor:
        """The loss of each example [examples]."""
        raise NotImplementedError

    def rewards(self, sums: Sums) -> tuple[Tensor, Tensor]:
        """The rewards of the chosen and of the rejected answers [examples], in TRL's sense."""
        raise NotImplementedError

    def scores(self, sums: Sums) -> dict[str, Tensor]:
        """Each metric of each held-out example [examples].

        ``preference_accuracy``: the model gives the chosen answer a higher probability than the rejected one. It needs
        no reference, so base and tuned model can be compared by it. ``reward_accuracy`` and ``reward_margin`` are TRL's
        rewards/accuracies and rewards/margins.
        """
        chosen, rejected = self.rewards(sums)  # [examples] each
        likelihood = self.likelihood(sums)  # [examples, together]
        return {
            "loss": self.losses(sums),
            "preference_accuracy": (likelihood[:, 0] > likelihood[:, 1]).double(),
            "reward_accuracy": (chosen > rejected).double(),
            "reward_margin": chosen - rejected,
        }

    def likelihood(self, sums: Sums) -> Tensor:
        """The log-likelihood by which answers are compared [examples, together]: that of the whole answer."""
        return sums.logprobs

    def share(self, rows: Sequence[Encoded]) -> float:
        """The examples of a step divided by its labels that are learned by likelihood; 0 if none are."""
        return 0.0

    def denominator(self, batch: Batch) -> float:
        """The number of examples in the batch."""
        return float(torch.unique(batch.edges.row // self.together).numel())

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """The losses of the batch's examples, summed."""
        return self.losses(self.sums(target_logprobs(model, batch).logprobs, batch)).sum()

    def sums(self, logprobs: Tensor, batch: Batch) -> Sums:
        """Sums the log-probabilities of the batch's edges [edges] by row. Examples keep the order of their rows."""
        assert batch.known is not None, "a batch that no preference objective has laid out"
        row, known = batch.edges.row, batch.known  # row [edges]: the row of the step that an edge belongs to
        # The examples in this batch, and the index of each edge's example among them [edges].
        examples, of_edge = torch.unique(row // self.together, return_inverse=True)
        # The cell of each edge in a table [examples, together], counted row by row.
        cell = of_edge * self.together + row % self.together  # [edges]
        shape, size = (len(examples), self.together), len(examples) * self.together
        # The rows of each example, as the step numbers them [examples, together].
        of_examples = examples[:, None] * self.together + torch.arange(self.together, device=row.device)
        return Sums(
            logprobs=logprobs.new_zeros(size).index_add(0, cell, logprobs).view(shape),
            labels=logprobs.new_zeros(size).index_add(0, cell, torch.ones_like(logprobs)).view(shape),
            reference=known.reference[of_examples],
            desirable=known.desirable[of_examples[:, 0]],
            share=known.share,
        )

    def lay_out(
        self,
        rows: Sequence[Encoded],
        *,
        budget: int,
        layout: LayoutName,
        reference: np.ndarray | None = None,
        desirable: np.ndarray | None = None,
    ) -> list[Batch]:
        """The micro-batches of one step.

        Args:
            rows: as ``rows`` returns them.
            budget: tokens of a micro-batch at most.
            layout: of the micro-batches.
            reference: the untuned model's sums, float64 [rows]; None: not known yet, zeros.
            desirable: bool [examples]; None: all are.
        """
        known = Known(
            torch.zeros(len(rows)) if reference is None else torch.from_numpy(reference).float(),
            torch.ones(len(rows), dtype=torch.bool)
            if desirable is None
            else torch.from_numpy(np.repeat(desirable, self.together)),
            self.share(rows),
        )
        return [replace(batch, known=known) for batch in self.batches(rows, budget=budget, layout=layout)]

    def batches(self, rows: Sequence[Encoded], *, budget: int, layout: LayoutName) -> list[Batch]:
        """The micro-batches without references and labels. The rows of an example stay together."""
        return micro_batches(rows, budget=budget, layout=layout, together=self.together)

    def scores_of_rows(
        self, nll_sum: np.ndarray, labels: np.ndarray, *, reference: np.ndarray, desirable: np.ndarray, share: float
    ) -> dict[str, np.ndarray]:
        """The scores of measured rows, float64 [examples]; see ``PreferenceScoring`` for the arguments."""
        shape = (-1, self.together)
        sums = Sums(
            logprobs=-torch.from_numpy(nll_sum).view(shape),
            labels=torch.from_numpy(labels).view(shape),
            reference=torch.from_numpy(reference).view(shape),
            desirable=torch.from_numpy(desirable),
            share=share,
        )
        return {name: values.double().numpy() for name, values in self.scores(sums).items()}
