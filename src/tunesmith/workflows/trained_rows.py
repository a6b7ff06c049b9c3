"""How many of the rows that a run is judged on it was trained on."""

from __future__ import annotations

import numpy as np

from tunesmith.data.checks.scan import first_of
from tunesmith.data.placement import OUTCOME
from tunesmith.data.survey import survey_rows
from tunesmith.errors import RunError, TunesmithError
from tunesmith.recipe.data import SourceSettings
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Listener
from tunesmith.workflows.places import check_rows
from tunesmith.workflows.same_run import data_changes


def rows_trained_on(run: Run, stored: Recipe, source: SourceSettings, listener: Listener, *, name: str) -> int | None:
    """The number of rows of a source whose prompts the run was trained on; None where its own rows cannot be had.

    The listener hears of it in both cases.

    Args:
        run: whose training rows are read again.
        stored: the run's recipe.
        source: the rows that it is judged on, with how they are read.
        name: what messages call them.
    """
    try:
        found, rows = _counted(run, stored, source)
    except TunesmithError as error:
        listener.warn(f"whether the run was trained on rows of {name} is not known: {error.what}")
        return None
    if found:
        listener.warn(
            f"{found:,} of {rows:,} rows of {name} were trained on (the run has seen their prompts): what is measured "
            "on them says little about new rows"
        )
    return found


def _counted(run: Run, stored: Recipe, source: SourceSettings) -> tuple[int, int]:
    """The rows of the source that were trained on, and all of its rows that can be used."""
    check_rows(run, stored)
    section = stored.data.model_copy(update={"on_error": "skip"})
    survey = survey_rows(section, seed=stored.training.seed, objective=stored.objective.name, against=source)
    if data_changes(run, survey):
        raise RunError("the files that it was trained on have changed since")
    prompt, given = first_of(survey.scan.prompt), survey.scan.side_is("against")
    seen = given & np.isin(prompt, prompt[survey.outcome == OUTCOME["trained"]])
    return int(seen.sum()), int(given.sum())
