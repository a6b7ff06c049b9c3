"""The bytes of checkpoints by arithmetic; tests/faults holds them to what runs write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tunesmith.model.weights.config_file import read_config
from tunesmith.model.weights.load import load_model
from tunesmith.model.weights.weight_files import INDEX
from tunesmith.planning.disk_space import CheckpointBytes, checkpoint_bytes, least_bytes, least_checkpoint, most_bytes
from tunesmith.planning.shape_from_model import ModelCounter, recipe_config
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.settings import Recipe, TrainingSettings

EACH = CheckpointBytes(weights=100, optimizer=10, text=1)


@pytest.mark.parametrize(
    ("settings", "models", "optimizers"),
    [
        ({}, 1, 1),
        ({"save_steps": 10}, 4, 2),
        ({"save_steps": 3}, 14, 2),
        ({"save_steps": 10, "save_optimizer": "all"}, 4, 4),
        ({"save_steps": 10, "save_total_limit": 1}, 2, 2),
        ({"save_steps": 10, "save_total_limit": 2}, 3, 2),
        ({"save_steps": 10, "save_total_limit": 9}, 4, 2),
        ({"save_steps": 10, "save_total_limit": 1, "load_best_model_at_end": True}, 3, 2),
        ({"save_steps": 10, "save_total_limit": 1, "save_optimizer": "all"}, 2, 2),
        ({"save_strategy": "epoch"}, 3, 2),
        ({"save_strategy": "no"}, 1, 1),
    ],
)
def test_the_most_bytes_are_there_before_an_old_checkpoint_goes(
    settings: dict[str, Any], models: int, optimizers: int
) -> None:
    training = TrainingSettings(**settings)
    assert most_bytes(EACH, training, steps=40, epochs=2.5) == models * 101 + optimizers * 10


def test_there_are_no_more_checkpoints_than_steps() -> None:
    training = TrainingSettings(save_steps=1, load_best_model_at_end=True)
    assert most_bytes(EACH, training, steps=2, epochs=1.0) == 2 * 101 + 2 * 10


def recipe_of(model: Path | str, dtype: str = "float32", **changes: Any) -> Recipe:
    values = {"data": {"train": "rows"}, "output_dir": "out", "method": "lora", **changes}
    return read_recipe({**values, "model": {"path": str(model), "dtype": dtype, "device": "cpu"}}).recipe


@pytest.mark.parametrize(
    ("method", "dtype", "least"),
    [("full", "float32", 1000), ("freeze", "float32", 1000), ("full", "auto", 500), ("lora", "float32", 0)],
)
def test_the_least_of_damaged_files_is_their_size(tmp_path: Path, method: str, dtype: str, least: int) -> None:
    (tmp_path / "config.json").write_text("{}")
    names = ("model-1.safetensors", "model-2.safetensors")
    for name in names:
        (tmp_path / name).write_bytes(bytes(500))
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
    assert least_checkpoint(recipe_of(tmp_path, dtype, method=method)) == CheckpointBytes(least, 0)
    assert least_checkpoint(recipe_of("hub/name", dtype, method=method)) == CheckpointBytes(0, 0)
    assert least_checkpoint(recipe_of("nothing-of-this-name", dtype, method=method)) == CheckpointBytes(0, 0)


METHODS: dict[str, Any] = {
    "all-linear": {"name": "lora", "r": 4},
    "names": {"name": "lora", "r": 4, "target_modules": ["q_proj", "down_proj"]},
    "a smaller rank": {"name": "lora", "r": 8, "rank_pattern": {"q_proj": 2}},
    "a pattern": {"name": "lora", "target_modules": r".*\.q_proj"},
    "left out": {"name": "lora", "exclude_modules": ["q_proj"]},
    "one layer": {"name": "lora", "layers_to_transform": 0},
    "all of it": {"name": "full"},
    "a part": {"name": "freeze", "trainable_layers": 1},
}


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd"])
@pytest.mark.parametrize("name", METHODS)
def test_the_least_is_no_more_than_a_checkpoint_takes(tiny_model_dir: Path, name: str, optim: str) -> None:
    recipe = recipe_of(tiny_model_dir, method=METHODS[name], training={"optim": optim})
    least = least_checkpoint(recipe)
    config, folder = read_config(str(tiny_model_dir))
    exact = checkpoint_bytes(ModelCounter(recipe_config(recipe, config, folder), folder).count(recipe).shape)
    assert least.weights <= exact.weights * 1.05 and least.optimizer <= exact.optimizer  # files have headers
    if name in ("all-linear", "names"):
        assert least == exact
    if name in ("all of it", "a smaller rank"):
        assert least.total > exact.total / 10


@pytest.mark.parametrize("method", ["lora", "full"])
def test_only_the_files_that_the_loader_takes_count(tiny_model_dir: Path, tmp_path: Path, method: str) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    recipe = recipe_of(folder, method=method)
    before = least_checkpoint(recipe)
    assert before.weights and before.optimizer
    tensors = load_file(folder / "model.safetensors")
    other = {f"other.{name}": value for name, value in tensors.items()}  # as in the format of the model's maker
    save_file(other, folder / "consolidated.safetensors")
    shutil.copy(folder / "consolidated.safetensors", folder / "model.fp16.safetensors")
    shards = {name: f"model-0000{at % 2 + 1}-of-00002.safetensors" for at, name in enumerate(tensors)}
    for shard in set(shards.values()):
        save_file({name: tensors[name] for name, its in shards.items() if its == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    os.mkfifo(folder / "pipe.safetensors")  # opening it would wait for ever
    assert least_checkpoint(recipe) == before
    (folder / "model.safetensors").unlink()
    sharded = least_checkpoint(recipe)
    assert sharded.optimizer == before.optimizer
    assert sharded.weights == pytest.approx(before.weights, abs=0 if method == "lora" else 2000)  # other headers
    load_model(folder, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize(
    ("training", "models"),
    [
        ({"max_steps": 40, "save_steps": 10}, 4),
        ({"max_steps": 40, "save_steps": 10, "save_total_limit": 1}, 2),
        ({"save_strategy": "epoch", "num_train_epochs": 3}, 3),
        ({"save_steps": 1}, 3),
        ({"max_steps": 40, "save_strategy": "epoch"}, 1),
    ],
)
def test_the_least_of_all_checkpoints_needs_no_rows(training: dict[str, Any], models: int) -> None:
    assert least_bytes(recipe_of("m", training=training), CheckpointBytes(100, 0)) == models * 100


PROGRAM = """
import sys, time
from tunesmith.cli.app import main
try:
    main(sys.argv[1:])
