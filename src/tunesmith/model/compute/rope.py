"""Rotary positions that depend on the length of what is computed together: ``longrope`` and ``dynamic`` NTK.

Such a model takes other frequencies for every token of a pass once one text of the pass is longer than a certain
length. So a short text beside a long one is computed otherwise than alone. Source: transformers' modeling_rope_utils.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from tunesmith.data.batches.layout import Batch
from tunesmith.model.compute.layers import inner_model


def length_that_turns(config: Any) -> int | None:
    """The most tokens that are computed with the first frequencies; None if the frequencies are always the same.

    Args:
        config: the settings of the decoder. Its rope parameters may be one mapping, or one for each type of layer.
    """
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    of_layers = [each for each in given.values() if isinstance(each, Mapping)] or [given]
    lengths = []
    for each in of_layers:
        kind = str(each.get("rope_type") or each.get("type"))
        if kind == "longrope":
            lengths.append(
                each.get("original_max_position_embeddings")
                or getattr(config, "original_max_position_embeddings", None)
                or config.max_position_embeddings
            )
        elif "dynamic" in kind:
            lengths.append(config.max_position_embeddings)
    return min(lengths, default=None)


def turns_within(model: nn.Module, lengths: Sequence[int]) -> bool:
    """Whether a text of one of these lengths, in tokens, takes other frequencies than a short one."""
    limit = length_that_turns(inner_model(model).config.get_text_config(decoder=True))
    return limit is not None and max(lengths, default=0) > limit


def turns_in(model: nn.Module, batch: Batch) -> bool:
    """The same of the rows of a batch."""
    return turns_within(model, [int(batch.position_ids.max()) + 1])
