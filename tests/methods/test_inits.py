"""Adapters that begin from the base's weights (pissa, olora) or from the run's rows (eva): exact, and plain on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.tiny import Row
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from tunesmith.errors import ModelError, RecipeError
from tunesmith.methods.lora_config import adapter_config
from tunesmith.methods.table import build
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.methods import EvaSettings, LoraSettings

RESIDUAL = ("pissa", "pissa_niter_4", "olora")
ROUNDING = 2e-5  # of logits around 0.5 in size, in float32


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options}).eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=torch.arange(3, 15)[None]).logits


def steps(count: int = 60, length: int = 40) -> list[list[Row]]:
    random = np.random.default_rng(5)
    return [[Row(2 + random.geometric(0.2, length)) for _ in range(10)] for _ in range(count // 10)]


def disturb(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def attached(folder: Path, init: str, rows: Any = None, **settings: Any) -> tuple[Any, Any]:
    method: Any = build(LoraSettings(init_lora_weights=init, **settings), base=folder)
    return method, method.attach(load(folder), rows or steps())


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


@pytest.mark.parametrize("init", RESIDUAL)
def test_the_adapter_and_what_is_left_of_a_weight_are_the_weight_and_both_are_large(
    tiny_model_dir: Path, init: str
) -> None:
    plain = dict(load(tiny_model_dir).named_parameters())
    _, model = attached(tiny_model_dir, init, r=4, target_modules=["q_proj", "down_proj"])
    layers = adapted_layers(model)
    assert len(layers) == 4
    for name, layer in layers.items():
        weight = plain[name.removeprefix("base_model.model.") + ".weight"]
        update = layer.get_delta_weight("default")
        assert update.norm() > 0.1 * weight.norm()
        torch.testing.assert_close(layer.base_layer.weight + update, weight, rtol=0, atol=1e-6)
        left = torch.linalg.svdvals(layer.base_layer.weight.detach())
        if init == "pissa":  # the largest directions are the adapter's, the others stay
            torch.testing.assert_close(left[:-4], torch.linalg.svdvals(weight)[4:], rtol=1e-4, atol=1e-5)
            assert left[-4:].max() < 1e-5


def test_the_beginning_is_pefts(tiny_model_dir: Path) -> None:
    for init in ("pissa", "olora"):
        config = LoraConfig(
            r=4, lora_alpha=32, target_modules=["q_proj"], init_lora_weights=init, task_type="CAUSAL_LM"
        )
        theirs = adapted_layers(get_peft_model(load(tiny_model_dir), config))
        _, model = attached(tiny_model_dir, init, r=4, target_modules=["q_proj"])
        for name, layer in adapted_layers(model).items():
            for factor in ("lora_A", "lora_B"):
                ours, other = getattr(layer, factor)["default"].weight, getattr(theirs[name], factor)["default"].weight
                torch.testing.assert_close(ours, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("init", RESIDUAL)
def test_only_adapted_weights_are_copied_for_the_reference(tiny_model_dir: Path, init: str) -> None:
    method, model = attached(tiny_model_dir, init, target_modules=["q_proj"])
    kept = method._replaced[model]
    weights = [layer.base_layer.weight for layer in adapted_layers(model).values()]
    assert [id(live) for live, _ in kept] == [id(weight) for weight in weights]
    plain = dict(load(tiny_model_dir).named_parameters())
    for name, parameter in model.named_parameters():
        own = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if own in plain:
            assert torch.equal(parameter, plain[own]) == ("q_proj" not in name), name


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 8}}]
)
def test_the_folder_is_plain_lora_of_twice_the_rank_at_the_same_scale(
    tiny_model_dir: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    method, model = attached(tiny_model_dir, "pissa", r=4, **settings)
    state = method.state(model)
    method.save(state, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["r"], written["init_lora_weights"]) == (8, True)
    assert written["lora_alpha"] == (pytest.approx(32 * 2**0.5) if settings else 64)
    if settings:
        assert written["rank_pattern"] == {"q_proj": 4}
        assert written["alpha_pattern"] == {"q_proj": pytest.approx(8 * 2**0.5)}
    loaded: Any = PeftModel.from_pretrained(load(tiny_model_dir), str(tmp_path))
    layers, others = adapted_layers(model), adapted_layers(loaded)
    assert layers.keys() == others.keys()
    for name, layer in layers.items():
        assert others[name].scaling["default"] == pytest.approx(layer.scaling["default"], rel=1e-12)
        assert others[name].get_delta_weight("default").abs().max() < 1e-6, "nothing has been learned yet"


@pytest.mark.parametrize("init", RESIDUAL)
def test_a_run_goes_on_with_the_same_residual_and_optimizer_steps(
    tiny_model_dir: Path, tmp_path: Path, init: str
) -> None:
    method, model = attached(tiny_model_dir, init, r=4)
    disturb(model)
    method.save(method.state(model), tmp_path / "adapter")
    again: Any = build(LoraSettings(init_lora_weights=init, r=4), base=tiny_model_dir, seed=3)
    resumed = again.load(load(tiny_model_dir), tmp_path / "adapter")
    one, other = model.state_dict(), resumed.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one), "residuals and adapters alike, bit for bit"
    again.save(again.state(resumed), tmp_path / "again")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "adapter" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_a_bfloat16_base_begins_as_it_was_up_to_its_rounding(tiny_model_dir: Path, tmp_path: Path) -> None:
    method = build(LoraSettings(init_lora_weights="pissa", r=4), base=tiny_model_dir)
    base = load(tiny_model_dir, dtype=torch.bfloat16)
    before = logits(base)
    model = method.attach(base)
    assert (logits(model) - before).abs().max() < 2e-2
    with method.reference(model) as reference:
        assert torch.equal(logits(reference), before)
    disturb(model)
    state = method.state(model)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    method.save(state, tmp_path)
    again = build(LoraSettings(init_lora_weights="pissa", r=4), base=tiny_model_dir)
    assert torch.equal(logits(again.load(load(tiny_model_dir, dtype=torch.bfloat16), tmp_path).eval()), logits(model))
    merged = method.merge_onto(load(tiny_model_dir), model)  # type: ignore[attr-defined]
    assert (logits(merged) - logits(model).float()).abs().max() < 5e-2


def test_merging_onto_the_base_adds_what_was_learned(tiny_model_dir: Path) -> None:
    method, model = attached(tiny_model_dir, "olora", r=4, use_rslora=True)
    disturb(model)
    merged = method.merge_onto(load(tiny_model_dir), model)
    torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=ROUNDING)


def test_gpt2s_transposed_weights_begin_with_pissa_and_not_with_olora(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=64, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    before = logits(load(tmp_path))
    method, model = attached(tmp_path, "pissa", r=4)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=ROUNDING)
    disturb(model)
    method.save(method.state(model), tmp_path / "adapter")
    loaded: Any = PeftModel.from_pretrained(load(tmp_path), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded.eval()), logits(model), rtol=0, atol=ROUNDING)
    with pytest.raises(ModelError, match=r"cannot begin with olora\n.*\[in, out\]"):
        attached(tmp_path, "olora", r=4)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"target_modules": ["lm_head"]}, r"lm_head cannot begin with pissa\n.*tied"),
        ({"target_modules": ["embed_tokens"]}, r"embed_tokens cannot begin with pissa\n.*plain linear layers only"),
        ({"r": 48}, r"k_proj cannot begin with pissa\n.*32 x 64 has no 48 directions"),
    ],
)
def test_what_would_not_begin_as_the_base_is_refused(tiny_model_dir: Path, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        attached(tiny_model_dir, "pissa", **settings)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_of_others_on_a_residual_is_plain_lora_from_then_on(
    tiny_model_dir: Path, tmp_path: Path, init: str
) -> None:
    config = LoraConfig(
        r=3, target_modules=["q_proj", "up_proj"], init_lora_weights=cast("Any", init), task_type="CAUSAL_LM",
        modules_to_save=["lm_head"],
    )  # fmt: skip
    made = get_peft_model(load(tiny_model_dir), config)
    disturb(made)
    made.save_pretrained(str(tmp_path / "theirs"))
    method: Any = build(LoraSettings(), base=tiny_model_dir)
    loaded = method.load(load(tiny_model_dir), tmp_path / "theirs").eval()
    torch.testing.assert_close(logits(loaded), logits(made.eval()), rtol=0, atol=ROUNDING)
    with method.reference(loaded) as reference:
        assert torch.equal(logits(reference), logits(load(tiny_model_dir)))
    method.save(method.state(loaded), tmp_path / "ours")
    again: Any = build(LoraSettings(), base=tiny_model_dir)
    assert torch.equal(logits(again.load(load(tiny_model_dir), tmp_path / "ours").eval()), logits(loaded))
    elsewhere: Any = PeftModel.from_pretrained(load(tiny_model_dir), str(tmp_path / "ours"))
    torch.testing.assert_close(logits(elsewhere.eval()), logits(loaded), rtol=0, atol=ROUNDING)


def test_evas_settings_are_fields_of_pefts_config_with_those_values(tiny_model_dir: Path) -> None:
    given = EvaSettings(rho=1.5, tau=0.9, use_label_mask=False, whiten=True, adjust_scaling_factors=False)
    settings = LoraSettings(init_lora_weights="eva", eva_config=given)
    taken = adapter_config(settings, load(tiny_model_dir)).eva_config
    for field in EvaSettings.model_fields:
        assert getattr(taken, field) == getattr(given, field), field
        assert field == "label_mask_value" or getattr(given, field) != EvaSettings.model_fields[field].default
    usual = adapter_config(LoraSettings(init_lora_weights="eva"), load(tiny_model_dir)).eva_config
    assert vars(usual) == EvaSettings().model_dump()


@pytest.mark.parametrize("masked", [True, False])
def test_eva_begins_with_the_directions_of_a_layers_own_inputs(tiny_model_dir: Path, masked: bool) -> None:
    rows = steps(20)
    eva = EvaSettings(rho=1.0, use_label_mask=masked)
    _, model = attached(tiny_model_dir, "eva", rows, r=4, target_modules=["q_proj"], eva_config=eva)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    plain = load(tiny_model_dir).model
    ids = torch.tensor(np.stack([row.ids for step in rows for row in step]), dtype=torch.long)
    seen = plain.layers[0].input_layernorm(plain.embed_tokens(ids)).detach()
    used = torch.tensor(np.stack([row.supervised for step in rows for row in step]))
    inputs = seen[used] if masked else seen.flatten(0, 1)
    _, _, directions = torch.linalg.svd(inputs - inputs.mean(0), full_matrices=False)
    found = layer.lora_A["default"].weight.detach()
    torch.testing.assert_close(found @ found.T, torch.eye(4), rtol=0, atol=1e-4)
    centred = inputs - inputs.mean(0)
    assert (centred @ found.T).norm() > 0.98 * (centred @ directions[:4].T).norm(), "as much as any four can"
    assert (centred @ directions[4:8].T).norm() < 0.95 * (centred @ directions[:4].T).norm(), "others have less"
    assert layer.lora_B["default"].weight.abs().max() == 0


def test_eva_gives_more_rank_to_some_within_the_same_sum_and_the_folder_says_so(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    method, model = attached(tiny_model_dir, "eva", r=4, layers_to_transform=[0, 1])
    ranks = {
        name.removeprefix("base_model.model."): layer.r["default"] for name, layer in adapted_layers(model).items()
    }
    assert sum(ranks.values()) == 4 * 14
    assert len(set(ranks.values())) > 1 and max(ranks.values()) <= 8
    disturb(model)
    method.save(method.state(model), tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["rank_pattern"] == {name: rank for name, rank in ranks.items() if rank != 4}
    assert set(written["target_modules"]) == set(ranks)
    assert written["layers_to_transform"] is None
    scales = {layer.scaling["default"] for layer in adapted_layers(model).values()}
    assert scales == {8.0}, "lora_alpha follows the rank"
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert len(weights) == 2 * len(ranks)
    again: Any = build(LoraSettings(init_lora_weights="eva", r=4, layers_to_transform=[0, 1]), base=tiny_model_dir)
    loaded = again.load(load(tiny_model_dir), tmp_path).eval()  # without rows
    assert torch.equal(logits(loaded), logits(model))
    again.save(again.state(loaded), tmp_path / "again")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_evas_adapters_of_a_bfloat16_base_are_float32(tiny_model_dir: Path) -> None:
    method: Any = build(LoraSettings(init_lora_weights="eva", r=4), base=tiny_model_dir)
    model = method.attach(load(tiny_model_dir, dtype=torch.bfloat16), steps())
    assert {tensor.dtype for tensor in method.state(model).values()} == {torch.float32}
    found = next(iter(adapted_layers(model).values())).lora_A["default"].weight
    torch.testing.assert_close(found @ found.T, torch.eye(len(found)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "settings", "why"),
    [
        (
            steps(10, 8),
            {"r": 16},
            r"rows are too few for eva\n.*needs 64 supervised tokens(.|\n)*use_label_mask: false",
        ),
        (None, {"r": 32}, r"q_proj cannot begin with eva\n.*128 samples of 64 values"),
    ],
)
def test_eva_is_refused_where_it_could_not_begin(
    tiny_model_dir: Path, rows: Any, settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ModelError, match=why):
        attached(tiny_model_dir, "eva", rows, **settings)


def test_eva_without_rows_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ModelError, match="there are none here"):
        build(LoraSettings(init_lora_weights="eva"), base=tiny_model_dir).attach(load(tiny_model_dir))


def test_directions_that_do_not_settle_end_in_a_message(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.methods import init_eva

    monkeypatch.setattr(init_eva, "_PASSES", 1)
    with pytest.raises(ModelError, match=r"do not settle(.|\n)*tau"):
        attached(tiny_model_dir, "eva", r=4)


def recipe(**method: Any) -> Any:
    values = {"model": "tiny", "data": {"train": "rows.jsonl"}, "method": method, "output_dir": "run"}
    return read_recipe(values).recipe.method


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ({"name": "lora", "init_lora_weights": "pisa"}, r"method\.init_lora_weights.*pissa_niter_4.*'pisa'"),
        ({"name": "lora", "init_lora_weights": "pissa_niter_0"}, "pissa_niter_0"),
        ({"name": "lora", "eva_config": {"rho": 1.0}}, "eva_config has no effect without init_lora_weights: eva"),
        ({"name": "lora", "init_lora_weights": "eva", "eva_config": {"rho": 0.5}}, r"method\.eva_config\.rho"),
        ({"name": "lora", "init_lora_weights": "eva", "eva_config": {"roh": 2.0}}, "Did you mean `rho`"),
        (
            {"name": "lora", "init_lora_weights": "eva", "eva_config": {"label_mask_value": 0}},
            "marked with -100",
        ),
        ({"name": "qlora", "init_lora_weights": "pissa"}, "rounded to 4 bits again"),
        ({"name": "qlora", "init_lora_weights": "olora"}, "use method: lora"),
        ({"name": "lora", "loraplus_lr_ratio": 0}, r"method\.loraplus_lr_ratio"),
        ({"name": "lora", "loraplus_lr_embedding": 1e-5}, "no effect without loraplus_lr_ratio"),
        ({"name": "full", "loraplus_lr_ratio": 16}, "is a setting of lora and qlora"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(method: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        recipe(**method)


def test_what_is_accepted_is_kept() -> None:
    for init in (True, False, "gaussian", "orthogonal", *RESIDUAL, "pissa_niter_16", "eva"):
        assert recipe(name="lora", init_lora_weights=init).init_lora_weights == init
    assert recipe(name="qlora", init_lora_weights="eva", eva_config={"rho": 1.0}).eva_config.rho == 1.0
    assert recipe(name="lora", loraplus_lr_ratio=16).loraplus_lr_ratio == 16


def test_the_ecosystem_needs_no_decomposition_to_load(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, model = attached(tiny_model_dir, "pissa", r=4)
    disturb(model)
    method.save(method.state(model), tmp_path)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path)
    monkeypatch.setattr(torch.linalg, "svd", None)
    loaded: Any = AutoPeftModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded.eval()), logits(model), rtol=0, atol=ROUNDING)
    monkeypatch.undo()
    with pytest.raises(AssertionError):  # and it has learned something
        torch.testing.assert_close(logits(loaded), logits(load(tiny_model_dir)), rtol=0, atol=ROUNDING)
