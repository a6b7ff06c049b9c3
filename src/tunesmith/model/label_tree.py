"""Which tokens of a tree of labels must be computed to know the likeliest label, or the probability of each.

The log-probability of a label is a sum of terms that are never positive, one for each of its tokens. So the sum over
its first tokens bounds it, and everything that begins like it. One row goes in rounds, and each computes some tokens:

1. The prompt gives the log-probability of each first token.
2. A round computes the tokens whose bounds say that they may matter. It gets the log-probabilities of what follows.
3. The row is done if what was not computed cannot matter. The labels behind it keep their bounds.

What may matter depends on what is wanted:

- ``likeliest``: a bound at most MARGIN below the highest bound or label. The likeliest label is at most the highest
  bound, so all of these must be computed, but for those that MARGIN adds against rounding.
- ``probabilities``: all but the smallest bounds, whose labels together have at most LEFT_OUT of the probability of all
  labels. So the softmax over the labels is off by at most that.
- ``all``: everything, in one round.

No token is computed twice, so no row costs more than the whole tree.

Shapes: k labels, U nodes of the tree. Node 0 is the prompt; every other node is a token behind its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Wanted = Literal["likeliest", "probabilities", "all"]
MARGIN = 1.0  # nats: far more than two ways to compute a log-probability differ
LEFT_OUT = 2.0**-24  # half of the smallest step of fp32 at 1
# nats: a single continuation of what has a probability of 5% or more is computed at once. It will likely be needed, and
# a round costs about two tokens (docs/lab.md).
_SURE = -3.0


class LabelTree:
    """The labels as a tree. Parents have lower numbers than their children.

    token, parent: int64 [U], both -1 at node 0; inner: bool [U], whether tokens follow; last: int64 [k], the node of
    each label; below: int64 [U], labels that go on behind a node; children: of each node.
    """

    def __init__(self, labels: Sequence[Sequence[int]]) -> None:
        runs = {tuple(label[:end]) for label in labels for end in range(len(label) + 1)}
        order = sorted(runs, key=lambda run: (len(run), run))
        place = {run: number for number, run in enumerate(order)}
        self.token = np.array([run[-1] if run else -1 for run in order])
        self.parent = np.array([place[run[:-1]] if run else -1 for run in order])
        self.last = np.array([place[tuple(label)] for label in labels])
        self.below = np.zeros(len(order), np.int64)
        for label in labels:
            self.below[[place[tuple(label[:end])] for end in range(len(label))]] += 1
        self.inner = self.below > 0
        self.children = [np.flatnonzero(self.parent == number) for number in range(len(order))]
        depth = np.array([len(run) for run in order])
        self.levels = [np.flatnonzero(depth == level) for level in range(1, depth.max() + 1)]

    @property
    def computed(self) -> int:
        """Tokens of the whole tree that are computed: those with others behind them."""
        return int(self.inner.sum()) - 1

    def single(self, node: int) -> int | None:
        """The only continuation of a node, if others follow it."""
        children = self.children[node]
        return int(children[0]) if len(children) == 1 and self.inner[children[0]] else None


class LabelSearch:
    """One row on its way through the tree. ``line``: the nodes that were computed, but the prompt, in their order."""

    def __init__(self, tree: LabelTree, wanted: Wanted) -> None:
        self.tree, self.wanted = tree, wanted
        self.line: list[int] = []
        self._score = np.full(len(tree.token), -np.inf)  # [U], sums of log-probabilities
        self._known = np.zeros(len(tree.token), bool)  # [U]
        self._open = tree.inner.copy()  # [U], nodes that may still be computed
        self._score[0], self._known[0] = 0.0, True

    def next(self) -> list[int]:
        """The nodes to compute now, parents before children; none if the row is done."""
        frontier = np.flatnonzero(self._known & self._open)
        if not len(frontier) or not np.isfinite(self._score[self._known]).all():
            return []
        rest = np.flatnonzero(self._open)
        if self.wanted == "all":
            return rest.tolist()
        chosen = self._with_single(self._that_matter(frontier).tolist())
        # Where little would be left out, the rest costs less now than in rounds of its own.
        many = frontier[0] != 0 and 2 * len(chosen) >= len(rest)
        return rest.tolist() if many else sorted(chosen)

    def take(self, nodes: Sequence[int], logprobs: np.ndarray) -> None:
        """What was computed.

        Args:
            nodes: as ``next`` gave them.
            logprobs: of the children of each, one behind the other, float64.
        """
        start = 0
        for node in nodes:
            children = self.tree.children[node]
            self._score[children] = self._score[node] + logprobs[start : start + len(children)]
            start += len(children)
            self._known[children] = True
            self._open[node] = False
        self.line += [node for node in nodes if node]

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """The log-probability of each label, float64 [k], and whether it is its own and no bound, bool [k]."""
        score, tree = self._score.copy(), self.tree
        for level in tree.levels:
            score[level] = np.where(self._known[level], score[level], score[tree.parent[level]])
        return score[tree.last], self._known[tree.last]

    def _that_matter(self, frontier: np.ndarray) -> np.ndarray:
        """Some of the nodes that can be computed next."""
        bounds = self._score[frontier]
        ends = self._score[self.tree.last[self._known[self.tree.last]]]  # labels that are known
        top = max(bounds.max(), ends.max(initial=-np.inf))
        if self.wanted == "likeliest":
            return frontier[bounds >= top - MARGIN]
        # 1. The most that all labels behind each node can have.
        most = self.tree.below[frontier] * np.exp(bounds - top)
        # 2. The smallest ones can be left out as long as they have no more than their share together.
        order = np.argsort(most, kind="stable")
        share = np.cumsum(most[order]) / (most.sum() + np.exp(ends - top).sum())
        return frontier[order[share > LEFT_OUT]]

    def _with_single(self, nodes: Sequence[int]) -> list[int]:
        """The same, with continuations that are the only ones and will be needed."""
        found: list[int] = []
        for node in nodes:
            found.append(node)
            if self.wanted == "probabilities" or self._score[node] >= _SURE:
                below = self.tree.single(node)
                while below is not None:
                    found.append(below)
                    below = self.tree.single(below)
        return found
