"""What a run was trained on: how many of the rows that it is judged on, and which labels."""

from __future__ import annotations

import numpy as np

from tunesmith.data.chat.template import ChatTemplate
from tunesmith.data.checks.scan import first_of
from tunesmith.data.corpus import encode_corpus
from tunesmith.data.placement import OUTCOME
from tunesmith.data.survey import survey_rows
from tunesmith.errors import RunError, TunesmithError
from tunesmith.evaluation.label_set import Spelling
from tunesmith.recipe.data import SourceSettings
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Listener, Silent
from tunesmith.training.tasks import trained_answers
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


def labels_trained_on(
    run: Run, stored: Recipe, template: ChatTemplate, *, stops: tuple[int, ...]
) -> tuple[Spelling, ...]:
    """The different answers of the rows that a run was trained on, if they can be labels.

    Args:
        run: whose training rows are read again.
        stored: the run's recipe, with the metrics that want labels.
        template: of the run.
        stops: token ids that end an answer.

    Raises:
        TunesmithError: the rows cannot be had, or are others than when the run began.
    """
    check_rows(run, stored)
    survey = survey_rows(stored.data, seed=stored.training.seed, objective=stored.objective.name)
    if data_changes(run, survey):
        raise RunError("the files that it was trained on have changed since")
    corpus = encode_corpus(survey, template, listener=Silent())
    return trained_answers(survey, corpus, stored, tokenizer=template.tokenizer, stops=stops)


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
