"""Other names of settings are put in their place with a note, whether a file or a flag has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.errors import RecipeError
from tunesmith.recipe.aliases import ALIASES, VALUES, canonical
from tunesmith.recipe.file import LoadedRecipe, dump, read_recipe

HEAD = "model: tiny\ndata: {train: rows.jsonl}\noutput_dir: runs/x\n"


def read(text: str, tmp_path: Path, *overrides: str) -> LoadedRecipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(HEAD + text)
    return read_recipe(path, overrides)


CASES: list[tuple[str, tuple[str, ...], Any]] = [
    ("training: {evaluation_strategy: epoch}", ("training", "eval_strategy"), "epoch"),
    ("training: {warmup_ratio: 0.1}", ("training", "warmup_steps"), 0.1),
    ("training: {per_device_eval_batch_size: 8}", ("evaluation", "batch_size"), 8),
    ("training: {bf16: true}", ("model", "dtype"), "bfloat16"),
    ("training: {optim: lion}", ("training", "optim"), "lion_32bit"),
    ("training: {optim: adamw_bnb_8bit}", ("training", "optim"), "adamw_8bit"),
    ("training: {optim: adamw_torch_fused}", ("training", "optim"), "adamw_torch"),
    (
        "training: {lr_scheduler_type: wsd, lr_scheduler_kwargs: {num_decay_steps: 5}}",
        ("training", "lr_scheduler_type"),
        "warmup_stable_decay",
    ),
]


def value_of(loaded: LoadedRecipe, path: tuple[str, ...]) -> Any:
    section: Any = loaded.recipe
    for part in path:
        section = getattr(section, part)
    return section


@pytest.mark.parametrize(("text", "path", "value"), CASES)
def test_an_alias_says_its_setting_with_line_and_note(
    text: str, path: tuple[str, ...], value: Any, tmp_path: Path
) -> None:
    loaded = read(text, tmp_path)
    assert value_of(loaded, path) == value
    origin = loaded.origin(path)
    assert origin.startswith(f"{tmp_path / 'recipe.yaml'}:4 (")
    assert ".".join(path) in origin, "the note names the canonical setting"
    assert list(loaded.notes) == [path]


def test_a_model_that_is_a_name_takes_what_other_sections_say_of_it(tmp_path: Path) -> None:
    loaded = read("training: {bf16: true}", tmp_path)
    assert (loaded.recipe.model.path, loaded.recipe.model.dtype) == ("tiny", "bfloat16")


def test_what_was_said_by_an_alias_is_dumped_by_its_setting_and_reads_back(tmp_path: Path) -> None:
    text = "training: {warmup_ratio: 0.1, evaluation_strategy: no, optim: lion, per_device_eval_batch_size: 3}"
    recipe = read(text, tmp_path).recipe
    dumped = dump(recipe)
    assert "warmup_ratio" not in dumped
    again = tmp_path / "again.yaml"
    again.write_text(dumped)
    back = read_recipe(again)
    assert back.recipe == recipe
    assert back.notes == {}


def test_a_flag_may_use_an_alias_over_what_the_file_says_by_either_name(tmp_path: Path) -> None:
    for text in ("training: {warmup_ratio: 0.1}", "training: {warmup_steps: 7}"):
        loaded = read(text, tmp_path, "training.warmup_ratio=0.2")
        assert loaded.recipe.training.warmup_steps == 0.2
        assert loaded.origin(("training", "warmup_steps")).startswith("flag (training.warmup_ratio is")
    loaded = read("training: {warmup_ratio: 0.1}", tmp_path, "training.warmup_steps=7")
    assert loaded.origin(("training", "warmup_steps")) == "flag"


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_switch_that_is_off_says_nothing_as_a_flag(value: str, tmp_path: Path) -> None:
    loaded = read("", tmp_path, f"training.bf16={value}")
    assert loaded.recipe.model.dtype == ("bfloat16" if value == "true" else "auto")


def test_the_same_thing_said_twice_is_refused_where_it_differs(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"training\.bf16 and model\.dtype say the same thing") as error:
        read_recipe({"model": {"path": "x", "dtype": "float32"}, "data": {"train": "r"}, "output_dir": "o",
                     "training": {"bf16": True}})  # fmt: skip
    assert error.value.why == "They are 'bfloat16' and 'float32'."
    both = "training: {eval_strategy: epoch, evaluation_strategy: epoch}"
    assert read(both, tmp_path).recipe.training.eval_strategy == "epoch"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training: {fp16: true}", "underflow without loss scaling"),
        ("training: {warmup_ratio: 1.5}", "at least 0 and below 1, found 1.5"),
        ("training: {warmup_ratio: much}", "is a number, found 'much'"),
        ("training: {bf16: 1}", "true or false, found 1"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_its_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        read(text, tmp_path)
    assert said in error.value.what
    assert error.value.where == f"{tmp_path / 'recipe.yaml'}:4"


@pytest.mark.parametrize(
    ("device_map", "device"),
    [
        ("auto", "auto"),
        ("cpu", "cpu"),
        ("cuda:1", "cuda:1"),
        ({"": 0}, "cuda:0"),
        ({"": "cpu"}, "cpu"),
        ({"model.embed": "cpu", "model.layers": "cpu"}, "cpu"),
        (2, "cuda:2"),
    ],
)
def test_a_device_map_of_one_device_is_that_device(device_map: Any, device: str) -> None:
    found = canonical(("model", "device_map"), device_map)
    assert (found.name, found.value) == (("model", "device"), device)


@pytest.mark.parametrize("device_map", ["balanced", "sequential", {"a": 0, "b": 1}, {"model.embed": 0}, True, None])
def test_a_device_map_over_several_devices_is_refused(device_map: Any) -> None:
    with pytest.raises(ValueError, match="a run uses one device"):
        canonical(("model", "device_map"), device_map)


def test_a_dtype_may_be_torchs_own_or_its_name() -> None:
    for value in (torch.float16, "torch.float16", "float16"):
        assert canonical(("method", "bnb_4bit_compute_dtype"), value).value == "float16"
    assert canonical(("model", "torch_dtype"), torch.bfloat16).name == ("model", "dtype")


def test_no_alias_stands_for_a_setting_that_there_is() -> None:
    from tunesmith.recipe.methods import METHOD_SETTINGS
    from tunesmith.recipe.settings import ModelSettings, Recipe, TrainingSettings

    sections = {"training": TrainingSettings, "model": ModelSettings, "method": METHOD_SETTINGS["qlora"]}
    for alias in ALIASES:
        section, name = alias.name
        assert name not in sections[section].model_fields
        target = Recipe.model_fields if len(alias.canonical) == 1 else None
        if target is None:
            owner: Any = Recipe.model_fields[alias.canonical[0]].annotation
            target = owner.model_fields
        assert alias.canonical[-1] in target
    assert {path for path in VALUES} == {("training", "optim"), ("training", "lr_scheduler_type")}
