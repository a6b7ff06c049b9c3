"""Models of random weights at the shapes of real ones, for machines on which only speed and memory are asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

# Those of SmolLM2-135M, Llama-3.2-1B and Llama-3.1-8B, with plain rotary embeddings.
SHAPES: dict[str, dict[str, Any]] = {
    "135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "tie_word_embeddings": True,
    },
    "1b": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    },
    "8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
    },
}  # fmt: skip


def config(name: str) -> Any:
    """A llama config of this shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **SHAPES[name], max_position_embeddings=8192, rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip


def save(config: Any, folder: Path, *, tokenizer: Path, device: str) -> None:
    """A model folder: random weights, bf16 for a GPU, and the tokenizer files of another model folder."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    for file in tokenizer.iterdir():
        if "token" in file.name or "chat" in file.name:
            shutil.copy(file, folder)
