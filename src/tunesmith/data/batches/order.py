"""Which rows an optimizer step sees: a pure function of seed, epoch and step, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Window:
    """One optimizer step: its number from 1, the epoch reached at its end, and the numbers of its rows."""

    step: int
    epoch: float
    rows: tuple[int, ...]


class Order:
    """The windows of a whole run. The last window of an epoch is smaller where the rows do not divide evenly.

    Args:
        weights: how often an epoch sees each row [R]; the fraction beyond whole passes is drawn by seed and epoch.
        sources: the source that each row is of [R]; needed where there are quotas.
        quotas: source -> how many of its rows an epoch has, in place of weights: whole passes, and the rest drawn.
        batch_size: rows in an optimizer step.
        epochs: passes over the rows; a fraction ends inside a pass. Ignored where ``max_steps`` is given.
        max_steps: optimizer steps in all.
        seed: of the order.
    """

    def __init__(
        self,
        weights: Sequence[float] | np.ndarray,
        *,
        sources: np.ndarray | None = None,
        quotas: Mapping[int, int] | None = None,
        batch_size: int,
        epochs: float,
        max_steps: int | None,
        seed: int,
    ) -> None:
        self.weights = np.asarray(weights, dtype=np.float64)
        self.sources, self.quotas = sources, dict(quotas or {})
        self.batch_size, self.seed = batch_size, seed
        self.total_steps = max_steps if max_steps is not None else self._count(epochs)

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Row numbers of one pass, shuffled. A weight of 2.5 is two copies and, in half of the epochs, a third."""
        random = np.random.default_rng([self.seed, epoch])
        # 1. Copies of each row by its weight, int [R].
        whole = np.floor(self.weights)
        copies = (whole + (random.random(len(self.weights)) < self.weights - whole)).astype(np.int64)
        # 2. A quota sets the copies of its source instead: whole passes, and one more for rows that are drawn.
        for source, rows in self.quotas.items():
            assert self.sources is not None
            own = np.flatnonzero(self.sources == source)
            if len(own):
                copies[own] = rows // len(own)
                copies[random.permutation(own)[: rows % len(own)]] += 1
        if not copies.any():  # weights far below 1: an epoch has at least one row
            copies[random.integers(len(copies))] = 1
        # 3. All copies in one shuffled line.
        return random.permutation(np.repeat(np.arange(len(self.weights)), copies))

    def steps_in(self, epoch: int) -> int:
        """Windows of one pass, the last partial one counted."""
        return math.ceil(len(self.epoch_rows(epoch)) / self.batch_size)

    def windows(self, after: int = 0) -> Iterator[Window]:
        """The windows after step ``after``, in order."""
        step, epoch = 0, 0
        while step < self.total_steps:
            rows = self.epoch_rows(epoch)
            for start in range(0, len(rows), self.batch_size):
                step += 1
                part = rows[start : start + self.batch_size]
                if step > after:
                    yield Window(step, epoch + (start + len(part)) / len(rows), tuple(part.tolist()))
                if step == self.total_steps:
                    return
            epoch += 1

    def _count(self, epochs: float) -> int:
        """Steps of this many epochs; a fraction of an epoch is rounded up to whole steps."""
        whole = int(epochs)
        steps = sum(self.steps_in(epoch) for epoch in range(whole))
        if epochs > whole:
            steps += math.ceil((epochs - whole) * len(self.epoch_rows(whole)) / self.batch_size)
        return max(1, steps)
