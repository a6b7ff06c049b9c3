"""The attention of a tree batch as rectangles of the (query, key) square: which there are, and their softmax on a CPU.

Nothing is computed to be masked, but for the upper half of a segment with itself and where a window cuts through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.masking_utils import causal_mask_function

from tunesmith.data.layout import Tree

FEW_KEYS = 192  # up to here batched products beat the flash kernel, and what they keep is small (docs/lab.md)


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


def additive(allowed: Tensor, dtype: torch.dtype, refused: float = -torch.inf) -> Tensor:
    """0 where a bool mask allows, else ``refused``."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, refused)


def piece_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, pieces: Sequence[Piece]) -> Tensor:
    """Softmax attention over pieces on a CPU: query [1,H,L,D], key and value [1,K,L,D] -> [1,L,H,D].

    Args:
        scale: of the scores.
        pieces: every segment with itself first, in the order of the line, then the others.
    """
    return _PieceAttention.apply(query, key, value, scale, tuple(pieces))  # type: ignore[return-value]


class _PieceAttention(torch.autograd.Function):
    """Pieces joined by their log-sum-exp.

    The backward pass of a piece needs only the joined output and log-sum-exp, because its probabilities are
    exp(score - log-sum-exp) whatever else the query sees (arXiv:2205.14135, section 3.1).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, pieces: tuple[Piece, ...]) -> Tensor:
        _, heads, length, size = query.shape
        queries, keys, values = query[0], _repeated(key, heads), _repeated(value, heads)
        output = query.new_empty(1, length, heads, size)
        out = output[0].transpose(0, 1)
        joins = any(piece.queries != piece.keys for piece in pieces)
        sums = query.new_empty(heads, length, 1, dtype=torch.promote_types(query.dtype, torch.float32))
        upper = _upper(pieces, query)
        kept: list[Tensor | None] = []
        by_query, by_key = [piece.queries for piece in pieces], [piece.keys for piece in pieces]
        parts = _cut(queries, by_query), _cut(keys, by_key), _cut(values, by_key)
        for piece, asking, asked, taken, into, before in zip(
            pieces, *parts, _cut(out, by_query), _cut(sums, by_query), strict=True
        ):
            if _is_small(piece, query):
                bias = upper if piece.causal else None
                part, part_sum, shares = _small(asking, asked, taken, scale, bias, with_sum=joins)
                kept += [shares, part_sum]
            else:
                part, part_sum = _flash(asking, asked, taken, scale, piece)
            if piece.queries == piece.keys:
                into.copy_(part)
                if part_sum is not None:
                    before.copy_(part_sum)
                continue
            assert part_sum is not None
            joined = torch.logaddexp(before, part_sum)
            into.mul_(before.sub_(joined).exp_().to(part.dtype))
            into.addcmul_(part, part_sum.sub(joined).exp_().to(part.dtype))
            before.copy_(joined)
        ctx.pieces, ctx.scale, ctx.joins = pieces, scale, joins
        ctx.save_for_backward(query, key, value, output, sums, *kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, output, sums, *saved = ctx.saved_tensors
        heads, kept = query.shape[1], iter(saved)
        queries, keys, values = query[0], _repeated(key, heads), _repeated(value, heads)
        out, of_out = output[0].transpose(0, 1), gradient[0].transpose(0, 1)
        along = torch.linalg.vecdot(out, of_out).unsqueeze(-1) if ctx.joins else None
        of_queries, of_keys, of_values = (torch.zeros_like(output[0]).transpose(0, 1) for _ in range(3))
        by_query, by_key = [piece.queries for piece in ctx.pieces], [piece.keys for piece in ctx.pieces]
        parts = [_cut(part, by_query) for part in (queries, of_out, of_queries)]
        parts += [_cut(part, by_key) for part in (keys, values, of_keys, of_values)]
        for piece, asking, of_part, of_asking, asked, taken, of_asked, of_taken in zip(ctx.pieces, *parts, strict=True):
            at = slice(*piece.queries)
            if not _is_small(piece, query):
                given = (of_part, asking, asked, taken, out[:, at], sums[:, at])
                for total, part in zip(
                    (of_asking, of_asked, of_taken), _flash_backward(*given, ctx.scale, piece), strict=True
                ):
                    total += part
                continue
            shares, part_sum = next(kept), next(kept)
            of_shares = torch.bmm(of_part, taken.transpose(1, 2))
            if along is None:
                of_scores = torch.ops.aten._softmax_backward_data(of_shares, shares, -1, shares.dtype)
            else:
                shares = shares * (part_sum - sums[:, at]).exp_()
                of_scores = of_shares.sub_(along[:, at]).mul_(shares)
            of_taken.baddbmm_(shares.transpose(1, 2), of_part)
            of_asking.baddbmm_(of_scores, asked, alpha=ctx.scale)
            of_asked.baddbmm_(of_scores.transpose(1, 2), asking, alpha=ctx.scale)
        shared = key.shape[1]
        return of_queries[None], _summed(of_keys, shared), _summed(of_values, shared), None, None


def _cut(heads: Tensor, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Views [H,n,...] of a tensor [H,L,...], one a span; the segments, which follow one another, in one call."""
    sizes = []
    for start, end in spans:
        if start != sum(sizes):
            break
        sizes.append(end - start)
    count = len(sizes)
    return [*heads[:, : sum(sizes)].split(sizes, 1), *(heads[:, start:end] for start, end in spans[count:])]


