"""Which beginnings of texts a cache of slots holds: a text that enters computes only what no slot has of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.data.batches.layout import LEAST_SHARED
from tunesmith.model.compute.kept_keys import KeptKeys
from tunesmith.model.compute.slots import SlotCache


class KeptBeginnings:
    """The token ids whose keys each slot of a cache has."""

    def __init__(self, cache: SlotCache, slots: int) -> None:
        self.cache = cache
        self._held: list[np.ndarray] = [np.empty(0, np.int64)] * slots

    def hold(self, slot: int, ids: Sequence[int] | np.ndarray) -> None:
        """Takes note that a slot has the keys of these tokens, and of no others."""
        self._held[slot] = np.asarray(ids)

    def move(self, source: int, target: int, columns: int) -> None:
        """Gives one slot the keys of the first tokens that another has."""
        self.cache.copy(source, target, columns)
        self._held[target] = self._held[source][:columns]

    def enter(
        self, line: np.ndarray, slot: int, entering: Sequence[np.ndarray], known: KeptKeys | None = None
    ) -> int | None:
        """Gives a slot the longest beginning of ``line`` that any slot has; its length, at most all but one token.

        ``known`` are keys from outside the cache, which are taken if they reach further.

        None if the text should wait for the next pass, because it shares more with one of the ``entering`` texts, which
        this pass computes.
        """
        shared = [_common(line, held) for held in self._held]
        # The slot itself is as good as another, and costs no copy.
        source = max(range(len(shared)), key=lambda number: (shared[number], number == slot))
        have = shared[source]
        outside = 0 if known is None else _common(line, known.ids)
        if known is not None and outside > have:
            self.cache.fill(slot, known, outside)
            self._held[slot] = line[:outside]
            return outside
        if any(_common(line, other) - have >= LEAST_SHARED for other in entering):
            return None
        if source != slot and have:
            self.cache.copy(source, slot, have)
        self._held[slot] = line[:have]
        return have


def _common(line: np.ndarray, other: np.ndarray) -> int:
    """Tokens that two texts begin with in common, of which the last of ``line`` is none: it must be computed anyway."""
    limit = min(len(line) - 1, len(other))
    differs = line[:limit] != other[:limit]
    return int(differs.argmax()) if differs.any() else limit
