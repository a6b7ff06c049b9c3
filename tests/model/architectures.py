"""What every causal architecture of transformers is held to, and each one tiny: ``python -m tests.model.architectures``
writes docs/models.md from it.
"""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SHARE = _listed("""
    afmoe apertus arcee aria_text axk1 axk2 beam bert bert-generation biogpt bitnet cohere cohere2 cohere2_moe
    cohere_compass_text ctrl cwm dbrx deepseek_v2 deepseek_v3 deepseek_v32 diffllama dots1 dots3_note dots3_note_text
    electra emu3 ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo flint fuyu gemma gemma2 gemma3 gemma3_text
    gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa
    got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neox gpt_oss granite granite_swa granitemoe granitemoe_swa granitemoeshared
    helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax internlm3 iquestcoder jais2 jetmoe kolibri1
    laguna llama llama4 llama4_text longcat_flash mellum mimo_v2_flash minicpm3 minimax_m2 minimax_m3_vl_text ministral
    ministral3 mistral mixtral mllama modernbert-decoder moshi moss_transcribe_diarize nanochat nemotron olmo olmo2
    olmo3 olmoe opt persimmon phi phi3 phi4_multimodal phimoe qwen2 qwen2_moe qwen3 qwen3_moe roc_bert seed_oss smollm3
    solar_open stablelm starcoder2 vaultgemma whisper youtu
""")
FALL_BACK = {
    "They carry a state from token to token (linear attention, state space, convolution, compressed keys)": _listed("""
    bailing_hybrid bamba deepseek_v4 falcon_h1 falcon_mamba granitemoehybrid inkling2_text inkling_text jamba
    kimi_linear lfm2 lfm2_moe lfm3 mamba mamba2 minimax nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text
    qwen3_5_text qwen3_next qwen4_exp qwen4_exp_text recurrent_gemma rwkv xlstm zamba zamba2 zaya
    """),
    "They have their own code for attention or positions, which goes by the place in the sequence": _listed("""
    bart big_bird bigbird_pegasus blenderbot blenderbot-small bloom blt camembert codegen data2vec-text doge falcon
    git gpt_neo gpt_neox_japanese gptj marian mbart megatron-bert mpt mvp openai-gpt pegasus plbart rembert
    roberta roberta-prelayernorm roformer trocr xglm xlm-roberta xlm-roberta-xl xmod
    """),
}
# Why, and what transformers says.
DRAFTS = "They draft tokens for another model and read its keys"
WRAPPED = "transformers does not load the language model without its wrapper"
NOT_BUILT = {
    "gemma3n": ("The image part needs the package timm", "timm"),
    "gemma4_assistant": (
        DRAFTS,
        "hidden_size_per_layer_input must be 0",
    ),
    "gemma4_unified_assistant": (
        DRAFTS,
        "layer types producing a cache",
    ),
    "musicgen": (WRAPPED, "'dropout'"),
    "musicgen_melody": (WRAPPED, "'dropout'"),
}
NOT_CAUSAL = ("cpmant", "prophetnet", "xlm", "xlnet")  # what they predict changes with the tokens behind it
ONE_LENGTH = ("reformer",)  # in training a row must fill the model's positions
NAMED = _listed("""
    llama mistral qwen2 qwen3 qwen3_moe mixtral gemma phi phi3 olmo2 granite smollm3 gpt2 gpt_neox opt stablelm cohere
    llama4_text ernie4_5 glm4 starcoder2
""")

# No field of a config is larger than this. Windows are shorter than the rows, so that they show; a choice among the
# keys (index_topk, keep_window_size) is longer than a row and shorter than a line of six.
MOST = {
    name: size
    for size, names in {
        128: """max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length
            max_target_positions max_source_positions""",
        96: """vocab_size vocab_size_per_layer_input unpadded_vocab_size encoder_hash_byte_group_vocab shape_vocab_size
            pronunciation_vocab_size""",
        64: "index_topk keep_window_size ngram_vocab_size_base original_max_position_embeddings",
        48: """intermediate_size intermediate_size_mlp dense_intermediate_size shared_intermediate_size ffn_dim d_inner
            encoder_ffn_dim decoder_ffn_dim ffn_hidden_size feed_forward_size dff dim_ff n_inner router_hidden_size""",
        32: """hidden_size hidden_size_global n_embd d_model emb_dim embedding_size embedding_dim word_embed_proj_dim
            input_embedding_size output_embedding_size attention_hidden_size attention_head_dim lru_width ple_embed_dim
            dim_model_base adapter_in_dim adapter_out_dim adapter_input_size""",
        16: """moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size
            expert_ffn_hidden_size moe_shared_expert_intermediate_size hidden_size_per_layer_input""",
        12: "qk_head_dim",
        8: """head_dim swa_head_dim v_head_dim qk_nope_head_dim linear_key_head_dim linear_value_head_dim d_head
            linear_head_dim index_head_dim kv_channels dim_head attention_head_size mamba_head_dim mamba_d_head
            mamba_headdim q_lora_rank kv_lora_rank o_lora_rank hc_lowrank gated_norm_rank laurel_rank adapter_rank
            mamba_dt_rank time_step_rank d_rel state_size ssm_state_size mamba_d_state sliding_window rel_extent
            sliding_window_size local_attention attention_window_size window_size attention_chunk_size chunk_size
            local_attention_window_len mamba_chunk_size block_size index_block_size local_attn_chunk_length
            lsh_attn_chunk_length ffn_round_up_to_multiple_of block_multiple_of""",
        4: """num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads rotary_dim
            decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads
            linear_num_value_heads linear_num_heads index_n_heads mamba_n_heads mamba_num_heads num_layers n_layer
            encoder_layers decoder_layers n_layers num_hidden_layers num_blocks num_encoder_layers num_decoder_layers
            num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num qk_rope_head_dim
            split_ngram_parts make_ngram_vocab_size_divisible_by""",
        3: "moe_layer_end_index",
        2: """num_key_value_heads swa_num_key_value_heads linear_num_key_heads num_kv_heads kv_n_heads n_groups
            mamba_n_groups num_query_groups o_groups num_experts_per_tok moe_topk moe_k num_experts_per_token
            topk_group n_group num_expert_group index_topk_blocks heads_per_ngram""",
        1: "moe_num_shared_experts n_shared_experts num_shared_experts first_k_dense_replace",
        0: "num_nextn_predict_layers num_kv_shared_layers",
    }.items()
    for name in names.split()
}
# Weights so large that a token that is seen or not seen changes the output.
ALWAYS = {"initializer_range": 0.2, "init_std": 0.2, "is_decoder": True}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DERIVED = {"head_dim": 8, "num_key_value_heads": 2}  # where a config leaves them open
KINDS_OF_LAYERS = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types")
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

