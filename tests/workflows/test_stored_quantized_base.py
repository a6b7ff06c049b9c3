"""A base whose files hold 4-bit weights: an adapter trains over it and is merged into plain weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tunesmith.deploy import tuned
from tunesmith.deploy.merge import merge
from tunesmith.errors import RecipeError
from tunesmith.methods.quantized_base import dequantize_4_bits
from tunesmith.methods.stored_quantization import over_stored, stored_bits
from tunesmith.planning.devices import device_called
from tunesmith.planning.method_table import plan_methods
from tunesmith.planning.workload import as_given
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.methods import FullSettings, LoraSettings, QloraSettings
from tunesmith.workflows.finetune import train

FOUR = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
EIGHT = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}


@pytest.fixture(scope="module")
def packed(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, quantization_config=settings, dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return folder


def recipe(base: Path, folder: Path, **method: Any) -> dict[str, Any]:
    rows = [{"prompt": f"{word} thing {n}", "completion": word} for n in range(4) for word in ("red", "blue", "pink")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(base),
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.25},
        "method": method,
        "training": {"max_steps": 2, "batch_size": 4, "learning_rate": 5e-2, "report_to": "none", "threads": 1},
        "evaluation": {"resamples": 100, "samples": 0, "max_new_tokens": 2},
        "output_dir": str(folder / "run"),
    }


@pytest.mark.parametrize("sizes", [(80, 96), (96, 112), (64, 136)], ids=str)
def test_a_base_of_any_shape_answers_alone(tiny_model_dir: Path, tmp_path: Path, sizes: tuple[int, int]) -> None:
    hidden, inner = sizes  # no multiples of 32 or 64, which bitsandbytes cannot repack on CPUs with AVX512-BF16
    config = AutoConfig.from_pretrained(tiny_model_dir)
    config.hidden_size, config.intermediate_size, config.head_dim = hidden, inner, hidden // 4
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.save_pretrained(tmp_path / "plain")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=settings, dtype=torch.float32)
    packed.save_pretrained(tmp_path / "packed")
    tokenizer.save_pretrained(tmp_path / "packed")
    (tmp_path / "packed" / "generation_config.json").write_text('{"eos_token_id": 2}')
    model = tuned.load(tmp_path / "packed")
    layer = next(module for module in model.model.modules() if type(module).__name__ == "Linear4bit")
    x = torch.randn(2, hidden)
    expected = x @ dequantize_4_bits(layer).T  # before a pass, which may repack the layer
    [answer] = model.generate("red hat", max_new_tokens=3)
    assert len(answer.tokens) > 0
    exact = hidden != 64  # the others are repacked where the CPU can, and then compute in bfloat16
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5 if exact else 5e-2)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(torch.tensor([[5, 6, 7, 8, 9]])).logits.float()


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_an_adapter_trains_over_it_and_merges_into_plain_weights(packed: Path, tmp_path: Path, name: str) -> None:
    run = train(recipe(packed, tmp_path, name=name, r=4)).run
    running = tuned.load(run)
    assert running.target.method is not None and running.target.method.name == "qlora"
    merged = merge(run, tmp_path / "plain", dtype="float32")
    assert merged.onto == "dequantized" and list(merged.candidates) == ["dequantized"]
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    torch.testing.assert_close(logits(plain), logits(running.model), rtol=0, atol=1e-4)


def test_an_adapter_folder_over_it_is_merged_too(packed: Path, tmp_path: Path) -> None:
    run = train(recipe(packed, tmp_path, name="lora", r=4)).run
    folder = tmp_path / "adapter"
    (run / "checkpoints" / "step-000002").rename(folder)
    expected = logits(tuned.load(folder).model)
    merge(folder, tmp_path / "plain", dtype="float32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=1e-4)


def test_its_weights_themselves_cannot_train(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"method full cannot train this model(.|\n)*4 bits(.|\n)*method: qlora"):
        train(recipe(packed, tmp_path, name="full"))


def test_the_plan_offers_qlora_alone(packed: Path, tmp_path: Path) -> None:
    asked = read_recipe(recipe(packed, tmp_path, name="lora", r=4), []).recipe
    config = json.loads((packed / "config.json").read_text())
    workload, device = as_given(100, 64, recipe=asked), device_called("cpu", threads=1)
    planned = plan_methods(asked, config, workload, device, folder=packed)
    found = {line.method: (line.fits, line.why) for line in planned.lines}
    assert found["qlora"] == (True, "") and planned.recommended == "qlora"
    assert all(not found[name][0] and "stored in 4 bits" in found[name][1] for name in ("full", "lora"))


def test_the_files_decide_the_data_type() -> None:
    assert (stored_bits(FOUR), stored_bits(EIGHT), stored_bits({})) == (4, 8, None)
    made, note = over_stored(LoraSettings(r=8), FOUR, where="m")
    assert isinstance(made, QloraSettings) and note == "method: lora -> qlora, because m is stored in 4 bits"
    assert (made.r, made.bnb_4bit_quant_type, made.bnb_4bit_use_double_quant) == (8, "nf4", False)
    assert over_stored(FullSettings(), {}, where="m") == (FullSettings(), None)
    with pytest.raises(RecipeError, match=r"bnb_4bit_quant_type contradicts the model(.|\n)*Leave"):
        over_stored(QloraSettings(bnb_4bit_quant_type="fp4"), FOUR, where="m")
    made, _ = over_stored(LoraSettings(), EIGHT, where="m")
    assert isinstance(made, LoraSettings) and made.load_in_8bit
    with pytest.raises(RecipeError, match="load_in_8bit: true"):
        over_stored(QloraSettings(), EIGHT, where="m")
