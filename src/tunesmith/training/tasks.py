"""Makes the evaluation tasks of a run from its held-out rows: one that judges, and one that may select the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
    """The task that judges, and the task that selects the step to judge, if the recipe asks for that.

    With a test split, its rows judge and all held-out rows select. Without one, held-out rows are halved by the last
    bit of the hash that splits them, so that rows of the same prompt are in the same half. Raw text is judged by its
    tokens only.

    Raises:
        DataError: a half is empty, or a metric cannot score a reference answer.
    """

    def task_of(rows: Sequence[Encoded]) -> Task:
        task = make_task(
            rows,
            corpus.groups,
            tokenizer=tokenizer,
            stop_ids=stops,
            settings=recipe.evaluation,
            objective=preference_objective(recipe),
            labels=corpus.labels,
            raw_text=survey.scan.raw_text,
        )
        return replace(task, sources=_rows_by_source(survey, task))

    if not len(corpus.held_out):
        return None, None
    if not recipe.training.selects:
        return task_of(corpus.held_out), None
    if len(corpus.test):
        return task_of(corpus.test), task_of(corpus.held_out)
    half = survey.scan.draw[corpus.held_out.examples] & np.uint64(1)  # [rows]
    judging, selecting = (corpus.held_out.select(np.flatnonzero(half == side)) for side in (1, 0))
    if not len(judging) or not len(selecting):
        raise DataError(
            "The held-out rows are too few to select a step and to judge it",
            where="data.eval",
            why=f"Of {_examples(corpus.held_out)} rows, split by prompt, {_examples(selecting)} would select and "
            f"{_examples(judging)} judge. A row that selects must not judge.",
            remedy="Hold out more rows, give data.test, or use neither load_best_model_at_end nor early stopping.",
        )
    return task_of(judging), task_of(selecting)


def _examples(rows: EncodedRows) -> int:
    return len(np.unique(rows.examples))


def _rows_by_source(survey: Survey, task: Task) -> dict[str, np.ndarray]:
    """The numbers of the task's examples by the path that they are from; empty if all are from one."""
    paths = np.array([each.settings.path for each in survey.scan.sources])
    examples = [row.example for row in task.rows[:: 1 if task.preferences is None else task.preferences.together]]
    of_rows = paths[survey.scan.source[examples]]  # [examples]
    names = np.unique(of_rows).tolist()
    return {name: np.flatnonzero(of_rows == name) for name in names} if len(names) > 1 else {}
