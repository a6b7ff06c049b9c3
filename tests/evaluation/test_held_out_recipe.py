"""New rows are read like the training rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.files.reader import open_source
from tunesmith.errors import DataError, RecipeError, RunError
from tunesmith.evaluation.held_out_recipe import evaluation_recipe, read_like_training
from tunesmith.recipe.data import SourceSettings
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.settings import Recipe


@pytest.fixture
def stored() -> Recipe:
    columns = {"prompt": "column1", "completion": "column2"}
    data: dict[str, Any] = {"train": "old.csv", "header": False, "columns": columns}
    return read_recipe({"model": "m", "data": data, "output_dir": "run"}).recipe


def test_a_table_is_read_without_a_header_if_the_training_rows_had_none(stored: Recipe, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("red hat,red\n")
    (tmp_path / "new.jsonl").write_text('{"column1": "red hat"}\n')
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/new.csv").write_text("red hat,red\n")
    for name in ("new.csv", "folder"):
        assert read_like_training(stored, "run", str(tmp_path / name))["header"] is False
        judged = evaluation_recipe(stored, "run", str(tmp_path / name), [])
        assert [source.header for source in judged.data.sources("train")] == [False]
    assert "header" not in read_like_training(stored, "run", str(tmp_path / "new.jsonl")), "it has no header to name"
    assert "header" not in read_like_training(stored, "run", str(tmp_path / "new.csv"), given={"header"})


def test_a_table_without_the_header_of_training_is_told_of_its_first_line(tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    file.write_text("where does the red hat lie today?,x\nwhere is the blue one?,y\n")
    columns = {"prompt": "asked", "completion": "said"}
    with pytest.raises(DataError, match="there is no column 'asked'") as failed:
        open_source(SourceSettings(path=str(file), columns=columns))
    assert str(failed.value.remedy).endswith(
        "if the first line is a row, write a line with the names of the columns above it"
    )
    file.write_text(f"asked,said\n{file.read_text()}")
    assert open_source(SourceSettings(path=str(file), columns=columns)).shape == "prompt_completion"


def test_keys_say_how_rows_to_judge_are_read(stored: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    file.write_text("asked,said\nred hat,red\n")
    keys = ["data.columns={prompt: asked, completion: said}", "data.header=true", "max_rows=5"]
    judged = evaluation_recipe(stored, "run", str(file), keys)
    [source] = judged.data.sources("train")
    assert (source.columns, source.header) == ({"prompt": "asked", "completion": "said"}, True)
    assert judged.evaluation.max_rows == 5
    with pytest.raises(RecipeError, match=r"data\.eval does not change how new rows are read"):
        evaluation_recipe(stored, "run", str(file), ["data.eval=3"])
    with pytest.raises(RecipeError, match="no other rows are named"):
        evaluation_recipe(stored, "run", None, ["data.header=true"])


def test_sources_that_were_read_differently_need_keys_that_say_how_new_rows_are_read(tmp_path: Path) -> None:
    one = {"path": "a.jsonl", "columns": {"prompt": "q", "completion": "a"}, "instruction": "Say it."}
    two = {"path": "b.jsonl", "columns": {"prompt": "x", "completion": "y"}}
    stored = read_recipe({"model": "m", "data": {"train": [one, two]}, "output_dir": "run"}).recipe
    with pytest.raises(RunError) as refused:
        evaluation_recipe(stored, "run", "new.jsonl", [])
    assert "data.columns=" in str(refused.value.remedy) and "data.instruction=VALUE" in str(refused.value.remedy)
    keys = ["data.columns={prompt: q, completion: a}", "data.instruction=Say it."]
    [source] = evaluation_recipe(stored, "run", "new.jsonl", keys).data.sources("train")
    assert (source.columns, source.instruction) == ({"prompt": "q", "completion": "a"}, "Say it.")


def test_rows_of_few_shot_are_left_out_with_the_baseline(tmp_path: Path) -> None:
    evaluation = {"metrics": ["exact_match"], "baselines": ["few_shot"], "few_shot_rows": 3}
    values = {"model": "m", "data": {"train": "old.jsonl"}, "evaluation": evaluation, "output_dir": "run"}
    stored = read_recipe(values).recipe
    for typed, rows in (([], 3), (["baselines=[few_shot, majority]"], 3), (["baselines=none"], 4)):
        assert evaluation_recipe(stored, "run", "new.jsonl", typed).evaluation.few_shot_rows == rows
    with pytest.raises(RecipeError, match="few_shot_rows has no meaning"):
        evaluation_recipe(stored, "run", "new.jsonl", ["baselines=none", "few_shot_rows=2"])
