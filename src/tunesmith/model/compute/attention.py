"""The attention of prefix-tree batches, registered through transformers' two interfaces.

Both interfaces are needed: for a name that AttentionMaskInterface does not know, transformers passes no mask at all.
The mask function is asked once for each kind of layer. For a tree its answer carries the pieces to compute, so that a
sliding window or a chunk is measured by position. The attention function then computes these pieces.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from tunesmith.data.batches.layout import Batch, Padded, Tree
from tunesmith.model.compute import tree_attention_gpu
from tunesmith.model.compute.slots import SlotMask, pass_under_way, slot_attention
from tunesmith.model.compute.tree_attention_cpu import piece_attention
from tunesmith.model.compute.tree_pieces import AttentionPiece, additive, dense_mask, pieces_of

IMPLEMENTATION = "tunesmith"
BESIDE_EAGER = "tunesmith-eager"  # for models whose own eager attention may do more than sdpa does

_laid_out: ContextVar[Batch | None] = ContextVar("laid_out", default=None)


@contextmanager
def laid_out(batch: Batch) -> Iterator[None]:
    """Inside, the model computes this batch: attention masks are those of its layout."""
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

    Other batches than trees are computed as transformers would: by sdpa, or by the eager attention in the model's file.
    """
    for name, attend, make_mask in (
        (IMPLEMENTATION, _attend, sdpa_mask),
        (BESIDE_EAGER, _attend_beside_eager, eager_mask),
    ):
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, partial(_make_mask, make_mask))
    model.set_attn_implementation(IMPLEMENTATION if model._supports_sdpa else BESIDE_EAGER)


@dataclass(frozen=True, slots=True)
class _TreeMask:
    """What a tree batch computes in one kind of layer: its pieces, and on a GPU the blocks of flex_attention."""

    pieces: list[AttentionPiece]
    blocks: BlockMask | None


def _make_mask(otherwise: Callable[..., Tensor | None], *args: Any, **settings: Any) -> Tensor | None:
    """transformers' mask function. For a tree it gives an empty mask [1,1,L,L] that carries a ``_TreeMask``.

    The model hands the mask on like any other, also into the second forward pass of gradient checkpointing. For a pass
    over a cache of slots it carries a ``SlotMask``.
    """
    fed = pass_under_way()
    if fed is not None:
        mask = torch.zeros(1, dtype=torch.bool, device=fed.device).expand(1, 1, *[fed.input_ids.shape[1]] * 2)
        mask.slots = fed.mask(settings["mask_function"])  # type: ignore[attr-defined]
        return mask
    batch = _laid_out.get()
    if batch is None or not isinstance(batch.attention, Tree):
        return otherwise(*args, **settings)
    length = batch.input_ids.shape[1]
    assert settings["q_length"] == settings["kv_length"] == length, "the model computes another batch than is laid out"
    mask = torch.zeros(1, dtype=torch.bool, device=batch.input_ids.device).expand(1, 1, length, length)  # one byte
    described = (batch.attention, batch.position_ids, settings["mask_function"])
    blocks = tree_attention_gpu.block_mask(*described) if mask.device.type == "cuda" else None
    mask.tree = _TreeMask(pieces_of(*described), blocks)  # type: ignore[attr-defined]
    return mask


def _tree_of(mask: Tensor | None) -> _TreeMask | None:
    return getattr(mask, "tree", None)


def _slots_of(mask: Tensor | None) -> SlotMask | None:
    return getattr(mask, "slots", None)


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
    slots = _slots_of(attention_mask)
    if slots is not None:
        if dropout or settings.get("position_bias") is not None or _beyond_sdpa(settings):
            raise ValueError("a layer asks for more than softmax attention")
        return slot_attention(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling, slots), None
    tree = _tree_of(attention_mask)
    chosen: Tensor | None = settings.pop("indices", None)  # [B,L,k]
    if tree is not None:
        # 1. A tree piece by piece on a CPU, by flex_attention on a GPU, where the layer asks for nothing special.
        plain = dropout == 0 and query.shape[-1] == value.shape[-1]
        if plain and settings.get("position_bias") is None and not _beyond_sdpa(settings):
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            if query.device.type == "cpu":
                return piece_attention(query, key, value, scale, tree.pieces), None
            if tree.blocks is not None and tree_attention_gpu.works(query.device, query.dtype, query.shape[-1]):
                return tree_attention_gpu.attend(query, key, value, tree.blocks, scale), None
        # 2. Any other tree through a dense mask.
        attention_mask = dense_mask(tree.pieces, query.shape[2], query.device)  # [1,1,L,L]
    elif chosen is not None:
        attention_mask = _only(attention_mask, chosen, key.shape[2])
    # 3. A dense mask, or none, by the model's file or by sdpa.
    if not _beyond_sdpa(settings):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **settings)
    if attention_mask is None:  # causal, the last query at the last key
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        attention_mask = attention_mask.tril(key.shape[2] - query.shape[2])[None, None]
    if attention_mask.dtype == torch.bool:
        # Not minus infinity: a query in the padding on the left sees nothing, and its softmax must stay finite.
        attention_mask = additive(attention_mask, query.dtype, torch.finfo(query.dtype).min)
    return _by_its_file(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **settings)


def _attend_beside_eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """A tree as ``_attend`` computes it, all else by the model's file."""
    if _tree_of(attention_mask) is not None or _slots_of(attention_mask) is not None:
        return _attend(module, query, key, value, attention_mask, **settings)
    chosen: Tensor | None = settings.pop("indices", None)
    if chosen is not None:
        attention_mask = _only(attention_mask, chosen, key.shape[2])
    return _by_its_file(module, query, key, value, attention_mask, **settings)


def _by_its_file(module: nn.Module, *given: Any, **settings: Any) -> tuple[Tensor, None]:
    """The eager attention of the file that defines the model, -> [B,L,H,D]."""
    eager = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    return eager(module, *given, **settings)[0], None


def _only(mask: Tensor | None, indices: Tensor, keys: int) -> Tensor:
    """The mask [B,1,L,keys] without the keys that a layer has not chosen; indices [B,L,k].

    DeepSeek's sparse attention chooses keys. transformers does this itself only for attention named eager or sdpa.
    """
    assert mask is not None, "layers that choose keys always make a mask"
    chosen = torch.zeros(*indices.shape[:2], keys, dtype=torch.bool, device=indices.device)  # [B,L,keys]
    chosen = chosen.scatter_(-1, indices.long(), True)[:, None]  # [B,1,L,keys]
    return mask & chosen if mask.dtype == torch.bool else mask.masked_fill(~chosen, torch.finfo(mask.dtype).min)


def _beyond_sdpa(settings: dict[str, Any]) -> bool:
    """Whether scores are soft-capped or a layer has attention sinks, which only the model's own file computes."""
    return settings.get("softcap") is not None or settings.get("s_aux") is not None


def forward_arguments(batch: Batch) -> dict[str, Any]:
    """What a transformers model needs to compute a batch: ids, the padding mask, and the positions of a tree.

    A model makes the positions of padded rows itself: in RoBERTa and its kin they begin behind the padding index.
    """
    if isinstance(batch.attention, Padded):
        lengths = batch.attention.lengths[:, None]  # [B,1]
        mask = (torch.arange(batch.input_ids.shape[1], device=lengths.device)[None] < lengths).long()  # [B,L]
        return {"input_ids": batch.input_ids, "attention_mask": mask}
    mask = torch.ones_like(batch.input_ids)  # without one, transformers takes positions that restart for packed rows
    return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": mask}
