"""Hidden states -> log-probabilities of the targets. Logits exist only where a label needs them.

The model's own ``logits_to_keep`` does the projection, so scaling, soft-capping and tied or adapted heads are its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunesmith.data.layout import Batch
from tunesmith.model.attention import forward_arguments


@dataclass(frozen=True, slots=True)
class Targets:
    """For each edge of a batch [E]: its log-probability (fp32) and whether it was the likeliest token."""

    logprobs: Tensor
    correct: Tensor


def target_logprobs(model: nn.Module, batch: Batch) -> Targets:
    """One forward pass over a batch that is already on the model's device. Gradients flow through ``logprobs``."""
    logits = model(**forward_arguments(batch), logits_to_keep=batch.predicts, use_cache=False).logits
    logits = logits.reshape(-1, logits.shape[-1]).float()  # [N, V], one line for each True of `predicts`
    assert len(logits) == int(batch.predicts.sum()), "this model ignores logits_to_keep"
    edges = batch.edges
    # A flat index_select, because the backward pass of advanced indexing adds up repeated logits in no fixed order.
    flat = edges.logit * logits.shape[-1] + edges.target
    logprobs = torch.log_softmax(logits, dim=-1).view(-1).index_select(0, flat)
    with torch.no_grad():
        correct = logits.argmax(dim=-1)[edges.logit] == edges.target
    return Targets(logprobs, correct)
