"""LoRA over 8-bit weights: layers compute as their dequantized weights, whatever stands beside a row."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from tests.tiny import config_for
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from tunesmith.errors import ModelError
from tunesmith.methods import fused_lora
from tunesmith.methods.quantized_base import dequantize_8_bits, packed_layers
from tunesmith.methods.table import build
from tunesmith.model.compute.kernels import adapted_linears
from tunesmith.model.weights.load import load_model
from tunesmith.recipe.methods import LoraSettings

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs pip install 'tunesmith[8bit]'")


def attached(folder: Path, *, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[Any, Any]:
    method: Any = build(LoraSettings(load_in_8bit=True, **settings), base=folder)
    options = method.load_options()
    model = method.attach(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).train())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
    return method, model


def ids() -> Tensor:
    return torch.arange(3, 27).reshape(2, 12)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=ids()).logits


def weight_of(layer: Any) -> Tensor:
    """By bitsandbytes' own dequantization."""
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return bitsandbytes.functional.int8_vectorwise_dequant(layer.weight.data, scales)


def test_every_quantization_setting_is_a_field_of_bits_and_bytes_config(tiny_model_dir: Path) -> None:
    options = build(LoraSettings(load_in_8bit=True), base=tiny_model_dir).load_options()
    config: BitsAndBytesConfig = options["quantization_config"]
    assert (config.load_in_8bit, config.llm_int8_threshold, config.llm_int8_skip_modules) == (True, 6.0, None)
    assert options["device_map"] == {"": "cpu"}
    settings = LoraSettings(load_in_8bit=True, llm_int8_skip_modules=["q_proj"])
    config = build(settings, base=tiny_model_dir).load_options()["quantization_config"]
    assert config.llm_int8_skip_modules == ["q_proj", "lm_head", "embed_out", "output_layer"]


def test_the_linear_layers_are_in_8_bits_and_nothing_else(tiny_model_dir: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    _, model = attached(tiny_model_dir, llm_int8_skip_modules=["o_proj"])
    layers = packed_layers(model, "Linear8bitLt")
    assert len(layers) == 12  # of seven linear layers in each of two blocks, all but o_proj
    for name, layer in layers.items():
        assert layer.weight.dtype == torch.int8
        there = base.get_submodule(name.removeprefix("base_model.model.").removesuffix(".base_layer"))
        plain = cast("torch.Tensor", there.weight)
        error = (dequantize_8_bits(layer, torch.float32) - plain).abs()
        assert (error <= 0.7 * plain.abs().amax(1, keepdim=True) / 127).all() and error.max() > 0
        assert torch.allclose(dequantize_8_bits(layer, torch.float32), weight_of(layer), rtol=1e-6, atol=0)
    inner = model.base_model.model
    assert inner.model.layers[0].self_attn.o_proj.base_layer.weight.dtype == torch.float32
    assert inner.lm_head.weight.dtype == inner.model.norm.weight.dtype == torch.float32


def test_a_layer_gives_the_outputs_and_gradients_of_its_dequantized_weight(tiny_model_dir: Path) -> None:
    _, model = attached(tiny_model_dir)
    for layer in packed_layers(model, "Linear8bitLt").values():
        weight = weight_of(layer)
        for mode in (True, False):
            x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1), requires_grad=True)
            y = layer.train(mode)(x)
            upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
            y.backward(upstream)
            assert torch.allclose(y, x @ weight.T, atol=1e-6)
            assert x.grad is not None and torch.allclose(x.grad, upstream @ weight, atol=1e-6)


def test_what_a_row_gives_does_not_depend_on_the_rows_beside_it(tiny_model_dir: Path) -> None:
    _, model = attached(tiny_model_dir)
    layer = next(iter(packed_layers(model, "Linear8bitLt").values())).eval()
    rows = torch.randn(2, 4, layer.in_features, generator=torch.Generator().manual_seed(1))
    rows[1, 2, 5] = 40.0  # an outlier, of one row
    own = layer.forward

    def apart(forward: Any) -> float:
        with torch.no_grad():
            return float((forward(rows)[0] - forward(rows[:1])[0]).abs().max())

    assert apart(own) < 1e-6
    layer.state.threshold = 6.0
    assert apart(lambda x: type(layer).forward(layer, x)) > 1e-4, "LLM.int8() as bitsandbytes computes it"


def test_training_and_evaluation_compute_the_same_and_change_nothing(tiny_model_dir: Path) -> None:
    _, model = attached(tiny_model_dir)
    before = {name: layer.weight.data.clone() for name, layer in packed_layers(model, "Linear8bitLt").items()}
    training = logits(model.train())
    assert torch.equal(logits(model.eval()), training)
    assert torch.equal(logits(model.train()), training)
    assert all(
        torch.equal(layer.weight.data, before[name]) for name, layer in packed_layers(model, "Linear8bitLt").items()
    )


