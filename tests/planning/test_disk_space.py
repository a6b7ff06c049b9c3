"""The bytes of checkpoints by arithmetic; tests/faults holds them to what runs write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.planning.disk_space import CheckpointBytes, least_bytes, most_bytes
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.settings import TrainingSettings

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


@pytest.mark.parametrize(
    ("method", "dtype", "least"),
    [("full", "float32", 1000), ("freeze", "float32", 1000), ("full", "auto", 500), ("lora", "float32", 0)],
)
def test_the_least_is_known_from_the_files_of_the_model(tmp_path: Path, method: str, dtype: str, least: int) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / name).write_bytes(bytes(500))
    values = {"data": {"train": "rows"}, "method": method, "output_dir": "out"}
    recipe = read_recipe({**values, "model": {"path": str(tmp_path), "dtype": dtype}}).recipe
    assert least_bytes(recipe) == least
    assert least_bytes(read_recipe({**values, "model": "hub/name"}).recipe) == 0
