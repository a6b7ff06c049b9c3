"""Attention over a cache of slots: each text has its own line of keys, and a pass has one line of tokens of all texts.

A text's token at position p stands in column p of its slot. So nothing is padded, texts may have any length, and a text
that has ended is replaced by another. One pass computes some tokens of each text: its prompt, its newest token, tokens
that are only guessed, or a tree of continuations. The linear layers see these tokens side by side, [1,T]; only
attention takes them apart, by text. What a token sees is decided by positions, through the model's own mask function.

Shapes: S slots of C columns, T tokens of a pass, H heads, K key heads, D the width of a head; in a group R slots with
up to Q tokens each, which see N columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tunesmith.model.compute.kept_keys import KeptKeys
from tunesmith.model.compute.tree_pieces import additive

_SIZES = (1, 4, 8, 16)  # tokens of a text up to which texts are computed as one group; longer ones go alone


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens of one text in a pass: they go into the columns of ``slot`` from ``start`` on.

    By default they follow each other. For a tree of continuations, ``parents`` [tokens] has for each token the index of
    the one before it, -1 where that is the last of the columns before ``start``; a parent comes before its children.
    ``parents`` may have more entries than there are ids. The first of them are then tokens that other passes have
    computed, which stand in the columns from ``start`` on.
    """

    slot: int
    start: int
    ids: Sequence[int]
    parents: Sequence[int] | None = None

    @property
    def there(self) -> int:
        """Tokens of the tree that other passes have computed."""
        return 0 if self.parents is None else len(self.parents) - len(self.ids)

    @property
    def end(self) -> int:
        """The column behind the last token."""
        return self.start + self.there + len(self.ids)


@dataclass(frozen=True, slots=True)
class _Group:
    """Slots ``first`` to ``last`` that are computed together; ``line`` int64 [R,Q] are their tokens in the pass.

    ``real`` bool [R,Q]: which of them are tokens and not filling. ``columns``: N.
    """

    first: int
    last: int
    columns: int
    line: Tensor
    real: Tensor
    feeds: tuple[Feed | None, ...]


@dataclass(slots=True)
class SlotMask:
    """What a kind of layer lets the groups of a pass see: bool [R,Q,N] each, and the same as numbers to add."""

    groups: Sequence[_Group]
    allowed: Sequence[Tensor]
    biases: dict[tuple[int, torch.dtype], list[Tensor]] = field(default_factory=dict)

    def added(self, together: int, dtype: torch.dtype) -> list[Tensor]:
        """For each group [R,1,together * Q,N]: ``together`` heads share their keys and are computed as one."""
        if (together, dtype) not in self.biases:
            self.biases[together, dtype] = [
                additive(each.repeat(1, together, 1)[:, None], dtype, torch.finfo(dtype).min) for each in self.allowed
            ]
        return self.biases[together, dtype]


