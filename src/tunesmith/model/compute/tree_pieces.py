"""The attention of a tree batch as pieces: rectangles of the (query, key) square that hold every pair that counts.

Nothing is computed only to be masked, except the upper half of a segment with itself and what a window cuts off.
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
TokenSpan = tuple[int, int]  # the first token in the line of the batch, and the one behind the last


@dataclass(frozen=True, slots=True)
class AttentionPiece:
    """The tokens ``queries`` see the tokens ``keys``: all of them, or those that ``mask`` allows, bool [queries, keys].

    In a ``causal`` piece the queries are one segment and also the last of the keys. Of its own segment a token sees
    only what comes before it and itself; it sees all keys before the segment. ``alone``: no other piece has these
    queries.
    """

    queries: TokenSpan
    keys: tuple[TokenSpan, ...]
    causal: bool
    alone: bool
    mask: Tensor | None = None

    @property
    def key_count(self) -> int:
        """Tokens in ``keys``."""
        return sum(end - start for start, end in self.keys)

    @property
    def few(self) -> bool:
        """Whether the keys are so few that batched products are faster than the flash kernel."""
        return self.key_count <= FEW_KEYS


@dataclass(frozen=True, slots=True)
class _Segment:
    """``path``: the segment and its ancestors in as few spans as can be; ``end``: the token behind its descendants."""

    own: TokenSpan
    path: tuple[TokenSpan, ...]
    end: int


def pieces_of(
    tree: Tree, position_ids: Tensor, sees: Callable[..., Any] = causal_mask_function
) -> list[AttentionPiece]:
    """The causal pieces in the order of the line, one for each token, and then the other pieces.

    A segment that sees few tokens is one piece with all of them. Any other segment is a piece with itself. Each of its
    ancestors is one more piece, together with all such descendants that stand side by side.

    Args:
        tree: segments in depth-first order, so that a segment's descendants follow it directly.
        position_ids: [1, L].
        sees: transformers' mask function of a kind of layer, (batch, head, query, key) -> bool, over positions.
    """
    segments = _segments(tree)
    # 1. Which segments are one piece, and which are parted.
    whole = [_is_whole(segment, position_ids, sees) for segment in segments]
    parted = [segment for segment, is_whole in zip(segments, whole, strict=True) if not is_whole]
    # 2. Each ancestor with its parted descendants, unless no query sees any of the keys.
    rest = [
        piece
        for ancestor in segments
        for run in _runs([segment.own for segment in parted if ancestor.own[1] <= segment.own[0] < ancestor.end])
        if (piece := _rectangle(run, ancestor.own, position_ids, sees)) is not None
    ]
    # 3. Each segment with its whole path or with itself alone.
    joined = [piece.queries for piece in rest]
    causal = []
    for segment, is_whole in zip(segments, whole, strict=True):
        if is_whole:
            causal.append(AttentionPiece(segment.own, segment.path, causal=True, alone=True))
        else:
            alone = not any(first <= segment.own[0] < last for first, last in joined)
            mask = _mask(segment.own, (segment.own,), position_ids, sees)
            causal.append(AttentionPiece(segment.own, (segment.own,), causal=True, alone=alone, mask=mask))
    return causal + rest


def _segments(tree: Tree) -> list[_Segment]:
    """The segments that have tokens, in the order of the line."""
    parents = tree.parent.tolist()
    # 1. Segment k holds the tokens from starts[k] to starts[k + 1].
    sizes = torch.bincount(tree.segment[0], minlength=len(parents)).tolist()
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    # 2. last[k]: the segment behind the last descendant of k. Children come before their parent in this loop.
    last = list(range(1, len(parents) + 1))
    for number in reversed(range(len(parents))):
        if parents[number] >= 0:
            last[parents[number]] = max(last[parents[number]], last[number])
    # 3. The path of a segment is its parent's and itself.
    paths: list[tuple[TokenSpan, ...]] = []
    for number, parent in enumerate(parents):
        before = paths[parent] if parent >= 0 else ()
        paths.append(tuple(_runs([*before, (starts[number], starts[number + 1])])))
    return [
        _Segment((starts[number], starts[number + 1]), paths[number], starts[last[number]])
        for number in range(len(parents))
        if sizes[number]
    ]


def _runs(spans: Sequence[TokenSpan]) -> Iterator[TokenSpan]:
    """The spans, joined where one begins at the end of the one before."""
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
    """Whether a segment and its ancestors are few tokens, all of which the kind of layer lets it see."""
    if sum(end - start for start, end in segment.path) > FEW_KEYS:
        return False
    return _mask(segment.own, segment.path, position_ids, sees) is None


def _rectangle(
    queries: TokenSpan, keys: TokenSpan, position_ids: Tensor, sees: Callable[..., Any]
) -> AttentionPiece | None:
    """The piece of these queries and keys; None where no query sees any of the keys."""
    mask = _mask(queries, (keys,), position_ids, sees)
    if mask is not None and not mask.any():
        return None
    return AttentionPiece(queries, (keys,), causal=False, alone=False, mask=mask)


def _mask(
    queries: TokenSpan, keys: Sequence[TokenSpan], position_ids: Tensor, sees: Callable[..., Any]
) -> Tensor | None:
    """What a kind of layer allows, bool [queries, keys]; None where a query sees all keys up to its own position."""
    if sees is causal_mask_function:
        return None
    asking = position_ids[0, slice(*queries), None]  # [queries, 1]
    asked = torch.cat([position_ids[0, slice(*span)] for span in keys])[None]  # [1, keys]
    zero = torch.zeros((), dtype=torch.long, device=position_ids.device)
    allowed = sees(zero, zero, asking, asked).expand(len(asking), asked.shape[1])
    return None if torch.equal(allowed, asked <= asking) else allowed


def dense_mask(pieces: Sequence[AttentionPiece], length: int, device: torch.device) -> Tensor:
    """The pieces as one mask, bool [1,1,L,L], for attention that cannot take pieces."""
    mask = torch.zeros(length, length, dtype=torch.bool, device=device)
    for piece in pieces:
        keys = torch.cat([torch.arange(*span, device=device) for span in piece.keys])  # [keys]
        queries = torch.arange(*piece.queries, device=device)[:, None]  # [queries, 1]
        allowed = keys <= queries if piece.causal else torch.ones_like(keys <= queries)  # [queries, keys]
        mask[queries, keys] = allowed if piece.mask is None else allowed & piece.mask
    return mask[None, None]


def additive(allowed: Tensor, dtype: torch.dtype, refused: float = -torch.inf) -> Tensor:
    """A bool mask as numbers to add to scores: 0 where it allows, else ``refused``."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, refused)
