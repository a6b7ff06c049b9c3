"""Encoded rows -> batches: a prefix tree, where what rows have in common is computed once, or padded rows.

The rows of one optimizer step may be regrouped freely, because the step's loss is a sum over their labels. In a causal
model the hidden state of a prefix does not depend on what follows, so a prefix that rows share is laid out once.

With dropout, rows share the mask on the tokens that they share. Each row's own distribution is what it would be alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

LayoutName = Literal["tree", "padded"]


class TokenRow(Protocol):
    """What a layout needs of a row: ids int32[n], supervised bool[n] (position t is a label)."""

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def supervised(self) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Tree:
    """segment [B,L]: each token's segment; parent [S]: each segment's parent, -1 for a root, always an earlier one."""

    parent: Tensor
    segment: Tensor


@dataclass(frozen=True, slots=True)
class Padded:
    """lengths [B]: tokens of each row before its padding, which stands on the right."""

    lengths: Tensor


@dataclass(frozen=True, slots=True)
class Edges:
    """One entry a (row, supervised token) [E]: which row, which kept logit predicts it, its id, its weight."""

    row: Tensor
    logit: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass: input_ids and position_ids [B,L], predicts bool [B,L] (whose logits are needed).

    ``edges.logit`` counts the True positions of ``predicts`` in row-major order; ``edges.row`` counts the rows that
    were handed to the layout, so per-row sums stay available. ``tokens`` is what the rows hold, padding and sharing
    aside; ``input_ids.numel()`` is what is computed.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention: Tree | Padded
    predicts: Tensor
    edges: Edges
    tokens: int

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        if torch.device(device) == self.input_ids.device:
            return self
        parts = {name: getattr(self, name).to(device) for name in ("input_ids", "position_ids", "predicts")}
        attention: Tree | Padded
        if isinstance(self.attention, Tree):
            attention = Tree(self.attention.parent.to(device), self.attention.segment.to(device))
        else:
            attention = Padded(self.attention.lengths.to(device))
        edges = Edges(*(getattr(self.edges, name).to(device) for name in Edges.__slots__))
        return replace(self, **parts, attention=attention, edges=edges)

    @property
    def computed(self) -> int:
        """Tokens that go through the model, padding among them."""
        return self.input_ids.numel()

    @property
    def supervised(self) -> int:
        """Labels, each row's own: a token shared by k rows counts k times."""
        return self.edges.target.numel()


def micro_batches(rows: Sequence[TokenRow], *, budget: int, layout: LayoutName) -> list[Batch]:
    """Groups the rows of one optimizer step under a token budget and lays each group out.

    A row longer than the budget gets a batch of its own. The result depends on the rows alone, in their order.
    """
    groups = _tree_groups(rows, budget) if layout == "tree" else _padded_groups(rows, budget)
    lay_out = tree_batch if layout == "tree" else padded_batch
    return [lay_out(rows, group) for group in groups]


def _tree_groups(rows: Sequence[TokenRow], budget: int) -> list[list[int]]:
    """Neighbours in dictionary order share the most; a group's common prefix is that of its first and last row."""
    order = sorted(range(len(rows)), key=lambda number: rows[number].ids.astype(">i4").tobytes())
    groups: list[list[int]] = []
    total = 0
    for number in order:
        if groups:
            group = groups[-1]
            prefix = _common_prefix(rows[group[0]].ids, rows[number].ids)
            grown = total + len(rows[number].ids)
            if grown - len(group) * prefix <= budget:  # every row but one does without the prefix
                group.append(number)
                total = grown
                continue
        groups.append([number])
        total = len(rows[number].ids)
    return groups


def _padded_groups(rows: Sequence[TokenRow], budget: int) -> list[list[int]]:
    order = sorted(range(len(rows)), key=lambda number: (len(rows[number].ids), number))
    groups: list[list[int]] = []
    for number in order:  # ascending, so the newest row is the longest of its group
        if groups and len(rows[number].ids) * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    limit = min(len(one), len(other))
    differs = one[:limit] != other[:limit]
    return int(differs.argmax()) if differs.any() else limit


def tree_batch(rows: Sequence[TokenRow], group: Sequence[int]) -> Batch:
    """A one-level prefix tree in one line of tokens: the common prefix, then what each row adds to it.

    Without a common prefix the rows stand side by side, each seeing only itself.
    """
    ids = [rows[number].ids for number in group]
    shared = len(ids[0])
    for other in ids[1:]:
        shared = min(shared, _common_prefix(ids[0], other))
    suffixes = [row[shared:] for row in ids]
    starts = shared + np.cumsum([0, *(len(suffix) for suffix in suffixes)])
    positions = [np.arange(shared), *(np.arange(shared, len(row)) for row in ids)]
    segments = np.repeat(np.arange(len(ids) + 1), [shared, *(len(suffix) for suffix in suffixes)])
    # Where each row's token t stands in the line: in the prefix, or behind its own start.
    places = [
        np.concatenate([np.arange(shared), start + np.arange(len(row) - shared)])
        for row, start in zip(ids, starts, strict=False)
    ]
    parent = np.full(len(ids) + 1, 0 if shared else -1)
    parent[0] = -1
    return _batch(
        rows,
        group,
        input_ids=np.concatenate([ids[0][:shared], *suffixes])[None],
        position_ids=np.concatenate(positions)[None],
        places=places,
        attention=Tree(torch.from_numpy(parent), torch.from_numpy(segments[None].astype(np.int64))),
    )


def padded_batch(rows: Sequence[TokenRow], group: Sequence[int]) -> Batch:
    """One row a line, padded on the right with id 0, which no label and no attention sees."""
    ids = [rows[number].ids for number in group]
    length = max(len(row) for row in ids)
    input_ids = np.zeros((len(ids), length), dtype=np.int64)
    for line, row in enumerate(ids):
        input_ids[line, : len(row)] = row
    return _batch(
        rows,
        group,
        input_ids=input_ids,
        position_ids=np.tile(np.arange(length), (len(ids), 1)),
        places=[line * length + np.arange(len(row)) for line, row in enumerate(ids)],
        attention=Padded(torch.tensor([len(row) for row in ids])),
    )


def _batch(
    rows: Sequence[TokenRow],
    group: Sequence[int],
    *,
    input_ids: np.ndarray,
    position_ids: np.ndarray,
    places: Sequence[np.ndarray],
    attention: Tree | Padded,
) -> Batch:
    """Edges: the label at t is predicted by the hidden state at t - 1, wherever the layout has put it."""
    row, source, target = [], [], []
    for number, place in zip(group, places, strict=True):
        labels = np.flatnonzero(rows[number].supervised)
        assert not len(labels) or labels[0] > 0, "the first token of a row has nothing that could predict it"
        row.append(np.full(len(labels), number))
        source.append(place[labels - 1])
        target.append(rows[number].ids[labels].astype(np.int64))
    kept, logit = np.unique(np.concatenate(source), return_inverse=True)
    predicts = np.zeros(input_ids.size, dtype=bool)
    predicts[kept] = True
    edges = Edges(
        row=torch.from_numpy(np.concatenate(row)),
        logit=torch.from_numpy(logit),
        target=torch.from_numpy(np.concatenate(target)),
        weight=torch.ones(len(logit)),
    )
    return Batch(
        input_ids=torch.from_numpy(input_ids.astype(np.int64)),
        position_ids=torch.from_numpy(position_ids.astype(np.int64)),
        attention=attention,
        predicts=torch.from_numpy(predicts.reshape(input_ids.shape)),
        edges=edges,
        tokens=sum(len(rows[number].ids) for number in group),
    )
