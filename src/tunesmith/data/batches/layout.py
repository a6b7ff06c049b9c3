"""Encoded rows -> batches: prefix trees, in which shared prefixes are computed once, packed rows, or padded rows.

The rows of one optimizer step may be regrouped freely, because the loss of the step is a sum over their labels. In a
causal model the hidden state of a prefix does not depend on what follows, so a prefix that rows share stands once.

With dropout, rows share the mask on the tokens that they share. Each row's own distribution is what it would be alone.
Packed rows also stand side by side without padding, but share nothing: for what each row must have of its own.

Shapes: B lines of L tokens. A tree or packed batch is one line (B = 1); a padded batch has one line for each row. S
segments of a tree, E edges (one for each label of each row), R rows.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from tunesmith.recipe.settings import Recipe

LayoutName = Literal["tree", "packed", "padded"]
LEAST_SHARED = 16  # tokens that a segment must save: its attention calls cost about as much (docs/lab.md)
BATCH_COST = 64  # tokens: what one more batch costs, most of it for reading the weights again
_NEIGHBOURS = 4  # rows on each side that are looked at to estimate where a row branches off


class TokenRow(Protocol):
    """What a layout needs of a row: ids int32 [n], supervised bool [n] (token t is a label)."""

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def supervised(self) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Tree:
    """A forest of segments. parent [S]: the segment above each, -1 for a root; segment [1,L]: that of each token."""

    parent: Tensor
    segment: Tensor


@dataclass(frozen=True, slots=True)
class Padded:
    """lengths [B]: tokens of each row before the padding on its right."""

    lengths: Tensor


@dataclass(frozen=True, slots=True)
class Edges:
    """One entry for each label of each row [E]: the row, the kept logit that predicts it, its id, its weight."""

    row: Tensor
    logit: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the rows before the model sees them, numbered as they were handed to the layout.

    reference: float32 [R], the untuned model's summed log-probability of each row's labels; desirable: bool [R],
    whether the answer should become likelier; share: examples of the step divided by its labels that are learned by
    likelihood.
    """

    reference: Tensor
    desirable: Tensor
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass: input_ids and position_ids [B,L], predicts bool [B,L] (whose logits are needed).

    ``edges.logit`` counts the True positions of ``predicts`` in row-major order. ``edges.row`` counts the rows that
    were handed to the layout, so that sums for each row stay available. ``tokens`` is what the rows hold;
    ``computed`` differs from it by what is shared and by padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention: Tree | Padded
    predicts: Tensor
    edges: Edges
    tokens: int
    known: Known | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self if torch.device(device) == self.input_ids.device else _moved(self, device)

    @property
    def computed(self) -> int:
        """Tokens that go through the model, with padding."""
        return self.input_ids.numel()

    @property
    def row_lengths(self) -> Tensor:
        """For each token the length of its row [B,L]. The rows must share nothing."""
        if isinstance(self.attention, Padded):
            return self.attention.lengths[:, None].expand_as(self.input_ids)
        assert (self.attention.parent < 0).all(), "a token that rows share has no length of its own"
        return torch.bincount(self.attention.segment[0])[self.attention.segment]

    @property
    def supervised(self) -> int:
        """Labels of all rows: a token shared by k rows counts k times."""
        return self.edges.target.numel()


def _moved(part: Any, device: torch.device | str) -> Any:
    """A tensor on another device, or a dataclass with all the tensors in it; anything else as it is."""
    if isinstance(part, Tensor):
        return part.to(device)
    if not is_dataclass(part) or isinstance(part, type):
        return part
    return replace(part, **{field.name: _moved(getattr(part, field.name), device) for field in fields(part)})


def probed_layout(recipe: Recipe | None) -> LayoutName:
    """How rows are laid out for a model that was trained elsewhere, by the recipe of its run.

    Prefixes are shared only if the training has probed that: not for a plain model or an adapter without a run.
    """
    return "tree" if recipe is not None and recipe.training.layout in ("tree", "packed") else "padded"


