"""A tiny llama as GGUF, written the way llama.cpp's converter writes one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}

WriteGguf = Callable[..., Path]


def gguf_name(name: str) -> str:
    for theirs, ours in sorted(GGUF_NAMES.items(), key=lambda pair: -len(pair[0])):
        name = name.replace(theirs, ours)
    return name


def rotary_pairs(weight: Any, heads: int) -> Any:
    """llama.cpp interleaves the two halves of each rotary head (its convert_hf_to_gguf.py, LlamaModel.permute)."""
    rows = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, rows, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="session")
def write_gguf(tiny_model_dir: Path) -> WriteGguf:
    """``write(path, pre=..., extra={name: array}, **metadata)`` writes ``tiny_model_dir`` as a GGUF file."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)

    def write(path: Path, *, pre: str | None = "smollm", extra: dict[str, Any] | None = None, **more: Any) -> Path:
        import gguf

        writer = gguf.GGUFWriter(path, "llama")
        _write_settings(writer, model.config)
        _write_tokenizer(writer, json.loads((tiny_model_dir / "tokenizer.json").read_text(encoding="utf-8")), pre)
        writer.add_chat_template((tiny_model_dir / "chat_template.jinja").read_text(encoding="utf-8"))
        for name, value in more.items():
            writer.add_bool(f"tokenizer.ggml.{name}", value)
        config = model.config
        tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
        for name, tensor in model.state_dict().items():
            array = tensor.numpy()
            if "q_proj" in name:
                array = rotary_pairs(array, config.num_attention_heads)
            if "k_proj" in name:
                array = rotary_pairs(array, config.num_key_value_heads)
            if name not in tied:
                writer.add_tensor(gguf_name(name), array)
        for name, array in (extra or {}).items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _write_settings(writer: Any, config: Any) -> None:
    writer.add_name("Tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: Any, tokenizer: dict[str, Any], pre: str | None) -> None:
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(vocabulary.index("<|im_start|>"))
    writer.add_eos_token_id(vocabulary.index("<|im_end|>"))
    writer.add_unk_token_id(vocabulary.index("<|endoftext|>"))
    writer.add_pad_token_id(vocabulary.index("<|im_end|>"))
