"""The attention of a tree batch as rectangles of the (query, key) square: together they hold every pair that counts.

Nothing is computed to be masked, but for the upper half of a segment with itself and where a window cuts through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from tunesmith.data.batches.layout import Tree

FEW_KEYS = 192  # up to here a segment is computed with all that it sees at once (docs/lab.md)
Span = tuple[int, int]  # tokens of the line: the first, and the one behind the last


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens ``queries`` see tokens ``keys``: all of them, or as ``mask`` says, bool [queries, keys].

    A ``causal`` piece is a segment with itself, which is the end of ``keys`` and of which each token sees only those
    up to itself; what stands before is seen whole. ``alone``: no other piece has these queries.
    """

    queries: Span
    keys: tuple[Span, ...]
    causal: bool
    alone: bool
    mask: Tensor | None = None

    @property
    def key_count(self) -> int:
        return sum(end - start for start, end in self.keys)

    @property
    def few(self) -> bool:
        return self.key_count <= FEW_KEYS


@dataclass(frozen=True, slots=True)
class _Segment:
    """``path``: where its ancestors and it stand, as few spans as can be; ``last``: behind its last descendant."""

    own: Span
    path: tuple[Span, ...]
    last: int


def pieces_of(tree: Tree, position_ids: Tensor, sees: Callable[..., Any] = causal_mask_function) -> list[Piece]:
    """The causal pieces in the order of the line, of which each token has one, and then the rest.

    A segment that sees few tokens is one piece with all of them. Any other is a piece with itself, and each of its
    ancestors one more, for all such descendants that stand side by side.

    Args:
        tree: segments in depth-first order, so that a segment's descendants follow it directly.
        position_ids: [1, L].
        sees: transformers' mask function of a kind of layer, (batch, head, query, key) -> bool, over positions.
    """
    segments = _segments(tree)
    whole = [_is_whole(segment, position_ids, sees) for segment in segments]
    parted = [segment for segment, is_whole in zip(segments, whole, strict=True) if not is_whole]
    rest = [
        piece
        for ancestor in segments
        for run in _runs([segment.own for segment in parted if ancestor.own[1] <= segment.own[0] < ancestor.last])
        if (piece := _rectangle(run, ancestor.own, position_ids, sees)) is not None
    ]
    joined = [piece.queries for piece in rest]
    causal = []
    for segment, is_whole in zip(segments, whole, strict=True):
        if is_whole:
            causal.append(Piece(segment.own, segment.path, causal=True, alone=True))
        else:
            alone = not any(first <= segment.own[0] < last for first, last in joined)
            mask = _mask(segment.own, (segment.own,), position_ids, sees)
            causal.append(Piece(segment.own, (segment.own,), causal=True, alone=alone, mask=mask))
    return causal + rest


def _segments(tree: Tree) -> list[_Segment]:
    parents = tree.parent.tolist()
    sizes = torch.bincount(tree.segment[0], minlength=len(parents)).tolist()
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    last = list(range(1, len(parents) + 1))
    for number in reversed(range(len(parents))):
        if parents[number] >= 0:
            last[parents[number]] = max(last[parents[number]], last[number])
    paths: list[tuple[Span, ...]] = []
    for number, parent in enumerate(parents):
        before = paths[parent] if parent >= 0 else ()
        paths.append(tuple(_runs([*before, (starts[number], starts[number + 1])])))
    return [
        _Segment((starts[number], starts[number + 1]), paths[number], starts[last[number]])
        for number in range(len(parents))
        if sizes[number]
    ]


def _runs(spans: Sequence[Span]) -> Iterator[Span]:
    """Spans that follow one another directly as one."""
    begin = reached = None
    for start, end in spans:
        if start != reached:
            if begin is not None and reached is not None:
                yield begin, reached
            begin = start
        reached = end
    if begin is not None and reached is not None:
        yield begin, reached


def _is_whole(segment: _Segment, position_ids: Tensor, sees: Callable[..., Any]) -> bool:
    if sum(end - start for start, end in segment.path) > FEW_KEYS:
        return False
    return _mask(segment.own, segment.path, position_ids, sees) is None


def _rectangle(queries: Span, keys: Span, position_ids: Tensor, sees: Callable[..., Any]) -> Piece | None:
    """None where no query sees any of the keys."""
    mask = _mask(queries, (keys,), position_ids, sees)
    if mask is not None and not mask.any():
        return None
    return Piece(queries, (keys,), causal=False, alone=False, mask=mask)


def _mask(queries: Span, keys: Sequence[Span], position_ids: Tensor, sees: Callable[..., Any]) -> Tensor | None:
    """bool [queries, keys], or None where a query sees all keys up to its own position."""
    if sees is causal_mask_function:
        return None
    asking = position_ids[0, slice(*queries), None]
    asked = torch.cat([position_ids[0, slice(*span)] for span in keys])[None]
    zero = torch.zeros((), dtype=torch.long, device=position_ids.device)
    allowed = sees(zero, zero, asking, asked).expand(len(asking), asked.shape[1])
    return None if torch.equal(allowed, asked <= asking) else allowed


def dense_mask(pieces: Sequence[Piece], length: int, device: torch.device) -> Tensor:
    """bool [1,1,L,L], for the cases that the pieces are not made for."""
    mask = torch.zeros(length, length, dtype=torch.bool, device=device)
    for piece in pieces:
        places = torch.cat([torch.arange(*span, device=device) for span in piece.keys])
        queries = torch.arange(*piece.queries, device=device)[:, None]
        allowed = places <= queries if piece.causal else torch.ones_like(places <= queries)
        mask[queries, places] = allowed if piece.mask is None else allowed & piece.mask
    return mask[None, None]


def additive(allowed: Tensor, dtype: torch.dtype, refused: float = -torch.inf) -> Tensor:
    """0 where a bool mask allows, else ``refused``."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, refused)
