"""A recipe that is named where a run or a model belongs."""

from __future__ import annotations

from pathlib import Path

from tunesmith.errors import ModelError, RecipeError
from tunesmith.recipe.paths import local


def refuse_recipe(path: str) -> None:
    """Raises ModelError for the file of a recipe, and names the run that it makes. It needs no torch."""
    file = Path(local(path))
    if file.suffix.lower() not in (".yaml", ".yml") or not file.is_file():
        return
    from tunesmith.recipe.file import read_recipe

    try:
        run = read_recipe(file).recipe.output_dir
    except RecipeError:
        remedy = "name a run, a checkpoint, an adapter folder or a model."
    else:
        there = (Path(local(run)) / "status.json").is_file()
        remedy = (
            f"did you mean its run, {run}?" if there else f"`tunesmith train {path}` makes its run, {run}: name that."
        )
    raise ModelError("this is a recipe, and no run or model", where=path, remedy=remedy)
