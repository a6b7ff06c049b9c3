"""How far one model's predictions are from another's: KL divergence at each position, exact over the vocabulary.

Both models read the same token ids. The first one leaves its hidden states and a view of its output layer, so the two
need not be in memory at once, and adapters are switched once and not for each batch. Logits exist for a few positions
at a time.

Shapes: N positions that predict a token, E edges (one for each label of each row), V tokens of the vocabulary, W the
width of a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.data.batches.layout import Batch
from tunesmith.errors import ModelError
from tunesmith.model.compute.limits import LOGITS_AT_ONCE
from tunesmith.model.compute.logprobs import Readout, predicting_states, readout_of
from tunesmith.model.modes import evaluation_mode, random_state_kept

MOST_KEPT = 2**26  # numbers that the first model leaves: 256 MiB in fp32
_TENSORS = 6  # of the size of the logits that a position needs at once


@dataclass(frozen=True, slots=True)
class Kept:
    """What the first model leaves: its states for each batch [N,W], and its output layer."""

    states: list[Tensor]
    readout: Readout


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Both models at every label, row by row in the order of the row's labels.

    Args:
        row: int64 [E], the number of the row.
        kl: float64 [E], KL(first || second) in nats.
        first: int64 [E], the token that the first model finds likeliest.
        second: the same of the second model.
        first_logprob: float64 [E], of the token that stands there.
        second_logprob: the same of the second model.
    """

    row: np.ndarray
    kl: np.ndarray
    first: np.ndarray
    second: np.ndarray
    first_logprob: np.ndarray
    second_logprob: np.ndarray


def keep(model: nn.Module, batches: Sequence[Batch], *, device: torch.device) -> Kept:
    """The first model's part, of as many batches as MOST_KEPT allows (at least one)."""
    states: list[Tensor] = []
    with evaluation_mode(model), random_state_kept(device):
        for batch in batches:
            found = predicting_states(model, batch.to(device))
            if states and sum(map(torch.numel, states)) + found.numel() > MOST_KEPT:
                break
            states.append(found)
        return Kept(states, readout_of(model))


def compare_positions(model: nn.Module, batches: Sequence[Batch], kept: Kept, *, device: torch.device) -> Positions:
    """The second model's part, of the batches that the first one has kept.

    Raises:
        ModelError: a divergence is not finite.
    """
    parts: list[list[np.ndarray]] = []
    with torch.no_grad(), evaluation_mode(model), random_state_kept(device):
        readout = readout_of(model)
        for batch, states in zip(batches, kept.states, strict=False):
            on_device = batch.to(device)
            found = _positions(kept.readout, states, readout, predicting_states(model, on_device), on_device)
            parts.append([batch.edges.row.cpu().numpy(), *found])
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    # All labels of a row are in one batch, in their order.
    order = np.argsort(columns[0], kind="stable")
    found = Positions(*(column[order] for column in columns))
    if not np.isfinite(found.kl).all():
        raise ModelError(
            "The divergence between the models is not finite",
            where=f"text {int(found.row[np.flatnonzero(~np.isfinite(found.kl))[0]]) + 1}",
            why="Their logits overflowed (float16 has no room above 65504), or weights are damaged.",
            remedy="Use model.dtype float32 or bfloat16; after training, lower training.learning_rate.",
        )
    return found


def _positions(
    first: Readout, first_states: Tensor, second: Readout, second_states: Tensor, batch: Batch
) -> list[np.ndarray]:
    """KL, both likeliest tokens, and both log-probabilities of the label, of each edge [E]."""
    count, edges = len(first_states), batch.edges
    kl = torch.empty(count, dtype=torch.float64, device=first_states.device)  # [N]
    likeliest = [torch.empty(count, dtype=torch.int64, device=kl.device) for _ in range(2)]  # [N] each
    logprobs = [torch.empty(len(edges.target), dtype=torch.float64, device=kl.device) for _ in range(2)]  # [E] each
    start, size = 0, 1
    while start < count:
        own = slice(start, start + size)
        # 1. Log-probabilities of n positions [n,V], in fp32.
        made = [first(first_states[own]), second(second_states[own])]
        made = [torch.log_softmax(logits.float(), dim=-1) for logits in made]
        # 2. KL = sum over v of p_v (log p_v - log q_v) [n]. A token that the first model excludes adds nothing.
        p, q = made
        terms = p.exp().mul_(p - q).masked_fill_(p == float("-inf"), 0.0)
        kl[own] = terms.sum(-1, dtype=torch.float64)
        # 3. The likeliest token [n], and the log-probability of the label at each edge that reads these positions.
        reads = ((edges.logit >= start) & (edges.logit < start + len(p))).nonzero()[:, 0]
        line, target = edges.logit[reads] - start, edges.target[reads]
        for of, best, picked in zip(made, likeliest, logprobs, strict=True):
            best[own] = of.argmax(-1)
            picked[reads] = of[line, target].double()
        # 4. The first position says how large the vocabulary is, so how many go at once.
        start, size = start + len(p), max(1, LOGITS_AT_ONCE // (_TENSORS * p.shape[-1]))
    per_edge = [kl[edges.logit], likeliest[0][edges.logit], likeliest[1][edges.logit], *logprobs]
    return [each.cpu().numpy() for each in per_edge]
