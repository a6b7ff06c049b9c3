"""Every recipe in examples/ is accepted as it stands, and trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.recipe.file import read_recipe
from tunesmith.workflows.finetune import train

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "examples").glob("*.yaml"))


def test_there_is_an_example_for_each_way_to_train() -> None:
    names = ["dpo", "freeze", "full", "instruction-tuning", "lora", "qlora", "raw-text"]
    assert [path.stem for path in RECIPES] == names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_trains(path: Path, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = read_recipe(path).recipe
    assert recipe.model.path == "smollm2-135m-instruct"
    overrides = [f"model={tiny_model_dir}", f"output_dir={tmp_path / 'run'}", "training.threads=1"]
    result = train(path, overrides)
    assert (result.run / "verdict.json").is_file()
    assert next(iter(result.metrics)) == recipe.evaluation.metrics[0]
    assert result.metrics["loss"]["tuned"] != result.metrics["loss"]["base"]
