"""Makes the evaluation tasks of a run from its held-out rows: one that judges, and one that may select the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunesmith.data.chat.template import Encoded
from tunesmith.data.corpus import Corpus
from tunesmith.data.encoded_rows import EncodedRows
from tunesmith.data.placement import OUTCOME
from tunesmith.data.survey import Survey
from tunesmith.errors import DataError
from tunesmith.evaluation.label_set import Spelling, spellings
from tunesmith.evaluation.task import Task, make_task, wants_labels
from tunesmith.recipe.settings import Recipe
from tunesmith.training.objectives.table import preference_objective


def make_tasks(
    survey: Survey,
    corpus: Corpus,
    recipe: Recipe,
    *,
    tokenizer: PreTrainedTokenizerBase,
    stops: tuple[int, ...],
    trained: Sequence[Spelling] | None = None,
) -> tuple[Task | None, Task | None]:
    """The task that judges, and the task that selects the step to judge, if the recipe asks for that.

    With a test split, its rows judge and all held-out rows select. Without one, held-out rows are halved by the last
    bit of the hash that splits them, so that rows of the same prompt are in the same half. Raw text is judged by its
    tokens only.

    Args:
        trained: the different answers of the rows that a run was trained on; None: those of the corpus.

    Raises:
        DataError: a half is empty, or a metric cannot score a reference answer.
    """

    if trained is None:
        trained = trained_answers(survey, corpus, recipe, tokenizer=tokenizer, stops=stops)

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
            trained=trained,
        )
        return replace(task, sources=_rows_by_source(survey, task))

    if not len(corpus.held_out):
        return None, None
    if not recipe.training.selects:
        return task_of(corpus.held_out), None
    if len(corpus.test):
        return task_of(corpus.test), task_of(corpus.held_out)
    half = _judging_half(survey)[corpus.held_out.examples]  # [rows]
    judging, selecting = (corpus.held_out.select(np.flatnonzero(half == side)) for side in (True, False))
    if not len(judging) or not len(selecting):
        raise DataError(
            "The held-out rows are too few to select a step and to judge it",
            where="data.eval",
            why=f"Of {_examples(corpus.held_out)} rows, split by prompt, {_examples(selecting)} would select and "
            f"{_examples(judging)} judge. A row that selects must not judge.",
            remedy="Hold out more rows, give data.test, or use neither load_best_model_at_end nor early stopping.",
        )
    return task_of(judging), task_of(selecting)


def trained_answers(
    survey: Survey, corpus: Corpus, recipe: Recipe, *, tokenizer: PreTrainedTokenizerBase, stops: tuple[int, ...]
) -> tuple[Spelling, ...]:
    """The different answers of the training rows, one of each example; none if no metric wants labels.

    Of an example with several rows it is the last answer, and of a chosen and a rejected one the chosen.
    """
    if not wants_labels(recipe.evaluation):
        return ()
    examples = corpus.train.examples  # [rows]: rows of one example follow each other
    changes = np.diff(examples) != 0
    own = np.append(True, changes) if preference_objective(recipe) else np.append(changes, True)
    chosen = np.flatnonzero(own[: len(examples)] & ~survey.scan.raw_text[examples])
    return spellings(corpus.train.select(chosen), tokenizer, stops)


def judging_rows(survey: Survey, recipe: Recipe) -> np.ndarray:
    """The rows that judge, before any of them turns out to be too long: bool [rows of the survey]."""
    held_out, test = (survey.outcome == OUTCOME[name] for name in ("held_out", "test"))
    if not recipe.training.selects:
        return held_out
    return test if test.any() else held_out & _judging_half(survey)


def _judging_half(survey: Survey) -> np.ndarray:
    """One half of all rows, by the last bit of the hash that splits them: bool [rows of the survey]."""
    return (survey.scan.draw & np.uint64(1)) == 1


def _examples(rows: EncodedRows) -> int:
    return len(np.unique(rows.examples))


def _rows_by_source(survey: Survey, task: Task) -> dict[str, np.ndarray]:
    """The numbers of the task's examples by the path that they are from; empty if all are from one."""
    paths = np.array([each.settings.path for each in survey.scan.sources])
    examples = [row.example for row in task.rows[:: 1 if task.preferences is None else task.preferences.together]]
    of_rows = paths[survey.scan.source[examples]]  # [examples]
    names = np.unique(of_rows).tolist()
    return {name: np.flatnonzero(of_rows == name) for name in names} if len(names) > 1 else {}
