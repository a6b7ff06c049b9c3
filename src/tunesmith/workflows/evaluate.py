"""Judges a run, a checkpoint, an adapter or a model on held-out rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tunesmith.data.corpus import encode_corpus
from tunesmith.data.survey import check_metrics, only_held_out, survey_rows
from tunesmith.deploy.tuned import Tuned, find_target
from tunesmith.deploy.tuned import load as load_tuned
from tunesmith.errors import TunesmithError
from tunesmith.evaluation.advice import advice
from tunesmith.evaluation.compare import Level
from tunesmith.evaluation.held_out_recipe import evaluation_recipe, no_rows_to_judge, typed_names
from tunesmith.evaluation.judge import Judge
from tunesmith.evaluation.label_set import Spelling
from tunesmith.evaluation.metrics.answers import check_functions
from tunesmith.evaluation.metrics.user_functions import functions_allowed
from tunesmith.evaluation.probe.items import probe_of
from tunesmith.evaluation.side_effects import side_effects
from tunesmith.evaluation.side_passes import RunRows, side_passes
from tunesmith.evaluation.task import task_batches, wants_labels
from tunesmith.evaluation.training_answers import training_answers
from tunesmith.planning.budget import micro_batch_tokens
from tunesmith.recipe.paths import local, shown
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.consent import Consent
from tunesmith.runs.drift import Fingerprint, allowed_kinds, settle
from tunesmith.runs.folder import Run
from tunesmith.runs.from_python import heard_by
from tunesmith.runs.notebook import metrics_html, metrics_text
from tunesmith.runs.plain_files import refuse_links
from tunesmith.runs.progress import Listener
from tunesmith.runs.run_files import ANSWERS, EVALUATIONS, PROBE
from tunesmith.runs.surroundings import library_call
from tunesmith.safe_text import without_secrets
from tunesmith.training.rehearsal import memory_faults
from tunesmith.training.tasks import make_tasks
from tunesmith.workflows.given_data import given
from tunesmith.workflows.in_python import remedies_in_python
from tunesmith.workflows.places import check_rows
from tunesmith.workflows.same_run import data_changes, probe_changes
from tunesmith.workflows.trained_rows import labels_trained_on, rows_trained_on

FROM_PYTHON = "rows given in Python"  # what stands for the name of a file that is gone when they are judged


class JudgedAgain(dict[str, Any]):
    """What ``evaluate`` found, in the form of verdict.json. ``samples`` are the answers, in that of samples.jsonl."""

    samples: list[dict[str, Any]]

    def __str__(self) -> str:
        return metrics_text(self)

    def _repr_html_(self) -> str:
        return metrics_html(self)


@library_call()
def evaluate(
    target: str | Path,
    *,
    data: Any = None,
    settings: Sequence[str] = (),
    probe: bool | str | Path | None = None,
    progress: bool = True,
    listener: Listener | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
    allow_functions: bool = False,
    allow_changes: str | Sequence[str] = (),
) -> JudgedAgain:
    """Compares base and tuned model on held-out rows. The result has the form of verdict.json.

    Its ``verdict`` is None if the target is a model that was not tuned. ``trained_on`` says how many rows of ``data``
    have prompts that the run was trained on; None: not known, or no data was given.

    Args:
        target: a run (its last checkpoint), a checkpoint, an adapter folder or a model.
        data: rows to judge on: a path, a list of dicts, a DataFrame or a Dataset. By default, these are a run's own
            held-out rows.
        settings: ``key=value`` that replace values of the run's evaluation section, such as ``metrics=[exact_match]``.
        probe: also ask both models the built-in probe (True), or that of a file. By default, as the run's recipe says.
        progress: show the progress: a bar in a notebook, lines on standard error elsewhere.
        listener: hears the progress in place of it.
        model: the base, where it is not at the place that the run or adapter names.
        trust_remote_code: run code that comes with the model. What a run's own recipe says does not count.
        allow_functions: run the functions that the run's own recipe names.
        allow_changes: kinds of changes since the training with which it is judged, such as ``["weights", "data"]``. The
            result names them.
    """
    listener, allowed = heard_by(listener, progress), allowed_kinds(allow_changes)
    consent = Consent(trust_remote_code, allow_functions)
    how: dict[str, Any] = {"listener": listener, "model": model, "consent": consent, "allowed": allowed, "probe": probe}
    if data is None:
        return _evaluate(target, None, "", settings, **how)
    with given(data) as (path, rows), remedies_in_python(stored=rows) if rows else nullcontext():
        return _evaluate(target, path, FROM_PYTHON if rows else shown(path), settings, **how)


def _evaluate(
    target: str | Path,
    data: str | None,
    named: str,
    settings: Sequence[str],
    *,
    listener: Listener,
    model: str | None,
    consent: Consent,
    allowed: frozenset[str],
    probe: bool | str | Path | None,
) -> JudgedAgain:
    """Compares base and tuned model. ``data``: a path, and ``named`` what messages and the result call it."""
    found = find_target(str(target))
    recipe = evaluation_recipe(found.recipe, str(target), data, settings)
    if probe is not None:
        asked = recipe.evaluation.model_copy(update={"probe": probe if isinstance(probe, bool) else local(probe)})
        recipe = recipe.model_copy(update={"evaluation": asked})
    run_folder = None if found.run is None else found.run.folder
    if run_folder is not None:
        refuse_links(run_folder, [EVALUATIONS, ANSWERS])  # else a long computation would be lost
    functions = consent.functions(recipe.evaluation, typed=typed_names(settings), own=Path.cwd(), run=run_folder)
    with functions_allowed(functions):
        check_functions(recipe.evaluation)
        probe_of(recipe.evaluation.probe)
        if data is None and (run := found.run) is not None:
            check_rows(run, recipe, otherwise="; or judge on other rows with --data FILE")
        tuned = load_tuned(
            target,
            listener=listener,
            model=model,
            trust_remote_code=consent.trust_remote_code,
            allow_changes=sorted(allowed),
        )
        changes = [*tuned.changes]
        survey = survey_rows(recipe.data, seed=recipe.training.seed, objective=recipe.objective.name)
        trained_on = None
        if data is not None:
            survey = only_held_out(survey)
            (source,) = recipe.data.sources("train")
            if tuned.target.run is not None and found.recipe is not None:
                trained_on = rows_trained_on(
                    tuned.target.run, found.recipe, source, listener, name="the call" if named == FROM_PYTHON else named
                )
            elif tuned.target.checkpoint is not None:
                listener.say(f"whether the adapter was trained on rows of {named} is not known: it has no run here")
        elif tuned.target.run is not None:
            run = tuned.target.run
            otherwise = "; or judge on other rows with --data FILE"
            found_changes = data_changes(run, survey)
            began = Fingerprint.read(run) if probe is None else None
            if began is not None:
                found_changes += probe_changes(began, recipe)
            changes += settle(found_changes, allowed, where=str(run.folder), listener=listener, otherwise=otherwise)
        check_metrics(recipe.evaluation.metrics, survey)
        corpus = encode_corpus(survey, tuned.template, listener=listener)
        task, _ = make_tasks(
            survey,
            corpus,
            recipe,
            tokenizer=tuned.tokenizer,
            stops=tuned.stop_ids,
            trained=None if data is None else _labels_of_run(tuned, found.recipe, recipe, listener),
        )
        if task is None:
            raise no_rows_to_judge(str(target), "The run held no rows out (data.eval is 0).")
        budget = micro_batch_tokens(tuned.device, max(len(row.ids) for row in task.rows))
        # Prefixes are shared only if training has probed that: not for a plain model or an adapter made elsewhere.
        probed = recipe.training.layout in ("tree", "packed")
        layout = "tree" if probed else "padded"
        judge = Judge(
            task,
            task_batches(task, budget=budget, layout=layout),
            tuned.tokenizer,
            tuned.stop_ids,
            recipe.evaluation,
        )
        judge.check_questions(tuned.model)
        aside = side_passes(
            recipe.evaluation,
            template=tuned.template,
            tokenizer=tuned.tokenizer,
            stop_ids=tuned.stop_ids,
            listener=listener,
            budget=budget,
            layout=layout,
            rows=RunRows(corpus.train, corpus.held_out, corpus.together) if data is None else None,
        )
        aside.check(tuned.model)
        base, name = tuned.reference()
        base = None if base is None else aside.after(base)
        with memory_faults():
            judge = _with_reference(tuned, judge, listener)
            verdict, samples = judge.verdict(tuned.model, base, listener=listener)
            level = Level(judge.settings.confidence, judge.settings.resamples, judge.settings.seed)
            learned = training_answers(corpus.train, tuned.tokenizer) if data is None else None
            if effects := side_effects(samples, learned, level):
                verdict["side_effects"] = effects
            aside.ask(tuned.model)
            verdict |= aside.results()
            answered = aside.probe_lines()
    facts = {"base_model": name, "data": named or None, "trained_on": trained_on}
    advised = {} if verdict["verdict"] is None else {"advice": advice(verdict, samples, recipe)}
    judged = JudgedAgain({**verdict, **facts, **advised, "changes": [change.to_json() for change in changes]})
    judged.samples = samples
    if tuned.target.run is not None:
        typed = [without_secrets(each) for each in settings]
        kept = {"target": str(target), "settings": typed, **judged}
        _keep(tuned.target.run, kept, samples, answered, listener)
    return judged


def _labels_of_run(
    tuned: Tuned, stored: Recipe | None, judged: Recipe, listener: Listener
) -> tuple[Spelling, ...] | None:
    """The answers of a run's training rows, if a metric wants labels; None where they cannot be had."""
    if not wants_labels(judged.evaluation) or tuned.target.run is None or stored is None:
        return None
    asked = stored.with_values(evaluation={"metrics": judged.evaluation.metrics, "during": []})
    try:
        return labels_trained_on(tuned.target.run, asked, tuned.template, stops=tuned.stop_ids)
    except TunesmithError as error:
        listener.warn(
            f"the labels are those of the judged rows alone, because the training rows cannot be had: {error.what}"
        )
        return None


