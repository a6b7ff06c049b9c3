"""Going on from an adapter: step zero is the base with it, and so is the reference, whatever was trained since."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tunesmith.errors import ModelError, RecipeError
from tunesmith.methods.continued_adapter import check_tokens, find_start, other_base, started, with_targets
from tunesmith.methods.quantized_base import multiply_dequantized, packed_layers
from tunesmith.methods.table import build
from tunesmith.recipe.methods import METHOD_SETTINGS, LoraSettings
from tunesmith.runs.manifest import sha256_of

CASES: list[dict[str, Any]] = [
    {"name": "lora", "r": 4, "lora_dropout": 0.1},
    {"name": "lora", "r": 4, "use_dora": True, "use_rslora": True},
    {"name": "lora", "r": 4, "modules_to_save": ["lm_head"], "target_modules": ["q_proj", "v_proj"]},
    {"name": "lora", "r": 4, "load_in_8bit": True},
    {"name": "qlora", "r": 4, "lora_dropout": 0.1},
    {"name": "qlora", "r": 4, "modules_to_save": ["lm_head"]},
]


def disturb(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=torch.arange(3, 27).reshape(2, 12)).logits


def base(folder: Path, method: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **method.load_options())
    layer: Any
    for layer in model.modules():
        layer.support_avx512bf16_for_cpu = False
    multiply_dequantized(packed_layers(model, "Linear8bitLt"))
    return model


def method_of(settings: dict[str, Any], folder: Path, **how: Any) -> Any:
    made: Any = METHOD_SETTINGS[settings["name"]](**settings)
    return build(made, base=folder, **how)


def adapter(settings: dict[str, Any], folder: Path, to: Path) -> Path:
    """An adapter that has been trained, and saved."""
    method = method_of(settings, folder)
    model = method.attach(base(folder, method))
    disturb(model, 1)
    method.save(method.state(model), to)
    return to


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case.values())))
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def test_step_zero_and_the_reference_are_the_base_with_the_adapter(
    case: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    start = adapter(case, tiny_model_dir, tmp_path / "start")
    plain = method_of(case, tiny_model_dir)
    expected = logits(plain.load(base(tiny_model_dir, plain), start).eval())
    method = method_of(case, tiny_model_dir, start=start)
    untouched = logits(base(tiny_model_dir, method).eval())
    model = method.attach(base(tiny_model_dir, method))
    assert torch.equal(logits(model.eval()), expected) and not torch.allclose(expected, untouched, atol=1e-3)
    assert {name for name, own in model.named_parameters() if own.requires_grad}
    disturb(model, 2)
    moved = logits(model)
    assert not torch.allclose(moved, expected, atol=1e-3)
    before = {name: own.clone() for name, own in method.state(model).items()}
    model.train()
    with method.reference(model) as reference:
        assert torch.equal(logits(reference.eval()), expected)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(own, before[name]) for name, own in method.state(model).items())
    assert torch.equal(logits(model.eval()), moved)


def test_a_checkpoint_goes_on_with_the_same_reference(
    case: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    start = adapter(case, tiny_model_dir, tmp_path / "start")
    method = method_of(case, tiny_model_dir, start=start)
    model = method.attach(base(tiny_model_dir, method))
    disturb(model, 2)
    method.save(method.state(model), tmp_path / "checkpoint")
    again = method_of(case, tiny_model_dir, start=start, seed=9)
    loaded = again.load(base(tiny_model_dir, again), tmp_path / "checkpoint").eval()
    assert torch.equal(logits(loaded), logits(model.eval()))
    with method.reference(model) as one, again.reference(loaded) as other:
        assert torch.equal(logits(one), logits(other))
    again.save(again.state(loaded), tmp_path / "again")
    for file in (tmp_path / "checkpoint").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    elsewhere = method_of(case, tiny_model_dir)  # the checkpoint alone, as the ecosystem has it
    assert torch.equal(
        logits(elsewhere.load(base(tiny_model_dir, elsewhere), tmp_path / "checkpoint").eval()), logits(model)
    )


def test_biases_that_were_trained_are_part_of_the_beginning(tmp_path: Path) -> None:
    from tests.tiny import config_for, tiny

    tiny(config_for("llama", attention_bias=True)).save_pretrained(tmp_path / "model")
    settings = {"name": "lora", "r": 4, "bias": "all"}
    start = adapter(settings, tmp_path / "model", tmp_path / "start")
    method = method_of(settings, tmp_path / "model", start=start)
    model = method.attach(base(tmp_path / "model", method)).eval()
    before = logits(model)
    disturb(model, 2)
    with method.reference(model) as reference:
        assert torch.equal(logits(reference), before)


def test_an_adapter_made_elsewhere_is_gone_on_from(tiny_model_dir: Path, tmp_path: Path) -> None:
    made = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir),
        LoraConfig(r=3, target_modules=["q_proj", "down_proj"], lora_alpha=5, init_lora_weights="pissa"),
    )
    disturb(made, 1)
    made.save_pretrained(str(tmp_path))
    found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), str(tmp_path))
    method = build(LoraSettings(), base=tiny_model_dir, start=tmp_path)
    model = method.attach(AutoModelForCausalLM.from_pretrained(tiny_model_dir)).eval()
    torch.testing.assert_close(logits(model), logits(found.eval()), rtol=0, atol=1e-6)
    settings = started(LoraSettings(r=3), tmp_path, path="here")
    assert (settings.lora_alpha, sorted(settings.target_modules)) == (5, ["down_proj", "q_proj"])


def test_a_checkpoint_holds_the_embedding_that_the_adapter_resized(tiny_model_dir: Path, tmp_path: Path) -> None:
    larger = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    larger.resize_token_embeddings(408)
    made = get_peft_model(larger, LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"]))
    made.save_pretrained(str(tmp_path / "start"), save_embedding_layers=True)
    method = build(LoraSettings(), base=tiny_model_dir, start=tmp_path / "start")
    model = method.attach(AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    method.save(method.state(model), tmp_path / "checkpoint")
    start, checkpoint = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("start", "checkpoint"))
    assert start.keys() == checkpoint.keys() and all(torch.equal(own, checkpoint[name]) for name, own in start.items())


@pytest.fixture
def start(tiny_model_dir: Path, tmp_path: Path) -> Path:
    settings = {"name": "lora", "r": 4, "lora_alpha": 12, "lora_dropout": 0.2}
    return adapter(settings, tiny_model_dir, tmp_path / "start")


def test_settings_are_those_of_the_file_and_what_is_given_may_repeat_them(start: Path, tiny_model_dir: Path) -> None:
    given = LoraSettings(adapter_name_or_path="x", r=4, lora_alpha=12.0)
    found = started(given, start, path=str(start))
    assert (found.r, found.lora_alpha, found.lora_dropout) == (4, 12, 0.2)
    assert found.adapter_name_or_path == str(start)
    assert found.adapter_sha256 == sha256_of(start / "adapter_model.safetensors")
    assert started(found, start, path=str(start)) == found, "a stored recipe reads as it was"
    linears = {name for name, own in AutoModelForCausalLM.from_pretrained(tiny_model_dir).named_modules()
               if isinstance(own, nn.Linear) and name != "lm_head"}  # fmt: skip
    assert with_targets(found, given, linears, start).target_modules == "all-linear"
    kinds = sorted({name.rpartition(".")[2] for name in linears})
    for same in ("all-linear", kinds, r".*_proj"):
        asked = LoraSettings(adapter_name_or_path="x", target_modules=same)
        assert with_targets(found, asked, linears, start).target_modules == "all-linear"
    for other in (kinds[1:], [*kinds, "lm_head"], r".*q_proj"):
        asked = LoraSettings(adapter_name_or_path="x", target_modules=other)
        with pytest.raises(RecipeError, match=r"method\.target_modules contradicts"):
            with_targets(found, asked, linears, start)
    asked = LoraSettings(adapter_name_or_path="x", target_modules="all-linear")
    with pytest.raises(RecipeError, match=r"method\.target_modules contradicts"):
        with_targets(found, asked, {*linears, "model.layers.2.mlp.up_proj"}, start)


@pytest.mark.parametrize(
    ("name", "value", "there"),
    [("r", 8, "4"), ("lora_alpha", 32.0, "12"), ("lora_dropout", 0.0, "0.2"), ("use_dora", True, "False"),
     ("modules_to_save", ["lm_head"], "None"),
     ("rank_pattern", {"q_proj": 2}, r"\{\}")],
)  # fmt: skip
def test_a_setting_that_contradicts_the_file_is_refused_with_both_values(
    start: Path, name: str, value: Any, there: str
) -> None:
    settings = LoraSettings(adapter_name_or_path="x", **{name: value})
    with pytest.raises(RecipeError, match=rf"method\.{name} contradicts the adapter(.|\n)*config\.json says {there}"):
        started(settings, start, path=str(start))


def test_an_adapter_that_changed_since_is_refused(start: Path) -> None:
    found = started(LoraSettings(adapter_name_or_path="x"), start, path=str(start))
    weights = load_file(start / "adapter_model.safetensors")
    save_file({name: own + 1 for name, own in weights.items()}, start / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="the adapter to continue has changed"):
        started(found, start, path=str(start))


OTHERS = {
    "ADALORA": AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=10),
    "IA3": IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_adapters_of_other_types_are_refused(tiny_model_dir: Path, tmp_path: Path, kind: str) -> None:
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), OTHERS[kind]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"type {kind} cannot be trained further here"):
        started(LoraSettings(adapter_name_or_path=str(tmp_path)), find_start(str(tmp_path)), path="x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config | {"task_type": "SEQ_CLS"}, "for another task: SEQ_CLS"),
        (lambda config: config | {"target_modules": None}, "does not say what it adapts"),
        (lambda config: config | {"layer_replication": [[0, 1]]}, "uses layer_replication"),
        (lambda config: config | {"r": "four"}, r"r: the adapter.s configuration does not fit(.|\n)*no whole number"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(
    start: Path, change: Callable[[dict[str, Any]], dict[str, Any]], said: str
) -> None:
    file = start / "adapter_config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ModelError, match=said):
        started(LoraSettings(adapter_name_or_path="x"), start, path="x")


def test_what_is_no_adapter_is_refused_with_what_to_do(start: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    assert find_start(str(start)) == start.resolve()
    with pytest.raises(ModelError, match=r"is a model, not an adapter\n(.|\n)*set model\.path"):
        find_start(str(tiny_model_dir))
    with pytest.raises(ModelError, match=r"adapters are not fetched from the hub\n(.|\n)*hf download nobody/adapter"):
        find_start("nobody/adapter")
    shutil.move(start / "adapter_model.safetensors", start / "adapter_model.bin")
    with pytest.raises(ModelError, match="the adapter has no safetensors"):
        find_start(str(start))


def test_another_base_is_warned_of(start: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    assert other_base(start, tiny_model_dir, str(tiny_model_dir)) is None
    said = other_base(start, tmp_path, "other")
    assert said is not None and f"was trained on {tiny_model_dir}, and this run's model is other" in said


@pytest.mark.parametrize(
    ("added", "accepted"),
    [
        ({7: "<a>", 8: "<b>"}, True),
        ({7: "<b>", 8: "<a>"}, False),
        ({7: "<a>"}, False),
        ({7: "<a>", 8: "<b>", 9: "<c>"}, False),
        ({}, False),
    ],
)
def test_the_adapters_tokens_are_those_of_the_recipe(tmp_path: Path, added: dict[int, str], accepted: bool) -> None:
    config = {"peft_type": "LORA", "target_modules": ["q_proj"], "trainable_token_indices": [2, 7, 8]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tokens = [{"id": 7, "content": "<a>"}, {"id": 8, "content": "<b>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    if accepted:
        check_tokens(tmp_path, added, {*range(7), *added})
        return
    with pytest.raises(ModelError, match="the adapter has learned other added tokens"):
        check_tokens(tmp_path, added, {*range(7), *added})


def test_rows_of_tokens_that_were_there_need_no_name(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [2, 5]}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    check_tokens(tmp_path, {}, set(range(7)))
