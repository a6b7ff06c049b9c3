"""Objectives turn a batch into a sum and a denominator. A step's loss is the total sum over the total denominator."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from tunesmith.data.batches.layout import Batch
from tunesmith.model.compute.logprobs import target_logprobs


class Objective(Protocol):
    """What a step minimises. ``denominator`` needs no forward pass, so it is known before the first backward pass."""

    def denominator(self, batch: Batch) -> float: ...
    def sum(self, model: nn.Module, batch: Batch) -> Tensor: ...


class CrossEntropy:
    """Negative log-likelihood, summed over supervised tokens. The denominator is their number, by weight."""

    def denominator(self, batch: Batch) -> float:
        return float(batch.edges.weight.sum())

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        return -(target_logprobs(model, batch).logprobs * batch.edges.weight).sum()  # over [edges]
