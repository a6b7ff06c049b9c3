"""LoRA: every setting arrives, names that match nothing are refused, adapters made elsewhere load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from tunesmith.errors import ModelError
from tunesmith.methods.lora_config import adapter_config
from tunesmith.methods.table import build
from tunesmith.recipe.methods import AdapterSettings, LoraSettings

BF16_MERGE_TOLERANCE = 2e-2  # of logits around 0.5 in size: the sum is rounded to 8 bits once


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options})


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=torch.arange(3, 15)[None]).logits


def disturb(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def tuned(folder: Path, **settings: Any) -> tuple[Any, Any]:
    method = build(LoraSettings(**settings), base=folder)
    model = method.attach(load(folder).eval())
    disturb(model)
    return method, model


NOT_FIELDS = {"name", "task_type", "eva_config"}  # the one kind of task is not a choice; eva_config: see test_inits.py


def test_every_setting_is_a_field_of_pefts_config_with_that_value(tiny_model_dir: Path) -> None:
    settings = LoraSettings(
        r=6,
        lora_alpha=9.0,
        lora_dropout=0.25,
        target_modules=["q_proj", "up_proj"],
        exclude_modules=["down_proj"],
        bias="lora_only",
        use_rslora=True,
        use_dora=True,
        init_lora_weights="gaussian",
        modules_to_save=["lm_head"],
        layers_to_transform=[1],
        layers_pattern="layers",
        rank_pattern={"q_proj": 2},
        alpha_pattern={"q_proj": 4.5},
        trainable_token_indices=[5, 9],
    )
    config = adapter_config(settings, load(tiny_model_dir))
    fields = set(LoraSettings.model_fields) - NOT_FIELDS
    of_others = ("adapter_", "load_in_", "llm_int8_", "loraplus_")  # of the base, of the optimizer
    fields -= {name for name in fields if name.startswith(of_others)}
    assert settings.model_fields_set == fields, "a new setting needs a value here, and a line in adapter_config"
    for field in fields:
        given, taken = getattr(settings, field), getattr(config, field)
        assert sorted(taken) == sorted(given) if isinstance(taken, set) else taken == given, field
        assert given != AdapterSettings.model_fields[field].default, f"{field} is tested with its default"


def test_all_of_the_settings_reach_the_layers(tiny_model_dir: Path) -> None:
    _, model = tuned(
        tiny_model_dir,
        rank_pattern={"q_proj": 2},
        alpha_pattern={"q_proj": 4.5},
        exclude_modules=["v_proj"],
        lora_dropout=0.25,
    )
    attention = model.base_model.model.model.layers[0].self_attn
    assert (attention.q_proj.r, attention.q_proj.scaling) == ({"default": 2}, {"default": 2.25})
    assert (attention.k_proj.r, attention.k_proj.scaling) == ({"default": 16}, {"default": 2.0})
    assert attention.k_proj.lora_dropout["default"].p == 0.25
    assert type(attention.v_proj) is nn.Linear


def test_the_config_file_points_to_the_base_in_the_ecosystems_words(tiny_model_dir: Path, tmp_path: Path) -> None:
    method = build(LoraSettings(), base="user/name", revision="v2")
    method.save(method.state(method.attach(load(tiny_model_dir))), tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    written = json.loads(text)
    assert written["base_model_name_or_path"] == "user/name"
    assert written["revision"] == "v2"
    assert written["task_type"] == "CAUSAL_LM"
    assert written["inference_mode"] is True
    assert written["target_modules"] == sorted(written["target_modules"])
    assert '"lora_alpha": 32,' in text  # not 32.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_weights_file_is_byte_for_byte_pefts(tiny_model_dir: Path, tmp_path: Path) -> None:
    method, model = tuned(tiny_model_dir, use_dora=True, modules_to_save=["lm_head"])
    method.save(method.state(model), tmp_path / "ours")
    model.save_pretrained(tmp_path / "pefts")
    ours, pefts = (tmp_path / name / "adapter_model.safetensors" for name in ("ours", "pefts"))
    assert ours.read_bytes() == pefts.read_bytes()


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "modules_to_save"])
def test_a_name_that_matches_nothing_is_refused_with_those_that_would(tiny_model_dir: Path, field: str) -> None:
    names: dict[str, Any] = {"target_modules": ["q_proj"], field: ["q_proj", "q_prj"]}
    settings = LoraSettings(**names)
    with pytest.raises(ModelError) as caught:
        build(settings, base=tiny_model_dir).attach(load(tiny_model_dir))
    assert str(caught.value) == (
        f"method.{field}: the model has no module named 'q_prj'\n"
        "  What to do: linear modules of this model: "
        "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    )


@pytest.mark.parametrize("settings", [{"target_modules": "q_proj_"}, {"exclude_modules": ".*"}])
def test_a_pattern_that_leaves_no_target_is_refused(tiny_model_dir: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="linear modules of this model: down_proj"):
        build(LoraSettings(**settings), base=tiny_model_dir).attach(load(tiny_model_dir))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank_pattern": {"q_prj": 2}}, r"method\.rank_pattern: 'q_prj' matches no module that has an adapter"),
        ({"alpha_pattern": {"layers.7.*": 2.0}}, r"method\.alpha_pattern: 'layers\.7\.\*' matches no"),
        ({"layers_to_transform": [1, 2]}, r"method\.layers_to_transform: 2 matches no"),
        ({"target_modules": ["self_attn"]}, r"does not fit this model\n.*self_attn|does not fit(.|\n)*not supported"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(
    tiny_model_dir: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build(LoraSettings(**settings), base=tiny_model_dir).attach(load(tiny_model_dir))


def test_orthogonal_adapters_begin_at_the_base_up_to_rounding(tiny_model_dir: Path) -> None:
    base = load(tiny_model_dir)
    before = logits(base)
    model = build(LoraSettings(init_lora_weights="orthogonal"), base=tiny_model_dir).attach(base)
    assert (logits(model) - before).abs().max() < 1e-6


def test_adapters_of_a_bfloat16_base_are_float32(tiny_model_dir: Path, tmp_path: Path) -> None:
    method = build(LoraSettings(), base=tiny_model_dir)
    model = method.attach(load(tiny_model_dir, dtype=torch.bfloat16).eval())
    disturb(model)
    state = method.state(model)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    method.save(state, tmp_path)
    again = build(LoraSettings(), base=tiny_model_dir)
    loaded = again.load(load(tiny_model_dir, dtype=torch.bfloat16).eval(), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    merged = method.merge(model)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    assert (logits(merged) - logits(model)).abs().max() < BF16_MERGE_TOLERANCE


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_merging_an_adapted_head_leaves_the_embedding_it_was_tied_to(
    tiny_model_dir: Path, tmp_path: Path, target: str
) -> None:
    method, model = tuned(tiny_model_dir, target_modules=[target, "q_proj"])
    merged = method.merge(model)
    assert (logits(merged) - logits(model)).abs().max() < 2e-5
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(merged))


def test_layers_of_gpt2_whose_weights_are_transposed(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=64, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    method, model = tuned(tmp_path, use_dora=True, bias="all")
    merged = method.merge(model)
    assert (logits(merged) - logits(model)).abs().max() < 2e-5
    method.save(method.state(model), tmp_path / "adapter")
    again = build(LoraSettings(), base=tmp_path)
    assert torch.equal(logits(again.load(load(tmp_path), tmp_path / "adapter").eval()), logits(model))


ELSEWHERE = {
    "lora": LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj", "down_proj"], lora_alpha=5),
    "no task": LoraConfig(r=3, target_modules="all-linear", use_rslora=True),
    "pissa": LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"], init_lora_weights="pissa"),
    "olora": LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"], init_lora_weights="olora"),
    "tokens": LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"], trainable_token_indices=[4, 5]),
    "ia3": IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


@pytest.mark.parametrize("config", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_an_adapter_made_elsewhere_loads(tiny_model_dir: Path, tmp_path: Path, config: Any) -> None:
    made = get_peft_model(load(tiny_model_dir), config)
    disturb(made)
    made.save_pretrained(tmp_path)
    expected = logits(PeftModel.from_pretrained(load(tiny_model_dir), str(tmp_path)).eval())
    method = build(LoraSettings(), base=tiny_model_dir)
    loaded = method.load(load(tiny_model_dir), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-6)
    with method.reference(loaded) as reference:
        assert torch.equal(logits(reference), logits(load(tiny_model_dir)))
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-6)


def test_an_adapter_with_new_tokens_brings_its_embedding(tiny_model_dir: Path, tmp_path: Path) -> None:
    base = load(tiny_model_dir)
    base.resize_token_embeddings(408)
    made = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"]))
    disturb(made)
    made.save_pretrained(str(tmp_path), save_embedding_layers=True)
    loaded = build(LoraSettings(), base=tiny_model_dir).load(load(tiny_model_dir), tmp_path)
    torch.testing.assert_close(logits(loaded.eval()), logits(made.eval()), rtol=0, atol=1e-6)


def test_prompt_adapters_are_not_merged(tiny_model_dir: Path, tmp_path: Path) -> None:
    get_peft_model(load(tiny_model_dir), ELSEWHERE["prompt"]).save_pretrained(tmp_path)
    method = build(LoraSettings(), base=tiny_model_dir)
    with pytest.raises(ModelError, match="cannot be merged"):
        method.merge(method.load(load(tiny_model_dir), tmp_path))


def test_a_quantized_base_is_not_merged_into(tiny_model_dir: Path) -> None:
    quantized = load(tiny_model_dir, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    method = build(LoraSettings(), base=tiny_model_dir)
    with pytest.raises(ModelError, match="use method: qlora"):
        method.merge(method.attach(quantized))


SLOW = r"(\w+\.?)+!"


@pytest.mark.parametrize("key", ["target_modules", "rank_pattern"])
def test_a_pattern_that_takes_too_long_is_refused_before_training(tiny_model_dir: Path, key: str) -> None:
    settings: dict[str, Any] = {"target_modules": SLOW} if key == "target_modules" else {"rank_pattern": {SLOW: 4}}
    with pytest.raises(ModelError, match="a regular expression") as caught:
        build(LoraSettings(**settings), base=tiny_model_dir).attach(load(tiny_model_dir))
    assert caught.value.where == f"method.{key}"
    assert "such as [q_proj, v_proj]" in str(caught.value.remedy)
    if key == "target_modules":  # what the remedy says
        build(LoraSettings(target_modules=["q_proj", "v_proj"]), base=tiny_model_dir).attach(load(tiny_model_dir))


def test_a_pattern_that_trains_opens_again(tiny_model_dir: Path, tmp_path: Path) -> None:
    method, model = tuned(tiny_model_dir, target_modules=r"(\w+\.)+(q_proj|v_proj)")
    method.save(method.state(model), tmp_path / "adapter")
    again = build(LoraSettings(), base=tiny_model_dir).load(load(tiny_model_dir), tmp_path / "adapter")
    assert torch.equal(logits(again.eval()), logits(model.eval()))


def test_an_adapter_of_others_with_a_pattern_that_takes_too_long_is_refused(
    tiny_model_dir: Path, adapter_dir: Path
) -> None:
    file = adapter_dir / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "target_modules": SLOW}))
    with pytest.raises(ModelError, match="a regular expression") as caught:
        build(LoraSettings(), base=tiny_model_dir).load(load(tiny_model_dir), adapter_dir)
    assert caught.value.where == f"{file}: target_modules"


@pytest.fixture
def adapter_dir(tiny_model_dir: Path, tmp_path: Path) -> Path:
    method, model = tuned(tiny_model_dir, modules_to_save=["lm_head"])
    method.save(method.state(model), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", ["layers.1.mlp.up_proj.lora_A.weight", "lm_head.weight"])
def test_an_adapter_that_lacks_weights_is_refused(tiny_model_dir: Path, adapter_dir: Path, name: str) -> None:
    weights = load_file(adapter_dir / "adapter_model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if not key.endswith(name)}
    assert len(kept) == len(weights) - 1
    save_file(kept, adapter_dir / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="does not fit this model"):
        build(LoraSettings(), base=tiny_model_dir).load(load(tiny_model_dir), adapter_dir)


def test_weights_that_would_be_ignored_are_refused(tiny_model_dir: Path, adapter_dir: Path) -> None:
    weights = load_file(adapter_dir / "adapter_model.safetensors")
    weights["base_model.model.model.layers.7.mlp.up_proj.lora_A.weight"] = torch.zeros(16, 64)
    save_file(weights, adapter_dir / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"not known: .*layers\.7\.mlp"):
        build(LoraSettings(), base=tiny_model_dir).load(load(tiny_model_dir), adapter_dir)


def test_the_adapter_of_another_model_is_refused(adapter_dir: Path) -> None:
    config = LlamaConfig(vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"does not fit this model\n(.|\n)*size mismatch"):
        build(LoraSettings(), base="none").load(LlamaForCausalLM(config), adapter_dir)


def test_what_is_no_adapter_or_a_pickle_or_damaged_is_refused(tiny_model_dir: Path, adapter_dir: Path) -> None:
    method = build(LoraSettings(), base=tiny_model_dir)
    with pytest.raises(ModelError, match=r"not an adapter folder\n  it has no adapter_config\.json"):
        method.load(load(tiny_model_dir), adapter_dir / "none")
    file = adapter_dir / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with pytest.raises(ModelError, match="cannot be read"):
        method.load(load(tiny_model_dir), adapter_dir)
    shutil.move(file, adapter_dir / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors(.|\n)*pickled weights"):
        method.load(load(tiny_model_dir), adapter_dir)