def _repeated(shared: Tensor, heads: int) -> Tensor:
    """[1,K,L,D] as [H,L,D]: each key head once for every head that reads it, tokens in the outer order of memory."""
    tokens = shared[0].transpose(0, 1)
    if heads != tokens.shape[1]:
        tokens = tokens.repeat_interleave(heads // tokens.shape[1], 1)
    return tokens.transpose(0, 1)


def _summed(of_heads: Tensor, shared: int) -> Tensor:
    """[H,L,D] as [1,K,L,D]: the sum over the heads that read a key head."""
    tokens = of_heads.transpose(0, 1)
    if shared != tokens.shape[1]:
        tokens = tokens.unflatten(1, (shared, -1)).sum(2)
    return tokens.transpose(0, 1)[None]


def _is_small(piece: Piece, query: Tensor) -> bool:
    """Lower precision keeps to the flash kernel, which holds its probabilities in fp32."""
    few = piece.keys[1] - piece.keys[0] <= FEW_KEYS
    return few and piece.mask is None and query.dtype in (torch.float32, torch.float64)


def _upper(pieces: Sequence[Piece], query: Tensor) -> Tensor | None:
    """Minus infinity above the diagonal, for the longest causal piece of few keys; any other takes its corner."""
    sizes = [piece.keys[1] - piece.keys[0] for piece in pieces if piece.causal and _is_small(piece, query)]
    return query.new_full((max(sizes), max(sizes)), -torch.inf).triu_(1) if sizes else None


def _small(
    query: Tensor, key: Tensor, value: Tensor, scale: float, upper: Tensor | None, *, with_sum: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Output [H,Q,D], log-sum-exp [H,Q,1] where it is asked for, and the probabilities [H,Q,K]."""
    bias = query.new_zeros(1) if upper is None else upper[: query.shape[1], : key.shape[1]]
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale)
    shares = torch.softmax(scores, -1)
    # By way of the likeliest key, whose share is never small.
    part_sum = scores.amax(-1, keepdim=True) - shares.amax(-1, keepdim=True).log_() if with_sum else None
    return torch.bmm(shares, value), part_sum, shares


def _flash(query: Tensor, key: Tensor, value: Tensor, scale: float, piece: Piece) -> tuple[Tensor, Tensor]:
    """Output [H,Q,D] and log-sum-exp [H,Q,1]."""
    part, part_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query[None],
        key[None],
        value[None],
        0.0,
        piece.causal and piece.mask is None,
        **_flash_settings(query, scale, piece),
    )
    part, part_sum = part[0], part_sum[0].unsqueeze(-1)
    if piece.mask is not None:  # a query that sees nothing of a piece has no softmax there
        nothing = ~piece.mask.any(-1, keepdim=True)
        part_sum, part = part_sum.masked_fill(nothing, -torch.inf), part.masked_fill(nothing, 0.0)
    return part, part_sum


def _flash_backward(
    of_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    sums: Tensor,
    scale: float,
    piece: Piece,
) -> tuple[Tensor, ...]:
    """Gradients by query, key and value of one piece, given the joined output and log-sum-exp."""
    parts = (part[None] for part in (of_out, query, key, value, out, sums.squeeze(-1)))
    made = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *parts, 0.0, piece.causal and piece.mask is None, **_flash_settings(query, scale, piece)
    )
    return tuple(part[0] for part in made)


def _flash_settings(query: Tensor, scale: float, piece: Piece) -> dict[str, Any]:
    return {"attn_mask": None if piece.mask is None else additive(piece.mask, query.dtype), "scale": scale}