def _keep(
    run: Run,
    found: dict[str, Any],
    samples: Sequence[dict[str, Any]],
    answered: Sequence[dict[str, Any]],
    listener: Listener,
) -> None:
    """Adds the result to those that the run's folder holds, and replaces the answers of the one before.

    ``answered`` are the lines of probe.jsonl; without any, those of an earlier probe stay. A folder that takes no files
    is only a warning.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        run.append(EVALUATIONS, {"time": now, **found})
        run.seal(EVALUATIONS)
        run.write_lines(ANSWERS, samples)
        if answered:
            run.write_lines(PROBE, answered)
    except OSError as error:
        listener.warn(f"{run.folder}: the result is not kept in the run ({error.strerror or error})")
    else:
        listener.say(f"kept in {run.folder / EVALUATIONS}; `tunesmith runs show {run.folder}` shows it")


def _with_reference(tuned: Tuned, judge: Judge, listener: Listener) -> Judge:
    """The judge with the untuned model's log-probabilities, as in training, if the objective compares with them."""
    preferences = judge.task.preferences
    if preferences is None or not preferences.lacks_reference:
        return judge
    context = nullcontext(tuned.model) if tuned.method is None else tuned.method.reference(tuned.model)
    with context as untuned:
        scores = judge.token_scores(untuned, title="untuned model: held out", listener=listener)
    return judge.with_reference(-scores.nll_sum)
