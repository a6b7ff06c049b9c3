"""Keys and values that a pass over whole rows computes anyway, kept for texts that go on from the rows' beginnings.

Judging measures the loss of every row first. Where the greedy answer leaves the reference, decoding goes on behind the
prompt and the tokens that they share: their keys were computed by that pass, so they are copied and not computed again.

Shapes: a pass over B lines of L tokens, K key heads of width D; n tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tunesmith.data.batches.layout import Batch, Padded
from tunesmith.model.compute.layers import adds_prompt_tokens, inner_model
from tunesmith.runs.machine_memory import machine_memory

AT_MOST = 1 << 29  # bytes of keys and values that are kept on a large machine: 512 MiB
_SHARE = 32  # of its memory, on a smaller one


def room_for_keys(memory: int) -> int:
    """How many bytes of keys and values are kept on a machine with so many bytes of memory."""
    return min(AT_MOST, memory // _SHARE)


def bytes_of_keys() -> int:
    """The same on this machine."""
    return room_for_keys(machine_memory())


def bytes_of_token(model: nn.Module) -> int | None:
    """Bytes of the keys and values of one token in all layers, by the config; None if that does not say it."""
    inner = inner_model(model)
    config = inner.config.get_text_config(decoder=True)
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    sizes: list[Any] = [getattr(config, name, None) for name in names]
    layers, queries, size = sizes
    heads = getattr(config, "num_key_value_heads", None) or queries
    if not all(isinstance(each, int) for each in (layers, queries, size, heads)):
        return None
    width = getattr(config, "head_dim", None) or size // queries
    return 2 * layers * heads * width * inner.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class KeptKeys:
    """What a pass computed of a row's first tokens.

    Args:
        ids: int64 [n], the tokens.
        places: int64 [n], where each stands in the line of ``layers``.
        layers: keys and values [1,K,L,D] of each layer; None for a layer that shares those of another.
    """

    ids: np.ndarray
    places: Tensor
    layers: Sequence[tuple[Tensor, ...] | None]

    def of_layer(self, layer: int, count: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values [K,count,D] of the first tokens in one layer."""
        pair = self.layers[layer]
        if pair is None:
            return None
        key, value = (of[0, :, self.places[:count]] for of in pair)
        return key, value


class _KeepingLayer(DynamicLayer):
    """Keeps the keys and values of one pass as they are, and gives them back."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0  # nothing stands before the pass


class KeepingCache(DynamicCache):
    """Takes the keys and values of one pass over a batch.

    Raises ValueError for a model that keeps anything but keys and values of each token.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        kinds = {type(layer) for layer in self.layers}
        if not kinds or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
            raise ValueError("a layer keeps more than keys and values")
        self.layers[:] = [_KeepingLayer() for _ in self.layers]

    def of_rows(self, batch: Batch, wanted: Callable[[int], bool]) -> tuple[dict[int, KeptKeys], int]:
        """By number of each row that is wanted, the keys of its tokens up to the one that predicts its last label.

        They are copies, so the keys of all other tokens can go. The second result is their bytes.
        """
        layers = self._pairs()
        places_of = {row: places for row, places in _places_of_rows(batch).items() if wanted(row)}
        if not places_of or all(pair is None for pair in layers):
            return {}, 0
        # 1. The places of all wanted tokens, each once: [n].
        union = np.unique(np.concatenate(list(places_of.values())))
        length, device = batch.input_ids.shape[1], batch.input_ids.device
        lines, columns = (torch.from_numpy(of).to(device) for of in np.divmod(union, length))
        # 2. Their keys and values as one line, [1,K,n,D].
        taken = [
            None if pair is None else tuple(of[lines, :, columns].transpose(0, 1)[None].contiguous() for of in pair)
            for pair in layers
        ]
        # 3. Where each row's tokens stand in that line.
        flat = batch.input_ids.flatten().cpu().numpy()
        kept = {
            row: KeptKeys(flat[places], torch.from_numpy(np.searchsorted(union, places)).to(device), taken)
            for row, places in places_of.items()
        }
        return kept, sum(of.nbytes for pair in taken if pair is not None for of in pair)

    def _pairs(self) -> list[tuple[Tensor, Tensor] | None]:
        pairs: list[tuple[Tensor, Tensor] | None] = []
        for layer in self.layers:
            key, value = layer.keys, layer.values  # type: ignore[union-attr]
            pairs.append(None if key is None or value is None else (key, value))
        return pairs


def keeping_cache(model: nn.Module, batch: Batch, room: int) -> KeepingCache | None:
    """A cache for one pass of a model on a CPU; None for a model whose keys cannot be kept like this.

    None also for a batch whose keys take more bytes than ``room``: they would be in memory before that shows. On a
    GPU memory is planned to the last gigabyte, and prompts are computed quickly.
    """
    inner = inner_model(model)
    size = bytes_of_token(model)
    if inner.device.type != "cpu" or adds_prompt_tokens(model) or size is None or batch.input_ids.numel() * size > room:
        return None
    try:
        return KeepingCache(inner.config.get_text_config(decoder=True))
    except (AttributeError, ValueError):
        return None


def _places_of_rows(batch: Batch) -> dict[int, np.ndarray]:
    """By row number, the places of its tokens in the flattened lines, from the first to the last that predicts."""
    # 1. The place of the token that predicts the last label of each row.
    predicting = batch.predicts.flatten().nonzero()[:, 0].cpu().numpy()  # [N]
    last: dict[int, int] = {}
    for row, logit in zip(batch.edges.row.tolist(), batch.edges.logit.tolist(), strict=True):
        last[row] = max(last.get(row, -1), int(predicting[logit]))
    length = batch.input_ids.shape[1]
    # 2. In a padded batch a row has a line of its own.
    if isinstance(batch.attention, Padded):
        return {row: np.arange(end - end % length, end + 1) for row, end in last.items()}
    # 3. In a tree: what its segment has up to there, behind all segments above.
    segment = batch.attention.segment[0].cpu().numpy()  # [L]
    parent = batch.attention.parent.tolist()
    starts = np.searchsorted(segment, np.arange(len(parent) + 1))  # segments stand in order
    found = {}
    for row, end in last.items():
        own = int(segment[end])
        parts = [np.arange(starts[own], end + 1)]
        while (own := parent[own]) >= 0:
            parts.insert(0, np.arange(int(starts[own]), int(starts[own + 1])))
        found[row] = np.concatenate(parts)
    return found