def micro_batches(
    rows: Sequence[TokenRow], *, budget: int, layout: LayoutName, least: int = LEAST_SHARED, together: int = 1
) -> list[Batch]:
    """Groups the rows of one optimizer step under a token budget and lays each group out.

    A row longer than the budget gets a batch of its own. The result depends on the rows and their order alone.

    Args:
        budget: tokens to compute in a batch, with padding.
        least: tokens that a branch of a tree must save.
        together: this many rows that follow each other, the answers to one prompt, go into one batch.
    """
    if together > 1:
        groups = _groups_of_several(rows, budget=budget, layout=layout, least=least, together=together)
    elif layout == "tree":
        groups = _tree_groups(rows, budget, least)
    else:
        groups = (_packed_groups if layout == "packed" else _padded_groups)(rows, budget)
    return [lay_out(rows, group, layout=layout, least=least) for group in groups]


def lay_out(rows: Sequence[TokenRow], group: Sequence[int], *, layout: LayoutName, least: int = LEAST_SHARED) -> Batch:
    """Some of the rows as one batch."""
    if layout == "tree":
        return tree_batch(rows, group, least=least)
    return packed_batch(rows, group) if layout == "packed" else padded_batch(rows, group)


def computed_tokens(rows: Sequence[TokenRow], *, layout: LayoutName, least: int = LEAST_SHARED) -> int:
    """Tokens that go through the model if these rows are one batch."""
    lengths = [len(row.ids) for row in rows]
    if layout != "tree":
        return sum(lengths) if layout == "packed" else len(rows) * max(lengths)
    return _Trie(rows, _in_dictionary_order(rows, range(len(rows))), least).size


def _dictionary_key(row: TokenRow) -> bytes:
    """Rows sorted by this are in the order of their ids: big-endian bytes compare as the numbers do."""
    return row.ids.astype(">i4").tobytes()


def _in_dictionary_order(rows: Sequence[TokenRow], group: Iterable[int]) -> list[int]:
    return sorted(group, key=lambda number: _dictionary_key(rows[number]))


def _shared_with_previous(ids: Sequence[np.ndarray]) -> np.ndarray:
    """Tokens that each row begins with in common with the row before it, int [R]; 0 for the first."""
    return np.array([0, *(_common_prefix(one, other) for one, other in itertools.pairwise(ids))])


def _groups_of_several(
    rows: Sequence[TokenRow], *, budget: int, layout: LayoutName, least: int, together: int
) -> list[list[int]]:
    """Runs of examples up to the budget, in the order of their first rows, or of their longest if they are padded."""
    examples = [list(range(first, first + together)) for first in range(0, len(rows), together)]

    def rank(example: list[int]) -> tuple[int, bytes]:
        longest = max(len(rows[number].ids) for number in example) if layout == "padded" else 0
        return longest, _dictionary_key(rows[example[0]])

    order = sorted(examples, key=rank)

    def size(count: int) -> int:
        run = [rows[number] for example in order[:count] for number in example]
        return computed_tokens(run, layout=layout, least=least)

    groups: list[list[int]] = []
    while order:
        fits = max(bisect.bisect_right(range(1, len(order) + 1), budget, key=size), 1)
        groups.append([number for example in order[:fits] for number in example])
        order = order[fits:]
    return groups


def _tree_groups(rows: Sequence[TokenRow], budget: int, least: int) -> list[list[int]]:
    """Runs of the rows in dictionary order, in which neighbours share the most.

    Dynamic programming over the ends of the runs makes the tokens to compute the fewest, with ``BATCH_COST`` for each
    batch. It works with estimated sizes, which are nearly exact. A run that comes out above the budget is cut again.
    """
    # 1. Sort, and estimate how many tokens each row shares with the one before it, int [R].
    order = _in_dictionary_order(rows, range(len(rows)))
    ids = [rows[number].ids for number in order]
    shared = _branch_depths(_shared_with_previous(ids), least)
    # 2. added [R + 1]: tokens that the rows before each one add to a tree. A run from i to j computes
    # added[j + 1] - added[i] tokens, and those that row i shares with the row before it, which is in another run.
    added = np.cumsum([0, *(len(row) for row in ids)]) - np.cumsum([0, *shared])
    # 3. best[j + 1]: the lowest cost of rows 0 to j; start[j]: where the run begins that ends with row j.
    best, start = np.zeros(len(ids) + 1), np.zeros(len(ids), dtype=int)
    first = 0
    for last in range(len(ids)):
        while first < last and added[last + 1] - added[first] + shared[first] > budget:
            first += 1
        costs = best[first : last + 1] + shared[first : last + 1] - added[first : last + 1]
        start[last] = first + int(costs.argmin())
        best[last + 1] = costs.min() + added[last + 1] + BATCH_COST
    # 4. Walk back from the last run to the first.
    runs: list[list[int]] = []
    last = len(ids)
    while last:
        first = int(start[last - 1])
        runs[:0] = _within(rows, order[first:last], budget, least)
        last = first
    return runs