class SlotPass:
    """The tokens of one pass, laid out in one line.

    input_ids, position_ids: int64 [1,T]; slot, column: int64 [T]; ends: for each feed the index behind its last token.
    """

    def __init__(self, feeds: Sequence[Feed], device: torch.device) -> None:
        self.feeds, self.device = feeds, device
        self.ends: list[int] = []
        positions: list[int] = []
        for feed in feeds:
            positions += _positions(feed)[feed.there :]
            self.ends.append(len(positions))
        sizes = torch.tensor([len(feed.ids) for feed in feeds])
        columns = torch.cat([torch.arange(feed.start + feed.there, feed.end) for feed in feeds])
        self.input_ids = torch.tensor([token for feed in feeds for token in feed.ids], device=device)[None]
        self.position_ids = torch.tensor(positions, device=device)[None]
        self.slot = torch.tensor([feed.slot for feed in feeds]).repeat_interleave(sizes).to(device)
        self.column = columns.to(device)
        self.groups = [self._group(own) for own in _together(feeds)]

    @property
    def arguments(self) -> dict[str, Any]:
        """What the model is called with, beside the cache."""
        mask = torch.ones_like(self.input_ids)
        return {
            "input_ids": self.input_ids,
            "attention_mask": mask,
            "position_ids": self.position_ids,
            "use_cache": True,
        }

    def _group(self, numbers: Sequence[int]) -> _Group:
        feeds = [self.feeds[number] for number in numbers]
        first, last = min(feed.slot for feed in feeds), max(feed.slot for feed in feeds) + 1
        most = max(len(feed.ids) for feed in feeds)
        line = torch.zeros(last - first, most, dtype=torch.long)
        real = torch.zeros(last - first, most, dtype=torch.bool)
        placed: list[Feed | None] = [None] * (last - first)
        for number, feed in zip(numbers, feeds, strict=True):
            row, size, end = feed.slot - first, len(feed.ids), self.ends[number]
            line[row, :size], real[row, :size], placed[row] = torch.arange(end - size, end), True, feed
        columns = max(feed.end for feed in feeds)
        return _Group(first, last, columns, line.to(self.device), real.to(self.device), tuple(placed))

    def mask(self, sees: Callable[..., Any]) -> SlotMask:
        """What a kind of layer sees. ``sees`` is transformers' mask function, over positions."""
        return SlotMask(self.groups, [self._allowed(group, sees) for group in self.groups])

    def _allowed(self, group: _Group, sees: Callable[..., Any]) -> Tensor:
        asking = self.position_ids[0][group.line]  # [R,Q]
        asked = torch.arange(group.columns, device=self.device).repeat(len(asking), 1)  # [R,N]
        own = self.column[group.line]  # [R,Q], the column that each token stands in
        # 1. A token sees the columns up to its own; in a tree of its columns only its ancestors.
        allowed = asked[:, None] <= own[:, :, None]  # [R,Q,N]
        for row, feed in enumerate(group.feeds):
            if feed is not None and feed.parents is not None:
                tree = slice(feed.start, feed.end)
                asked[row, tree] = torch.tensor(_positions(feed), device=self.device)
                allowed[row, : len(feed.ids), tree] = _ancestors(feed.parents, feed.there).to(self.device)
        # 2. And of them what the kind of layer lets it see.
        zero = torch.zeros((), dtype=torch.long, device=self.device)
        allowed &= sees(zero, zero, asking[:, :, None], asked[:, None])
        # 3. Filling sees one column, because a softmax over nothing is not a number.
        allowed[:, :, 0] |= ~group.real
        return allowed


def _positions(feed: Feed) -> list[int]:
    if feed.parents is None:
        return list(range(feed.start, feed.start + len(feed.ids)))
    found: list[int] = []
    for parent in feed.parents:
        found.append(feed.start if parent < 0 else found[parent] + 1)
    return found


def _ancestors(parents: Sequence[int], there: int) -> Tensor:
    """bool [new tokens, tokens]: whether the second is the first or an ancestor of it. The first ``there`` are old."""
    seen = np.zeros((len(parents) - there, len(parents)), dtype=bool)
    for row, number in enumerate(range(there, len(parents))):
        seen[row, number] = True
        above = parents[number]
        while 0 <= above < there:
            seen[row, above] = True
            above = parents[above]
        if above >= 0:
            seen[row] |= seen[above - there]
    return torch.from_numpy(seen)


def _together(feeds: Sequence[Feed]) -> Iterator[list[int]]:
    """Numbers of feeds that are computed as one group: of like size, in slots that lie close together."""
    waiting = list(range(len(feeds)))
    for size in _SIZES:
        near = [number for number in waiting if len(feeds[number].ids) <= size]
        slots = [feeds[number].slot for number in near]
        if len(near) > 1 and 2 * len(near) >= max(slots) - min(slots) + 1:
            yield near
            waiting = [number for number in waiting if number not in near]
    yield from ([number] for number in waiting)


_under_way: ContextVar[SlotPass | None] = ContextVar("pass_under_way", default=None)


