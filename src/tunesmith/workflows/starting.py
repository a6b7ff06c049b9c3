"""The beginning of `train`, before torch is imported: reads the recipe, finds the run's folder and reserves it.

A second start in the same folder is refused here, at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

from tunesmith.errors import RunError
from tunesmith.planning.disk_space import does_not_fit, least_bytes, least_checkpoint
from tunesmith.recipe.file import LoadedRecipe, read_recipe
from tunesmith.recipe.paths import local, refuse_odd_name
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.consent import Consent, stored_in
from tunesmith.runs.disk import bytes_in, no_room
from tunesmith.runs.drift import allowed_kinds
from tunesmith.runs.folder import Run
from tunesmith.runs.outputs import refuse_inputs, refuse_strangers
from tunesmith.runs.results import has_whole_result
from tunesmith.runs.run_files import FUNCTIONS, OWN, RECIPE
from tunesmith.workflows.given_data import rows_of_run, with_files


@dataclass(frozen=True, slots=True)
class Start:
    """A run whose folder is reserved. ``continues``: it has begun before and goes on.

    ``asked`` is the recipe as the user gave it. ``functions`` are those of the recipe that may run, with the folder
    that each comes from. ``finished``: nothing is left to do, so none of them is needed.
    ``allowed`` are the kinds of changes since then with which it may go on. ``kept`` are files of the run's folder that
    starting over reads, and does not remove.
    """

    run: Run
    loaded: LoadedRecipe
    asked: Recipe
    functions: Mapping[str, Path]
    continues: bool
    finished: bool
    allowed: frozenset[str]
    kept: tuple[str, ...] = ()


@contextmanager
def started(
    recipe: str | Path | Mapping[str, object] | Recipe,
    overrides: Sequence[str],
    *,
    resume: bool,
    overwrite: bool,
    consent: Consent,
    allow_changes: str | Sequence[str] = (),
) -> Iterator[Start]:
    """Inside, the run's folder is reserved for this process. See ``finetune.train`` for the arguments.

    Raises:
        RecipeError: the recipe has an error.
        RunError: another process works in the folder, it takes no files, or it holds what is not to be replaced; or a
            stored recipe runs code, and the user did not consent.
    """
    with rows_of_run() as rows:
        allowed = allowed_kinds(allow_changes)
        again = Path(local(recipe)) if overwrite and _has_recipe(recipe) else None
        recipe = recipe if again is None else again / RECIPE
        with with_files(recipe) as (source, _):
            loaded = rows.moved(_asked_recipe(source, overrides, resume=resume))
        if again is not None and loaded.origins.get(("output_dir",)) != "flag":
            loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"output_dir": str(again)}))
        # A run folder that was moved or renamed is continued, or starts over, where it is.
        run = Run(recipe if resume and _is_run(recipe) else loaded.recipe.output_dir)
        rows.recipe = run.folder / RECIPE
        stored = run.folder if resume and _is_run(recipe) else stored_in(recipe)
        finished = resume and run.exists() and run.status().get("status") == "finished" and has_whole_result(run)
        asked = loaded.recipe if finished else consent.given(loaded, stored)
        functions = {} if finished else consent.of_recipe(loaded, stored)
        for name in (str(run.folder), os.getcwd()):
            refuse_odd_name(name)
        if not (resume and run.exists()):
            run.check_free(overwrite=overwrite)
        with run.lock():
            continues = resume and run.exists()
            if not continues:  # again: a run that was in the folder may just have ended
                run.check_free(overwrite=overwrite)
                _refuse_losses(run, recipe, loaded.recipe)
            if not finished:
                _refuse_small_disk(run.folder, loaded.recipe)
            kept = (RECIPE, FUNCTIONS) if _is_of(run, recipe) else ()
            yield Start(run, loaded, asked, functions, continues, continues and finished, allowed, kept)


def _refuse_small_disk(folder: Path, recipe: Recipe) -> None:
    """Raises TrainError if the checkpoints do not fit, as far as that is known before torch is imported."""
    if not recipe.training.check_disk:
        return
    each = least_checkpoint(recipe)
    least = least_bytes(recipe, each)
    why = no_room(folder, least - bytes_in(folder)) if least else None
    if why is not None:
        raise does_not_fit(folder, why, recipe.training, each=each.total, most=least)


def _refuse_losses(run: Run, named: object, recipe: Recipe) -> None:
    """Raises RunError where starting over would remove what the run reads, or files that are not the run's."""
    sources = [source.path for split in ("train", "eval", "test") for source in recipe.data.sources(split)]
    named = None if _is_of(run, named) else named  # it stays until the new one takes its place
    refuse_inputs(run.folder, [named, recipe.model.path, *sources], kind=RunError, flag="output_dir")
    refuse_strangers(run.folder, OWN, kind=RunError, flag="output_dir")


def _asked_recipe(
    recipe: str | Path | Mapping[str, object] | Recipe, overrides: Sequence[str], *, resume: bool
) -> LoadedRecipe:
    """The recipe that was asked for. A run folder stands for the recipe that it was started with."""
    if resume and isinstance(recipe, str | Path) and _means_a_run(Path(local(recipe))):
        return read_recipe(Run.open(recipe).fact("asked"), overrides)
    return read_recipe(recipe, overrides)


def _has_recipe(recipe: object) -> TypeGuard[str | Path]:
    """Whether this is a folder that a run has kept its recipe in."""
    return isinstance(recipe, str | Path) and Path(local(recipe), RECIPE).is_file()


def _is_of(run: Run, recipe: object) -> bool:
    """Whether this is the recipe that a run keeps in its folder."""
    kept = run.folder / RECIPE
    return isinstance(recipe, str | Path) and kept.is_file() and os.path.realpath(local(recipe)) == str(kept.resolve())


def _means_a_run(path: Path) -> bool:
    return not path.is_file() and path.suffix.lower() not in (".yaml", ".yml")


def _is_run(recipe: str | Path | Mapping[str, object] | Recipe) -> TypeGuard[str | Path]:
    return isinstance(recipe, str | Path) and Run(recipe).exists()
