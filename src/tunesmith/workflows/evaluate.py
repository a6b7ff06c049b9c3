"""Judges a run, a checkpoint, an adapter or a model on held-out rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from tunesmith.deploy.report.files import report_again
from tunesmith.evaluation.advice import advice
from tunesmith.evaluation.checked import check_evaluation
from tunesmith.evaluation.compare import Level
from tunesmith.evaluation.held_out_recipe import typed_names
from tunesmith.evaluation.judge import Side
from tunesmith.evaluation.metrics.user_functions import functions_allowed
from tunesmith.evaluation.side_effects import side_effects
from tunesmith.evaluation.side_passes import RunRows, SidePasses, side_passes
from tunesmith.evaluation.training_answers import training_answers
from tunesmith.evaluation.verdict import FROM_PYTHON
from tunesmith.evaluation.wording import sentence_of
from tunesmith.model.generate import Generation
from tunesmith.recipe.paths import shown
from tunesmith.runs.consent import Consent
from tunesmith.runs.drift import allowed_kinds
from tunesmith.runs.from_python import heard_by
from tunesmith.runs.notebook import metrics_html, metrics_text
from tunesmith.runs.progress import Listener
from tunesmith.runs.results import keep_result
from tunesmith.runs.run_files import ANSWERS, EVALUATIONS, PROBE
from tunesmith.runs.stored_addresses import addresses_allowed
from tunesmith.runs.surroundings import library_call
from tunesmith.safe_text import without_secrets
from tunesmith.training.rehearsal import memory_faults
from tunesmith.workflows.baselines import TrainedOn, baseline_pass, rows_of_run
from tunesmith.workflows.given_data import given
from tunesmith.workflows.in_python import remedies_in_python
from tunesmith.workflows.judged_target import FoundTarget, JudgedTarget, find, judged
from tunesmith.workflows.kept_answers import KeptAnswers, kept_answers, wanted


class JudgedAgain(dict[str, Any]):
    """What ``evaluate`` found, in the form of verdict.json. ``samples`` are the answers, in that of samples.jsonl."""

    samples: list[dict[str, Any]]

    def __str__(self) -> str:
        return metrics_text(self, sentence_of(self))

    def _repr_html_(self) -> str:
        return metrics_html(self, sentence_of(self))


@library_call()
@remedies_in_python()
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
    with nullcontext() if data is None else remedies_in_python(of_file=True):
        return evaluated(
            target,
            data=data,
            settings=settings,
            probe=probe,
            progress=progress,
            listener=listener,
            model=model,
            trust_remote_code=trust_remote_code,
            allow_functions=allow_functions,
            allow_changes=allow_changes,
        )


@library_call()
def evaluated(
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
    """What ``evaluate`` does, with the same arguments; its errors name flags and keys, for the command line."""
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
    found = find(str(target), data=data, named=named, settings=settings, probe=probe)
    recipe = found.recipe
    functions = consent.functions(recipe.evaluation, typed=typed_names(settings), own=Path.cwd(), run=found.run_folder)
    with functions_allowed(functions), addresses_allowed(None if consent.allow_functions else ()):
        check_evaluation(recipe.evaluation)
        found.check_rows()
        ready = judged(found, listener=listener, model=model, consent=consent, allowed=allowed)
        tuned, corpus = ready.tuned, ready.corpus
        base, name = tuned.reference()
        kept = kept_answers(found, ready)
        kept = None if kept is None or kept.base_model != name else kept
        stored = None if kept is None else kept.verdict_for(recipe.evaluation)
        beside = {} if kept is None or stored is None else kept.beside(recipe.evaluation, own_probe=found.own_probe)
        aside = side_passes(
            recipe.evaluation.model_copy(update=dict.fromkeys(beside, False)),
            template=tuned.template,
            tokenizer=tuned.tokenizer,
            stop_ids=tuned.stop_ids,
            listener=listener,
            budget=ready.budget,
            layout=ready.layout,
            rows=RunRows(corpus.train, corpus.held_out, corpus.together) if data is None else None,
        )
        aside.check(tuned.model)
        if base is None and recipe.evaluation.divergence:
            listener.say("divergence is not measured: the model has no base to compare it with")
        with memory_faults():
            if kept is not None and stored is not None and base is not None:
                listener.say(f"the held-out rows are not measured again: these are the answers of {kept}")
                verdict, samples = {**stored, **beside}, kept.samples
                if aside:
                    with aside.after(base):
                        pass
            else:
                verdict, samples = _measured(found, ready.with_reference(listener), base, kept, aside, listener)
            aside.ask(tuned.model)
            verdict |= aside.results()
            answered = aside.probe_lines()
    facts = {"base_model": name, "data": named or None, "trained_on": ready.trained_on}
    advised = {} if verdict["verdict"] is None else {"advice": advice(verdict, samples, recipe)}
    changes = [change.to_json() for change in ready.changes]
    result = JudgedAgain({**verdict, **facts, **advised, "changes": changes})
    result.samples = samples
    if tuned.target.run is not None:
        typed = [without_secrets(each) for each in settings]
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        kept = {"time": now, "target": str(target), "settings": typed, **result}
        # Without lines of the probe, those of an earlier one stay.
        beside = {ANSWERS: samples, **({PROBE: answered} if answered else {})}
        if keep_result(tuned.target.run, EVALUATIONS, kept, listener, beside=beside):
            report_again(tuned.target.run, listener)
    return result


def _measured(
    found: FoundTarget,
    ready: JudgedTarget,
    base: AbstractContextManager[nn.Module] | None,
    kept: KeptAnswers | None,
    aside: SidePasses,
    listener: Listener,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The verdict over the rows, and the answers of both models. The base is also asked what is asked ``aside``."""
    tuned, judge, left_out = ready.tuned, ready.judge, aside.left_out
    baselines = baseline_pass(
        found.recipe, judge, ready.survey, lambda: None if base is None else _trained_on(found, ready, listener),
        template=tuned.template, model=tuned.model, listener=listener, left_out=left_out,
    )  # fmt: skip
    base = None if base is None else baselines.after(aside.after(base))
    questions = wanted(judge.settings, judge.task.questions)

    def kept_of(side: Side) -> list[Generation] | None:
        made = kept.of(side, questions) if kept is not None and questions else None
        if made is not None:
            listener.say(f"{side}: the answers are those of {kept}")
        return made

    verdict, samples = judge.verdict(
        tuned.model, base, listener=listener, kept=kept_of, baselines=baselines, left_out=left_out
    )
    level = Level(judge.settings.confidence, judge.settings.resamples, judge.settings.seed)
    copied = training_answers(ready.corpus.train, tuned.tokenizer) if found.data is None else None
    with left_out.noting("side_effects"):
        effects = side_effects(samples, copied, level)
        verdict |= {"side_effects": effects} if effects else {}
    return verdict, samples


def _trained_on(found: FoundTarget, ready: JudgedTarget, listener: Listener) -> TrainedOn | None:
    """The rows that the target's run was trained on; None without a run, or where they cannot be had."""
    run, recipe = found.target.run, found.target.recipe
    if run is None or recipe is None:
        return None
    if found.data is None and not any(change.kind == "data" for change in ready.changes):
        return TrainedOn.of(ready.survey, ready.corpus)
    return rows_of_run(run, recipe, ready.tuned.template, listener)
