"""freeze: which weights are chosen in which architecture, what stays untouched, and where the backward pass ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.architectures import tiny_config
from tests.tiny import config_for, make_rows, tiny
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import tunesmith
from tunesmith.data.batches.layout import Batch, micro_batches
from tunesmith.errors import ModelError
from tunesmith.methods.base import shared_line
from tunesmith.methods.table import build
from tunesmith.model.compute.fused_modules import fuse
from tunesmith.model.compute.logprobs import target_logprobs
from tunesmith.recipe.methods import FreezeSettings
from tunesmith.recipe.section import Settings
from tunesmith.runs.folder import Run
from tunesmith.runs.overview import details
from tunesmith.training.attach import _recompute
from tunesmith.training.trainer import Trainer
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options})


def freeze(model: Any, base: Path | str = "base", **settings: Any) -> Any:
    """The method, attached."""
    method = build(FreezeSettings(**settings), base=base)
    method.attach(model)
    return method


def trained(model: nn.Module) -> set[str]:
    return {name for name, own in model.named_parameters() if own.requires_grad}


def bytes_of(model: nn.Module) -> dict[str, bytes]:
    return {name: own.detach().numpy().tobytes() for name, own in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("llama", "model.layers."),
        ("gpt2", "transformer.h."),
        ("gpt_neox", "gpt_neox.layers."),
        ("opt", "model.decoder.layers."),
        ("mixtral", "model.layers."),
        ("gemma3_text", "model.layers."),
        ("mamba", "backbone.layers."),
        ("bert", "bert.encoder.layer."),
        ("mpt", "transformer.blocks."),
    ],
)
def test_the_last_layers_are_found_in_every_architecture(name: str, layers: str) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config(name))
    last = model.config.num_hidden_layers - 1
    freeze(model, trainable_layers=1)
    names = {own for own, _ in model.named_parameters()}
    assert trained(model) == {own for own in names if own.startswith(f"{layers}{last}.")} != set()
    freeze(model, trainable_layers=2)
    assert trained(model) == {own for own in names if own.startswith((f"{layers}{last}.", f"{layers}{last - 1}."))}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["norm"], r"model\.norm\.weight"),
        (["mlp.up_proj", "1.self_attn.q_proj"], r".*mlp\.up_proj\.weight|.*1\.self_attn\.q_proj\.weight"),
        (["self_attn"], r".*\.self_attn\..*"),
        (["model.layers.0.mlp"], r"model\.layers\.0\.mlp\..*"),
        (["embed_tokens.weight"], r"model\.embed_tokens\.weight"),
        (r"model\.layers\.\d\.(input|post_attention)_layernorm", r".*layernorm\.weight"),
        (r".*norm\.weight", r".*norm\.weight"),
    ],
    ids=str,
)
def test_names_are_last_parts_suffixes_or_a_pattern(wanted: Any, expected: str) -> None:
    model = tiny(config_for("llama"))
    freeze(model, trainable_layers=0, trainable_modules=wanted)
    assert trained(model) == {name for name, _ in model.named_parameters() if re.fullmatch(expected, name)} != set()


def test_experts_can_be_named_though_they_are_no_modules() -> None:
    model = tiny(config_for("mixtral", num_local_experts=4, num_experts_per_tok=2))
    freeze(model, trainable_layers=0, trainable_modules=["experts.down_proj"])
    assert trained(model) == {f"model.layers.{number}.mlp.experts.down_proj" for number in (0, 1)}


def test_a_tied_head_is_the_embedding_and_the_run_says_so() -> None:
    tied, apart = (tiny(config_for("llama", tie_word_embeddings=tie)) for tie in (True, False))
    for model in (tied, apart):
        freeze(model, trainable_layers=0, train_embeddings=True)
    assert trained(tied) == {"model.embed_tokens.weight"}
    assert shared_line(tied) == (
        "one weight under several names, so all of them train: model.embed_tokens.weight is lm_head.weight"
    )
    assert trained(apart) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert shared_line(apart) is None
    freeze(tied, trainable_layers=1)
    assert shared_line(tied) is None
    assert shared_line(tied.requires_grad_(True)) is None, "where all weights train there is nothing to remark"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trainable_layers": 3}, r"method\.trainable_layers: 3 layers are to train, and the model has 2\n"),
        ({"trainable_modules": ["q_prj"]}, r"no module named 'q_prj'\n.*Did you mean q_proj\? Modules.*down_proj, "),
        ({"trainable_modules": ["norm", "wte"]}, r"method\.trainable_modules: the model has no module named 'wte'\n"),
        ({"trainable_modules": ["rotary_emb"]}, "no module named 'rotary_emb'"),  # has no weight
        ({"trainable_modules": "norm"}, r"'norm' matches no whole name of a module\n.*\n.*Did you mean \[norm\]\?"),
    ],
    ids=str,
)
def test_what_the_model_does_not_have_is_refused_with_what_it_has(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        freeze(tiny(config_for("llama")), **settings)


def test_a_pattern_that_takes_too_long_is_refused(tiny_model_dir: Path) -> None:
    settings = FreezeSettings(trainable_layers=0, trainable_modules=r"(\w+\.?)+!")
    with pytest.raises(ModelError, match="a regular expression") as caught:
        build(settings, base=tiny_model_dir).attach(load(tiny_model_dir))
    assert caught.value.where == "method.trainable_modules"


def test_quantized_weights_are_refused(tiny_model_dir: Path) -> None:
    quantized = load(tiny_model_dir, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    with pytest.raises(ModelError, match="method: freeze cannot train quantized weights"):
        freeze(quantized)


def test_the_state_is_what_trains_and_the_folder_is_the_whole_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load(tiny_model_dir)
    method = freeze(model, trainable_layers=1, trainable_modules=["norm"])
    with torch.no_grad():
        model.model.norm.weight += 0.5
    state = method.state(model)
    assert state.keys() == trained(model) and len(state) == 10
    method.save(state, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    saved, base = (load_file(folder / "model.safetensors") for folder in (tmp_path, tiny_model_dir))
    assert saved.keys() == base.keys()
    assert [name for name in base if not torch.equal(saved[name], base[name])] == ["model.norm.weight"]
    method.state(model.requires_grad_(False))  # as a loaded run has it
    assert method.state(model).keys() == state.keys()


def test_the_reference_is_exact_when_the_base_is_gone(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load(tiny_model_dir)
    base = bytes_of(model)
    method = freeze(model, tmp_path / "gone", trainable_layers=1)
    frozen = model.model.layers[0].mlp.up_proj.weight.data_ptr()
    with torch.no_grad():
        for own in model.model.layers[1].parameters():
            own.add_(1.0)
    tuned = bytes_of(model)
    with method.reference(model) as reference:
        assert bytes_of(reference) == base
        assert reference.model.layers[0].mlp.up_proj.weight.data_ptr() == frozen, "no copy of what does not train"
    assert bytes_of(model) == tuned != base


def test_the_checkpoint_of_another_base_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load(tiny_model_dir)
    method = freeze(model, trainable_layers=1)
    method.save(method.state(model), tmp_path)
    other = load(tiny_model_dir)
    with torch.no_grad():
        other.model.layers[0].input_layernorm.weight[3] += 0.001
    with pytest.raises(ModelError, match="trained from another base"):
        build(FreezeSettings(trainable_layers=1), base="base").load(other, tmp_path)


def test_a_run_in_bfloat16_loads_onto_its_base_in_float32(tiny_model_dir: Path, tmp_path: Path) -> None:
    narrow = load(tiny_model_dir, dtype=torch.bfloat16)
    method = freeze(narrow, trainable_layers=1)
    with torch.no_grad():
        narrow.model.layers[1].mlp.up_proj.weight += 0.25
    method.save(method.state(narrow), tmp_path)
    base = load(tiny_model_dir)
    kept = base.model.layers[0].mlp.up_proj.weight.clone()
    model: Any = build(FreezeSettings(trainable_layers=1), base="base").load(base, tmp_path)
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, narrow.model.layers[1].mlp.up_proj.weight.float())
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, kept)


def test_a_checkpoint_that_lacks_weights_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load(tiny_model_dir)
    method = freeze(model, trainable_layers=1)
    method.save(method.state(model), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="weights are missing"):
        method.load(load(tiny_model_dir), tmp_path)


# Where the backward pass ends


def batch_of_rows() -> Batch:
    (batch,) = micro_batches(make_rows(), budget=400, layout="tree")
    return batch


def gradients(model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    target_logprobs(model, batch_of_rows()).logprobs.sum().backward()
    return {name: own.grad for name, own in model.named_parameters() if own.grad is not None}


SETTINGS = [
    {"trainable_layers": 1},
    {"trainable_layers": 1, "train_embeddings": True},
    {"trainable_layers": 0, "trainable_modules": ["norm"]},
    {"trainable_layers": 0, "trainable_modules": ["lm_head"]},
    {"trainable_layers": 0, "trainable_modules": ["0.self_attn.k_proj"]},
    {"trainable_layers": 0, "trainable_modules": ["0.mlp.down_proj", "1.input_layernorm"]},
]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_gradient_of_what_trains_is_that_of_full_fine_tuning(settings: dict[str, Any], tied: bool) -> None:
    model = tiny(config_for("llama", num_hidden_layers=3, tie_word_embeddings=tied))
    fuse(model)
    full = gradients(model)
    freeze(model, **settings)
    found = gradients(model)
    assert found.keys() == trained(model)
    for name, own in found.items():
        scale = float(full[name].abs().max())
        torch.testing.assert_close(own, full[name], rtol=1e-4, atol=1e-5 * scale)


def passes(model: Any, settings: dict[str, Any], *, checkpointing: bool) -> list[int]:
    """Numbers of the layers that a step computes forward, in order, and again where they are computed again."""
    freeze(model, **settings)
    model.train()
    seen: list[int] = []
    for number, layer in enumerate(model.model.layers):
        layer.input_layernorm.register_forward_hook(lambda *_, number=number: seen.append(number))
    target_logprobs(model, batch_of_rows())  # looks once at the model's own logits
    seen.clear()
    if checkpointing:
        _recompute(model)
    gradients(model)
    return seen


@pytest.mark.parametrize(
    ("settings", "again"),
    [
        ({"trainable_layers": 2}, [3, 2]),
        ({"trainable_layers": 0, "trainable_modules": ["lm_head", "norm"]}, []),
        ({"trainable_layers": 0, "trainable_modules": ["1.mlp.gate_proj"]}, [3, 2, 1]),
        ({"trainable_layers": 1, "train_embeddings": True}, [3, 2, 1, 0]),
    ],
    ids=str,
)
def test_checkpointing_computes_again_only_what_the_gradient_passes(settings: dict[str, Any], again: list[int]) -> None:
    config = config_for("llama", num_hidden_layers=4, tie_word_embeddings=False)
    assert passes(tiny(config), settings, checkpointing=True) == [0, 1, 2, 3, *again]
    assert passes(tiny(config), settings, checkpointing=False) == [0, 1, 2, 3]


def kept(layers: int, **settings: Any) -> int:
    """Numbers that a forward pass of a model of so many layers keeps for the backward pass, weights aside."""
    model = tiny(config_for("llama", num_hidden_layers=layers))
    fuse(model)
    freeze(model, **settings)
    inputs: list[bool] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].requires_grad))
    found: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda own: (found.append(own), own)[1], lambda own: own):
        model.model(input_ids=torch.arange(3, 13)[None], use_cache=False)
    lowest = layers - settings["trainable_layers"]
    assert inputs == [number > lowest for number in range(layers)]
    weights = {own.data_ptr() for own in model.parameters()}
    return sum(own.numel() for own in found if own.data_ptr() not in weights)


def test_layers_below_the_lowest_that_trains_keep_nothing() -> None:
    assert kept(4, trainable_layers=1) == kept(2, trainable_layers=1) > 0
    assert kept(4, trainable_layers=2) > kept(4, trainable_layers=1)


# Whole runs


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    words = ["red", "green", "blue", "black"]
    rows = [{"prompt": f"{words[n % 4]} thing {n}", "completion": words[n % 4]} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.25},
        "method": {"name": "freeze", "trainable_layers": 1, "trainable_modules": ["norm"]},
        "training": {
            "learning_rate": 1e-2, "max_steps": 4, "batch_size": 6, "save_steps": 2, "weight_decay": 0.1,
            "report_to": "none", "threads": 1,
        },
        "evaluation": {"resamples": 100, "samples": 1, "max_new_tokens": 4},
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip


def test_after_a_run_what_was_frozen_is_the_base_bit_for_bit(values: dict[str, Any], tiny_model_dir: Path) -> None:
    result = train(values)
    checkpoint = Run(result.run).checkpoints[-1]
    saved, base = (load_file(folder / "model.safetensors") for folder in (checkpoint, tiny_model_dir))
    changed = {name for name in base if not torch.equal(saved[name], base[name])}
    assert changed == {name for name in base if re.search(r"layers\.1\.|model\.norm", name)}
    loss = result.metrics["loss"]
    assert loss["tuned"] < loss["base"]
    assert result.verdict["base_model"] == "untuned"
    assert ("method", "freeze") in details(result.run).facts


def test_a_run_answers_and_is_judged_again_as_it_was(values: dict[str, Any], tiny_model_dir: Path) -> None:
    result = train(values)
    again = evaluate(result.run)
    for name in ("base", "tuned"):
        assert again["metrics"]["loss"][name] == pytest.approx(result.metrics["loss"][name], rel=1e-6)
    tuned, plain = tunesmith.load(result.run), tunesmith.load(tiny_model_dir)
    answers = tuned.generate("red thing 5", max_new_tokens=4)
    with tuned.base() as base:
        assert base.generate("red thing 5", max_new_tokens=4) == plain.generate("red thing 5", max_new_tokens=4)
    assert tuned.generate("red thing 5", max_new_tokens=4) == answers


def test_the_best_step_is_taken_from_its_checkpoint(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "rate", lambda self: lambda step: 1e-2 if step < 3 else 1.0)  # then it gets worse
    training = {**values["training"], "load_best_model_at_end": True, "eval_steps": 1}
    result = train({**values, "data": {**values["data"], "eval": 0.5}, "training": training})
    best = result.verdict["selection"]["best_step"]
    assert result.verdict["step"] == best < 4
    assert evaluate(result.run)["metrics"]["loss"]["tuned"] == pytest.approx(result.metrics["loss"]["tuned"], rel=1e-6)


def test_preferences_compare_with_the_copies_of_what_trains(values: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"prompt": f"thing {n}", "chosen": "red", "rejected": "blue"} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {**values, "data": {"train": str(tmp_path / "pairs.jsonl"), "eval": 0.25}, "objective": "dpo"}
    result = train(recipe)
    assert result.metrics["loss"]["base"] == pytest.approx(0.6931, abs=1e-4)
    assert result.metrics["loss"]["tuned"] < 0.69


def test_settings_stand_in_the_table_of_methods() -> None:
    from tunesmith.methods.table import METHOD_CLASSES
    from tunesmith.recipe.methods import METHOD_SETTINGS
    from tunesmith.recipe.settings import LEARNING_RATES, PREFERENCE_RATES

    assert METHOD_SETTINGS.keys() == LEARNING_RATES.keys() == PREFERENCE_RATES.keys()
    assert METHOD_CLASSES.keys() == METHOD_SETTINGS.keys() | {"lora-int8"}  # lora's settings, another class
    assert all(issubclass(settings, Settings) for settings in METHOD_SETTINGS.values())
