"""Compares runs, checkpoints and models with their base and with each other, on the rows that all of them hold out."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from tunesmith.deploy.tuned import find_target
from tunesmith.errors import RunError
from tunesmith.evaluation.held_out_recipe import no_rows_to_judge, typed_names
from tunesmith.evaluation.metrics.answers import check_functions
from tunesmith.evaluation.metrics.user_functions import functions_allowed
from tunesmith.evaluation.pairs import AskedPair, compare_pairs, shared_scores, values
from tunesmith.evaluation.shared_rows import JudgingRows, Key, by_place, rows_that_judge, shared_keys
from tunesmith.evaluation.verdict import FROM_PYTHON
from tunesmith.evaluation.wording import pair_cells, pair_notes, pair_sentence
from tunesmith.recipe.paths import local, shown
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.consent import Consent
from tunesmith.runs.drift import allowed_kinds
from tunesmith.runs.from_python import heard_by
from tunesmith.runs.notebook import html_table, paragraph
from tunesmith.runs.progress import Listener
from tunesmith.runs.results import keep_result
from tunesmith.runs.run_files import COMPARISONS
from tunesmith.runs.stored_addresses import addresses_allowed
from tunesmith.runs.surroundings import library_call
from tunesmith.safe_text import without_secrets
from tunesmith.training.tasks import judging_rows
from tunesmith.workflows.given_data import given
from tunesmith.workflows.in_python import remedies_in_python
from tunesmith.workflows.judged_target import FoundTarget, find, say_left_out
from tunesmith.workflows.measured_models import MeasuredModel, Measurements, on_shared_rows


class Comparison(dict[str, Any]):
    """What ``compare`` found: ``rows, data, confidence, notes, models, metrics, pairs``."""

    def __str__(self) -> str:
        return "\n".join([*self["notes"], *map(pair_sentence, self["pairs"])])

    def _repr_html_(self) -> str:
        names = [model["name"] for model in self["models"]]
        metrics = self["metrics"]
        models = html_table(("model", *metrics), [(name, *(of.get(name) for of in metrics.values())) for name in names])
        header = ("from", "to", "verdict", "decided by", "difference", "interval", "p")
        pairs = html_table(header, [(pair["from"], pair["to"], *pair_cells(pair)) for pair in self["pairs"]])
        of_pairs = (f"{pair['from']} -> {pair['to']}: {note}" for pair in self["pairs"] for note in pair_notes(pair))
        return models + pairs + "".join(map(paragraph, [*self["notes"], *of_pairs]))


@library_call()
@remedies_in_python()
def compare(
    targets: str | Path | Sequence[str | Path],
    *,
    data: Any = None,
    settings: Sequence[str] = (),
    progress: bool = True,
    listener: Listener | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
    allow_functions: bool = False,
    allow_changes: str | Sequence[str] = (),
) -> Comparison:
    """Compares runs or checkpoints with their base and with each other, on the same rows and with the same decoding.

    The rows are those that all targets hold out. The evaluation section of the first run holds for all. Each target has
    a verdict against its base, and against every other target, corrected for being several. A base that targets share
    is measured once. The result is kept in the folder of the first run.

    Args:
        targets: runs, checkpoints, adapter folders or models.
        data: rows to judge on: a path, a list of dicts, a DataFrame or a Dataset.
        settings: ``key=value`` of the evaluation section, such as ``metrics=[exact_match]``.
        progress: show the progress: a bar in a notebook, lines on standard error elsewhere.
        listener: hears the progress in place of it.
        model: the base, where it is not at the place that the runs or adapters name.
        trust_remote_code: run code that comes with the models.
        allow_functions: run the functions that the first run's recipe names.
        allow_changes: kinds of changes since the training with which they are judged.

    Raises:
        RunError: the targets have no row, or no metric, in common.
    """
    with nullcontext() if data is None else remedies_in_python(of_file=True):
        return compared(
            targets,
            data=data,
            settings=settings,
            progress=progress,
            listener=listener,
            model=model,
            trust_remote_code=trust_remote_code,
            allow_functions=allow_functions,
            allow_changes=allow_changes,
        )


@library_call()
def compared(
    targets: str | Path | Sequence[str | Path],
    *,
    data: Any = None,
    settings: Sequence[str] = (),
    progress: bool = True,
    listener: Listener | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
    allow_functions: bool = False,
    allow_changes: str | Sequence[str] = (),
) -> Comparison:
    """What ``compare`` does, with the same arguments; its errors name flags and keys, for the command line."""
    listener, allowed = heard_by(listener, progress), allowed_kinds(allow_changes)
    consent = Consent(trust_remote_code, allow_functions)
    names = [str(targets)] if isinstance(targets, str | Path) else [str(target) for target in targets]
    how: dict[str, Any] = {"listener": listener, "model": model, "consent": consent, "allowed": allowed}
    if data is None:
        return _compare(names, None, "", settings, **how)
    with given(data) as (path, rows), remedies_in_python(stored=rows) if rows else nullcontext():
        return _compare(names, path, FROM_PYTHON if rows else shown(path), settings, **how)


def _compare(
    names: Sequence[str],
    data: str | None,
    named: str,
    settings: Sequence[str],
    *,
    listener: Listener,
    model: str | None,
    consent: Consent,
    allowed: Collection[str],
) -> Comparison:
    targets = _found(names, data, named, settings)
    first = next((each for each in targets if each.target.run is not None), targets[0])
    evaluation = first.recipe.evaluation
    functions = consent.functions(evaluation, typed=typed_names(settings), own=Path.cwd(), run=first.run_folder)
    with functions_allowed(functions), addresses_allowed(None if consent.allow_functions else ()):
        check_functions(evaluation)
        rows = _rows_of(targets, listener)
        keys = shared_keys(rows, limit=evaluation.max_rows, seed=evaluation.seed)
        notes = _notes_on_rows(targets, rows, keys, evaluation)
        measured = Measurements(listener, model, consent, allowed)
        for target, own in zip(targets, rows, strict=True):
            measured.add(target, own, keys)
        models, more = on_shared_rows(measured.models, keys)
        notes += [*measured.notes, *more]
        metrics = models[0].task.metrics(evaluation.metrics)
        pairs = _pairs(models, measured.targets, metrics, listener)
        found = compare_pairs(pairs, metrics=metrics, settings=evaluation)
    if named:
        for pair in found:
            pair["verdict"]["data"] = named
    scored = {each.name: each.scored for each in models}
    result = Comparison(
        rows=models[0].task.examples,
        data=named or None,
        confidence=evaluation.confidence,
        notes=notes,
        models=[each.facts() for each in models],
        metrics=values(scored, found),
        pairs=found,
    )
    if first.target.run is not None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        typed = [without_secrets(each) for each in settings]
        keep_result(first.target.run, COMPARISONS, {"time": now, "settings": typed, **result}, listener)
    return result


def _found(names: Sequence[str], data: str | None, named: str, settings: Sequence[str]) -> list[FoundTarget]:
    """The targets, with one evaluation section for all. Raises RunError for one that is named twice, or named base."""
    if not names:
        raise RunError(
            "There is nothing to compare", remedy="Name a run or several, as in `tunesmith compare runs/a runs/b`."
        )
    known: dict[Path | str, str] = {}
    stored = None
    for name in names:
        target = find_target(name)
        stored = stored or target.recipe
        place = Path(local(target.base)).absolute() if target.checkpoint is None else target.checkpoint
        other = known.setdefault(place.resolve(), name)
        if other != name or names.count(name) > 1:
            raise RunError(
                f"{name} is named twice" if other == name else f"{other} and {name} are the same checkpoint",
                where=name,
                remedy="Name each run or checkpoint once. The base is compared without being named.",
            )
        if name == "base":
            raise RunError("A target cannot be called base", where=name, remedy="Write ./base if that is its folder.")
    found = [find(name, data=data, named=named, settings=settings, rows_of=stored) for name in names]
    first = next((each for each in found if each.target.run is not None), found[0])
    # What has no value for each row is not compared, and the probe asks other questions.
    evaluation = first.recipe.evaluation.model_copy(update={"probe": False, "compute_metrics": None, "during": []})
    return [replace(each, recipe=each.recipe.model_copy(update={"evaluation": evaluation})) for each in found]


def _rows_of(targets: Sequence[FoundTarget], listener: Listener) -> list[JudgingRows]:
    """The rows that each target may be judged on. Raises RunError for one that has none."""
    rows: list[JudgingRows] = []
    for target in targets:
        target.check_rows()
        survey = target.survey()
        if target.data is not None and not rows:  # the same file for all
            say_left_out(survey, target.named, listener)
        known = by_place(rows[0]) if rows else None
        rows.append(rows_that_judge(survey, judging_rows(survey, target.recipe), known))
        if not rows[-1].numbers:
            raise no_rows_to_judge(target.name, "The run held no rows out (data.eval is 0).")
    return rows


def _notes_on_rows(
    targets: Sequence[FoundTarget], rows: Sequence[JudgingRows], keys: Sequence[Key], evaluation: EvaluationSettings
) -> list[str]:
    """Says on which rows the targets are compared, and what is not as in the verdict of each.

    Raises RunError if no row is shared.
    """
    counts = [f"{target.name} {len(own.numbers):,}" for target, own in zip(targets, rows, strict=True)]
    if not keys:
        raise RunError(
            f"{' and '.join(target.name for target in targets)} cannot be compared: no row is held out by all of them",
            why=f"Rows that they hold out: {', '.join(counts)}.",
            remedy="Name rows that none of them was trained on with --data FILE.",
        )
    notes = []
    if {len(own.numbers) for own in rows} != {len(keys)}:
        drawn = evaluation.max_rows is not None and len(keys) == evaluation.max_rows
        which = f"{len(keys):,} rows that all targets hold out{', drawn by evaluation.max_rows' if drawn else ''}"
        notes.append(f"Compared on {which}. Rows that each holds out: {', '.join(counts)}.")
    notes += [
        f"It is not known whether {each.name} was trained on these rows: it has no run here."
        for each in targets
        if each.target.checkpoint is not None and each.target.run is None
    ]
    return notes


def _pairs(
    models: Sequence[MeasuredModel], targets: Sequence[str], metrics: Sequence[str], listener: Listener
) -> list[AskedPair]:
    """Each target with its base, then each pair of targets. Raises RunError if two have no metric in common."""
    by_name = {each.name: each for each in models}
    named = [(base, name) for name in targets if (base := by_name[name].base) is not None]
    named += [pair for pair in combinations(targets, 2) if {*pair} not in map(set, named)]
    if not named:
        raise RunError(
            f"There is nothing to compare {targets[0]} with",
            where=targets[0],
            why="It is a model without a base.",
            remedy="Name a second model or run.",
        )
    asked = []
    for one, other in named:
        before, after = by_name[one].with_judge(by_name[other], listener)
        if not shared_scores(before, after)[0]:
            raise RunError(
                f"{one} and {other} have no metric in common",
                where=other,
                why="Their tokens or their objectives differ, so their losses are of different things.",
                remedy="Name a metric of answers, such as metrics=[exact_match].",
            )
        asked.append(AskedPair(one, other, before, after))
    return asked
