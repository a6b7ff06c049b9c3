"""One row alone, in the plainest way: what decides where rounding could turn a choice (compute/choices.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from tunesmith.model.compute.choices import PLAIN, choose
from tunesmith.model.compute.layers import inner_model
from tunesmith.model.modes import evaluation_mode


def token_alone(model: nn.Module, ids: Sequence[int]) -> int | None:
    """The likeliest token behind some tokens, from one pass without cache and padding; None where that is a tie."""
    inner = inner_model(model)
    line = torch.tensor([list(ids)], device=inner.device)  # [1,L]
    arguments: dict[str, Any] = {"attention_mask": torch.ones_like(line), "use_cache": False, "logits_to_keep": 1}
    with evaluation_mode(model):
        logits = cast(Any, model)(input_ids=line, **arguments).logits[0, -1:].float()  # [1,V]
    best, certain = choose(logits, inner.dtype, PLAIN)
    return int(best[0]) if certain[0] else None
