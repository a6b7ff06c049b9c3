"""QLoRA: 4-bit layers compute and differentiate as their dequantized weights, in training and evaluation alike."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from tunesmith.errors import ModelError
from tunesmith.methods.qlora import compute_dtype
from tunesmith.methods.quantized_base import packed_layers
from tunesmith.methods.table import build
from tunesmith.recipe.methods import QloraSettings

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs pip install 'tunesmith[8bit]'")
dequantize_4bit = bitsandbytes.functional.dequantize_4bit

REPACKS = bool(bitsandbytes.functional.has_avx512bf16())


def attached(folder: Path, **settings: Any) -> tuple[Any, Any]:
    method: Any = build(QloraSettings(**settings), base=folder)
    options = method.load_options()
    model = method.attach(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).train())
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


def packed_bytes(model: nn.Module) -> dict[str, list[int]]:
    return {name: layer.weight.flatten().tolist() for name, layer in packed_layers(model, "Linear4bit").items()}


def test_every_quantization_setting_is_a_field_of_bits_and_bytes_config(tiny_model_dir: Path) -> None:
    settings = QloraSettings(
        bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=False, bnb_4bit_compute_dtype="bfloat16"
    )
    options = build(settings, base=tiny_model_dir).load_options()
    config: BitsAndBytesConfig = options["quantization_config"]
    assert config.load_in_4bit
    for field in {name for name in QloraSettings.model_fields if name.startswith("bnb_")}:
        expected = getattr(settings, field)
        assert getattr(config, field) == (torch.bfloat16 if expected == "bfloat16" else expected), field
    assert options["device_map"] == {"": "cpu"}


def test_the_defaults_are_double_quantized_nf4_computed_in_float32_on_a_cpu(tiny_model_dir: Path) -> None:
    _, model = attached(tiny_model_dir)
    layers = packed_layers(model, "Linear4bit")
    assert len(layers) == 14  # seven linear layers in each of two blocks; not the head
    for layer in layers.values():
        assert (layer.weight.quant_state.quant_type, layer.weight.quant_state.nested) == ("nf4", True)
        assert layer.compute_dtype == torch.float32
    assert model.base_model.model.lm_head.weight.dtype == torch.float32
    assert model.base_model.model.model.norm.weight.dtype == torch.float32


def test_auto_computes_in_float32_on_a_cpu_and_a_named_dtype_is_kept() -> None:
    assert compute_dtype("auto", torch.device("cpu")) == torch.float32
    assert compute_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_a_four_bit_layer_gives_the_gradients_of_its_dequantized_weight(tiny_model_dir: Path) -> None:
    _, model = attached(tiny_model_dir)
    for layer in [layer for layer in packed_layers(model, "Linear4bit").values()][:7]:
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1), requires_grad=True)
        y = layer(x)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        y.backward(upstream)
        assert torch.allclose(y, x @ weight.T, atol=1e-6)
        assert x.grad is not None and torch.allclose(x.grad, upstream @ weight, atol=1e-6)


def test_the_adapters_get_the_gradients_they_have_over_the_dequantized_model(tiny_model_dir: Path) -> None:
    method, model = attached(tiny_model_dir)
    plain = method.merge(model)
    merged_gradients: dict[str, Tensor] = {}
    plain.requires_grad_(True)(input_ids=ids(), labels=ids()).loss.backward()
    for name, parameter in plain.named_parameters():
        merged_gradients[name] = parameter.grad
    model(input_ids=ids(), labels=ids()).loss.backward()
    for name in packed_layers(model, "Linear4bit"):
        layer = model.get_submodule(name.removesuffix(".base_layer"))
        weight = merged_gradients[name.removeprefix("base_model.model.").removesuffix(".base_layer") + ".weight"]
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert torch.allclose(b.grad, layer.scaling["default"] * weight @ a.T, atol=1e-6)
        assert torch.allclose(a.grad, layer.scaling["default"] * b.T @ weight, atol=1e-6)


def test_merged_weights_are_the_dequantized_ones_plus_the_update(tiny_model_dir: Path) -> None:
    method, model = attached(tiny_model_dir)
    merged = dict(method.merge(model).named_parameters())
    for name, base in packed_layers(model, "Linear4bit").items():
        layer = model.get_submodule(name.removesuffix(".base_layer"))
        weight = dequantize_4bit(base.weight.data, base.weight.quant_state)
        update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        plain = merged[name.removeprefix("base_model.model.").removesuffix(".base_layer") + ".weight"]
        assert torch.allclose(plain, weight + update, atol=1e-7)
        assert update.abs().max() > 0.01


def test_evaluation_does_not_change_the_layers_or_what_they_compute(tiny_model_dir: Path) -> None:
    _, model = attached(tiny_model_dir)
    before, training = packed_bytes(model), logits(model.train())
    assert torch.equal(logits(model.eval()), training)
    assert packed_bytes(model) == before
    assert torch.equal(logits(model.train()), training)


@pytest.mark.skipif(not REPACKS, reason="only CPUs with AVX512-BF16 repack")
def test_a_model_that_was_repacked_before_is_not_trained_on(tiny_model_dir: Path) -> None:
    method = build(QloraSettings(), base=tiny_model_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, **method.load_options())
    logits(model.eval())
    with pytest.raises(AssertionError, match="repacked by a forward pass"):
        method.attach(model)


def test_layers_of_gpt2_merge_into_their_transposed_form(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=64, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    method, model = attached(tmp_path)
    merged = method.merge(model)
    assert (logits(merged.eval()) - logits(model.eval())).abs().max() < 2e-5
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logits(merged))


def test_a_model_that_is_not_in_four_bits_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ModelError, match="no 4-bit layers"):
        build(QloraSettings(), base=tiny_model_dir).attach(AutoModelForCausalLM.from_pretrained(tiny_model_dir))


def test_orthogonal_initialisation_is_refused() -> None:
    with pytest.raises(ValidationError, match="orthogonal does not work over 4-bit weights"):
        QloraSettings(init_lora_weights="orthogonal")


def test_a_packed_layer_cannot_train_whole(tiny_model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"modules_to_save: down_proj is quantized, so it cannot train whole"):
        attached(tiny_model_dir, target_modules=["q_proj"], modules_to_save=["down_proj"])


def test_a_missing_library_is_said(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"qlora needs bitsandbytes\n(.|\n)*pip install 'tunesmith\[8bit\]'"):
        build(QloraSettings(), base=tiny_model_dir).load_options()


def test_a_library_that_does_not_run_here_is_said(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no native library for this system")

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", broken)
    with pytest.raises(ModelError, match=r"does not run on cpu\n  no native library"):
        build(QloraSettings(), base=tiny_model_dir).load_options()
