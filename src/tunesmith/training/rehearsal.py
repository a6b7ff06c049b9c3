"""Measures the memory of one step before training starts. It changes nothing and can only refuse the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from torch import nn

from tunesmith.data.batches.layout import Batch
from tunesmith.errors import TrainError, ran_out
from tunesmith.model.compute.waits import waiting_as_others_allow
from tunesmith.model.modes import kept_modes, random_state_kept
from tunesmith.planning import memory
from tunesmith.planning.budget import CONTEXT, MEASURED_SHARE, Plan, does_not_fit, gigabytes
from tunesmith.training.objectives.supervised import Objective


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Bytes of the heaviest micro-batch, as predicted and as measured; both include the optimizer's moments.

    ``needed`` is the memory of the whole run by this measurement: of its largest micro-batch, or of the verdict.
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
    """The batch with the most tokens, and among those the one with the most logits. Holds two batches at most."""
    return max(batches, key=lambda batch: (batch.computed, int(batch.predicts.sum())))


@waiting_as_others_allow()
def rehearse(model: nn.Module, batches: Iterable[Batch], *, objective: Objective, plan: Plan, where: str) -> Rehearsal:
    """Measures the forward and backward pass of the heaviest batch, while gradients of an earlier one are held.

    Another epoch groups the rows differently, up to ``plan.tokens``. The rest up to that, and the growth of the heap in
    later steps, are added as predicted. The optimizer makes its moments in the first step, so their size is added too.

    Raises:
        ModelError: the run would not fit.
    """
    batch = heaviest(batches)
    predicted = plan.peak(batch.computed)
    with _out_of_memory_refuses(plan, where):
        before, peak = measured_peak(model, batch, objective)
    context = CONTEXT if next(model.parameters()).device.type == "cuda" else 0
    moments = int(plan.shape.states * plan.shape.trained)
    measured = peak + moments + context
    growth = max(plan.peak().training - predicted.training, 0) + plan.later_holes(plan.tokens)
    # Judging needs more than the weights and libraries, which are in memory already.
    judging = before + context + plan.peak().judging - predicted.libraries - predicted.weights
    needed = max(measured + growth, judging)
    if needed > MEASURED_SHARE * plan.memory:
        how = f"by a measured step of {batch.computed:,} tokens"
        raise does_not_fit(plan, needed=needed, share=MEASURED_SHARE, how=how, where=where)
    return Rehearsal(batch.computed, predicted.training, measured, needed, plan.memory)


def measured_peak(model: nn.Module, batch: Batch, objective: Objective) -> tuple[int, int]:
    """Bytes held before a forward and backward pass of a batch, and the peak during it.

    Gradients are discarded. Weights, the modes of the modules and the random state are restored.
    """
    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with kept_modes(model), random_state_kept(device):
        model.train()
        before = memory.begin_peak(str(device))
        try:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            (objective.sum(model, batch.to(device)) / max(objective.denominator(batch), 1.0)).backward()
            return before, memory.peak(str(device))
        finally:
            for parameter in trained:
                parameter.grad = None


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


@contextmanager
def memory_faults(plan: Plan | None = None) -> Iterator[None]:
    """Turns an error that means that memory ran out into one with the estimate, the limit and a remedy."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError, SafetensorError) as error:
        if not ran_out(error):
            raise
        device = plan.shape.device if plan else "cpu"
        parts = [*str(error).splitlines()[:1]]
        if plan is not None:
            way = "with" if plan.checkpointing else "without"
            peak = plan.peak()
            parts.append(
                f"A micro-batch of {plan.tokens:,} tokens {way} gradient checkpointing was predicted to need "
                f"{gigabytes(peak.training)} ({peak})."
            )
        parts.append(f"The process held {gigabytes(memory.peak(device))} at most, of {memory.limits(device)}.")
        raise TrainError(
            "Memory ran out",
            where=device,
            why="\n".join(parts),
            remedy="Lower training.micro_batch_tokens, set training.gradient_checkpointing: true, or use method qlora; "
            "then start over with --overwrite. With more memory, continue with --resume: written checkpoints are "
            "complete.",
        ) from error