MOE = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
CONVOLUTION = {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}
CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_d_head": 16},
    "blenderbot": {"encoder_layers": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy"},
    "dots1": MOE,
    "dots3_note_text": {
        "head_dim": 12, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 8,
        "swa_kv_lora_rank": 8, "swa_head_dim": 12, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8,
    },
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense"] * 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"mamba_d_head": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": CONVOLUTION,
    "lfm2_moe": {**CONVOLUTION, "num_dense_layers": 1},
    "longcat_flash": {"head_dim": 4, "qk_head_dim": 12},
    "mamba2": {"head_dim": 16},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "lsh"]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
}  # fmt: skip


def tiny_config(name: str, **changes: Any) -> Any:
    """A small config of an architecture: one layer of each of its kinds, experts and windows included."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name]
    return kind(**_small(kind, **changes))


def _small(kind: Any, **changes: Any) -> dict[str, Any]:
    default = kind()
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    made = {name: ALWAYS[name] for name in ALWAYS if name in fields}
    made |= {name: IDS[name] for name in IDS if fields.get(name) is not None}
    made |= {name: DERIVED[name] for name in DERIVED if fields.get(name, 0) is None}
    for name, value in fields.items():
        if type(value) is int and value > MOST.get(name, value):
            made[name] = MOST[name]
    if {"kv_lora_rank", "num_key_value_heads"} <= fields.keys():
        made["num_key_value_heads"] = MOST["num_attention_heads"]  # latent attention has no fewer key heads
    made |= _layers(default, fields.keys())
    for name in kind.sub_configs:
        inner = getattr(default, name, None)
        if inner is not None and name in fields:
            made[name] = {"model_type": inner.model_type, **_small(type(inner))}
    return {**made, **CHANGES.get(kind.model_type, {}), **changes}


def _layers(default: Any, fields: Any) -> dict[str, Any]:
    """A layer of each kind, and at least two."""
    found = {
        name: getattr(default, name) for name in KINDS_OF_LAYERS if name in fields and getattr(default, name, None)
    }
    kinds = {name: list(dict.fromkeys(values)) for name, values in found.items()}
    if not kinds:
        return {}
    count = max(2, *(len(values) for values in kinds.values()))
    padded = {name: values + values[-1:] * (count - len(values)) for name, values in kinds.items()}
    return {**padded, **{name: count for name in COUNTS if name in fields}}


INTRODUCTION = """# Models

Made by `python -m tests.model.architectures > docs/models.md`. A test builds a small model of each architecture and
compares the page with what it finds.

Names are the `model_type` in the `config.json` of a model. Shared prefixes are computed once if the model allows it.
Before training, two rows of the data are computed both ways, and the run reports the result. This test decides, so a
model that is not on this page can share prefixes too.

## Share prefixes
"""
PADDED = """## Train on padded rows

Shared prefixes are computed again for each row: slower, with the same results.
"""
REFUSED = """## Cannot be trained

Encoders, encoder-decoders and classifiers are refused, because they do not predict the next token. These models do, but
are refused for another reason:
"""
SEES = "Their predictions depend on later tokens, so a loss would mean nothing"
FILLS = "A row must be as long as the model has positions"


def page() -> str:
    """The whole of docs/models.md."""
    reasons: dict[str, list[str]] = {}
    for name, (why, _) in NOT_BUILT.items():
        reasons.setdefault(why, []).append(name)
    refused = {**reasons, FILLS: ONE_LENGTH, SEES: NOT_CAUSAL}
    parts = [INTRODUCTION, _wrapped(SHARE, ""), PADDED, _points(FALL_BACK), REFUSED, _points(refused)]
    return "\n".join(parts)


def _points(reasons: Mapping[str, Sequence[str]]) -> str:
    return "".join(_wrapped(names, f"- {why}: ") for why, names in reasons.items())


def _wrapped(names: Sequence[str], head: str) -> str:
    text = head + ", ".join(f"`{name}`" for name in names) + "."
    indent = "  " if head else ""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_on_hyphens=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
