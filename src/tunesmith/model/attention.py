"""The attention of prefix-tree batches, put in through transformers' two interfaces, and the probe that admits a model.

Both interfaces are needed: under a name that AttentionMaskInterface does not know, transformers passes no mask at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tunesmith.data.layout import Batch, Padded, TokenRow, Tree, padded_batch, tree_batch

IMPLEMENTATION = "tunesmith"
TOLERANCE = 4.0  # times the same rows' own difference, alone against padded; and times the rounding of the dtype
ROUNDING = 1e-5  # relative: what fp32 leaves over 30 layers; a model that cannot share differs a thousand times more


def install(model: PreTrainedModel) -> None:
    """Makes the model attend through this module. Call it before an adapter wraps the model."""
    AttentionInterface.register(IMPLEMENTATION, sdpa_attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    model.set_attn_implementation(IMPLEMENTATION)


def tree_mask(tree: Tree) -> Tensor:
    """bool [B,1,L,L]: a token sees its own segment and that segment's ancestors, up to itself."""
    count = len(tree.parent)
    sees = torch.eye(count, dtype=torch.bool, device=tree.parent.device)
    for segment, parent in enumerate(tree.parent.tolist()):
        if parent >= 0:
            sees[segment] |= sees[parent]  # parents come first, so theirs is complete
    allowed = sees[tree.segment[:, :, None], tree.segment[:, None, :]]
    return allowed.tril()[:, None]


def forward_arguments(batch: Batch) -> dict[str, Any]:
    """What a transformers model needs to compute a batch: ids, positions, and the mask of its layout."""
    if isinstance(batch.attention, Padded):
        lengths = batch.attention.lengths[:, None]
        mask = (torch.arange(batch.input_ids.shape[1], device=lengths.device)[None] < lengths).long()
    else:
        mask = tree_mask(batch.attention)
    return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": mask}


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a model may share prefixes: the largest difference of log-probabilities, and what was allowed."""

    shares: bool
    difference: float
    allowed: float
    reason: str


def probe(model: nn.Module, rows: Sequence[TokenRow], *, device: torch.device | str) -> Probe:
    """Computes two real rows alone, padded and as a tree, and compares (no gradients, no change of mode or state).

    The rows share a prefix where any do, and the longest row is one of them, so that a sliding window shorter than
    the data shows. Architectures whose state does not follow the mask (linear attention) differ and are not admitted.
    """
    from tunesmith.model.head import target_logprobs

    pair = _probe_rows(rows)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = [padded_batch([row], [0]) for row in pair]
            expected = torch.cat([target_logprobs(model, batch.to(device)).logprobs for batch in alone])
            numbers = list(range(len(pair)))
            together = {"padded": padded_batch(pair, numbers), "tree": tree_batch(pair, numbers)}
            found = {
                name: (target_logprobs(model, batch.to(device)).logprobs - expected).abs().max().item()
                for name, batch in together.items()
            }
    finally:
        model.train(was_training)
    scale = expected.abs().max().item()
    rounding = max(TOLERANCE * torch.finfo(model_dtype(model)).eps, ROUNDING)
    allowed = max(TOLERANCE * found["padded"], rounding * scale)
    shares = found["tree"] <= allowed
    verb = "shares prefixes" if shares else "cannot share prefixes"
    reason = f"{verb}: two rows differ by {found['tree']:.1e} from the same rows alone, {allowed:.1e} is allowed"
    return Probe(shares, found["tree"], allowed, reason)


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the computation: that of the first floating-point parameter."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _probe_rows(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The longest row, and of the others the one that shares most of it but not all."""
    longest = max(rows, key=lambda row: len(row.ids))

    def shared(row: TokenRow) -> int:
        limit = min(len(row.ids), len(longest.ids))
        same = row.ids[:limit] == longest.ids[:limit]
        prefix = limit if same.all() else int(same.argmin())
        return -1 if prefix == len(row.ids) else prefix

    other = max(rows, key=shared)
    return [longest, other]
