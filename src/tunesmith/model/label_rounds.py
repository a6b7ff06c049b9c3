"""Computes the labels of many rows in rounds over a cache of slots: what each row needs next is said by label_tree.py.

Rows enter in dictionary order, each behind the longest beginning that a slot has (beginnings_kept.py). The keys of a
row's prompt, and of the tokens of its tree that were computed, stay in its slot between rounds. A pass has the next
round of rows under way and rows that enter. A row that is done leaves, and its slot is free.

Shapes: k labels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from tunesmith.data.batches.layout import Edges
from tunesmith.model.beginnings_kept import KeptBeginnings
from tunesmith.model.compute.layers import inner_model
from tunesmith.model.compute.logprobs import pass_logprobs
from tunesmith.model.compute.slots import Feed, SlotCache, SlotPass
from tunesmith.model.continuous import ENTER_AT_ONCE, text_config
from tunesmith.model.decoding import Job
from tunesmith.model.label_tree import LabelSearch, LabelTree, Wanted

_LEAST_SLOTS, MOST_SLOTS = 8, 32  # rows under way at a time
_COLUMNS = 8192  # that all slots have together, where there are more than the least number of slots


@dataclass(frozen=True, slots=True, eq=False)
class LabelLogprobs:
    """``values`` float64 [rows, k], in nats; ``followed`` bool [rows, k]: which are a label's own. Others are bounds.

    The log-probability of a label is at most its bound.
    """

    values: np.ndarray
    followed: np.ndarray

    @classmethod
    def empty(cls, rows: int, labels: int) -> LabelLogprobs:
        """Room for so many rows of so many labels."""
        return cls(np.empty((rows, labels)), np.zeros((rows, labels), bool))


@dataclass(slots=True, eq=False)
class _Row:
    """A row in its slot. ``nodes``: of its tree that are computed next, none if it is done."""

    number: int
    slot: int
    line: np.ndarray
    search: LabelSearch
    nodes: list[int] = field(default_factory=list)


class LabelRounds:
    """All rows over a cache of slots. The model must be admitted (``continuous.admits``).

    Args:
        model: with our attention.
        jobs: the prompts, and as many new tokens as the longest label has.
        labels: their token ids.
        wanted: as in ``label_logprobs``.
        agrees: whether the values of one row [k], NaN where a label has none of its own, are those of the model.
        told: called with the number of rows that were completed.
    """

    def __init__(
        self,
        model: nn.Module,
        jobs: Sequence[Job],
        labels: Sequence[Sequence[int]],
        *,
        wanted: Wanted,
        agrees: Callable[[Job, Sequence[Sequence[int]], np.ndarray], bool],
        told: Callable[[int], None],
    ) -> None:
        self.model, self.jobs, self.labels = model, jobs, labels
        self.agrees, self.told = agrees, told
        self.wanted: Wanted = wanted
        self.tree = LabelTree(labels)
        columns = max(len(job.prompt) for job in jobs) + self.tree.computed
        slots = min(len(jobs), max(_LEAST_SLOTS, min(MOST_SLOTS, _COLUMNS // columns)))
        self.cache = SlotCache(text_config(model), slots=slots, columns=columns)
        self.kept = KeptBeginnings(self.cache, slots)
        self.free = list(range(slots))
        self.waiting = deque(sorted(range(len(jobs)), key=lambda number: jobs[number].prompt))
        self.rows: list[_Row] = []
        self.found = LabelLogprobs.empty(len(jobs), len(labels))

    def run(self) -> LabelLogprobs | None:
        """The values of all rows; None if those of the first row do not agree."""
        first, untold, agreed = self.waiting[0], 0, False
        while self.waiting or self.rows:
            done = self._step()
            if first in done:
                own = np.where(self.found.followed[first], self.found.values[first], np.nan)
                agreed = self.agrees(self.jobs[first], self.labels, own)
                if not agreed:
                    return None
            untold += len(done)
            if agreed and untold:
                self.told(untold)
                untold = 0
        return self.found

    def _step(self) -> list[int]:
        """One pass. The numbers of the rows that are done."""
        # 1. The next round of rows under way, the oldest first, and the first round of rows that enter.
        feeds: list[Feed] = []
        fed: list[_Row] = []
        size = 0
        for row in self.rows:
            if feeds and size + len(row.nodes) > ENTER_AT_ONCE:
                break
            feeds.append(_further(row, self.tree))
            fed.append(row)
            size += len(row.nodes)
        entered = self._enter(feeds, size)
        fed += entered
        # 2. One pass over all of them.
        logprobs = _pass(self.model, self.cache, feeds, [row.nodes for row in fed], self.tree)
        for row in entered:
            self.kept.hold(row.slot, row.line)
        # 3. What each row has learned, and whether it needs more.
        start = 0
        for row in fed:
            count = sum(len(self.tree.children[node]) for node in row.nodes)
            row.search.take(row.nodes, logprobs[start : start + count])
            row.nodes = row.search.next()
            start += count
        return [self._leave(row) for row in fed if not row.nodes]

    def _enter(self, feeds: list[Feed], size: int) -> list[_Row]:
        """Rows that enter free slots, each behind the longest beginning that a slot has; their feeds are appended."""
        entered: list[_Row] = []
        while self.waiting and self.free:
            number, slot = self.waiting[0], self.free[0]
            line, search = np.array(self.jobs[number].prompt), LabelSearch(self.tree, self.wanted)
            nodes = search.next()
            have = self.kept.enter(line, slot, [row.line for row in entered])
            if have is None or (feeds and size + len(line) - have + len(nodes) - 1 > ENTER_AT_ONCE):
                break
            entered.append(_Row(number, slot, line, search, nodes))
            feeds.append(_entering(entered[-1], have, self.tree))
            size += len(feeds[-1].ids)
            self.waiting.popleft()
            self.free.pop(0)
        self.rows += entered
        return entered

    def _leave(self, row: _Row) -> int:
        self.found.values[row.number], self.found.followed[row.number] = row.search.values()
        self.rows.remove(row)
        self.free = sorted([*self.free, row.slot])
        return row.number


def _entering(row: _Row, have: int, tree: LabelTree) -> Feed:
    """The rest of a prompt and tokens of the tree behind it. The first of the nodes is the prompt itself."""
    rest, own = len(row.line) - have, row.nodes[1:]
    place = {0: rest - 1, **{node: rest + index for index, node in enumerate(own)}}
    parents = [*range(-1, rest - 1), *(place[tree.parent[node]] for node in own)]
    return Feed(row.slot, have, [*row.line[have:].tolist(), *tree.token[own].tolist()], parents)


def _further(row: _Row, tree: LabelTree) -> Feed:
    """Tokens of the tree behind those that the row's slot has."""
    whole = [*row.search.line, *row.nodes]
    place = {0: -1, **{node: index for index, node in enumerate(whole)}}
    return Feed(row.slot, len(row.line), tree.token[row.nodes].tolist(), [place[tree.parent[node]] for node in whole])


def _pass(
    model: nn.Module, cache: SlotCache, feeds: Sequence[Feed], nodes: Sequence[Sequence[int]], tree: LabelTree
) -> np.ndarray:
    """The log-probabilities of the children of the nodes that each feed ends with, one behind the other, float64."""
    fed = SlotPass(feeds, inner_model(model).device)
    # 1. The tokens that predict others: the last ones of each feed.
    ends = zip(fed.ends, nodes, strict=True)
    positions = torch.tensor([index for end, own in ends for index in range(end - len(own), end)], device=fed.device)
    # 2. One edge for each child of each of them.
    children = [tree.children[node] for own in nodes for node in own]
    sizes = [len(each) for each in children]
    rows = [sum(len(tree.children[node]) for node in own) for own in nodes]
    target = tree.token[np.concatenate(children)]
    edges = Edges(
        row=torch.from_numpy(np.repeat(np.arange(len(feeds)), rows)).to(fed.device),
        logit=torch.from_numpy(np.repeat(np.arange(len(children)), sizes)).to(fed.device),
        target=torch.from_numpy(target).to(fed.device),
        weight=torch.ones(len(target), device=fed.device),
    )
    return pass_logprobs(model, fed, cache, positions, edges).double().cpu().numpy()
