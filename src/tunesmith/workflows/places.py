"""Says where a run expects its model and its rows, where one of them is not there any more."""

from __future__ import annotations

from tunesmith.data.files.locations import missing_source
from tunesmith.errors import ModelError, RunError, TunesmithError
from tunesmith.model.weights.resolve import kind
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.stored_addresses import refuse_stored_addresses


def check_places(run: Run, recipe: Recipe) -> None:
    """Raises RunError that names the key of the run's recipe.yaml whose file or folder is not there."""
    try:
        kind(recipe.model.path)
    except ModelError as error:
        raise _moved(run, "model.path", f"the model {recipe.model.path}", error) from error
    check_rows(run, recipe)


def check_rows(run: Run, recipe: Recipe, *, otherwise: str = "") -> None:
    """The same of the rows alone, and of an address that is not allowed. ``otherwise`` is another way out."""
    refuse_stored_addresses(recipe, run.folder)
    for split in ("train", "eval", "test"):
        for source in recipe.data.sources(split):
            error = missing_source(source)
            if error is not None:
                raise _moved(run, f"data.{split}", f"the rows {source.path}", error, otherwise)


def _moved(run: Run, key: str, what: str, error: TunesmithError, otherwise: str = "") -> RunError:
    near = error.remedy if error.remedy and error.remedy.startswith("did you mean") else ""
    return RunError(
        f"{what} of this run cannot be found",
        where=f"{run.folder / 'recipe.yaml'}: {key}",
        why=" ".join(filter(None, [_sentence(error.why), _sentence(near)])),
        remedy=f"Put it back, or a link to it; or write its new place as {key} into that file{otherwise}.",
    )


def _sentence(text: str | None) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.?')}{'?' if text.endswith('?') else '.'}" if text else ""
