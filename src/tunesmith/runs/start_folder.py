"""The folder that a run was started in: the relative data paths of its recipe are relative to it."""

from __future__ import annotations

import os
from pathlib import Path

from tunesmith.errors import RunError, TunesmithError
from tunesmith.recipe.data import SourceSettings
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.manifest import read_checked


def recipe_of(run: Run) -> Recipe:
    """The recipe that was resolved when the run began, as it is stored. The user may have edited it.

    Raises:
        RunError: it is missing or damaged.
    """
    file = run.folder / "recipe.yaml"
    if not file.is_file():
        raise RunError(
            "This run has no recipe.yaml",
            where=str(run.folder),
            why="The file holds every setting of the run.",
            remedy="Put it back, or train again with `tunesmith train RECIPE --overwrite`.",
        )
    _, changed = read_checked(run.folder, file.name)
    if changed is None:
        return read_recipe(file).recipe
    try:
        return read_recipe(file).recipe
    except TunesmithError as error:
        raise run.damaged(file.name, f"It {changed}: {error.what}.") from error


def stored_recipe(run: Run, asked: Recipe | None = None) -> Recipe:
    """The recipe that was resolved when the run began, with data paths that are right from the current folder.

    A path that is not there stays as it is, so that the reader's message names it; so does a hub id or a URL.
    The query of a URL is not stored; it comes from the recipe that is ``asked`` for.
    """
    recipe = recipe_of(run)
    started_in = run.status().get("started_in")
    names = ("train", "eval", "test")
    given = [] if asked is None else [source for name in names for source in asked.data.sources(name)]

    def from_here(source: SourceSettings) -> SourceSettings:
        path = Path(started_in or "", source.path)
        here = started_in is None or Path(started_in) == Path.cwd()
        if here or Path(source.path).is_absolute() or not path.exists():
            return source.with_address_of(given)
        return source.model_copy(update={"path": os.path.relpath(path)})

    splits = {name: getattr(recipe.data, name) for name in names}
    found = {name: [*map(from_here, each)] for name, each in splits.items() if isinstance(each, list)}
    return recipe.with_values(data=found)