def _branch_depths(shared: np.ndarray, least: int) -> np.ndarray:
    """The depth at which each row leaves the one before it in a tree, int [R], from the tokens that they share.

    A branch must save ``least`` tokens. So a row that shares up to ``least`` tokens more with the row before it than
    its neighbours do branches off where they do, as they make that branch anyway.
    """
    depths = np.where(shared < least, 0, shared)
    for distance in range(1, _NEIGHBOURS + 1):
        for here, there in ((slice(distance, None), slice(-distance)), (slice(-distance), slice(distance, None))):
            near = (depths[here] - shared[there] < least) & (shared[there] >= least)
            depths[here] = np.where(near, np.minimum(depths[here], shared[there]), depths[here])
    return depths


def _within(rows: Sequence[TokenRow], run: list[int], budget: int, least: int) -> list[list[int]]:
    """The run as it is if it keeps the budget, else cut where the budget is full."""
    if len(run) == 1 or _Trie(rows, run, least).size <= budget:
        return [run]
    fits = bisect.bisect_right(range(1, len(run)), budget, key=lambda count: _Trie(rows, run[:count], least).size)
    fits = max(fits, 1)
    return [run[:fits], *_within(rows, run[fits:], budget, least)]


class _Trie:
    """Rows in dictionary order as segments in depth-first order: each a run of tokens that one or more rows share.

    A branch is made only where it saves ``least`` tokens, because each segment costs a call to the attention kernel in
    each layer. Equal rows are one.

    parents: [S]; spans: [S], the row that a segment is read from, its first token, the one behind its last; leaf: [R],
    the last segment of each row; size: tokens in all segments.
    """

    def __init__(self, rows: Sequence[TokenRow], run: Sequence[int], least: int) -> None:
        self.parents: list[int] = []
        self.spans: list[tuple[int, int, int]] = []
        self.leaf: list[int] = []
        ids = [rows[number].ids for number in run]
        shared = _shared_with_previous(ids)
        waiting = [(0, len(run), 0, -1)]  # rows from, to; how deep they are laid out already, in which segment
        while waiting:
            first, last, depth, parent = waiting.pop()
            # 1. What all rows of the range have in common becomes a segment, if it is long enough or is all of them.
            common = int(shared[first + 1 : last].min()) if last - first > 1 else len(ids[first])
            alike = common == len(ids[last - 1])  # and so with every row between: the longest comes last
            if alike or common - depth >= least:
                if common > depth:
                    self.parents.append(parent)
                    self.spans.append((run[first], depth, common))
                    parent, depth = len(self.spans) - 1, common
                if alike:
                    self.leaf += [parent] * (last - first)
                    continue
            # 2. Cut the range where neighbours share too little below it. The first part is laid out first.
            cuts = [first, *(first + 1 + np.flatnonzero(shared[first + 1 : last] < depth + least)), last]
            waiting += [(int(i), int(j), depth, parent) for i, j in reversed(list(itertools.pairwise(cuts)))]
        self.size = sum(end - start for _, start, end in self.spans)


def _packed_groups(rows: Sequence[TokenRow], budget: int) -> list[list[int]]:
    """The longest rows first, each into the first group that has room for it (first fit)."""
    order = sorted(range(len(rows)), key=lambda number: (-len(rows[number].ids), number))
    groups: list[list[int]] = []
    room: list[int] = []
    for number in order:
        length = len(rows[number].ids)
        fits = next((index for index, left in enumerate(room) if length <= left), None)
        if fits is None:
            groups.append([number])
            room.append(budget - length)
        else:
            groups[fits].append(number)
            room[fits] -= length
    return groups


