"""The sizes of a model are read from its config, without its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.architectures import FALL_BACK, SHARE, tiny_config
from tests.tiny import config_for
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from tunesmith.errors import ModelError
from tunesmith.methods.table import build
from tunesmith.planning import budget, shape_from_model
from tunesmith.planning.shape_from_model import ModelCounter, NotUnderstood, count_parameters, model_config
from tunesmith.planning.step_shape import StepBytes
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.methods import METHOD_SETTINGS
from tunesmith.recipe.optimizers import OPTIMIZERS, Optimizer
from tunesmith.recipe.settings import Recipe
from tunesmith.training.optim import SHARED, build_optimizer

PARAMETERS = 400 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
LINEAR = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
NORMS = (2 * 64 + 4) * 4  # and the log-sum-exp of four heads
PRODUCTS = (2 * 64 + 2 * 32 + 2 * 128) * 4  # query, output, key and value; gate and up
INPUTS = (64 + 64 + 128) * 4  # of the projections that share one, of gate and up, of down
ADAPTER = 2 * 4 * (128 + 96 + 96 + 128 + 3 * 192)  # r = 4: the sizes of both sides of each map, over two layers


def asked(method: Any, *, dtype: str = "float32", device: str = "cpu", **training: Any) -> Recipe:
    return read_recipe(
        {
            "model": {"path": "tiny", "dtype": dtype, "device": device},
            "data": {"train": "rows.jsonl"},
            "method": method,
            "training": training,
            "output_dir": "run",
        }
    ).recipe


def shape(config: Any, method: Any = "full", **settings: Any) -> StepBytes:
    return ModelCounter(config, None).count(asked(method, **settings)).shape


@pytest.fixture
def config(tiny_model_dir: Path) -> Any:
    return AutoConfig.from_pretrained(tiny_model_dir)


def test_full_trains_all_and_keeps_the_inputs_of_its_maps(config: Any) -> None:
    assert shape(config) == StepBytes(
        device="cpu", method="full", weights=4 * PARAMETERS, trained=4 * PARAMETERS, beside=4 * PARAMETERS, layers=2,
        kept=NORMS + PRODUCTS + INPUTS, mask=0, hidden=256, widest=512, vocabulary=400, head=4 * 400 * 64, unpacked=0,
    )  # fmt: skip


def test_freeze_trains_and_copies_a_part_and_only_its_layers_keep_something(config: Any) -> None:
    layer = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64)
    found = shape(config, {"name": "freeze", "trainable_layers": 1})
    assert (found.weights, found.trained, found.beside) == (4 * PARAMETERS + layer, layer, 0)
    assert (found.layers, found.kept, found.head) == (1, NORMS + PRODUCTS + INPUTS, 0)
    gpu = shape(config, {"name": "freeze", "trainable_layers": 1}, device="cuda")
    assert (gpu.weights, gpu.beside) == (4 * PARAMETERS, layer), "the copies are on the CPU until judging"
    embeddings = shape(config, {"name": "freeze", "trainable_layers": 1, "train_embeddings": True})
    assert (embeddings.trained, embeddings.head) == (layer + 4 * 400 * 64, 4 * 400 * 64)
    # The other layer passes gradients on, and keeps no inputs.
    assert (embeddings.layers, embeddings.kept) == (2, NORMS + PRODUCTS + INPUTS // 2)
    norm = shape(config, {"name": "freeze", "trainable_layers": 0, "trainable_modules": ["norm"]})
    assert (norm.trained, norm.layers) == (4 * 64, 0)
    for checkpointing in (False, True):
        assert budget.predict(norm, tokens=64, checkpointing=checkpointing, memory=2**34).activations == 0


def test_gpt2_has_its_weights_the_other_way_round_and_freezes_as_well() -> None:
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=3, n_head=2)
    found = shape(config, {"name": "freeze", "trainable_layers": 1})
    assert (found.trained, found.layers) == (4 * (12 * 64 + 13 * 8), 1)
    assert found.kept == shape(config).kept


def test_an_adapter_of_upper_layers_alone_leaves_the_lower_ones_out_of_the_backward_pass(config: Any) -> None:
    upper = shape(config, {"name": "lora", "r": 4, "layers_to_transform": [1]})
    assert (upper.layers, upper.kept) == (1, shape(config, {"name": "lora", "r": 4}).kept)


def test_lora_trains_the_adapters_and_keeps_rank_sized_products_too(config: Any) -> None:
    found = shape(config, {"name": "lora", "r": 4})
    assert (found.weights, found.trained) == (4 * (PARAMETERS + ADAPTER), 4 * ADAPTER)
    assert found.kept == NORMS + PRODUCTS + INPUTS + 7 * 4 * 4
    assert (found.head, found.beside, found.unpacked) == (0, 0, 0)


def test_dropout_keeps_a_mask_for_each_adapter(config: Any) -> None:
    plain, dropped = (shape(config, {"name": "lora", "r": 4, "lora_dropout": p}) for p in (0.0, 0.1))
    assert dropped.kept - plain.kept == (3 * 64 + 64 + 2 * 64 + 128) * 4


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_taken_out_of_the_base_has_the_weights_as_they_were_beside_it(config: Any, init: str) -> None:
    plain, found = (shape(config, {"name": "lora", "r": 4, "init_lora_weights": each}) for each in (True, init))
    assert found.weights - plain.weights == 4 * LINEAR + 4 * ADAPTER
    assert replace(found, weights=plain.weights) == plain
    some = [
        shape(config, {"name": "lora", "r": 4, "target_modules": ["q_proj"], "init_lora_weights": each})
        for each in (True, init)
    ]
    assert some[1].weights - some[0].weights == 4 * 2 * (64 * 64 + 4 * 128), "only adapted weights are kept"


def test_eva_and_other_rates_cost_nothing(config: Any) -> None:
    plain = shape(config, {"name": "lora", "r": 4})
    eva = {"init_lora_weights": "eva", "eva_config": {"rho": 1.5}}
    assert shape(config, {"name": "lora", "r": 4, "loraplus_lr_ratio": 16, **eva}) == plain


def test_only_the_maps_that_have_an_adapter_keep_their_inputs(config: Any) -> None:
    found = shape(config, {"name": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]})
    assert found.kept == NORMS + PRODUCTS + 64 * 4 + 2 * 4 * 4


def test_a_quantized_map_takes_half_a_byte_a_weight_and_its_constants(config: Any) -> None:
    found = shape(config, {"name": "qlora", "r": 4})
    saved = LINEAR * (4 - 0.5 - 1 / 64 - 1 / 4096)
    assert found.weights == 4 * (PARAMETERS + ADAPTER) - int(saved)
    assert (found.beside, found.unpacked) == (4 * PARAMETERS, 4 * 64 * 128)
    single = shape(config, {"name": "qlora", "r": 4, "bnb_4bit_use_double_quant": False})
    assert single.weights == 4 * (PARAMETERS + ADAPTER) - int(LINEAR * (4 - 0.5 - 4 / 64))


def test_a_map_in_8_bits_takes_a_byte_a_weight_and_a_scale_a_row(config: Any) -> None:
    found = shape(config, {"name": "lora", "r": 4, "load_in_8bit": True})
    rows = 2 * (2 * 64 + 2 * 32 + 2 * 128 + 64)
    assert found.method == "lora-int8"
    assert found.weights == 4 * (PARAMETERS + ADAPTER) - 3 * LINEAR + 4 * rows
    assert (found.beside, found.unpacked) == (4 * PARAMETERS, 4 * 64 * 128)
    skipped = shape(config, {"name": "lora", "r": 4, "load_in_8bit": True, "llm_int8_skip_modules": ["down_proj"]})
    assert skipped.weights - found.weights == 2 * (3 * 64 * 128 - 4 * 64)
    with pytest.raises(ModelError, match=r"method\.llm_int8_skip_modules: a regular expression"):
        shape(config, {"name": "lora", "r": 4, "load_in_8bit": True, "llm_int8_skip_modules": ["(down_proj"]})


def test_an_adapter_that_is_gone_on_from_is_held_beside(config: Any) -> None:
    plain = shape(config, {"name": "qlora", "r": 4})
    found = shape(config, {"name": "qlora", "r": 4, "adapter_name_or_path": "anywhere"})
    assert (found.weights - plain.weights, found.trained, found.beside) == (4 * ADAPTER, plain.trained, 0)


def test_outside_fp32_transformers_and_peft_keep_what_they_keep(config: Any) -> None:
    full = shape(config, dtype="bfloat16")
    assert full.trained == 2 * PARAMETERS
    assert full.kept == NORMS + (2 * 64 + 2 * 32 + 3 * 128) * 2 + INPUTS // 2
    lora = shape(config, {"name": "lora", "r": 4}, dtype="bfloat16")
    assert (lora.weights, lora.trained) == (2 * PARAMETERS + 4 * ADAPTER, 4 * ADAPTER)
    assert lora.kept == full.kept - INPUTS // 2 + (3 * 64 + 64 + 2 * 64 + 128) * 4 + 7 * 4 * 4


def test_keys_are_repeated_where_no_pieces_are_computed(config: Any) -> None:
    tree, padded = shape(config), shape(config, layout="padded")
    assert padded.kept - tree.kept == 2 * (64 - 32) * 4
    gpu = shape(config, device="cuda", dtype="bfloat16")
    assert (gpu.device, gpu.mask) == ("cuda", 2)


def test_a_config_without_an_intermediate_size_has_four_times_the_hidden_one() -> None:
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    found = shape(config)
    assert (found.layers, found.hidden, found.widest, found.vocabulary) == (1, 32, 128, 20)


def test_a_mixture_keeps_the_experts_that_a_token_has() -> None:
    one, two = (shape(config_for("mixtral", num_local_experts=4, num_experts_per_tok=n)) for n in (1, 2))
    assert two.kept - one.kept == (2 * 48 + 2 * 32) * 4
    assert two.weights == one.weights


def test_a_model_whose_files_are_quantized_has_their_size(config: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    recipe = read_recipe(
        {"model": {"path": "tiny", "dtype": "float32", "device": "cpu"}, "data": {"train": "x"}, "output_dir": "run"}
    ).recipe
    found = ModelCounter(config, tmp_path).count(recipe).shape
    assert found.weights == 1000 + found.trained


def test_a_method_that_does_not_fit_is_refused_before_weights_are_loaded(config: Any) -> None:
    with pytest.raises(ModelError, match="no_such_map"):
        shape(config, {"name": "lora", "target_modules": ["no_such_map"]})


def test_nothing_is_drawn_at_random(config: Any) -> None:
    before = torch.get_rng_state()
    shape(config, {"name": "lora", "r": 4})
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHARE, *(name for names in FALL_BACK.values() for name in names)])
def test_every_architecture_that_trains_has_a_shape(name: str) -> None:
    found = shape(tiny_config(name))
    assert found.weights > 0 and found.trained > 0
    assert found.layers > 0 and found.kept > 0


@pytest.mark.parametrize("name", ["gemma3n_text", "gemma4_text"])
def test_sizes_that_differ_by_layer_count_as_the_largest(name: str) -> None:
    assert shape(tiny_config(name)).widest >= 48 * 4


def test_the_state_of_each_optimizer_is_counted_for_what_trains(config: Any) -> None:
    full = {name: shape(config, optim=name) for name in OPTIMIZERS}
    assert (full["adamw_torch"].states, full["sgd"].states, full["lion_32bit"].states) == (2.0, 0.0, 1.0)
    vectors = 5 * 64  # five norms
    large = PARAMETERS - vectors - 400 * 64 - 4 * 64 * 32  # what is quantized: 4,096 elements at least, no lookup table
    rest = PARAMETERS - large
    expected = 2 * large * (1 + 4 / 256) + 8 * rest
    assert full["adamw_8bit"].states * full["adamw_8bit"].trained == pytest.approx(expected)
    assert full["paged_adamw_8bit"] == full["adamw_8bit"]
    sides = 400 + 64 + 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert full["adafactor"].states * full["adafactor"].trained == pytest.approx(4 * (sides + vectors))
    lora = shape(config, {"name": "lora", "r": 4}, optim="adamw_8bit")
    assert lora.states == 2.0, "adapters of this size are below what is quantized"


def test_what_an_optimizer_keeps_is_in_the_prediction(config: Any) -> None:
    peaks = {
        name: budget.predict(shape(config, optim=name), tokens=64, checkpointing=False, memory=2**34)
        for name in ("adamw_torch", "sgd", "lion_32bit")
    }
    assert {peak.gradients for peak in peaks.values()} == {4 * PARAMETERS}
    assert peaks["adamw_torch"].optimizer == 2 * 4 * PARAMETERS
    assert peaks["lion_32bit"].optimizer == 4 * PARAMETERS
    assert peaks["sgd"].optimizer == 0
    assert peaks["adamw_torch"].judging - peaks["sgd"].judging == 2 * 4 * PARAMETERS


def read(values: dict[str, Any]) -> Any:
    return model_config(values, folder=None, where="config.json")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "knows no model_type 'None'"),
        ({"model_type": "of tomorrow"}, "knows no model_type 'of tomorrow'"),
        ({"model_type": "llama", "hidden_size": "wide"}, "hidden_size"),
        ({"model_type": "llama", "num_attention_heads": 0}, "zero"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantized already"),
        ({"model_type": "clip"}, "Unrecognized configuration class"),
    ],
)
def test_a_config_that_no_model_can_be_built_from_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(NotUnderstood, match="cannot be counted from its config alone") as caught:
        count_parameters(read(config))
    assert said in str(caught.value.why)


def test_a_nested_text_config_is_read_where_nothing_else_is_built() -> None:
    inner = config_for("mistral").to_dict()
    wrapped = read({"model_type": "wrapper", "text_config": inner})
    assert wrapped.to_dict() == read(inner).to_dict()
    with pytest.raises(NotUnderstood, match="cannot be counted"):
        read({"model_type": "wrapper", "text_config": inner, "vision_config": {}})


def test_parameters_of_well_known_models() -> None:
    llama8 = {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    }  # fmt: skip
    assert count_parameters(read(llama8)) == 8_030_261_248  # as the hub page of Llama 3 8B says: 8.03B
    assert count_parameters(read({"model_type": "mixtral", "num_hidden_layers": 32})) == 46_702_792_704  # 46.7B


def test_a_model_is_built_once_for_recipes_that_attach_the_same(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    build_of = shape_from_model._build
    monkeypatch.setattr(
        shape_from_model, "_build", lambda *arguments: (built.append(arguments[2].name), build_of(*arguments))[1]
    )
    counter = ModelCounter(config, None)
    kept = {name: counter.count(asked({"name": name, "r": 4})).shape for name in ("lora", "qlora")}
    counter.count(asked("full"))
    assert built == ["lora", "full"]
    assert kept == {name: shape(config, {"name": name, "r": 4}) for name in ("lora", "qlora")}


SIZES = {"tiny": {}, "mid": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 2000}}


@pytest.mark.parametrize("optim", [name for name in OPTIMIZERS if not name.startswith("paged")])
@pytest.mark.parametrize(("method", "dtype"), [("full", "float32"), ("full", "bfloat16"), ("lora", "bfloat16")])
@pytest.mark.parametrize("size", SIZES)
def test_the_counted_state_is_what_the_optimizer_holds_after_a_step(
    size: str, method: str, dtype: str, optim: Optimizer
) -> None:
    config = config_for("llama", tie_word_embeddings=size == "mid", **SIZES[size])
    settings: Any = {"name": "lora", "r": 16} if method == "lora" else method
    counted = shape(config, settings, dtype=dtype, optim=optim)
    chosen: Any = METHOD_SETTINGS[method](**(settings if method == "lora" else {}))
    own = build(chosen, base="nowhere")
    model = own.attach(AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)))
    optimizer = build_optimizer(
        own.parameter_groups(model), learning_rate=0.0, weight_decay=0.0, betas=(0.9, 0.99), epsilon=1e-8, optim=optim
    )
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    held = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.ndim and key not in SHARED
    )
    assert round(counted.states * counted.trained) == held
