"""Makes a target ready to be judged: its recipe, its rows, its loaded model, and the judge of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.data.batches.layout import LayoutName, probed_layout
from tunesmith.data.corpus import Corpus, encode_corpus
from tunesmith.data.files.rows import LeftOut, by_reason
from tunesmith.data.survey import Survey, check_metrics, only_held_out, survey_rows
from tunesmith.deploy.tuned import ModelTarget, Tuned, find_target
from tunesmith.deploy.tuned import load as load_tuned
from tunesmith.errors import TunesmithError
from tunesmith.evaluation.held_out_recipe import evaluation_recipe, no_rows_to_judge
from tunesmith.evaluation.judge import Judge
from tunesmith.evaluation.label_set import Spelling
from tunesmith.evaluation.task import task_batches, wants_labels
from tunesmith.evaluation.verdict import FROM_PYTHON
from tunesmith.planning.budget import micro_batch_tokens
from tunesmith.recipe.paths import local
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.consent import Consent
from tunesmith.runs.drift import Change, Fingerprint, settle
from tunesmith.runs.plain_files import refuse_links
from tunesmith.runs.progress import Listener
from tunesmith.runs.run_files import ANSWERS, COMPARISONS, EVALUATIONS
from tunesmith.training.rehearsal import memory_faults
from tunesmith.training.tasks import make_tasks
from tunesmith.workflows.places import check_rows
from tunesmith.workflows.same_run import data_changes, probe_changes
from tunesmith.workflows.trained_rows import labels_trained_on, rows_trained_on

OTHERWISE = "; or judge on other rows with --data FILE"


@dataclass(frozen=True, slots=True)
class FoundTarget:
    """What a path names, with the recipe by which it is judged. ``data`` are other rows than the run's own.

    ``named`` is what messages and results call these rows. ``own_probe``: the probe is that of the run's recipe.
    """

    name: str
    target: ModelTarget
    recipe: Recipe
    data: str | None
    named: str
    own_probe: bool

    @property
    def run_folder(self) -> Path | None:
        """The folder of its run, if it has one."""
        return None if self.target.run is None else self.target.run.folder

    def check_rows(self) -> None:
        """Raises RunError if the rows of its run are not where the recipe says."""
        if self.data is None and self.target.run is not None:
            check_rows(self.target.run, self.recipe, otherwise=OTHERWISE)

    def survey(self) -> Survey:
        """Its rows. Other rows than the run's own are all held out."""
        found = survey_rows(self.recipe.data, seed=self.recipe.training.seed, objective=self.recipe.objective.name)
        return found if self.data is None else only_held_out(found)


@dataclass(frozen=True, slots=True)
class JudgedTarget:
    """A loaded target with the judge of its rows, how these are laid out, and the survey of them.

    ``trained_on`` counts rows of other data that its run was trained on. ``corpus`` are all encoded rows; of other data
    there are none to train on. Of a preference objective, the judge lacks the untuned model's log-probabilities until
    ``with_reference`` measures them.
    """

    tuned: Tuned
    judge: Judge
    budget: int
    layout: LayoutName
    survey: Survey
    corpus: Corpus
    changes: list[Change]
    trained_on: int | None

    def with_reference(self, listener: Listener) -> JudgedTarget:
        """The same, ready to judge: with the untuned model's log-probabilities if the objective compares with them."""
        with memory_faults():
            return replace(self, judge=_with_reference(self.tuned, self.judge, listener))


def find(
    target: str,
    *,
    data: str | None,
    named: str,
    settings: Sequence[str],
    probe: bool | str | Path | None = None,
    rows_of: Recipe | None = None,
) -> FoundTarget:
    """What a target is, without loading it.

    Args:
        target: a run (its last checkpoint), a checkpoint, an adapter folder or a model.
        data: the path of the rows to judge on; None: the run's own held-out rows.
        named: what messages and the result call ``data``.
        settings: ``key=value`` of the evaluation section, and of how ``data`` is read.
        probe: in place of that section's ``probe``.
        rows_of: the recipe whose held-out rows judge a target that has no run.
    """
    found = find_target(target)
    recipe = evaluation_recipe(found.recipe or rows_of, target, data, settings)
    if probe is not None:
        asked = recipe.evaluation.model_copy(update={"probe": probe if isinstance(probe, bool) else local(probe)})
        recipe = recipe.model_copy(update={"evaluation": asked})
    if found.run is not None:
        refuse_links(found.run.folder, [EVALUATIONS, ANSWERS, COMPARISONS])  # else a long computation would be lost
    return FoundTarget(target, found, recipe, data, named, probe is None)


