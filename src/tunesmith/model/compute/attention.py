"""The attention of prefix-tree batches, put in through transformers' two interfaces, and the probe that admits a model.

Both interfaces are needed: under a name that AttentionMaskInterface does not know, transformers passes no mask at all.
The first gives a tree batch its pieces in place of a mask, one set for each kind of layer, so that a sliding window or
a chunk is measured by position; the second computes them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from tunesmith.data.batches.layout import Batch, Padded, Tree
from tunesmith.model.compute import tree_attention_gpu
from tunesmith.model.compute.tree_attention_cpu import piece_attention
from tunesmith.model.compute.tree_pieces import Piece, additive, dense_mask, pieces_of

IMPLEMENTATION = "tunesmith"
BESIDE_EAGER = "tunesmith-eager"  # for models whose own attention is the one in their file, which may do more than sdpa


_laid_out: ContextVar[Batch | None] = ContextVar("laid_out", default=None)


@contextmanager
def laid_out(batch: Batch) -> Iterator[None]:
    """Inside, the masks that a model makes are those of this batch."""
    token = _laid_out.set(batch)
    try:
        yield
    finally:
        _laid_out.reset(token)


def batch_laid_out() -> Batch | None:
    """The batch that the model is computing."""
    return _laid_out.get()


def install(model: PreTrainedModel) -> None:
    """Makes the model attend through this module. Call it before an adapter wraps the model.

    What is not a tree is computed by what transformers would choose for the model: sdpa, or its file's own attention.
    """
    for name, attend, make_mask in (
        (IMPLEMENTATION, _attend, sdpa_mask),
        (BESIDE_EAGER, _attend_beside_eager, eager_mask),
    ):
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, partial(_make_mask, make_mask))
    model.set_attn_implementation(IMPLEMENTATION if model._supports_sdpa else BESIDE_EAGER)


def _make_mask(otherwise: Callable[..., Tensor | None], *args: Any, **settings: Any) -> Tensor | None:
    """transformers asks once for each kind of layer. A tree's answer is an empty mask that carries its pieces.

    The answer goes through the model as any mask does, also into the second forward pass of gradient checkpointing.
    """
    batch = _laid_out.get()
    if batch is None or not isinstance(batch.attention, Tree):
        return otherwise(*args, **settings)
    length = batch.input_ids.shape[1]
    assert settings["q_length"] == settings["kv_length"] == length, "another batch than the one that is laid out"
    mask = torch.zeros(1, dtype=torch.bool, device=batch.input_ids.device).expand(1, 1, length, length)
    mask.pieces = pieces_of(batch.attention, batch.position_ids, settings["mask_function"])  # type: ignore[attr-defined]
    if mask.device.type == "cuda":
        mask.blocks = tree_attention_gpu.block_mask(batch.attention, batch.position_ids, settings["mask_function"])  # type: ignore[attr-defined]
    return mask


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [B,H,L,D], key and value [B,K,L,D] -> [B,L,H,D]."""
    pieces: list[Piece] | None = getattr(attention_mask, "pieces", None)
    chosen: Tensor | None = settings.pop("indices", None)
    if chosen is not None and pieces is None:
        attention_mask = _only(attention_mask, chosen, key.shape[2])
    if pieces is not None:
        own = dropout == 0 and query.shape[-1] == value.shape[-1]
        if own and settings.get("position_bias") is None and not _beyond_sdpa(settings):
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            if query.device.type == "cpu":
                return piece_attention(query, key, value, scale, pieces), None
            blocks = getattr(attention_mask, "blocks", None)
            if blocks is not None and tree_attention_gpu.works(query.device, query.dtype, query.shape[-1]):
                return tree_attention_gpu.attend(query, key, value, blocks, scale), None
        attention_mask = dense_mask(pieces, query.shape[2], query.device)
    if _beyond_sdpa(settings):
        if attention_mask is None:
            attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
            attention_mask = attention_mask.tril(key.shape[2] - query.shape[2])[None, None]
        # Not minus infinity: a query in the padding on the left sees nothing, and its softmax must stay finite.
        if attention_mask.dtype == torch.bool:
            attention_mask = additive(attention_mask, query.dtype, torch.finfo(query.dtype).min)
        return _by_its_file(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **settings)
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **settings)


def _attend_beside_eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """A tree as ``_attend`` does, all else by the model's file."""
    if hasattr(attention_mask, "pieces"):
        return _attend(module, query, key, value, attention_mask, **settings)
    chosen: Tensor | None = settings.pop("indices", None)
    if chosen is not None:
        attention_mask = _only(attention_mask, chosen, key.shape[2])
    return _by_its_file(module, query, key, value, attention_mask, **settings)


def _by_its_file(module: nn.Module, *given: Any, **settings: Any) -> tuple[Tensor, None]:
    eager = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    return eager(module, *given, **settings)[0], None


def _only(mask: Tensor | None, indices: Tensor, keys: int) -> Tensor:
    """A mask that leaves each query the keys that its layer has chosen, indices [B,L,k].

    transformers leaves this to any attention that is not named eager or sdpa (DeepSeek's sparse attention).
    """
    assert mask is not None, "these layers ask for a mask always"
    chosen = torch.zeros(*indices.shape[:2], keys, dtype=torch.bool, device=indices.device)
    chosen = chosen.scatter_(-1, indices.long(), True)[:, None]
    return mask & chosen if mask.dtype == torch.bool else mask.masked_fill(~chosen, torch.finfo(mask.dtype).min)


def _beyond_sdpa(settings: dict[str, Any]) -> bool:
    """Soft-capped scores and attention sinks, which only the eager attention of a model's own file computes."""
    return settings.get("softcap") is not None or settings.get("s_aux") is not None


def forward_arguments(batch: Batch) -> dict[str, Any]:
    """What a transformers model needs to compute a batch: ids, which tokens are none, and a tree's positions.

    Those of padded rows are the model's own: they begin behind the padding index in RoBERTa's kin.
    """
    if isinstance(batch.attention, Padded):
        lengths = batch.attention.lengths[:, None]
        mask = (torch.arange(batch.input_ids.shape[1], device=lengths.device)[None] < lengths).long()
        return {"input_ids": batch.input_ids, "attention_mask": mask}
    mask = torch.ones_like(batch.input_ids)  # without one, transformers takes restarting positions for packed rows
    return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": mask}
