"""What each method would need for a recipe on a device, before any weights are loaded: the library behind `plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.evaluation.metrics.answers import check_names
from tunesmith.model.weights.config_file import read_config
from tunesmith.planning import workload
from tunesmith.planning.budget import threads
from tunesmith.planning.devices import device_called
from tunesmith.planning.method_table import Planned, plan_methods
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.consent import Consent, stored_in
from tunesmith.runs.from_python import heard_by
from tunesmith.runs.progress import Listener, Silent
from tunesmith.runs.surroundings import library_call
from tunesmith.workflows.given_data import with_files


@dataclass(frozen=True, slots=True)
class PlannedRecipe:
    """A plan, with what it was made of: the recipe with its device, and the model's config and folder."""

    planned: Planned
    recipe: Recipe
    config: Mapping[str, Any]
    folder: Path | None


def plan_recipe(
    asked: Recipe,
    *,
    device: str | None = None,
    rows: int | None = None,
    length: int | None = None,
    exact: bool = False,
    listener: Listener | None = None,
) -> PlannedRecipe:
    """Plans every method for the recipe's model and rows.

    Args:
        device: cpu, cuda, or a device by name; the recipe's by default.
        rows: of an epoch, with ``length`` tokens in each, instead of the recipe's data.
        exact: counts tokens and shared prefixes with the model's tokenizer.
    """
    listener = listener or Silent()
    check_names(asked.evaluation)
    number = threads() if asked.training.threads == "auto" else int(asked.training.threads)
    target = device_called(device or asked.model.device, threads=number)
    config, folder = read_config(asked.model.path, revision=asked.model.revision)
    asked = asked.with_values(model={"device": target.kind}) if asked.model.device == "auto" else asked
    if rows is not None and length is not None:
        work = workload.as_given(rows, length, recipe=asked)
    elif exact:
        from tunesmith.workflows.exact_workload import by_tokens

        work = by_tokens(asked, listener=listener)
    else:
        work = workload.by_characters(asked, listener=listener)
    return PlannedRecipe(plan_methods(asked, config, work, target, folder=folder), asked, config, folder)


@library_call()
def plan(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    device: str | None = None,
    rows: int | None = None,
    length: int | None = None,
    exact: bool = False,
    trust_remote_code: bool = False,
    progress: bool = True,
    listener: Listener | None = None,
) -> Planned:
    """Memory and time of each method, and which one to begin with. No weights are loaded.

    Args:
        recipe: a YAML file, a mapping in the form of a recipe, in which data may be rows, or a Recipe.
        overrides: ``section.key=value``, applied after the recipe.
        device: cpu, cuda, or a device by name such as h100; the recipe's by default.
        rows: of an epoch, with ``length`` tokens in each, instead of the recipe's data.
        length: see ``rows``.
        exact: counts tokens and shared prefixes with the model's tokenizer.
        trust_remote_code: run code that comes with the model, also where a stored recipe asks for it.
        progress: show the progress: a bar in a notebook, lines on standard error elsewhere.
        listener: hears the progress in place of it.

    Raises:
        TunesmithError: the recipe, its data or its model cannot be read.
    """
    if (rows is None) != (length is None):
        raise RecipeError("rows and length go together", where="plan", remedy="Give both, or leave both out.")
    with with_files(recipe) as (source, _):
        asked = Consent(trust_remote_code).given(read_recipe(source, overrides), stored_in(recipe))
        return plan_recipe(
            asked, device=device, rows=rows, length=length, exact=exact, listener=heard_by(listener, progress)
        ).planned