def judged(
    found: FoundTarget,
    *,
    listener: Listener,
    model: str | None = None,
    consent: Consent,
    allowed: Collection[str],
    known: Survey | None = None,
) -> JudgedTarget:
    """Loads a target and prepares the judge. The functions of its recipe must be allowed.

    Args:
        found: the target.
        listener: hears the progress.
        model: the base, where it is not at the place that the run or adapter names.
        consent: what the user lets run.
        allowed: kinds of changes since the training.
        known: its rows, if they were read before. Then all that are held out judge.

    Raises:
        TunesmithError: it cannot be loaded, it has no rows, or what it depends on has changed.
    """
    recipe = found.recipe
    tuned = load_tuned(
        found.name,
        listener=listener,
        model=model,
        trust_remote_code=consent.trust_remote_code,
        allow_changes=sorted(allowed),
    )
    changes = [*tuned.changes]
    survey = known or found.survey()
    if known is not None:
        steps = {"load_best_model_at_end": False, "early_stopping_patience": None}  # no step is selected
        recipe = recipe.with_values(training=steps)
    if known is None and found.data is not None:
        say_left_out(survey, found.named, listener)
    trained_on = None
    run = tuned.target.run
    if found.data is not None:
        trained_on = _trained_on(found, listener)
    elif run is not None:
        found_changes = data_changes(run, survey)
        began = Fingerprint.read(run) if found.own_probe else None
        if began is not None:
            found_changes += probe_changes(began, recipe)
        changes += settle(found_changes, allowed, where=str(run.folder), listener=listener, otherwise=OTHERWISE)
    check_metrics(recipe.evaluation.metrics, survey)
    corpus = encode_corpus(survey, tuned.template, listener=listener)
    own_rows = known is None and found.data is None
    labels = None if own_rows else _labels_of_run(tuned, found.target.recipe, recipe, listener)
    task, _ = make_tasks(survey, corpus, recipe, tokenizer=tuned.tokenizer, stops=tuned.stop_ids, trained=labels)
    if task is None:
        raise no_rows_to_judge(found.name, "The run held no rows out (data.eval is 0).")
    budget = micro_batch_tokens(tuned.device, max(len(row.ids) for row in task.rows))
    layout = probed_layout(None if run is None else recipe)
    batches = task_batches(task, budget=budget, layout=layout)
    judge = Judge(task, batches, tuned.tokenizer, tuned.stop_ids, recipe.evaluation)
    judge.check_questions(tuned.model)
    return JudgedTarget(tuned, judge, budget, layout, survey, corpus, changes, trained_on)


def say_left_out(survey: Survey, named: str, listener: Listener) -> None:
    """Names the rows of other data that are not judged: those that ``data.on_error: skip`` leaves out, and others."""
    bad = [row for row in survey.rejected if not isinstance(row, LeftOut)]
    if bad:
        first = by_reason(bad)[0][1]
        rows, are = f"{len(bad):,} of {len(survey.outcome):,} rows", "is" if len(bad) == 1 else "are"
        listener.warn(f"{named}: {rows} cannot be used and {are} left out: {first}")
    for note in survey.left_out_in_words():
        listener.say(note)


def _trained_on(found: FoundTarget, listener: Listener) -> int | None:
    """The number of the other rows that the target's run was trained on. The listener hears where it is not known."""
    (source,) = found.recipe.data.sources("train")
    target = found.target
    if target.run is not None and target.recipe is not None:
        name = "the call" if found.named == FROM_PYTHON else found.named
        return rows_trained_on(target.run, target.recipe, source, listener, name=name)
    if target.checkpoint is not None:
        listener.say(f"whether the adapter was trained on rows of {found.named} is not known: it has no run here")
    return None


def _labels_of_run(
    tuned: Tuned, stored: Recipe | None, asked: Recipe, listener: Listener
) -> tuple[Spelling, ...] | None:
    """The answers of a run's training rows, if a metric wants labels; None where they cannot be had."""
    if not wants_labels(asked.evaluation) or tuned.target.run is None or stored is None:
        return None
    wanting = stored.with_values(evaluation={"metrics": asked.evaluation.metrics, "during": []})
    try:
        return labels_trained_on(tuned.target.run, wanting, tuned.template, stops=tuned.stop_ids)
    except TunesmithError as error:
        listener.warn(
            f"the labels are those of the judged rows alone, because the training rows cannot be had: {error.what}"
        )
        return None


def _with_reference(tuned: Tuned, judge: Judge, listener: Listener) -> Judge:
    """The judge with the untuned model's log-probabilities, as in training, if the objective compares with them."""
    preferences = judge.task.preferences
    if preferences is None or not preferences.lacks_reference:
        return judge
    context = nullcontext(tuned.model) if tuned.method is None else tuned.method.reference(tuned.model)
    with context as untuned:
        scores = judge.token_scores(untuned, title="untuned model: held out", listener=listener)
    return judge.with_reference(-scores.nll_sum)
