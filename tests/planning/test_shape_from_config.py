"""What is computed from config.json alone is what transformers builds, parameter by parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.model.architectures import tiny_config
from tests.tiny import config_for

from tunesmith.errors import ModelError
from tunesmith.planning.shape_from_config import FAMILIES, NotUnderstood, read_architecture, shape_from
from tunesmith.planning.shape_from_model import shape_of
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.optimizers import OPTIMIZERS
from tunesmith.recipe.settings import Recipe

METHODS: dict[str, Any] = {
    "full": "full",
    "freeze": {"name": "freeze", "trainable_layers": 1},
    "embeddings": {"name": "freeze", "trainable_layers": 1, "train_embeddings": True},
    "lora": {"name": "lora", "r": 4},
    "qlora": {"name": "qlora", "r": 4, "bnb_4bit_use_double_quant": False},
    "lora-int8": {"name": "lora", "r": 4, "load_in_8bit": True},
}

CASES = [
    ("lora", "float32"), ("qlora", "bfloat16"), ("lora-int8", "bfloat16"), ("full", "bfloat16"), ("freeze", "bfloat16"),
    ("embeddings", "float32"),
]  # fmt: skip


# Large enough that some matrices have 8-bit moments (4,096 elements) and others, and vectors, have not.
WIDE = {"llama": {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 200}, "gpt2": {"n_embd": 64, "n_inner": 96}}


def recipe_of(method: Any, *, dtype: str = "float32", device: str = "cpu", **training: Any) -> Recipe:
    return read_recipe(
        {
            "model": {"path": "tiny", "dtype": dtype, "device": device},
            "data": {"train": "rows.jsonl"},
            "method": method,
            "training": training,
            "output_dir": "run",
        }
    ).recipe


def plain(config: Any) -> dict[str, Any]:
    return config.to_dict()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_arithmetic_is_what_transformers_builds(name: str) -> None:
    config = tiny_config(name)
    for method, dtype in CASES:
        recipe = recipe_of(METHODS[method], dtype=dtype)
        assert shape_from(read_architecture(plain(config)), recipe) == shape_of(config, recipe, Path("nowhere"))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_config_leaves_out_is_what_its_class_fills_in(name: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(name)
    given = {"model_type": name, "num_hidden_layers": 2}
    full = {**config.to_dict(), "num_hidden_layers": 2, "n_layer": 2}
    if name == "gpt2":
        given["n_layer"] = given.pop("num_hidden_layers")
    assert read_architecture(given) == read_architecture(full)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": r".*\.(gate|up)_proj"},
        {"exclude_modules": ["down_proj"]},
        {"layers_to_transform": [1], "target_modules": ["o_proj", "k_proj"]},
        {"rank_pattern": {"v_proj": 2}},
        {"use_dora": True},
        {"lora_dropout": 0.1},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora", "rank_pattern": {"v_proj": 2}, "use_dora": True},
        {"init_lora_weights": "eva", "eva_config": {"rho": 1.5}, "loraplus_lr_ratio": 16},
        {"load_in_8bit": True},
        {"adapter_name_or_path": "anywhere", "adapter_sha256": "0" * 64},
    ],
    ids=str,
)
def test_settings_of_an_adapter_count_as_peft_applies_them(changes: dict[str, Any]) -> None:
    config, recipe = config_for("llama"), recipe_of({"name": "lora", "r": 4, **changes})
    assert shape_from(read_architecture(plain(config)), recipe) == shape_of(config, recipe, Path("nowhere"))


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "phi"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_named_maps_of_freeze_count_with_the_layers(name: str, device: str) -> None:
    config, architecture = tiny_config(name), read_architecture(plain(tiny_config(name)))
    lower = architecture.maps[1].name.rpartition(".")[2]
    first, last = architecture.maps[0].name, architecture.maps[-1].name
    for number, names in ((0, [lower]), (1, [lower, last]), (1, [f"1.{first}"])):
        recipe = recipe_of({"name": "freeze", "trainable_layers": number, "trainable_modules": names}, device=device)
        assert shape_from(architecture, recipe) == shape_of(config, recipe, Path("nowhere"))


@pytest.mark.parametrize(
    "settings",
    [
        {"trainable_layers": 3},
        {"trainable_modules": "model"},
        {"trainable_modules": ["norm"]},
        {"trainable_modules": ["mlp"]},
    ],
    ids=str,
)
def test_a_part_that_is_not_counted_here_is_left_to_the_meta_device(settings: dict[str, Any]) -> None:
    with pytest.raises(NotUnderstood, match="Which weights it trains"):
        shape_from(read_architecture(plain(config_for("llama"))), recipe_of({"name": "freeze", **settings}))


def test_experts_that_share_a_name_with_a_map_are_left_to_the_meta_device() -> None:
    recipe = recipe_of({"name": "freeze", "trainable_modules": ["down_proj"]})
    with pytest.raises(NotUnderstood, match="Which weights it trains"):
        shape_from(read_architecture(plain(tiny_config("qwen2_moe"))), recipe)


def test_a_nested_text_config_is_read_where_nothing_else_is_built() -> None:
    inner = plain(config_for("mistral"))
    assert read_architecture({"model_type": "wrapper", "text_config": inner}) == read_architecture(inner)
    with pytest.raises(NotUnderstood, match="parts beside its text model"):
        read_architecture({"model_type": "wrapper", "text_config": inner, "vision_config": {}})


def test_parameters_of_well_known_models() -> None:
    llama8 = {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    }  # fmt: skip
    assert read_architecture(llama8).parameters == 8_030_261_248  # as the hub page of Llama 3 8B says: 8.03B
    mixtral = {"model_type": "mixtral", "num_hidden_layers": 32}
    assert read_architecture(mixtral).parameters == 46_702_792_704  # 46.7B


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "model_type is None"),
        ({"model_type": "mamba"}, "model_type is 'mamba'"),
        ({"model_type": "llama", "hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantized already"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "mlp_only_layers"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(NotUnderstood, match=said):
        read_architecture(config)


def test_a_setting_that_is_not_known_here_is_left_to_the_meta_device() -> None:
    architecture = read_architecture(plain(config_for("llama")))
    with pytest.raises(NotUnderstood, match="modules_to_save"):
        shape_from(architecture, recipe_of({"name": "lora", "modules_to_save": ["lm_head"]}))
    with pytest.raises(ModelError, match="matches no linear module"):
        shape_from(architecture, recipe_of({"name": "lora", "target_modules": ["nothing"]}))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_state_of_every_optimizer_is_counted_by_arithmetic_too(name: str) -> None:
    config = tiny_config(name, **WIDE.get(name, {}))
    architecture = read_architecture(plain(config))
    for method, dtype in (("lora", "float32"), ("full", "bfloat16"), ("embeddings", "bfloat16")):
        for optim in OPTIMIZERS:
            recipe = recipe_of(METHODS[method], dtype=dtype, optim=optim)
            assert shape_from(architecture, recipe) == shape_of(config, recipe, Path("nowhere")), (method, optim)
