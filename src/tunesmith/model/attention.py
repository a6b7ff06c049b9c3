"""The attention of prefix-tree batches, put in through transformers' two interfaces, and the probe that admits a model.

Both interfaces are needed: under a name that AttentionMaskInterface does not know, transformers passes no mask at all.
The first gives a tree batch its pieces in place of a mask, one set for each kind of layer, so that a sliding window or
a chunk is measured by position; the second computes them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from tunesmith.data.layout import Batch, Padded, TokenRow, Tree, padded_batch, tree_batch

IMPLEMENTATION = "tunesmith"
TOLERANCE = 4.0  # times the same rows' own difference, alone against padded; and times the rounding of the dtype
ROUNDING = 1e-5  # relative: what fp32 leaves over 30 layers; a model that cannot share differs a thousand times more


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens ``queries`` (first, behind the last) see tokens ``keys``: all, those up to themselves, or as a mask says.

    ``mask`` is bool [queries, keys].
    """

    queries: tuple[int, int]
    keys: tuple[int, int]
    causal: bool
    mask: Tensor | None = None


def pieces_of(tree: Tree, position_ids: Tensor, sees: Callable[..., Any] = causal_mask_function) -> list[Piece]:
    """The attention of a tree batch of one line as rectangles: each segment sees itself, its descendants see it.

    Together they hold every pair (query, key) that counts and no other, so nothing is computed to be masked, unless a
    window cuts through a rectangle. The segments themselves come first, so that every query is met once by then.

    Args:
        tree: segments in depth-first order, so that a segment's descendants follow it directly.
        position_ids: [1, L].
        sees: transformers' mask function of a kind of layer, (batch, head, query, key) -> bool, over positions.
    """
    spans = _spans(tree)
    found = [_piece(start, end, start, end, position_ids, sees) for start, end, _ in spans]
    found += [_piece(end, last, start, end, position_ids, sees) for start, end, last in spans if last > end]
    return [piece for piece in found if piece is not None]


def _spans(tree: Tree) -> list[tuple[int, int, int]]:
    """Of each segment that has tokens: its first token, the one behind its last, the one behind its last descendant."""
    parents = tree.parent.tolist()
    sizes = torch.bincount(tree.segment[0], minlength=len(parents)).tolist()
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    last = list(range(1, len(parents) + 1))
    for number in reversed(range(len(parents))):
        if parents[number] >= 0:
            last[parents[number]] = max(last[parents[number]], last[number])
    return [(starts[n], starts[n + 1], starts[last[n]]) for n in range(len(parents)) if sizes[n]]


def _piece(first: int, last: int, start: int, end: int, position_ids: Tensor, sees: Callable[..., Any]) -> Piece | None:
    """Keys from start to end for queries from first to last; None where no query sees any of them."""
    causal = first == start
    if sees is causal_mask_function:
        return Piece((first, last), (start, end), causal)
    queries, keys = position_ids[0, first:last, None], position_ids[0, None, start:end]
    zero = torch.zeros((), dtype=torch.long, device=position_ids.device)
    allowed = sees(zero, zero, queries, keys).expand(last - first, end - start)
    if torch.equal(allowed, keys <= queries):
        return Piece((first, last), (start, end), causal)
    return Piece((first, last), (start, end), causal, allowed) if allowed.any() else None


def dense_mask(pieces: Sequence[Piece], length: int, device: torch.device) -> Tensor:
    """bool [1,1,L,L], for the cases that the pieces are not made for."""
    mask = torch.zeros(length, length, dtype=torch.bool, device=device)
    for piece in pieces:
        block = mask[slice(*piece.queries), slice(*piece.keys)]
        block.copy_(torch.ones_like(block) if piece.mask is None else piece.mask)
        if piece.causal:
            block.logical_and_(torch.ones_like(block).tril())
    return mask[None, None]


_laid_out: ContextVar[Batch | None] = ContextVar("laid_out", default=None)


@contextmanager
def laid_out(batch: Batch) -> Iterator[None]:
    """Inside, the masks that a model makes are those of this batch."""
    token = _laid_out.set(batch if isinstance(batch.attention, Tree) else None)
    try:
        yield
    finally:
        _laid_out.reset(token)


def install(model: PreTrainedModel) -> None:
    """Makes the model attend through this module. Call it before an adapter wraps the model."""
    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, _make_mask)
    model.set_attn_implementation(IMPLEMENTATION)


def _make_mask(*args: Any, **settings: Any) -> Tensor | None:
    """transformers asks once for each kind of layer. A tree's answer is an empty mask that carries its pieces.

    The answer goes through the model as any mask does, also into the second forward pass of gradient checkpointing.
    """
    batch = _laid_out.get()
    if batch is None:
        return sdpa_mask(*args, **settings)
    assert isinstance(batch.attention, Tree)
    length = batch.input_ids.shape[1]
    assert settings["q_length"] == settings["kv_length"] == length, "another batch than the one that is laid out"
    mask = torch.zeros(1, dtype=torch.bool, device=batch.input_ids.device).expand(1, 1, length, length)
    mask.pieces = pieces_of(batch.attention, batch.position_ids, settings["mask_function"])  # type: ignore[attr-defined]
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
    if pieces is not None:
        own = query.device.type == "cpu" and dropout == 0 and query.shape[-1] == value.shape[-1]
        if own and settings.get("position_bias") is None and not _beyond_sdpa(settings):
            return _PieceAttention.apply(query, key, value, scaling, pieces), None  # type: ignore[return-value]
        attention_mask = dense_mask(pieces, query.shape[2], query.device)
    if _beyond_sdpa(settings):
        if attention_mask is None:
            attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
            attention_mask = attention_mask.tril(key.shape[2] - query.shape[2])[None, None]
        eager = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
        # Not minus infinity: a query in the padding on the left sees nothing, and its softmax must stay finite.
        additive = _additive(attention_mask, query.dtype, torch.finfo(query.dtype).min)
        return eager(module, query, key, value, additive, dropout=dropout, scaling=scaling, **settings)[0], None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **settings)