finally:
    print("torch" in sys.modules, time.process_time() < 5)
"""


def refused_early(model: str, method: str, folder: Path) -> None:
    """Trains in a folder what takes many thousand gigabytes."""
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 8)
    training = {"max_steps": 10**9, "save_steps": 1, "save_optimizer": "all"}
    recipe = {"model": model, "data": {"train": "rows.jsonl"}, "method": method, "training": training}
    (folder / "recipe.yaml").write_text(json.dumps({**recipe, "output_dir": "out"}))
    command = [sys.executable, "-c", PROGRAM, "train", "recipe.yaml"]
    environment = {**os.environ, "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert "do not fit on the disk" in done.stderr, done.stderr
    assert done.stdout.split() == ["False", "True"]
    assert not (folder / "out").exists()


@pytest.mark.parametrize("method", ["lora", "qlora", "full", "freeze"])
def test_what_cannot_fit_is_refused_before_torch_is_imported(tiny_model_dir: Path, tmp_path: Path, method: str) -> None:
    refused_early(str(tiny_model_dir), method, tmp_path)


@pytest.mark.parametrize("name", ["maker/tiny", "maker/tiny@v1"])
def test_what_cannot_fit_is_refused_for_a_base_in_the_hub_cache_too(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    commit, repository = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hub" / "models--maker--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / (name.partition("@")[2] or "main")).write_text(commit)
    snapshot = Path(shutil.copytree(tiny_model_dir, repository / "snapshots" / commit))
    refused_early(name, "lora", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for method in ("lora", "full"):
        assert least_checkpoint(recipe_of(name, method=method)) == least_checkpoint(recipe_of(snapshot, method=method))
    model = {"path": "maker/tiny", "revision": "v2"}
    other = read_recipe({"model": model, "data": {"train": "rows"}, "output_dir": "out", "method": "lora"}).recipe
    assert least_checkpoint(other) == CheckpointBytes(0, 0), "that revision is not here"
