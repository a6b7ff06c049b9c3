"""Full fine-tuning: what is written, what is refused, and models whose files are laid out otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from tunesmith.errors import ModelError
from tunesmith.methods import full
from tunesmith.methods.table import build
from tunesmith.recipe.methods import FullSettings


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options})


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=torch.arange(3, 15)[None]).logits


def shift(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01


def names_in(file: Path) -> set[str]:
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        return set(opened.keys())


@pytest.fixture
def mixtral_dir(tmp_path: Path) -> Path:
    config = MixtralConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "mixtral")
    return tmp_path / "mixtral"


def test_a_checkpoint_is_a_model_folder_with_tied_weights_once(tiny_model_dir: Path, tmp_path: Path) -> None:
    method = build(FullSettings(), base=tiny_model_dir)
    model = method.attach(load(tiny_model_dir))
    state = method.state(model)
    method.save(state, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    assert names_in(tmp_path / "model.safetensors") == state.keys() == names_in(tiny_model_dir / "model.safetensors")
    assert "lm_head.weight" not in state
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 2


def test_large_models_are_written_in_shards(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full, "MAX_SHARD_SIZE", "150KB")
    method = build(FullSettings(), base=tiny_model_dir)
    model = method.attach(load(tiny_model_dir).eval())
    shift(model)
    method.save(method.state(model), tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert torch.equal(logits(load(tmp_path)), logits(model))
    again = build(FullSettings(), base=tiny_model_dir)
    assert torch.equal(logits(again.load(load(tiny_model_dir), tmp_path)), logits(model))


def test_saving_does_not_empty_the_state(tiny_model_dir: Path, tmp_path: Path) -> None:
    method = build(FullSettings(), base=tiny_model_dir)
    state = method.state(method.attach(load(tiny_model_dir)))
    names = set(state)
    method.save(state, tmp_path)
    assert set(state) == names


def test_experts_are_saved_by_the_names_of_the_original_files(mixtral_dir: Path, tmp_path: Path) -> None:
    method = build(FullSettings(), base=mixtral_dir)
    model = method.attach(load(mixtral_dir).eval())
    before = logits(model)
    shift(model)
    method.save(method.state(model), tmp_path / "saved")
    saved = names_in(tmp_path / "saved" / "model.safetensors")
    assert saved == names_in(mixtral_dir / "model.safetensors")
    assert any(".experts.0.w1." in name for name in saved)
    assert torch.equal(logits(load(tmp_path / "saved")), logits(model))
    with method.reference(model) as reference:
        assert torch.equal(logits(reference), before)


def test_bfloat16_weights_stay_bfloat16(tiny_model_dir: Path, tmp_path: Path) -> None:
    method = build(FullSettings(), base=tiny_model_dir)
    model = method.attach(load(tiny_model_dir, dtype=torch.bfloat16).eval())
    before = logits(model)
    shift(model)
    method.save(method.state(model), tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert torch.equal(logits(load(tmp_path, dtype="auto")), logits(model))
    with method.reference(model) as reference:
        assert torch.equal(logits(reference), before)


def test_the_reference_needs_no_second_copy_of_what_trains(tiny_model_dir: Path) -> None:
    method = build(FullSettings(), base=tiny_model_dir)
    model = method.attach(load(tiny_model_dir))
    trained = {name: own.data_ptr() for name, own in model.named_parameters()}
    with method.reference(model):
        assert all(own.data_ptr() != trained[name] for name, own in model.named_parameters())
    assert {name: own.data_ptr() for name, own in model.named_parameters()} == trained


def test_an_optimizer_goes_on_after_the_reference(tiny_model_dir: Path) -> None:
    def trained(look: bool) -> Tensor:
        method = build(FullSettings(), base=tiny_model_dir)
        model = method.attach(load(tiny_model_dir))
        groups = [{"params": group["params"]} for group in method.parameter_groups(model)]
        optimizer = torch.optim.AdamW(groups, lr=1e-2)
        ids = torch.arange(3, 15)[None]
        for _ in range(2):
            model(input_ids=ids, labels=ids).loss.backward()
            if look:
                with method.reference(model) as reference:
                    logits(reference)
            optimizer.step()
            optimizer.zero_grad()
        return logits(model)

    assert torch.equal(trained(look=True), trained(look=False))


def test_norms_and_biases_are_spared_from_decay() -> None:
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config)
    decayed, spared = build(FullSettings(), base="none").parameter_groups(model)
    assert (decayed["decay"], spared["decay"]) == (True, False)
    assert decayed["names"] == [
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "transformer.h.0.attn.c_attn.weight",
        "transformer.h.0.attn.c_proj.weight",
        "transformer.h.0.mlp.c_fc.weight",
        "transformer.h.0.mlp.c_proj.weight",
    ]
    assert len(decayed["names"]) + len(spared["names"]) == len(list(model.parameters()))


def test_groups_without_parameters_are_left_out(tiny_model_dir: Path) -> None:
    model = load(tiny_model_dir).requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    (group,) = build(FullSettings(), base=tiny_model_dir).parameter_groups(model)
    assert (group["names"], group["decay"]) == (["model.norm.weight"], False)


def test_quantized_weights_are_refused(tiny_model_dir: Path) -> None:
    quantized = load(tiny_model_dir, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    with pytest.raises(ModelError, match="cannot train quantized weights"):
        build(FullSettings(), base=tiny_model_dir).attach(quantized)


def test_a_checkpoint_that_lacks_weights_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    method = build(FullSettings(), base=tiny_model_dir)
    model = method.attach(load(tiny_model_dir))
    method.save(method.state(model), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"weights are missing\n.*layers\.1\.mlp\.up_proj"):
        method.load(load(tiny_model_dir), tmp_path)


def test_the_checkpoint_of_another_model_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=3)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="of another model"):
        build(FullSettings(), base=tiny_model_dir).load(load(tiny_model_dir), tmp_path)


def test_a_base_that_is_gone_is_said_and_leaves_the_model_as_it_was(tiny_model_dir: Path, tmp_path: Path) -> None:
    method = build(FullSettings(), base=tmp_path / "gone")
    model = method.attach(load(tiny_model_dir).eval())
    before = logits(model)
    with pytest.raises(ModelError, match="cannot be read"), method.reference(model):
        pass
    assert torch.equal(logits(model), before)


def test_a_damaged_file_is_said(tiny_model_dir: Path, tmp_path: Path) -> None:
    method = build(FullSettings(), base=tiny_model_dir)
    method.save(method.state(method.attach(load(tiny_model_dir))), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read"):
        method.load(load(tiny_model_dir), tmp_path)
