"""The plan of a model nobody has to load: sizes, time, what fits, and what to begin with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.model.architectures import tiny_config

from tunesmith.errors import ModelError, RecipeError
from tunesmith.model.weights.config_file import read_config
from tunesmith.planning import step_time
from tunesmith.planning.budget import Plan
from tunesmith.planning.devices import DEVICES, Device, device_called, device_like
from tunesmith.planning.method_table import plan_methods, resolved
from tunesmith.planning.shape_from_model import ModelCounter, NotUnderstood, recipe_config
from tunesmith.planning.step_shape import CountedModel
from tunesmith.planning.step_time import EFFICIENCY, step_seconds
from tunesmith.planning.workload import as_given
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.settings import Recipe
from tunesmith.workflows.trial import Trial, at_measure, compare_prediction

LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
LLAMA_70B = {**LLAMA_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
             "num_attention_heads": 64}  # fmt: skip
H100 = DEVICES["h100"]
CPU = Device("cpu", "cpu", 32 * 2**30, 1e11)


def recipe(method: Any = "lora", **training: Any) -> Recipe:
    training.setdefault("threads", 1)
    return read_recipe(
        {"model": "a/model", "data": {"train": "rows"}, "method": method, "training": training, "output_dir": "run"}
    ).recipe


def planned(config: dict[str, Any], device: Device, *, rows: int = 5000, length: int = 1024, asked: Any = None) -> Any:
    return plan_methods(asked or recipe(), config, as_given(rows, length), device)


def counted(config: dict[str, Any], asked: Recipe) -> CountedModel:
    return ModelCounter(recipe_config(asked, config, None), None).count(asked)


def by_method(found: Any) -> dict[str, Any]:
    return {line.method: line for line in found.lines}


def test_an_8b_model_on_an_h100_has_the_sizes_that_its_parameters_say() -> None:
    lines = by_method(planned(LLAMA_8B, H100))
    full, lora, qlora = lines["full"], lines["lora"], lines["qlora"]
    assert full.trainable == 8_030_261_248 and full.share == 1.0
    assert full.memory.weights == full.memory.gradients == 2 * full.trainable
    assert full.memory.optimizer == 2 * full.memory.gradients
    adapters = 32 * 16 * (4096 + 4096 + 2 * (4096 + 1024) + 4096 + 4096 + 3 * (4096 + 14336))
    assert lora.trainable == qlora.trainable == adapters == 41_943_040
    assert lora.memory.weights == 2 * full.trainable + 4 * adapters
    assert qlora.memory.weights < 0.4 * lora.memory.weights
    assert (full.fits, lora.fits, qlora.fits) == (True, True, True)
    assert full.checkpointing and not lora.checkpointing


def test_methods_are_compared_at_one_micro_batch_and_checkpointing() -> None:
    found = planned(LLAMA_8B, H100)
    assert found.at.tokens == min(line.tokens for line in found.lines)
    assert found.at.checkpointing
    asked = recipe(micro_batch_tokens=found.at.tokens, gradient_checkpointing=True)
    alike = by_method(planned(LLAMA_8B, H100, asked=asked))
    for line in found.lines:
        assert line.compared == alike[line.method].memory.training == alike[line.method].compared


def test_the_recommendation_begins_with_lora_and_says_why() -> None:
    found = planned(LLAMA_8B, H100)
    assert found.recommended == "lora"
    assert "5,000 rows are fewer than the 10,000" in found.reason


def test_qlora_is_recommended_where_lora_does_not_fit() -> None:
    found = planned(LLAMA_70B, H100)
    assert found.recommended == "qlora"
    assert found.reason.startswith("Begin with qlora: lora needs 1")
    assert not by_method(found)["full"].fits


def test_full_is_recommended_for_many_rows_and_room_to_spare() -> None:
    small = {**LLAMA_8B, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "head_dim": 32}
    assert planned(small, H100, rows=10_000).recommended == "full"
    assert planned(small, H100, rows=9_999).recommended == "lora"
    crowded = planned(LLAMA_8B, H100, rows=10_000)
    assert crowded.recommended == "lora" and "would not fit with room to spare" in crowded.reason


def test_lora_over_8_bits_fits_where_the_unquantized_base_would_not_fit_beside_it() -> None:
    asked = recipe({"name": "lora", "load_in_8bit": True})
    line = by_method(planned(LLAMA_8B, DEVICES["rtx4090"], rows=1000, length=512, asked=asked))["lora-int8"]
    assert line.fits, "it is judged against the quantized base then"


def test_where_nothing_fits_the_plan_names_a_device_that_would_do() -> None:
    found = planned(LLAMA_70B, DEVICES["t4"])
    assert found.recommended is None
    assert "Nothing fits on t4" in found.reason and "smallest known device for qlora is a100-80" in found.reason


def test_the_recipes_own_settings_are_those_of_its_line_and_lora_and_qlora_share_them() -> None:
    lines = by_method(planned(LLAMA_8B, H100, asked=recipe({"name": "qlora", "r": 4})))
    assert [name for name, line in lines.items() if line.recipe] == ["qlora"]
    assert lines["qlora"].trainable == lines["lora"].trainable == 41_943_040 // 4


def test_lora_over_8_bit_weights_has_a_line_beside_the_others() -> None:
    found = planned(LLAMA_8B, H100, asked=recipe({"name": "lora", "r": 16, "load_in_8bit": True}))
    lines = by_method(found)
    assert list(lines) == ["full", "lora", "qlora", "lora-int8"] and found.recommended == "lora"
    assert [name for name, line in lines.items() if line.recipe] == ["lora-int8"]
    own, lora, qlora = lines["lora-int8"], lines["lora"], lines["qlora"]
    assert own.trainable == lora.trainable
    assert qlora.memory.weights < own.memory.weights < 0.6 * lora.memory.weights
    assert own.seconds > lora.seconds
    steps = at_measure(own, recipe({"name": "lora", "load_in_8bit": True}), H100)
    assert steps.method.load_in_8bit  # pyright: ignore[reportAttributeAccessIssue]


def test_a_plan_has_the_shape_of_the_adapter_that_is_gone_on_from(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    file = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(file))
    asked = recipe({"name": "lora", "adapter_name_or_path": str(tmp_path)})
    lines = by_method(planned(LLAMA_8B, H100, asked=asked))
    adapters = 32 * 4 * (4096 + 4096 + 4096 + 1024)
    assert lines["lora"].trainable == lines["qlora"].trainable == adapters
    steps = at_measure(lines["lora"], asked, H100)
    assert steps.method.r == 4 and steps.method.adapter_name_or_path == str(tmp_path)  # pyright: ignore[reportAttributeAccessIssue]


def test_what_the_recipe_gives_is_kept() -> None:
    asked = recipe(micro_batch_tokens=2048, gradient_checkpointing=True)
    for line in planned(LLAMA_8B, H100, asked=asked).lines:
        assert (line.budget, line.checkpointing) == (2048, True)


def test_time_is_products_over_what_the_device_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_time, "BANDWIDTH", 1e30)
    work = {"computed": 1000, "logits": 100, "pairs": 0, "checkpointing": False}
    lora, full = (resolved(recipe(name), CPU) for name in ("lora", "full"))
    of_lora, of_full = counted(LLAMA_8B, lora), counted(LLAMA_8B, full)
    linear, head, adapters = of_full.work.products, 128256 * 4096, 41_943_040
    assert linear == 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    speed = 1e11 * EFFICIENCY["cpu"]
    assert step_seconds(of_full, full, CPU, **work) == pytest.approx(6 * (linear * 1000 + head * 100) / speed)
    products = 4 * (linear * 1000 + head * 100) + 6 * adapters * 1000
    assert step_seconds(of_lora, lora, CPU, **work) == pytest.approx(products / speed)
    again = step_seconds(of_lora, lora, CPU, **{**work, "checkpointing": True})
    assert again == pytest.approx((products + 2 * linear * 1000) / speed)
    seen = step_seconds(of_lora, lora, CPU, **{**work, "pairs": 500})
    assert seen == pytest.approx((products + 12 * 4096 * 32 * 500) / speed)


def test_layers_below_the_lowest_that_trains_take_a_forward_pass_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_time, "BANDWIDTH", 1e30)
    asked = resolved(recipe({"name": "freeze", "trainable_layers": 8}), CPU)
    sized = counted(LLAMA_8B, asked)
    layer, head = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336, 128256 * 4096
    assert sized.trainable == 8 * (layer + 2 * 4096)
    speed = 1e11 * EFFICIENCY["cpu"]
    work = {"computed": 1000, "logits": 100, "pairs": 500}
    products = layer * (2 * 32 + 2 * 8 + 2 * 8) * 1000 + 4 * head * 100
    attention = 4096 * 500 * (4 * 32 + 8 * 8)
    found = step_seconds(sized, asked, CPU, **work, checkpointing=False)
    assert found == pytest.approx((products + attention) / speed)
    again = step_seconds(sized, asked, CPU, **work, checkpointing=True)
    assert again - found == pytest.approx((2 * 8 * layer * 1000 + 4 * 8 * 4096 * 500) / speed)


def test_a_recipe_of_another_method_has_a_line_beside_the_three() -> None:
    asked = recipe({"name": "freeze", "trainable_layers": 2}, micro_batch_tokens=1024, gradient_checkpointing=False)
    lines = by_method(planned(LLAMA_8B, H100, asked=asked))
    assert list(lines) == ["full", "lora", "qlora", "freeze"] and lines["freeze"].recipe
    full, freeze = lines["full"], lines["freeze"]
    assert freeze.share == pytest.approx(2 * 218_112_000 / 8_030_261_248)
    assert freeze.memory.gradients == 2 * freeze.trainable and freeze.memory.optimizer == 4 * freeze.trainable
    assert freeze.memory.activations == pytest.approx(full.memory.activations * 2 / 32)
    assert freeze.seconds < lines["lora"].seconds < full.seconds
    named = recipe({"name": "freeze", "trainable_modules": ["norm"]})
    assert by_method(planned(LLAMA_8B, H100, asked=named))["freeze"].trainable == freeze.trainable + 4096
    with pytest.raises(ModelError, match="the model has 32"):
        planned(LLAMA_8B, H100, asked=recipe({"name": "freeze", "trainable_layers": 33}))


def test_a_gpu_computes_in_half_precision_and_a_t4_in_fp32_but_for_4_bit_layers() -> None:
    assert resolved(recipe(), H100).model.dtype == "bfloat16"
    turing = DEVICES["t4"]
    asked = resolved(recipe("qlora"), turing)
    assert asked.model.dtype == "float32"
    work = {"computed": 10**6, "logits": 0, "pairs": 0, "checkpointing": False}
    slow = resolved(recipe("lora"), turing)
    fast, slower = (step_seconds(counted(LLAMA_8B, each), each, turing, **work) for each in (asked, slow))
    assert fast < slower / 4


def test_a_prediction_is_compared_for_the_very_micro_batch_that_was_measured() -> None:
    asked = resolved(recipe(micro_batch_tokens=512, gradient_checkpointing=False), CPU)
    sized = counted(LLAMA_8B, asked)
    chosen = Plan(sized.shape, 512, 400, False, CPU.memory)
    predicted = chosen.peak_of_many_steps(99).training
    seconds = step_seconds(
        sized, asked, replace(CPU, fp32=5e10), computed=400, logits=90, pairs=20_000, checkpointing=False
    )
    trial = Trial(
        peak=predicted * 2, seconds=seconds / 2, tokens=400, rows_tokens=400, logits=90, pairs=20_000, flops=5e10
    )
    found = compare_prediction(LLAMA_8B, asked, CPU, trial)
    assert found.memory_error == pytest.approx(-0.5) and found.time_error == pytest.approx(1.0)


def test_the_heap_grows_by_more_where_a_row_fills_the_micro_batch() -> None:
    def activations(method: str, row: float, device: Device = CPU, checkpointing: bool = False) -> int:
        shape = counted(LLAMA_8B, resolved(recipe(method), device)).shape
        return Plan(shape, 1000, 1000, checkpointing, device.memory).peak_of_many_steps(row).activations

    plain = Plan(counted(LLAMA_8B, resolved(recipe(), CPU)).shape, 1000, 1000, False, CPU.memory).peak().activations
    assert activations("lora", 500) == pytest.approx(plain * 1.26, rel=1e-6)
    assert activations("lora", 2000) == pytest.approx(plain * 1.36, rel=1e-6)
    assert activations("full", 0) < activations("full", 1000)
    assert activations("lora", 10, H100) == activations("lora", 1000, H100)
    assert activations("lora", 10, checkpointing=True) == activations("lora", 1000, checkpointing=True)


def test_a_config_that_nobody_understands_is_refused() -> None:
    with pytest.raises(NotUnderstood, match="cannot be counted from its config alone"):
        planned({"model_type": "no_such_model"}, CPU)


def test_a_device_that_is_not_known_is_refused_with_the_nearest() -> None:
    assert device_called("H100", threads=1) is H100
    with pytest.raises(RecipeError, match=r"Did you mean h100-pcie\?"):
        device_called("h100pcie", threads=1)


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("Tesla V100-SXM2-16GB", "v100-32"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA L40", None),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_a_gpu_is_known_by_what_its_driver_calls_it(told: str, name: str | None) -> None:
    assert device_like(told) is (None if name is None else DEVICES[name])


def test_the_speed_of_this_cpu_is_measured() -> None:
    found = device_called("cpu", threads=1)
    assert found.kind == "cpu" and found.dtype == "float32"
    assert 1e8 < found.fp32 < 1e13


def test_a_config_is_found_by_file_and_folder(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA_8B))
    assert read_config(str(file)) == (LLAMA_8B, None)
    assert read_config(str(tmp_path)) == (LLAMA_8B, tmp_path)
    file.write_text("[]")
    with pytest.raises(ModelError, match="JSON object"):
        read_config(str(file))


# Figures of 100 rows of 64 tokens, counted from config.json by arithmetic: a second way, which is gone.
# A key is model/method/device. A line is trainable, weights, gradients, optimizer, activations, logits, judging,
# budget, checkpointing, seconds.
FIGURES = json.loads(Path(__file__).with_name("figures.json").read_text(encoding="utf-8"))
LARGE = {
    "8b": LLAMA_8B,
    "70b": LLAMA_70B,
    "mixtral": {"model_type": "mixtral", "num_hidden_layers": 32},
    "gpt_oss": {"model_type": "gpt_oss", "num_hidden_layers": 24, "num_local_experts": 32},
}
METHODS: dict[str, Any] = {
    "lora": "lora",
    "freeze": {"name": "freeze", "trainable_layers": 1},
    "lora-int8": {"name": "lora", "r": 4, "load_in_8bit": True},
}


def check_figures(key: str) -> None:
    name, method, device = key.split("/")
    config = LARGE[name] if method == "lora" else tiny_config(name).to_dict()
    asked = recipe(METHODS[method])
    found = planned(config, CPU if device == "cpu" else DEVICES[device], rows=100, length=64, asked=asked)
    for line in found.lines:
        parts = line.memory
        *sizes, seconds = FIGURES[key][line.method]
        assert sizes == [
            line.trainable, parts.weights, parts.gradients, parts.optimizer, parts.activations, parts.logits,
            parts.judging, line.budget, line.checkpointing,
        ], line.method  # fmt: skip
        assert line.seconds == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("key", ["8b/lora/h100", "llama/freeze/cpu", "mixtral/lora-int8/h100"])
def test_figures_are_those_that_were_counted_a_second_way(key: str) -> None:
    check_figures(key)


@pytest.mark.slow
@pytest.mark.parametrize("key", FIGURES)
def test_figures_of_every_family_are_those_that_were_counted_a_second_way(key: str) -> None:
    check_figures(key)


def test_a_plan_of_an_adapter_taken_out_of_the_base_counts_what_is_kept_and_compares_with_qlora() -> None:
    usual, pissa = (
        by_method(planned(LLAMA_8B, H100, asked=recipe({"name": "lora", "init_lora_weights": init, "r": 8})))
        for init in (True, "pissa_niter_4")
    )
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert pissa["lora"].memory.weights - usual["lora"].memory.weights == 2 * linear + 4 * usual["lora"].trainable
    assert pissa["qlora"] == usual["qlora"], "which cannot begin so"


def test_the_state_of_another_optimizer_is_counted() -> None:
    usual, small, none = (by_method(planned(LLAMA_8B, H100, asked=recipe(optim=name)))["full"].memory for name in (
        "adamw_torch", "adamw_8bit", "sgd"
    ))  # fmt: skip
    tables = 128256 * 4096  # whose moments stay in fp32; norms of 4,096 are large enough for 8 bits
    rest = 8_030_261_248 - tables
    assert usual.optimizer == 4 * 8_030_261_248
    assert small.optimizer == pytest.approx(8 * tables + 2 * rest * (1 + 4 / 256), rel=1e-9)
    assert none.optimizer == 0