def _padded_groups(rows: Sequence[TokenRow], budget: int) -> list[list[int]]:
    """Rows of like length together, the shortest first, so that little is padded."""
    order = sorted(range(len(rows)), key=lambda number: (len(rows[number].ids), number))
    groups: list[list[int]] = []
    for number in order:  # ascending, so the newest row is the longest of its group
        if groups and len(rows[number].ids) * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens that two rows begin with in common."""
    limit = min(len(one), len(other))
    differs = one[:limit] != other[:limit]
    return int(differs.argmax()) if differs.any() else limit


def tree_batch(rows: Sequence[TokenRow], group: Sequence[int], *, least: int = LEAST_SHARED) -> Batch:
    """The rows as a trie in one line of tokens, depth first: what rows share stands once, before what each adds.

    Rows that share nothing stand side by side, each seeing only itself.
    """
    order = _in_dictionary_order(rows, group)
    trie = _Trie(rows, order, least)
    starts = np.cumsum([0, *(end - start for _, start, end in trie.spans)])  # of each segment in the line
    # For each segment the indices in the line of its tokens and of all above it, from the root on: int [depth].
    indices: list[np.ndarray] = []
    for parent, begin, (_, start, end) in zip(trie.parents, starts, trie.spans, strict=False):
        before = indices[parent] if parent >= 0 else np.arange(0)
        indices.append(np.concatenate([before, begin + np.arange(end - start)]))
    segments = np.repeat(np.arange(len(trie.spans)), [end - start for _, start, end in trie.spans])
    leaf = dict(zip(order, trie.leaf, strict=True))
    return _batch(
        rows,
        group,
        input_ids=np.concatenate([rows[number].ids[start:end] for number, start, end in trie.spans])[None],
        position_ids=np.concatenate([np.arange(start, end) for _, start, end in trie.spans])[None],
        indices=[indices[leaf[number]] for number in group],
        attention=Tree(torch.tensor(trie.parents), torch.from_numpy(segments[None].astype(np.int64))),
    )


def packed_batch(rows: Sequence[TokenRow], group: Sequence[int]) -> Batch:
    """The rows one behind the other in one line of tokens, each seeing only itself: a tree whose segments are roots."""
    lengths = [len(rows[number].ids) for number in group]
    starts = np.cumsum([0, *lengths])
    return _batch(
        rows,
        group,
        input_ids=np.concatenate([rows[number].ids for number in group])[None],
        position_ids=np.concatenate([np.arange(length) for length in lengths])[None],
        indices=[start + np.arange(length) for start, length in zip(starts, lengths, strict=False)],
        attention=Tree(
            torch.full((len(group),), -1), torch.from_numpy(np.repeat(np.arange(len(group)), lengths)[None])
        ),
    )


def padded_batch(rows: Sequence[TokenRow], group: Sequence[int]) -> Batch:
    """One row in each line, padded on the right with id 0, which no label and no attention sees."""
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
        indices=[line * length + np.arange(len(row)) for line, row in enumerate(ids)],
        attention=Padded(torch.tensor([len(row) for row in ids])),
    )


def _batch(
    rows: Sequence[TokenRow],
    group: Sequence[int],
    *,
    input_ids: np.ndarray,
    position_ids: np.ndarray,
    indices: Sequence[np.ndarray],
    attention: Tree | Padded,
) -> Batch:
    """The batch with its edges: the label at t is predicted by the hidden state at t - 1, wherever that stands.

    Args:
        indices: for each row of the group, the indices of its tokens in the flattened batch, int [n].
    """
    # 1. For each label its row, the token whose hidden state predicts it, and its id.
    row, source, target = [], [], []
    for number, own in zip(group, indices, strict=True):
        labels = np.flatnonzero(rows[number].supervised)
        assert not len(labels) or labels[0] > 0, "the first token of a row has nothing that could predict it"
        row.append(np.full(len(labels), number))
        source.append(own[labels - 1])
        target.append(rows[number].ids[labels].astype(np.int64))
    # 2. Number the tokens that predict something: rows that share such a token share its logit.
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
