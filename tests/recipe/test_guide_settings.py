"""Every name in the guide's blocks for TrainingArguments, LoraConfig, BitsAndBytesConfig, from_pretrained, Trainer and
generate() is accepted with the guide's value and lands where it is meant, or is refused with the reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, TaskType
from safetensors.torch import load_file

from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.generation import GenerationSettings
from tunesmith.recipe.settings import Recipe
from tunesmith.training.loop import Step
from tunesmith.training.trainer import Trainer
from tunesmith.workflows.finetune import dry_run, train

FIRST_ARGUMENTS = {
    "output_dir": "./results",
    "num_train_epochs": 3,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "warmup_steps": 100,
    "weight_decay": 0.01,
    "logging_steps": 10,
    "learning_rate": 2e-5,
}
SECOND_ARGUMENTS = {
    "learning_rate": 2e-5,
    "num_train_epochs": 3,
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "optim": "adamw_8bit",
    "max_grad_norm": 1.0,
    "logging_steps": 10,
    "save_steps": 100,
    "eval_steps": 50,
    "save_strategy": "steps",
    "evaluation_strategy": "steps",
    "output_dir": "./results",
    "report_to": ["tensorboard"],
}
LORA = {
    "task_type": TaskType.CAUSAL_LM,
    "r": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "v_proj"],
}
QLORA = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "task_type": "CAUSAL_LM",
}
QUANTIZATION = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_compute_dtype": torch.float16,
    "bnb_4bit_use_double_quant": True,
}
GENERATE = {"max_length": 200, "temperature": 0.7, "top_p": 0.9, "do_sample": True, "num_return_sequences": 1}
ELSEWHERE = {  # a name of the guide: the recipe's, with the value that the guide's has there
    "output_dir": ("output_dir", "./results"),
    "per_device_eval_batch_size": ("evaluation.batch_size", None),
    "warmup_ratio": ("training.warmup_steps", 0.1),
    "evaluation_strategy": ("training.eval_strategy", "steps"),
}


def recipe(method: Any = "lora", training: Any = None, **sections: Any) -> Recipe:
    values = {"model": "tiny", "data": {"train": "rows.jsonl"}, "method": method, "training": training or {}}
    top = {} if "output_dir" in (training or {}) else {"output_dir": "runs/x"}
    return read_recipe({**values, **top, **sections}).recipe


def value_at(found: Recipe, path: str) -> Any:
    value: Any = found
    for part in path.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("arguments", [FIRST_ARGUMENTS, SECOND_ARGUMENTS])
def test_a_block_of_training_arguments_is_a_training_section_as_it_stands(arguments: dict[str, Any]) -> None:
    found = recipe(training=arguments)
    for name, value in arguments.items():
        path, meant = ELSEWHERE.get(name, (f"training.{name}", value))
        assert value_at(found, path) == (value if meant is None else meant), name
    product = arguments["per_device_train_batch_size"] * arguments.get("gradient_accumulation_steps", 1)
    assert found.training.batch_size == product


@pytest.mark.parametrize("name", sorted({*FIRST_ARGUMENTS, *SECOND_ARGUMENTS} - {"gradient_accumulation_steps"}))
def test_each_training_argument_is_accepted_alone(name: str) -> None:
    value = {**FIRST_ARGUMENTS, **SECOND_ARGUMENTS}[name]
    path, meant = ELSEWHERE.get(name, (f"training.{name}", value))
    assert value_at(recipe(training={name: value}), path) == (value if meant is None else meant)


@pytest.mark.parametrize("block", [LORA, QLORA])
def test_a_block_of_lora_config_is_a_method_section_as_it_stands(block: dict[str, Any]) -> None:
    found = recipe({"name": "lora", **block}).method
    for name, value in block.items():
        assert getattr(found, name) == (value.value if isinstance(value, TaskType) else value), name


def test_the_blocks_of_qlora_are_a_method_section_as_they_stand() -> None:
    found = recipe({"name": "qlora", **QLORA, **QUANTIZATION}).method
    for name, value in {**QLORA, **QUANTIZATION}.items():
        assert getattr(found, name) == ("float16" if name == "bnb_4bit_compute_dtype" else value), name


def test_another_task_and_another_base_than_4_bit_are_refused() -> None:
    with pytest.raises(RecipeError, match="expected 'CAUSAL_LM', found 'SEQ_CLS'"):
        recipe({"name": "lora", "task_type": TaskType.SEQ_CLS})
    with pytest.raises(RecipeError, match="for an unquantized base use method: lora"):
        recipe({"name": "qlora", "load_in_4bit": False})
    with pytest.raises(RecipeError, match=r"`method\.load_in_4bit` is a setting of qlora; the method here is lora"):
        recipe({"name": "lora", "load_in_4bit": True})


def test_device_map_auto_is_a_device() -> None:
    found = recipe(model={"path": "tiny", "device_map": "auto"})
    assert (found.model.path, found.model.device) == ("tiny", "auto")


def test_every_argument_of_generate_is_a_setting_of_answers_and_of_the_evaluation_where_that_has_it() -> None:
    found = GenerationSettings(**GENERATE)
    assert {name: getattr(found, name) for name in GENERATE} == GENERATE
    kept = {name: GENERATE[name] for name in ("temperature", "top_p", "do_sample")}
    evaluated = recipe(evaluation=kept).evaluation
    assert {name: getattr(evaluated, name) for name in kept} == kept
    with pytest.raises(RecipeError, match=r"evaluation\.max_length.* is not a setting"):
        recipe(evaluation={"max_length": 200})  # it would count prompts of different lengths
    with pytest.raises(RecipeError, match=r"evaluation\.num_return_sequences.* is not a setting"):
        recipe(evaluation={"num_return_sequences": 1})


COMPUTE_METRICS = """
import numpy as np

