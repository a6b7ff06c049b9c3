"""Overrides beside a recipe: what says the same thing is replaced and said, and what contradicts itself is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tunesmith.errors import RecipeError
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.methods import METHOD_SETTINGS
from tunesmith.recipe.objectives import OBJECTIVE_SETTINGS
from tunesmith.recipe.section import Settings
from tunesmith.recipe.settings import DataSettings, EvaluationSettings, ModelSettings, TrainingSettings

BASE = "model: m\ndata: {train: rows.jsonl, eval: 0.2}\noutput_dir: out\n"  # a further line begins at line 4


@pytest.mark.parametrize(
    ("text", "overrides", "expected", "note"),
    [
        (
            "training: {num_train_epochs: 3, seed: 1}",
            ["training.max_steps=3"],
            {"max_steps": 3, "seed": 1},
            "training.max_steps replaces training.num_train_epochs: 3 of FILE:4",
        ),
        (
            "training: {max_steps: 9}",
            ["training.num_train_epochs=2"],
            {"max_steps": None, "num_train_epochs": 2.0},
            "training.num_train_epochs replaces training.max_steps: 9 of FILE:4",
        ),
        (
            "training: {eval_steps: 5}",
            ["training.evaluation_strategy=epoch"],
            {"eval_strategy": "epoch"},
            "training.evaluation_strategy is training.eval_strategy here: its name in transformers 5; "
            "training.eval_strategy replaces training.eval_steps: 5 of FILE:4",
        ),
        (
            "training: {save_strategy: no}",
            ["training.save_steps=5"],
            {"save_strategy": "steps", "save_steps": 5},
            "training.save_steps replaces training.save_strategy: no of FILE:4",
        ),
        (
            "training: {batch_size: 4}",
            ["training.per_device_train_batch_size=3", "training.gradient_accumulation_steps=2"],
            {"batch_size": 6},
            "training.per_device_train_batch_size replaces training.batch_size: 4 of FILE:4",
        ),
        (
            "training: {per_device_train_batch_size: 3}",
            ["training.batch_size=8"],
            {"batch_size": 8, "per_device_train_batch_size": None},
            "training.batch_size replaces training.per_device_train_batch_size: 3 of FILE:4",
        ),
        (
            "training: {per_device_train_batch_size: 3, gradient_accumulation_steps: 2}",
            ["training.per_device_train_batch_size=5"],
            {"batch_size": 10},
            None,
        ),
    ],
)
def test_an_override_replaces_what_says_the_same_thing(
    text: str, overrides: list[str], expected: dict[str, Any], note: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(BASE + text + "\n")
    loaded = read_recipe(file, overrides)
    assert {name: getattr(loaded.recipe.training, name) for name in expected} == expected
    assert [said.replace(str(file), "FILE") for said in loaded.notes.values()] == ([note] if note else [])
    as_mapping = {"model": "m", "data": {"train": "rows.jsonl", "eval": 0.2}, "output_dir": "out"}
    of_python = read_recipe({**as_mapping, **YAML(typ="safe").load(text)}, overrides)
    assert of_python.recipe == loaded.recipe
    assert read_recipe(read_recipe(file).recipe, overrides).recipe.training == loaded.recipe.training


def test_an_override_that_takes_away_the_held_out_rows_takes_what_needs_them(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(BASE + "training: {eval_steps: 5}\nevaluation: {metrics: [exact_match], max_new_tokens: 9}\n")
    loaded = read_recipe(file, ["data.eval=0"])
    assert (loaded.recipe.data.eval, loaded.recipe.evaluation.metrics) == (0.0, [])
    assert loaded.recipe.evaluation.max_new_tokens == 9
    assert loaded.origin(("data", "eval")) == (
        f"flag (data.eval replaces training.eval_steps: 5 of {file}:4; "
        f"data.eval replaces evaluation.metrics: ['exact_match'] of {file}:5)"
    )


def test_another_method_by_name_leaves_out_the_settings_that_it_does_not_have(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(BASE + "method:\n  name: lora\n  r: 8\n  lora_alpha: 32\n")
    loaded = read_recipe(file, ["method.name=full"])
    assert loaded.recipe.method.name == "full"
    assert list(loaded.notes.values()) == [
        f"method.name replaces method.r: 8 of {file}:6; method.name replaces method.lora_alpha: 32 of {file}:7"
    ]
    kept = read_recipe(file, ["method.name=qlora"])
    assert (kept.recipe.method.model_dump()["r"], kept.notes) == (8, {})
    with pytest.raises(RecipeError, match=r"`method\.r` is a setting of lora and qlora; the method here is full"):
        read_recipe(file, ["method.name=full", "method.r=4"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.max_steps=3", "training.num_train_epochs=2"], "max_steps and num_train_epochs say the same thing"),
        (["training.eval_strategy=epoch", "training.eval_steps=9"], "eval_steps has no meaning under eval_strategy"),
        (["training.batch_size=4", "training.per_device_train_batch_size=3"], "batch_size 4 contradicts"),
        (["training.warmup_ratio=0.1", "training.warmup_steps=7"], "training.warmup_ratio and training.warmup_steps"),
    ],
)
def test_overrides_that_contradict_each_other_are_refused(overrides: list[str], said: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(BASE + "training: {num_train_epochs: 3, eval_steps: 5, batch_size: 4}\n")
    with pytest.raises(RecipeError, match=said):
        read_recipe(file, overrides)


def test_null_leaves_a_key_out_and_an_empty_value_does_not(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(BASE + "training: {num_train_epochs: 5, seed: 3}\n")
    loaded = read_recipe(file, ["training.max_steps=3", "training.num_train_epochs=null", "training.seed=~"])
    assert (loaded.recipe.training.max_steps, loaded.recipe.training.seed) == (3, 0)
    assert read_recipe(file, ["training=null"]).recipe.training == TrainingSettings()
    with pytest.raises(RecipeError, match="expected a valid integer, found None"):
        read_recipe(file, ["training.seed="])
    with pytest.raises(RecipeError, match="`output_dir` is missing"):
        read_recipe(file, ["output_dir=null"])


def test_a_setting_that_may_be_null_is_null_by_default() -> None:
    """So leaving a key out and setting it to null are the same thing."""
    sections: list[type[Settings]] = [DataSettings, EvaluationSettings, ModelSettings, TrainingSettings]
    for section in [*sections, *METHOD_SETTINGS.values(), *OBJECTIVE_SETTINGS.values()]:
        for name, field in section.model_fields.items():
            nullable = "None" in str(field.annotation)
            assert not nullable or field.default is None, name
