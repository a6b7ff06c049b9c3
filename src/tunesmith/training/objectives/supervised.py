"""A batch -> (sum, denominator). The loss of a step is the sum of its sums over the sum of its denominators."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from tunesmith.data.batches.layout import Batch
from tunesmith.model.compute.logprobs import target_logprobs


class Objective(Protocol):
    """What a step minimises. ``denominator`` needs no forward pass, so a step can be normalised before its first."""

    def denominator(self, batch: Batch) -> float: ...
    def sum(self, model: nn.Module, batch: Batch) -> Tensor: ...


class CrossEntropy:
    """Negative log-likelihood summed over supervised tokens; the denominator is their count (weighted)."""

    def denominator(self, batch: Batch) -> float:
        return float(batch.edges.weight.sum())

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        return -(target_logprobs(model, batch).logprobs * batch.edges.weight).sum()
