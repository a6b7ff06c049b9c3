"""Tiny random models of the families in transformers, and rows with a common prefix, for many tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tunesmith.model.compute import attention

# Settings of phi3 with other rotary frequencies for texts of more than 32 tokens.
LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 32,
    },
}


class Row:
    def __init__(self, ids: Any, supervised: Any = None) -> None:
        self.ids = np.asarray(ids, dtype=np.int32)
        half = np.arange(len(self.ids)) >= len(self.ids) // 2
        self.supervised = half if supervised is None else np.asarray(supervised, dtype=bool)


def make_rows(count: int = 6, length: int = 48) -> list[Row]:
    """The first half of each is the same; the lengths differ."""
    random = np.random.default_rng(0)
    prefix = random.integers(3, 90, length // 2)
    return [Row(np.concatenate([prefix, random.integers(3, 90, length // 2 - n)])) for n in range(count)]


def config_for(name: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    size = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return AutoConfig.for_model(name, **{**size, **heads, **ids, **changes})


def tiny(config: Any) -> Any:
    """A random fp32 model in evaluation mode that attends through Tunesmith; the same each time."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    attention.install(model)
    return model
