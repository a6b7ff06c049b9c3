"""The weights of a base model, ready for a method: with rows for added tokens and our attention."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.model.compute import attention
from tunesmith.model.weights.added_tokens import NO_TOKENS, AddedTokens, grow
from tunesmith.model.weights.load import load_model


def load_base_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool,
    added: AddedTokens = NO_TOKENS,
    load_options: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Loads a model folder, in evaluation mode.

    Args:
        added: tokens that get rows of their own.
        load_options: what a method adds to ``from_pretrained``, such as quantization.

    Raises:
        ModelError: the weights cannot be loaded, or cannot be given rows.
    """
    model = load_model(
        folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code, load_options=load_options
    )
    grow(model, added)
    attention.install(model)
    return model