def accuracy_score(labels, predictions):
    return float(np.mean(labels == predictions))

def compute_metrics(eval_pred):
    logits, labels = eval_pred
    predictions = np.argmax(logits, axis=-1)
    return {"accuracy": accuracy_score(labels, predictions)}
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    words = ["red", "green", "blue", "black"]
    lines = [{"instruction": "Colour.", "input": f"thing {n}", "output": words[n % 4]} for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.slow
def test_the_guides_settings_train_a_run_together(
    rows: Path, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_metrics.py").write_text(COMPUTE_METRICS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)
    said: list[str] = []

    class Listener:
        def say(self, text: str) -> None:
            said.append(text)

        def warn(self, text: str) -> None:
            said.append(text)

        def task(self, title: str, total: int | None) -> Any:
            from tunesmith.runs.progress import Silent

            return Silent().task(title, total)

    values = {
        "model": {"path": str(tiny_model_dir), "device_map": {"": "cpu"}},
        "data": {"train": str(rows), "eval": 0.3},
        "method": {"name": "qlora", **QLORA, **QUANTIZATION},
        "training": {**SECOND_ARGUMENTS, "output_dir": str(tmp_path / "results"), "eval_steps": 3},
        "evaluation": {"compute_metrics": "own_metrics:compute_metrics", "samples": 0, "resamples": 100},
    }
    result = train(values, listener=Listener())
    assert result.run == tmp_path / "results"
    notes = [line for line in said if " here: " in line]
    assert [note.split(" ")[0] for note in notes] == [
        "training.warmup_ratio", "training.per_device_eval_batch_size", "training.evaluation_strategy",
        "training.output_dir", "model.device_map",
    ]  # fmt: skip
    computed = result.verdict["compute_metrics"]["accuracy"]
    assert set(computed) == {"base", "tuned"}
    lines = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    accuracies = [line["eval_accuracy"] for line in lines if "eval_loss" in line]
    assert accuracies[-1] == computed["tuned"]
    assert list((result.run / "tensorboard").iterdir())
    checkpoint = sorted((result.run / "checkpoints").iterdir())[-1]
    model = AutoPeftModelForCausalLM.from_pretrained(checkpoint, device_map="auto")
    assert model.peft_config["default"].task_type == "CAUSAL_LM"
    assert model.generate(torch.tensor([[5, 6]]), max_length=8).shape[1] <= 8


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["adamw_8bit", "adafactor", "lion", "sgd"])
def test_a_run_of_every_optimizer_goes_on_to_the_same_bytes(
    optim: str, rows: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {
        "model": str(tiny_model_dir),
        "data": {"train": str(rows), "eval": 0.2},
        "method": {"name": "full"},  # adapters of so small a model would have no 8-bit moments
        "training": {"optim": optim, "max_steps": 4, "save_steps": 2, "eval_steps": 1, "batch_size": 4, "threads": 1,
                     "learning_rate": 1e-3, "report_to": "none"},
        "evaluation": {"samples": 0, "resamples": 100},
        "output_dir": str(tmp_path / "whole"),
    }  # fmt: skip
    whole = train(values).run
    original = Trainer.on_eval

    def on_eval(self: Trainer, step: Step) -> None:
        if step.number == 3:
            raise KeyboardInterrupt
        original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "on_eval", on_eval)
        with pytest.raises(KeyboardInterrupt):
            train({**values, "output_dir": str(tmp_path / "stopped")})
    resumed = train({**values, "output_dir": str(tmp_path / "stopped")}, resume=True).run
    for name in ("model.safetensors", "optimizer.safetensors", "training_state.json"):
        one, other = ((run / "checkpoints" / "step-000004" / name).read_bytes() for run in (whole, resumed))
        assert one == other, name
    state = load_file(whole / "checkpoints" / "step-000004" / "optimizer.safetensors")
    assert any(value.dtype == torch.uint8 for value in state.values()) == (optim == "adamw_8bit")


@pytest.mark.parametrize(
    ("training", "said", "remedy"),
    [
        ({"optim": "paged_adamw_8bit"}, "paged_adamw_8bit needs a GPU", "adamw_8bit"),
        ({"tf32": True}, "TF32 needs an NVIDIA GPU", "training.tf32"),
        ({"fp16": True}, "training.fp16: gradients in float16 underflow", None),
        ({"report_to": ["wandb"]}, "wandb is not installed", "pip install wandb"),
    ],
)
def test_what_cannot_be_meant_on_this_machine_is_refused_with_the_reason(
    training: dict[str, Any], said: str, remedy: str | None, rows: Path, tiny_model_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from tunesmith.runs import reporters

    find = reporters.find_spec
    monkeypatch.setattr(reporters, "find_spec", lambda name: None if name == "wandb" else find(name))
    model = {"path": str(tiny_model_dir), "device": "cpu"}
    values = {"model": model, "data": {"train": str(rows)}, "training": training, "output_dir": str(tmp_path / "run")}
    with pytest.raises(TunesmithError) as error:
        train(values)
    assert said in error.value.what
    assert remedy is None or remedy in (error.value.remedy or "")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_how_a_setting_was_said(rows: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {tiny_model_dir}\ndata: {{train: {rows}}}\noutput_dir: run\ntraining:\n  warmup_ratio: 0.1\n"
    )
    lines = {key: (value, origin) for key, value, origin in dry_run(path)}
    value, origin = lines["training.warmup_steps"]
    assert value == 0.1
    assert origin.startswith(f"{path}:5 (training.warmup_ratio is training.warmup_steps here")
    assert lines["training.optim"] == ("adamw_torch", "default")
