"""Softmax attention over the pieces of ``tree_pieces.py`` on a CPU.

A piece of few keys is computed by batched products, which keep its probabilities; any other by torch's CPU flash
kernel. Pieces of the same queries are joined by their log-sum-exp. The backward pass of a piece needs only the joined
output and log-sum-exp, because its probabilities are exp(score - log-sum-exp) whatever else the query sees
(arXiv:2205.14135, section 3.1).

Shapes: H heads, K key heads, L tokens of the batch, D the width of a head; Q queries and N keys of one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.model.compute.tree_pieces import AttentionPiece, TokenSpan, additive


def piece_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, pieces: Sequence[AttentionPiece]
) -> Tensor:
    """query [1,H,L,D], key and value [1,K,L,D] -> [1,L,H,D]; ``pieces`` in the order of ``pieces_of``."""
    return _PieceAttention.apply(query, key, value, scale, tuple(pieces))  # type: ignore[return-value]


class _PieceAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, pieces: tuple[AttentionPiece, ...]
    ) -> Tensor:
        heads = query.shape[1]
        queries, keys, values = query[0], _repeated(key, heads), _repeated(value, heads)  # [H,L,D] each
        upper = _upper(pieces, query)
        # 1. Each piece by itself: output [H,Q,D], log-sum-exp [H,Q,1] and probabilities [H,Q,N], where they are kept.
        made = [
            _softmax(queries[:, slice(*piece.queries)], _taken(keys, piece), _taken(values, piece), scale, piece, upper)
            for piece in pieces
        ]
        # 2. The causal pieces hold each query once, in the order of the line: their outputs side by side are the start.
        own = [part for piece, (part, _, _) in zip(pieces, made, strict=True) if piece.causal]
        out = torch.cat(own, 1)  # [H,L,D]
        sums = query.new_empty(heads, query.shape[2], 1, dtype=torch.promote_types(query.dtype, torch.float32))
        # 3. Join the other pieces to them: out = sum of part * exp(part_sum - joined), joined = log of the sum of exp.
        for piece, (part, part_sum, _) in zip(pieces, made, strict=True):
            if part_sum is None:  # no other piece has these queries
                continue
            at = slice(*piece.queries)
            if piece.causal:
                sums[:, at] = part_sum
                continue
            joined = torch.logaddexp(sums[:, at], part_sum)
            out[:, at].mul_((sums[:, at] - joined).exp_().to(part.dtype))
            out[:, at].addcmul_(part, (part_sum - joined).exp_().to(part.dtype))
            sums[:, at] = joined
        output = out.transpose(0, 1)[None].contiguous()  # [1,L,H,D]
        ctx.pieces, ctx.scale = pieces, scale
        ctx.save_for_backward(query, key, value, output, sums, *(kept for _, *pair in made for kept in pair))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, output, sums, *kept = ctx.saved_tensors
        heads, out, of_out = query.shape[1], output[0].transpose(0, 1), gradient[0].transpose(0, 1)  # [H,L,D]
        queries, keys, values = query[0], _repeated(key, heads), _repeated(value, heads)  # [H,L,D]
        upper = _upper(ctx.pieces, query)
        own: list[Tensor] = []  # gradients by the queries of the causal pieces, in the order of the line
        of_queries = None
        of_keys, of_values = (query.new_zeros(out.shape) for _ in range(2))  # [H,L,D]
        for piece, part_sum, shares in zip(ctx.pieces, kept[0::2], kept[1::2], strict=True):
            at = slice(*piece.queries)
            given = of_out[:, at], queries[:, at], _taken(keys, piece), _taken(values, piece)
            # 1. The gradients of the piece, from its share of the joined probabilities.
            if shares is None:
                of_query, *of_taken = _flash_backward(*given, out[:, at], sums[:, at], ctx.scale, piece, upper)
            elif piece.alone:
                of_query, *of_taken = _products_backward(*given, shares, None, ctx.scale)
            else:
                along = torch.linalg.vecdot(out[:, at], given[0]).unsqueeze(-1)  # [H,Q,1]
                shares = shares * (part_sum - sums[:, at]).exp_()
                of_query, *of_taken = _products_backward(*given, shares, along, ctx.scale)
            # 2. By the queries: side by side for the causal pieces, then the others are added to them.
            if piece.causal:
                own.append(of_query)
            else:
                of_queries = torch.cat(own, 1) if of_queries is None else of_queries
                of_queries[:, at] += of_query
            # 3. By the keys and values: added where they stand in the line.
            for total, part in zip((of_keys, of_values), of_taken, strict=True):
                _give_back(total, part, piece.keys)
        of_queries = torch.cat(own, 1) if of_queries is None else of_queries
        shared = key.shape[1]
        return of_queries[None], _summed(of_keys, shared), _summed(of_values, shared), None, None


def _repeated(shared: Tensor, heads: int) -> Tensor:
    """[1,K,L,D] as [H,L,D]: each key head once for every head that reads it. In memory it is [L,H,D]."""
    tokens = shared[0].transpose(0, 1)  # [L,K,D]
    if heads != tokens.shape[1]:
        tokens = tokens.repeat_interleave(heads // tokens.shape[1], 1)
    return tokens.transpose(0, 1)


def _summed(of_heads: Tensor, shared: int) -> Tensor:
    """[H,L,D] as [1,K,L,D]: the sum over the heads that read a key head."""
    if shared != len(of_heads):
        of_heads = of_heads.unflatten(0, (shared, -1)).sum(1)
    return of_heads[None]


def _taken(whole: Tensor, piece: AttentionPiece) -> Tensor:
    """The keys of a piece: [H,L,D] -> [H,N,D]."""
    if len(piece.keys) == 1:
        return whole[:, slice(*piece.keys[0])]
    return torch.cat([whole[:, slice(*span)] for span in piece.keys], 1)


def _give_back(total: Tensor, part: Tensor, spans: Sequence[TokenSpan]) -> None:
    """Adds a gradient by the keys of a piece [H,N,D] to the total [H,L,D] in place."""
    done = 0
    for start, end in spans:
        total[:, start:end] += part[:, done : done + end - start]
        done += end - start


def _is_small(piece: AttentionPiece, query: Tensor) -> bool:
    """Whether batched products compute a piece. bf16 and fp16 use the flash kernel, whose probabilities are fp32."""
    return piece.few and piece.mask is None and query.dtype in (torch.float32, torch.float64)


def _upper(pieces: Sequence[AttentionPiece], query: Tensor) -> Tensor | None:
    """One bias of which the bias of every causal piece of few keys is a part, [most own, most before + most own].

    It is zero for the keys before a segment, then minus infinity above the diagonal of the segment itself.
    """
    few = [piece for piece in pieces if piece.causal and piece.few]
    if not few:
        return None
    own = max(_size(piece.queries) for piece in few)
    before = max(piece.key_count - _size(piece.queries) for piece in few)
    return query.new_full((own, before + own), -torch.inf).triu_(before + 1)


def _size(span: TokenSpan) -> int:
    return span[1] - span[0]


def _bias(piece: AttentionPiece, upper: Tensor | None) -> Tensor | None:
    """What is added to the scores of a causal piece of few keys, [Q,N]: a view of ``upper``."""
    if not piece.causal or upper is None:
        return None
    own = _size(piece.queries)
    middle = upper.shape[1] - len(upper)  # the column where the diagonal begins
    return upper[:own, middle - (piece.key_count - own) : middle + own]


def _softmax(
    query: Tensor, key: Tensor, value: Tensor, scale: float, piece: AttentionPiece, upper: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """One piece: output [H,Q,D], log-sum-exp [H,Q,1] if needed, and its probabilities [H,Q,N] if kept.

    Args:
        query: [H,Q,D]; key and value are [H,N,D].
        upper: see ``_upper``.
    """
    if not _is_small(piece, query):
        return *_flash(query, key, value, scale, piece, upper), None
    bias = _bias(piece, upper)
    scores = torch.baddbmm(query.new_zeros(1) if bias is None else bias, query, key.transpose(1, 2), alpha=scale)
    shares = torch.softmax(scores, -1)  # [H,Q,N]
    # log-sum-exp = score - log(share), taken at the likeliest key, whose share is never small.
    part_sum = None if piece.alone else scores.amax(-1, keepdim=True) - shares.amax(-1, keepdim=True).log_()
    return torch.bmm(shares, value), part_sum, shares


def _products_backward(
    of_out: Tensor, query: Tensor, key: Tensor, value: Tensor, shares: Tensor, along: Tensor | None, scale: float
) -> tuple[Tensor, ...]:
    """Gradients of a piece of few keys by query [H,Q,D], key and value [H,N,D].

    Args:
        of_out: [H,Q,D], the gradient by the joined output.
        shares: [H,Q,N], the piece's part of the joined probabilities.
        along: [H,Q,1], the joined output times its gradient; None where the piece is alone.
    """
    of_shares = torch.bmm(of_out, value.transpose(1, 2))  # [H,Q,N]
    # The gradient of softmax: share * (of_share - sum over all keys of share * of_share), which sum is ``along``.
    if along is None:
        of_scores = torch.ops.aten._softmax_backward_data(of_shares, shares, -1, shares.dtype)
    else:
        of_scores = of_shares.sub_(along).mul_(shares)
    of_scores.mul_(scale)
    of_value = torch.bmm(shares.transpose(1, 2), of_out)
    return torch.bmm(of_scores, key), torch.bmm(of_scores.transpose(1, 2), query), of_value


def _flash(
    query: Tensor, key: Tensor, value: Tensor, scale: float, piece: AttentionPiece, upper: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One piece by torch's flash kernel: output [H,Q,D] and log-sum-exp [H,Q,1]."""
    causal, mask = _flash_mask(piece, upper, query.dtype)
    part, part_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query[None], key[None], value[None], 0.0, causal, attn_mask=mask, scale=scale
    )
    part, part_sum = part[0], part_sum[0].unsqueeze(-1)
    if piece.mask is not None:  # a query that sees nothing of a piece has no softmax there
        nothing = ~piece.mask.any(-1, keepdim=True)  # [Q,1]
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
    piece: AttentionPiece,
    upper: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of one piece by query, key and value, from the joined output [H,Q,D] and log-sum-exp [H,Q,1]."""
    causal, mask = _flash_mask(piece, upper, query.dtype)
    parts = (part[None] for part in (of_out, query, key, value, out, sums.squeeze(-1)))
    made = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *parts, 0.0, causal, attn_mask=mask, scale=scale
    )
    return tuple(part[0] for part in made)


def _flash_mask(piece: AttentionPiece, upper: Tensor | None, dtype: torch.dtype) -> tuple[bool, Tensor | None]:
    """Whether the flash kernel masks causally by itself, and what is added to the scores [Q,N]."""
    if piece.mask is not None:
        return False, additive(piece.mask, dtype)
    if piece.causal and piece.key_count > _size(piece.queries):
        return False, _bias(piece, upper)
    return piece.causal, None