def _beyond_sdpa(settings: dict[str, Any]) -> bool:
    """Soft-capped scores and attention sinks, which only the eager attention of a model's own file computes."""
    return settings.get("softcap") is not None or settings.get("s_aux") is not None


class _PieceAttention(torch.autograd.Function):
    """Softmax attention over pieces, each by torch's CPU kernel, joined by their log-sum-exp.

    The backward pass of a piece needs only the joined output and log-sum-exp, because its probabilities are
    exp(score - log-sum-exp) whatever else the query sees (arXiv:2205.14135, section 3.1).
    Heads that share a key head are a batch whose keys repeat without being copied.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, pieces: Sequence[Piece]
    ) -> Tensor:
        _, heads, length, size = query.shape
        output = query.new_empty(1, length, heads, size)
        shared = key.shape[1]
        queries, keys, values, out = _grouped(query, shared), _grouped(key, shared), _grouped(value, shared), None
        out = _grouped(output.transpose(1, 2), shared)
        precise = torch.promote_types(query.dtype, torch.float32)
        sums = query.new_empty(heads // shared, length, shared, dtype=precise).transpose(1, 2)
        for piece in pieces:
            at, of = slice(*piece.queries), slice(*piece.keys)
            part, part_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                queries[:, :, at],
                keys[:, :, of].expand(len(queries), -1, -1, -1),
                values[:, :, of].expand(len(queries), -1, -1, -1),
                0.0,
                piece.causal and piece.mask is None,
                attn_mask=None if piece.mask is None else _additive(piece.mask, query.dtype),
                scale=scaling,
            )
            if piece.mask is not None:  # a query that sees nothing of a piece has no softmax there
                nothing = ~piece.mask.any(-1)
                part_sum = part_sum.masked_fill(nothing, -torch.inf)
                part = part.masked_fill(nothing[:, None], 0.0)
            if piece.queries == piece.keys:
                out[:, :, at], sums[:, :, at] = part, part_sum
                continue
            joined = torch.logaddexp(sums[:, :, at], part_sum)
            out[:, :, at].mul_((sums[:, :, at] - joined).exp_().unsqueeze(-1).to(part.dtype))
            out[:, :, at].addcmul_(part, (part_sum - joined).exp_().unsqueeze(-1).to(part.dtype))
            sums[:, :, at] = joined
        ctx.pieces, ctx.scaling = pieces, scaling
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, output, sums = ctx.saved_tensors
        shared = key.shape[1]
        queries, keys, values = _grouped(query, shared), _grouped(key, shared), _grouped(value, shared)
        out, of_out = _grouped(output.transpose(1, 2), shared), _grouped(gradient.transpose(1, 2), shared)
        of_query, of_key, of_value = (torch.zeros_like(part) for part in (query, key, value))
        of_queries, of_keys, of_values = (_grouped(part, shared) for part in (of_query, of_key, of_value))
        for piece in ctx.pieces:
            at, of = slice(*piece.queries), slice(*piece.keys)
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                of_out[:, :, at],
                queries[:, :, at],
                keys[:, :, of].expand(len(queries), -1, -1, -1),
                values[:, :, of].expand(len(queries), -1, -1, -1),
                out[:, :, at],
                sums[:, :, at],
                0.0,
                piece.causal and piece.mask is None,
                attn_mask=None if piece.mask is None else _additive(piece.mask, query.dtype),
                scale=ctx.scaling,
            )
            of_queries[:, :, at] += parts[0]
            of_keys[:, :, of] += parts[1].sum(0, keepdim=True)
            of_values[:, :, of] += parts[2].sum(0, keepdim=True)
        return of_query, of_key, of_value, None, None


def _grouped(heads: Tensor, shared: int) -> Tensor:
    """[1,H,L,D] as [H/K,K,L,D], a view: the batch runs over the heads that share a key head."""
    return heads[0].unflatten(0, (shared, -1)).transpose(0, 1)


def _additive(allowed: Tensor, dtype: torch.dtype, refused: float = -torch.inf) -> Tensor:
    """0 where a bool mask allows, else ``refused``."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, refused)


def forward_arguments(batch: Batch) -> dict[str, Any]:
    """What a transformers model needs to compute a batch: ids, positions, and which tokens are none."""
    if isinstance(batch.attention, Padded):
        lengths = batch.attention.lengths[:, None]
        mask = (torch.arange(batch.input_ids.shape[1], device=lengths.device)[None] < lengths).long()
    else:
        mask = torch.ones_like(batch.input_ids)  # without one, transformers takes restarting positions for packed rows
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
            together = {"padded": padded_batch(pair, numbers), "tree": tree_batch(pair, numbers, least=1)}
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