def test_the_fused_passes_give_what_pefts_own_code_gives(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kernel = adapted_linears
    monkeypatch.setattr(fused_lora, "adapted_linears", lambda *given: calls.append(len(given[1])) or kernel(*given))
    found = []
    for plain in (False, True):
        _, model = attached(tiny_model_dir)
        for name, module in model.named_modules():
            if plain and name.endswith("_proj"):
                module.__dict__.pop("forward")
        loss = model(input_ids=ids(), labels=ids()).loss
        loss.backward()
        found.append({name: own.grad for name, own in model.named_parameters() if own.grad is not None})
    assert calls == [3, 1, 2, 1] * 2
    assert found[0].keys() == found[1].keys() and len(found[0]) == 28
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_dequantized_weight_is_kept_for_the_backward_pass(tiny_model_dir: Path, dtype: torch.dtype) -> None:
    _, model = attached(tiny_model_dir, dtype=dtype)
    shapes = {tuple(layer.weight.shape) for layer in packed_layers(model, "Linear8bitLt").values()}
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda own: kept.append(tuple(own.shape)) or own, lambda own: own):
        model(input_ids=ids(), labels=ids()).loss.backward()
    assert kept and not shapes & set(kept)


def test_merged_weights_are_the_dequantized_ones_plus_the_update(tiny_model_dir: Path) -> None:
    method, model = attached(tiny_model_dir)
    merged = dict(method.merge(model).named_parameters())
    for name, base in packed_layers(model, "Linear8bitLt").items():
        layer = model.get_submodule(name.removesuffix(".base_layer"))
        update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        plain = merged[name.removeprefix("base_model.model.").removesuffix(".base_layer") + ".weight"]
        assert torch.allclose(plain, weight_of(base) + update, atol=1e-7)
        assert update.abs().max() > 0.01


def test_layers_of_gpt2_merge_into_their_transposed_form(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=64, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    method, model = attached(tmp_path)
    merged = method.merge(model)
    assert (logits(merged.eval()) - logits(model.eval())).abs().max() < 2e-5
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logits(merged))


def test_a_model_that_is_not_in_8_bits_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ModelError, match="no 8-bit layers"):
        build(LoraSettings(load_in_8bit=True), base="none").attach(AutoModelForCausalLM.from_pretrained(tiny_model_dir))


def test_an_output_layer_in_8_bits_is_refused(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(config_for("llama", tie_word_embeddings=False)).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["down_proj"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization, device_map={"": "cpu"})
    with pytest.raises(ModelError, match=r"output layer would be quantized\n(.|\n)*lm_head"):
        build(LoraSettings(load_in_8bit=True), base=tmp_path).attach(model)


@pytest.mark.parametrize("init", ["orthogonal", "pissa", "olora"])
def test_initialisations_that_need_the_base_in_floating_point_are_refused(init: str) -> None:
    with pytest.raises(ValidationError, match=f"{init} does not work over 8-bit weights"):
        LoraSettings(load_in_8bit=True, init_lora_weights=init)


def test_a_packed_layer_cannot_train_whole(tiny_model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"modules_to_save: down_proj is quantized(.|\n)*llm_int8_skip_modules"):
        attached(tiny_model_dir, target_modules=["q_proj"], modules_to_save=["down_proj"])


@pytest.mark.parametrize("name", ["q_prj", "nosuch"])
def test_a_module_to_skip_that_is_not_there_is_refused(tiny_model_dir: Path, name: str) -> None:
    with pytest.raises(ModelError, match=f"llm_int8_skip_modules: the model has no module named '{name}'"):
        attached(tiny_model_dir, llm_int8_skip_modules=[name])


SLOW = r"(\w+\.?)+!"


def loaded(folder: Path, **settings: Any) -> Any:
    options = build(LoraSettings(load_in_8bit=True, **settings), base=folder).load_options()
    return load_model(folder, dtype=torch.float32, device="cpu", load_options=options)


def test_an_expression_for_modules_to_skip_is_tried_before_it_is_used(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.model.weights.slow_regex.SECONDS", 0.4)
    layers = packed_layers(loaded(tiny_model_dir, llm_int8_skip_modules=[r".*\.(q|v)_proj"]), "Linear8bitLt")
    assert len(layers) == 10 and not any(name.endswith(("q_proj", "v_proj")) for name in layers)
    for pattern, why in ((SLOW, "took over 0.4 s of computing"), ("(q_proj", "unterminated subpattern")):
        with pytest.raises(ModelError, match="cannot be used") as caught:
            loaded(tiny_model_dir, llm_int8_skip_modules=[pattern])
        assert caught.value.where == "method.llm_int8_skip_modules" and why in str(caught.value.why)
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "foreign"))
    config = json.loads((folder / "config.json").read_text())
    for value, what in (([SLOW], "cannot be used"), (5, "it is no list of names")):
        quantized = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": value}
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantized}))
        with pytest.raises(ModelError, match=what) as caught:
            load_model(folder, dtype=torch.float32, device="cpu")
        assert caught.value.where == f"{folder / 'config.json'}: quantization_config.llm_int8_skip_modules"


def test_a_missing_library_is_said(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"load_in_8bit needs bitsandbytes\n(.|\n)*or use method: lora"):
        build(LoraSettings(load_in_8bit=True), base=tiny_model_dir).load_options()
