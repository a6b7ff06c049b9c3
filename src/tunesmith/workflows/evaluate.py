"""Judges a run, a checkpoint, an adapter or a model on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tunesmith.data.batches.layout import Batch
from tunesmith.data.corpus import encode_corpus
from tunesmith.data.survey import check_metrics, only_held_out, survey_rows
from tunesmith.deploy.tuned import Tuned, find
from tunesmith.deploy.tuned import load as load_tuned
from tunesmith.evaluation.held_out_recipe import evaluation_recipe, no_rows_to_judge
from tunesmith.evaluation.judge import check_questions, judge, token_scores
from tunesmith.evaluation.metrics.answers import check_names
from tunesmith.evaluation.task import Task, task_batches
from tunesmith.planning import budget as plan
from tunesmith.runs.progress import Listener, Silent
from tunesmith.training.tasks import make_tasks
from tunesmith.training.trainer import memory_faults
from tunesmith.workflows.finetune import check_same_data


def evaluate(
    target: str | Path, *, data: str | None = None, settings: Sequence[str] = (), listener: Listener | None = None
) -> dict[str, Any]:
    """Base against tuned model on held-out rows, as verdict.json has it; ``verdict`` is None where nothing was tuned.

    Args:
        target: a run (its last checkpoint), a checkpoint, an adapter folder or a model.
        data: rows to judge on; a run's own held-out rows where it is left out.
        settings: ``key=value`` over the run's evaluation section, such as ``metrics=[exact_match]``.
    """
    listener = listener or Silent()
    recipe = evaluation_recipe(find(str(target)).recipe, str(target), data, settings)
    check_names(recipe.evaluation.metrics)
    tuned = load_tuned(target, listener=listener)
    survey = survey_rows(recipe.data, seed=recipe.training.seed, objective=recipe.objective.name)
    if data is not None:
        survey = only_held_out(survey)
    elif tuned.target.run is not None:
        check_same_data(tuned.target.run, survey)
    check_metrics(recipe.evaluation.metrics, survey)
    corpus = encode_corpus(survey, tuned.template, listener=listener)
    task, _ = make_tasks(survey, corpus, recipe, tokenizer=tuned.tokenizer, stops=tuned.stop_ids)
    if task is None:
        raise no_rows_to_judge(str(target), "The run held no rows out (data.eval is 0).")
    check_questions(tuned.model, task, recipe.evaluation)
    budget = plan.micro_batch_tokens(tuned.device, max(len(row.ids) for row in task.rows))
    # What was never probed is not shared: a plain model or an adapter made elsewhere.
    probed = recipe.training.layout in ("tree", "packed")
    batches = task_batches(task, budget=budget, layout="tree" if probed else "padded")
    context, name = tuned.reference()
    with memory_faults():
        task = _with_reference(tuned, task, batches, listener)
        verdict, _ = judge(
            tuned.model,
            context,
            task,
            batches,
            tokenizer=tuned.tokenizer,
            stop_ids=tuned.stop_ids,
            settings=recipe.evaluation,
            listener=listener,
        )
    return {**verdict, "base_model": name}


def _with_reference(tuned: Tuned, task: Task, batches: Sequence[Batch], listener: Listener) -> Task:
    """The task with what the untuned model says of its rows, as in training, where the objective compares with it."""
    if task.preferences is None or not task.preferences.lacks_reference:
        return task
    context = nullcontext(tuned.model) if tuned.method is None else tuned.method.reference(tuned.model)
    with context as untuned:
        scores = token_scores(untuned, task, batches, title="untuned model: held out", listener=listener)
    return task.with_reference(-scores.nll_sum)
