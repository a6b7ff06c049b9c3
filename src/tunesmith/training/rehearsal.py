"""One measured step before the first: it changes nothing, and may only refuse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunesmith.data.batches.layout import Batch
from tunesmith.model.modes import kept_modes, random_state_kept
from tunesmith.planning import memory
from tunesmith.planning.budget import CONTEXT, MEASURED_SHARE, Plan, does_not_fit, gigabytes
from tunesmith.training.objectives.supervised import Objective


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Bytes of the heaviest micro-batch, as predicted and as measured (the optimizer's moments added to both).

    ``needed`` is what the run will need by this measurement, at its largest micro-batch and when it is judged.
    """

    tokens: int
    predicted: int
    measured: int
    needed: int
    total: int

    def __str__(self) -> str:
        return (
            f"memory: {gigabytes(self.predicted)} predicted, {gigabytes(self.measured)} measured in the heaviest "
            f"micro-batch ({self.tokens:,} tokens), of {gigabytes(self.total)}"
        )


def heaviest(batches: Iterable[Batch]) -> Batch:
    """The batch of the most tokens, and of those with the most logits."""
    return max(batches, key=lambda batch: (batch.computed, int(batch.predicts.sum())))


def rehearse(
    model: nn.Module, batches: Sequence[Batch], *, objective: Objective, plan: Plan, device: str, where: str
) -> Rehearsal:
    """Measures forward and backward pass of the heaviest batch, gradients of an earlier micro-batch held meanwhile.

    Another epoch groups the rows anew, up to ``plan.tokens``: what is missing to that is added as predicted, and what
    the heap grows by in later steps. The optimizer makes its moments in the first step: they are added by their size.

    Raises:
        ModelError: the run would not fit.
    """
    batch = heaviest(batches)
    predicted = plan.peak(batch.computed)
    with _out_of_memory_refuses(plan, where):
        before, peak = measure(model, batch, objective=objective, device=device)
    context = CONTEXT if torch.device(device).type == "cuda" else 0
    moments = int(plan.shape.states * plan.shape.trained)
    measured = peak + moments + context
    growth = max(plan.peak().training - predicted.training, 0) + plan.later_holes(plan.tokens)
    # What judging holds beyond the weights and libraries, which are held already.
    judging = before + context + plan.peak().judging - predicted.libraries - predicted.weights
    needed = max(measured + growth, judging)
    if needed > MEASURED_SHARE * plan.memory:
        how = f"by a measured step of {batch.computed:,} tokens"
        raise does_not_fit(plan, needed=needed, share=MEASURED_SHARE, how=how, where=where)
    return Rehearsal(batch.computed, predicted.training, measured, needed, plan.memory)


def measure(model: nn.Module, batch: Batch, *, objective: Objective, device: str) -> tuple[int, int]:
    """Bytes held before, and at most, while a batch goes forward and backward. Gradients are thrown away.

    Weights, modes of the modules and the random state are afterwards what they were.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with kept_modes(model), random_state_kept(torch.device(device)):
        model.train()
        before = memory.begin_peak(device)
        try:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            (objective.sum(model, batch.to(device)) / max(objective.denominator(batch), 1.0)).backward()
            return before, memory.peak(device)
        finally:
            for parameter in trained:
                parameter.grad = None


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was no more memory."""
    kinds: tuple[Any, ...] = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


@contextmanager
def _out_of_memory_refuses(plan: Plan, where: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        how = f"predicted; memory ran out when it was tried: {str(error).splitlines()[0] if str(error) else 'no more'}"
        needed = plan.peak().training
        raise does_not_fit(plan, needed=needed, share=MEASURED_SHARE, how=how, where=where) from error
