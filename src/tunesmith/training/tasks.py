"""The tasks that validate and judge a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunesmith.data.chat.template import Encoded
from tunesmith.data.corpus import Corpus
from tunesmith.data.encoded_rows import EncodedRows
from tunesmith.data.survey import Survey
from tunesmith.errors import DataError
from tunesmith.evaluation.task import Task, make_task
from tunesmith.recipe.settings import Recipe
from tunesmith.training.objectives.table import preference_objective


def make_tasks(
    survey: Survey,
    corpus: Corpus,
    recipe: Recipe,
    *,
    tokenizer: PreTrainedTokenizerBase,
    stops: tuple[int, ...],
) -> tuple[Task | None, Task | None]:
    """The rows that judge, and the rows that select the step to judge, where the recipe asks for that.

    With a test side the test rows judge and all held-out rows select. Without one, held-out rows are halved by the last
    bit of the hash that splits them, so that what stays together (rows of one prompt) is in one half.

    Raises:
        DataError: a half is empty, or a metric cannot score a truth.
    """
    made: dict[str, Any] = {"tokenizer": tokenizer, "stops": stops, "recipe": recipe}
    if not recipe.training.selects or not len(corpus.held_out):
        return make_held_out_task(survey, corpus, **made), None
    if len(corpus.test):
        return make_held_out_task(survey, corpus, rows=corpus.test, **made), make_held_out_task(survey, corpus, **made)
    half = survey.scan.draw[corpus.held_out.examples] & np.uint64(1)
    judging, selecting = (corpus.held_out.select(np.flatnonzero(half == side)) for side in (1, 0))
    if not len(judging) or not len(selecting):
        raise DataError(
            "The held-out rows are too few to select a step and to judge it",
            where="data.eval",
            why=f"Of {_examples(corpus.held_out)} rows, split by prompt, {_examples(selecting)} would select and "
            f"{_examples(judging)} judge; a row that selects must not judge.",
            remedy="Hold out more rows, give data.test, or leave load_best_model_at_end and early stopping out.",
        )
    return (
        make_held_out_task(survey, corpus, rows=judging, **made),
        make_held_out_task(survey, corpus, rows=selecting, **made),
    )


def _examples(rows: EncodedRows) -> int:
    return len(np.unique(rows.examples))


def make_held_out_task(
    survey: Survey,
    corpus: Corpus,
    *,
    tokenizer: PreTrainedTokenizerBase,
    stops: tuple[int, ...],
    recipe: Recipe,
    rows: Sequence[Encoded] | None = None,
) -> Task | None:
    """What to judge on; raw text is judged by its tokens alone. Raises DataError for what no metric can score.

    Args:
        rows: to judge on, where those are not all that are held out.
    """
    if not len(corpus.held_out):
        return None
    task = make_task(
        corpus.held_out if rows is None else rows,
        corpus.groups,
        tokenizer=tokenizer,
        stop_ids=stops,
        settings=recipe.evaluation,
        objective=preference_objective(recipe),
        labels=corpus.labels,
        raw_text=survey.scan.raw_text,
    )
    return replace(task, sources=_rows_by_source(survey, task))


def _rows_by_source(survey: Survey, task: Task) -> dict[str, np.ndarray]:
    """The task's rows of each path, where there are several."""
    paths = np.array([each.settings.path for each in survey.scan.sources])
    examples = [row.example for row in task.rows[:: 1 if task.preferences is None else task.preferences.together]]
    of_rows = paths[survey.scan.source[examples]]
    names = np.unique(of_rows).tolist()
    return {name: np.flatnonzero(of_rows == name) for name in names} if len(names) > 1 else {}
