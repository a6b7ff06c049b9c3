"""What dpo, orpo and kto have in common: sums of log-probabilities by example, and how examples become batches.

An example is some rows that follow each other: the chosen answer and the rejected one, and what an objective adds. They
come into one micro-batch, because the loss couples them; in a prefix tree they share their prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.data.batches.layout import Batch, Known, LayoutName, micro_batches
from tunesmith.data.chat.template import Encoded
from tunesmith.model.compute.logprobs import target_logprobs


@dataclass(frozen=True, slots=True)
class Sums:
    """Of some examples [examples, rows of each]: summed log-probabilities of the labels, and how many labels there are.

    ``reference`` is the same sum under the untuned model; ``desirable`` bool [examples]; ``share`` as in ``Known``.
    """

    logprobs: Tensor
    labels: Tensor
    reference: Tensor
    desirable: Tensor
    share: float

    def mean(self) -> Tensor:
        """Log-probability of a label on average [examples, rows of each]."""
        return self.logprobs / self.labels


class PreferenceObjective:
    """The base of dpo, orpo and kto: the loss of a step is the mean of its examples' losses.

    ``answers`` are the encoded rows of an example, ``together`` the rows of it that are laid out, ``indivisible`` the
    examples that stay in one micro-batch. ``refers``: the loss needs the untuned model's log-probabilities.
    ``decides``: the metric of the verdict where the recipe names none.
    """

    name: str
    answers = 2
    together = 2
    indivisible = 1
    refers = True
    decides = "preference_accuracy"

    def rows(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        """What is laid out of some examples: ``answers`` rows of each come in, ``together`` go out."""
        return list(encoded)

    def losses(self, sums: Sums) -> Tensor:
        """The loss of each example [examples]."""
        raise NotImplementedError

    def rewards(self, sums: Sums) -> tuple[Tensor, Tensor]:
        """Of the chosen and of the rejected answers [examples], as TRL names them."""
        raise NotImplementedError

    def scores(self, sums: Sums) -> dict[str, Tensor]:
        """Of each held-out example [examples], by the metric's name.

        ``preference_accuracy``: the model finds the chosen answer likelier than the rejected one; it is the one that
        base and tuned model can be compared by, as it needs no reference. ``reward_accuracy`` and ``reward_margin``
        are TRL's rewards/accuracies and rewards/margins.
        """
        chosen, rejected = self.rewards(sums)
        likelihood = self.likelihood(sums)
        return {
            "loss": self.losses(sums),
            "preference_accuracy": (likelihood[:, 0] > likelihood[:, 1]).double(),
            "reward_accuracy": (chosen > rejected).double(),
            "reward_margin": chosen - rejected,
        }

    def likelihood(self, sums: Sums) -> Tensor:
        """By which an answer is likelier than another [examples, rows of each]: of the whole answer."""
        return sums.logprobs

    def share(self, rows: Sequence[Encoded]) -> float:
        """Examples for each label that is learned by likelihood, of the rows of a step."""
        return 0.0

    def denominator(self, batch: Batch) -> float:
        """Examples of the batch."""
        return float(torch.unique(batch.edges.row // self.together).numel())

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """The losses of the batch's examples, summed."""
        return self.losses(self.sums(target_logprobs(model, batch).logprobs, batch)).sum()

    def sums(self, logprobs: Tensor, batch: Batch) -> Sums:
        """Log-probabilities of the batch's edges [edges], summed by row; examples in the order they were handed in."""
        assert batch.known is not None, "a batch that no preference objective has laid out"
        row, known = batch.edges.row, batch.known
        examples, of_edge = torch.unique(row // self.together, return_inverse=True)
        place = of_edge * self.together + row % self.together
        shape, size = (len(examples), self.together), len(examples) * self.together
        of_examples = examples[:, None] * self.together + torch.arange(self.together, device=row.device)
        return Sums(
            logprobs=logprobs.new_zeros(size).index_add(0, place, logprobs).view(shape),
            labels=logprobs.new_zeros(size).index_add(0, place, torch.ones_like(logprobs)).view(shape),
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
            rows: as ``rows`` gives them.
            reference: float64 [rows], the untuned model's sums; zeros where they are not known yet.
            desirable: bool [examples].
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
        """The same without what is known of the rows."""
        return micro_batches(rows, budget=budget, layout=layout, together=self.together)

    def by_example(
        self, nll_sum: np.ndarray, labels: np.ndarray, known: Mapping[str, np.ndarray], share: float
    ) -> Sums:
        """Sums of rows that were measured: negative log-likelihood and labels, float64 [rows], in the rows' order."""
        shape = (-1, self.together)
        return Sums(
            logprobs=-torch.from_numpy(nll_sum).view(shape),
            labels=torch.from_numpy(labels).view(shape),
            reference=torch.from_numpy(known["reference"]).view(shape),
            desirable=torch.from_numpy(known["desirable"]),
            share=share,
        )