@contextmanager
def feeding(fed: SlotPass) -> Iterator[None]:
    """Inside, the model computes this pass over the slots."""
    token = _under_way.set(fed)
    try:
        yield
    finally:
        _under_way.reset(token)


def pass_under_way() -> SlotPass | None:
    """The pass that the model is computing."""
    return _under_way.get()


class _SlotLayer(DynamicLayer):
    """Keys and values [S,K,C,D] of one layer. New tokens [1,K,T,D] go where the pass says."""

    def __init__(self, slots: int, columns: int) -> None:
        super().__init__()
        self.slots, self.columns = slots, columns

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        fed = pass_under_way()
        assert fed is not None, "the cache of slots is filled by passes"
        self.prepare(key_states, value_states)
        assert self.keys is not None and self.values is not None
        self.keys[fed.slot, :, fed.column] = key_states[0].transpose(0, 1)
        self.values[fed.slot, :, fed.column] = value_states[0].transpose(0, 1)
        return self.keys, self.values

    def prepare(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes the memory at the first keys and values [1,K,T,D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            # Zeros, because what is masked is still multiplied: it must be finite.
            self.keys, self.values = (
                new.new_zeros(self.slots, new.shape[1], self.columns, new.shape[-1])
                for new in (key_states, value_states)
            )

    def get_seq_length(self) -> int:
        return 0  # each text has its own length, and positions are always given


class SlotCache(DynamicCache):
    """A cache of ``slots`` texts of up to ``columns`` tokens.

    Raises ValueError for a model that keeps anything but keys and values of each token.
    """

    def __init__(self, config: Any, *, slots: int, columns: int) -> None:
        super().__init__(config=config)
        kinds = {type(layer) for layer in self.layers}
        if not kinds or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
            raise ValueError("a layer keeps more than keys and values")
        self.layers[:] = [_SlotLayer(slots, columns) for _ in self.layers]

    def copy(self, source: int, target: int, columns: int) -> None:
        """Gives one slot the first columns of another."""
        for layer in self.layers:
            for store in (layer.keys, layer.values):  # type: ignore[union-attr]
                if store is not None:  # layers that share the keys of others have none
                    store[target, :, :columns] = store[source, :, :columns]

    def fill(self, slot: int, kept: KeptKeys, columns: int) -> None:
        """Gives a slot the first columns of what another pass computed."""
        for number, layer in enumerate(self.layers):
            pair = kept.of_layer(number, columns)
            if pair is not None:
                assert isinstance(layer, _SlotLayer)
                layer.prepare(pair[0][None], pair[1][None])
                assert layer.keys is not None and layer.values is not None
                layer.keys[slot, :, :columns], layer.values[slot, :, :columns] = pair


def slot_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: SlotMask) -> Tensor:
    """query [1,H,T,D], key and value [S,K,C,D] -> [1,T,H,D]. Heads that share keys are one head with more tokens."""
    heads, shared = query.shape[1], key.shape[1]
    together = heads // shared
    tokens = query[0].transpose(0, 1)  # [T,H,D]
    out = query.new_empty(len(tokens), heads, value.shape[-1])
    for group, bias in zip(mask.groups, mask.added(together, query.dtype), strict=True):
        # 1. The tokens of each slot: [R,Q,H,D] -> [R,K,together * Q,D].
        taken = tokens[group.line].unflatten(2, (shared, together)).permute(0, 2, 3, 1, 4)
        # 2. They see the columns of their own slot.
        keys, values = (of[group.first : group.last, :, : group.columns] for of in (key, value))
        made = torch.nn.functional.scaled_dot_product_attention(
            taken.flatten(2, 3), keys, values, attn_mask=bias, scale=scale
        )
        # 3. Back into the line, without the filling.
        made = made.unflatten(2, (together, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)  # [R,Q,H,D]
        out[group.line[group.real]] = made[group.real]
    return out[None]
