"""A fine-tuning run from recipe to verdict. ``_begin``, ``_continue`` and ``_finish`` tell its story."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.batches.layout import Batch
from tunesmith.data.ledger import EpochTokens
from tunesmith.deploy.report.files import lacks_report, report_at_end
from tunesmith.errors import RunError, TrainError, TunesmithError
from tunesmith.evaluation.advice import advice
from tunesmith.evaluation.checked import check_evaluation
from tunesmith.evaluation.compare import Level
from tunesmith.evaluation.during import during_judge
from tunesmith.evaluation.endpoint import over_plain_http
from tunesmith.evaluation.foresight import foresight
from tunesmith.evaluation.judge import Judge
from tunesmith.evaluation.metrics.user_functions import functions_allowed
from tunesmith.evaluation.side_effects import side_effects
from tunesmith.evaluation.side_passes import RunRows, SidePasses, side_passes
from tunesmith.evaluation.task import Task, task_batches
from tunesmith.evaluation.training_answers import training_answers
from tunesmith.evaluation.wording import sentence_of
from tunesmith.methods.continued_adapter import CONFIG_FILE, START_FOLDER, WEIGHTS_FILE, kept_start
from tunesmith.model.weights.device import gpu_name, tf32
from tunesmith.recipe.complaints import dotted
from tunesmith.recipe.file import leaves, portable, read_recipe
from tunesmith.recipe.paths import local
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.consent import Consent, flags_of, stored_in
from tunesmith.runs.disk import bytes_in, disk_errors
from tunesmith.runs.environment import environment
from tunesmith.runs.folder import Run
from tunesmith.runs.from_python import heard_by
from tunesmith.runs.manifest import write_manifest
from tunesmith.runs.notebook import metrics_html, metrics_text, paragraph
from tunesmith.runs.progress import Listener, Silent
from tunesmith.runs.results import RESULTS, tell_of_result
from tunesmith.runs.run_files import PROBE
from tunesmith.runs.stopping import signal_ends_process
from tunesmith.runs.stored_addresses import addresses_allowed, addresses_of, write_recipe
from tunesmith.runs.surroundings import library_call
from tunesmith.runs.whole_files import whole_folder
from tunesmith.training.attach import Ready, load_base, load_for_training, untuned
from tunesmith.training.checkpoint import bytes_of_plan, remove_unfinished
from tunesmith.training.disk_room import refuse_full_disk
from tunesmith.training.references import FILE as REFERENCE
from tunesmith.training.references import with_references
from tunesmith.training.rehearsal import heaviest, memory_faults, rehearse
from tunesmith.training.resume_point import resume_point
from tunesmith.training.setup import Prepared, prepare_training
from tunesmith.training.step_rows import Steps
from tunesmith.training.trainer import METRICS, Trained, Trainer
from tunesmith.workflows.baselines import BaselinePass, TrainedOn, baseline_pass
from tunesmith.workflows.continuing import tell_of_kill
from tunesmith.workflows.in_python import remedies_in_python
from tunesmith.workflows.same_run import Continuation, fingerprint, keep_functions, write_facts_of_rows
from tunesmith.workflows.starting import Start, started

NOTED_WHEN_READ = (*RESULTS, "data.json", METRICS, REFERENCE)  # made again where they are damaged, or refused


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A loaded model, the steps of its run, and the judges of its held-out rows.

    ``validation`` measures rows during training. ``judging`` has the rows of the verdict if those of ``validation``
    select the step that is judged; it is None if the same rows do both. ``aside`` is what both are asked besides, and
    ``baselines`` makes those of the verdict.
    """

    ready: Ready
    steps: Steps
    validation: Judge | None
    judging: Judge | None
    aside: SidePasses
    baselines: BaselinePass


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The result of a run: its folder, verdict.json, seconds of work, and token counts (rows, computed, supervised)."""

    run: Path
    verdict: dict[str, Any]
    seconds: float
    tokens: dict[str, int]
    already_finished: bool = False

    @property
    def metrics(self) -> dict[str, Any]:
        """Base, tuned, difference and interval by metric."""
        return self.verdict["metrics"]

    def __str__(self) -> str:
        return f"{metrics_text(self.verdict, sentence_of(self.verdict))}\nRun: {self.run}"

    def _repr_html_(self) -> str:
        return metrics_html(self.verdict, sentence_of(self.verdict)) + paragraph(f"Run: {self.run}")

    def to_json(self) -> dict[str, Any]:
        """``{"run", "verdict", "metrics", "seconds", "tokens"}``."""
        return {
            "run": str(self.run),
            "verdict": self.verdict["verdict"],
            "metrics": self.metrics,
            "seconds": self.seconds,
            "tokens": self.tokens,
        }


@library_call()
@remedies_in_python()
def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    allow_functions: bool = False,
    allow_changes: str | Sequence[str] = (),
    progress: bool = True,
    listener: Listener | None = None,
) -> TrainResult:
    """Fine-tunes a model as the recipe says and judges the result on held-out rows.

    Args:
        recipe: a YAML file, a run folder to resume, a mapping in the form of the recipe, or a Recipe. In a mapping,
            ``data.train``, ``data.eval`` and ``data.test`` may be rows: a list of dicts, a DataFrame or a Dataset.
        overrides: ``section.key=value``, applied after the recipe.
        resume: start, continue from the last checkpoint, or return the stored result of a finished run.
        overwrite: replace a run that is in the folder.
        trust_remote_code: run code that comes with the model, also where a stored recipe asks for it.
        allow_functions: run the functions that a stored recipe names.
        allow_changes: kinds of changes since the run began with which it may go on, such as ``["packages"]``. They are
            recorded in the run. Every other change is refused.
        progress: show the progress: a bar in a notebook, lines on standard error elsewhere.
        listener: hears the progress in place of it.

    Raises:
        TunesmithError: one of the family in ``tunesmith.errors``. The run folder says how far the run came.
        KeyboardInterrupt: Ctrl-C; while it trains, after the running step and its checkpoint.
    """
    listener = heard_by(listener, progress)
    consent = Consent(trust_remote_code, allow_functions)
    with started(
        recipe, overrides, resume=resume, overwrite=overwrite, consent=consent, allow_changes=allow_changes
    ) as start:
        return train_in(start, listener)


def train_in(start: Start, listener: Listener) -> TrainResult:
    """The rest of ``train``, once the run's folder is reserved."""
    for note in [*start.loaded.notes.values(), *_remarks(start.asked)]:
        listener.say(note)
    with (
        functions_allowed(start.functions),
        addresses_allowed(addresses_of(start.asked)),
        signal_ends_process(),
        memory_faults(),
        disk_errors(start.run.folder, TrainError),
    ):
        if not start.finished:
            check_evaluation(start.asked.evaluation)
        return (_continue if start.continues else _begin)(start, listener)


def _begin(start: Start, listener: Listener) -> TrainResult:
    """A new run. The run folder is written once a step was measured and fits into memory."""
    run, asked, began = start.run, start.asked, time.perf_counter()
    prepared = prepare_training(asked, listener)
    _check_start_stays(run, prepared)
    if asked.training.check_disk:
        refuse_full_disk(run.folder, prepared, there=bytes_in(run.folder))
    loaded = _load(prepared, None, listener)
    tokens, heaviest_batch = _first_epoch(loaded.steps)
    model, objective, where = loaded.ready.model, loaded.steps.objective, loaded.ready.recipe.model.path
    rehearsal = rehearse(model, [heaviest_batch], objective=objective, plan=prepared.plan, where=where)
    listener.say(str(rehearsal))
    if prepared.task is not None:
        listener.say(foresight(prepared.task, asked.evaluation))
    run.clear(keep=start.kept)
    prepared = _keep_start(run, prepared)
    keep_functions(run)
    run.write_json("memory.json", {**asdict(rehearsal), "parts": asdict(prepared.plan.peak())})
    _write_facts(run, asked, loaded.ready.recipe, prepared, tokens, listener)
    _say_tokens(prepared, loaded.steps, tokens, listener)
    return _finish(run, prepared, loaded, began, listener)


def _continue(start: Start, listener: Listener) -> TrainResult:
    """A run that has begun, from its last checkpoint on, with the recipe that was resolved when it began."""
    run = start.run
    continuation = Continuation(run, start.asked, start.allowed, listener)
    continuation.check_recipe()
    if run.status()["status"] == "finished" and tell_of_result(run, listener):
        listener.say(f"{run.folder} is finished already")
        if lacks_report(run):
            report_at_end(run, listener)
        return stored_result(run)
    began = time.perf_counter()
    started_in = Path(run.status().get("started_in") or Path.cwd())
    recipe = continuation.recipe()
    Consent(start.asked.model.trust_remote_code).check_model(recipe, run.folder)
    tell_of_kill(run, recipe.model.device, listener)
    run.check("template.json")
    for note in run.notes(besides=NOTED_WHEN_READ):
        listener.warn(note)
    continuation.check_surroundings(recipe)
    adapter = kept_start(run.folder, recipe.method)
    prepared = prepare_training(recipe, listener, start=adapter, started_in=started_in)
    continuation.check_data(prepared.survey)
    remove_unfinished(run.folder / "checkpoints")
    checkpoint = resume_point(run, listener, selects=recipe.training.load_best_model_at_end)
    if start.asked.training.check_disk:
        refuse_full_disk(run.folder, prepared, there=bytes_of_plan(run.folder / "checkpoints"))
    loaded = _load(prepared, checkpoint, listener)
    tokens, _ = _first_epoch(loaded.steps)
    _say_tokens(prepared, loaded.steps, tokens, listener)
    continuation.record(prepared, loaded.steps, tokens, checkpoint)
    return _finish(run, prepared, loaded, began, listener)


def _finish(run: Run, prepared: Prepared, loaded: _Loaded, began: float, listener: Listener) -> TrainResult:
    """The common end: trains to the last step and judges. However this ends, status.json says how."""
    ready = loaded.ready
    with (
        _recorded_status(run, ready.recipe, listener),
        tf32(ready.recipe.training.tf32),
        memory_faults(prepared.plan),
        disk_errors(run.folder, TrainError),
    ):
        run.set_status("running")
        steps, validation, judging = with_references(
            run.folder, ready, loaded.steps, loaded.validation, loaded.judging, listener
        )
        trained = Trainer(
            run, ready, steps, validation=validation, template=prepared.text.template, listener=listener
        ).run_steps()
        if trained.judged_step != trained.last_step:
            ready.reload(replace(prepared, recipe=ready.recipe), run.checkpoint(trained.judged_step))
        verdict, samples = _verdict(prepared, loaded, trained, validation, judging, listener)
        verdict |= loaded.aside.results()
        if answered := loaded.aside.probe_lines():
            run.write_lines(PROBE, answered)
        labels = prepared.survey.trained_labels()
        verdict["advice"] = advice(verdict, samples, ready.recipe, lines=run.read_lines(METRICS), trained_labels=labels)
        run.write_lines(RESULTS[0], samples)
        run.write_json(RESULTS[1], verdict)
        seconds = round(time.perf_counter() - began, 1)
        run.set_status("finished", seconds=seconds, tokens=trained.tokens)
        run.settle()
    report_at_end(run, listener)
    return TrainResult(run.folder, verdict, seconds, trained.tokens)


def dry_run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    consent: Consent | None = None,
    listener: Listener | None = None,
) -> list[tuple[str, Any, str]]:
    """Every setting as (dotted key, resolved value, origin). Data and tokenizer are read, but no weights.

    The layout stays ``auto``, because it depends on the loaded model. The listener hears the predicted memory.
    """
    listener = listener or Silent()
    loaded = read_recipe(recipe, overrides)
    stored, consent = stored_in(recipe), consent or Consent()
    asked = consent.given(loaded, stored)
    with functions_allowed(consent.of_recipe(loaded, stored)):
        check_evaluation(asked.evaluation)
        prepared = prepare_training(asked, listener)
    listener.say(str(prepared.plan))
    if prepared.task is not None:
        listener.say(foresight(prepared.task, asked.evaluation))
    given = dict(leaves(loaded.recipe.model_dump()))
    lines = []
    for path, value in leaves(prepared.recipe.model_dump()):
        resolved = path not in given or not (value == given[path] or _same_place(path, value, given[path]))
        lines.append((dotted(path), value, "auto" if resolved else loaded.origin(path)))
    return lines


def _same_place(path: Sequence[object], found: object, asked: object) -> bool:
    """Whether a path is the one that was asked for, made absolute."""
    named = str(path[-1]).endswith("path") and isinstance(found, str) and isinstance(asked, str)
    return named and Path(local(str(asked))).resolve() == Path(str(found))


def stored_result(run: Run) -> TrainResult:
    """The result of a finished run, from its folder. Raises RunError if it has none."""
    return TrainResult(
        run.folder, run.read_json("verdict.json"), run.fact("seconds"), run.fact("tokens"), already_finished=True
    )


def _remarks(recipe: Recipe) -> list[str]:
    """Notes on settings that some users may understand differently, or that others on the network can read."""
    training, found = recipe.training, over_plain_http(recipe.evaluation)
    if training.early_stopping_patience is None or training.load_best_model_at_end:
        return found
    return [
        *found,
        "early stopping without load_best_model_at_end: the run ends with the weights of the step at which it stops, "
        "as in transformers. With load_best_model_at_end: true, it ends with those of the best step",
    ]


def _check_start_stays(run: Run, prepared: Prepared) -> None:
    """Raises RunError if writing the run would remove the adapter that it continues from."""
    if prepared.start is not None and run.folder.resolve() in prepared.start.parents:
        raise RunError(
            "The adapter to continue from is in the folder that would be overwritten",
            where=str(run.folder),
            why=f"The adapter is {prepared.start}.",
            remedy="Name another output_dir.",
        )


def _keep_start(run: Run, prepared: Prepared) -> Prepared:
    """Copies the adapter that the run continues from into its folder, so that the run needs the original no more."""
    if prepared.start is None:
        return prepared
    kept = run.folder / START_FOLDER
    with whole_folder(kept) as beside:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(prepared.start / name, beside / name)
        write_manifest(beside)
    return replace(prepared, start=kept)


def _load(prepared: Prepared, checkpoint: Path | None, listener: Listener) -> _Loaded:
    """Loads the model, and lays out the held-out rows for it."""
    torch.set_num_threads(int(prepared.recipe.training.threads))
    with memory_faults(prepared.plan):
        ready = load_for_training(prepared, checkpoint, listener)
    recipe = ready.recipe
    # Held-out rows share their prefixes also where training rows must not.
    layout = "padded" if recipe.training.layout == "padded" else "tree"

    def judge_of(task: Task | None) -> Judge | None:
        if task is None:
            return None
        batches = task_batches(task, budget=int(recipe.training.micro_batch_tokens), layout=layout)
        return Judge(task, batches, prepared.text.tokenizer, prepared.text.stop_ids, recipe.evaluation)

    judging, selecting = judge_of(prepared.task), judge_of(prepared.selecting)
    if judging is not None:
        judging.check_questions(ready.model)
    validation, judging = (selecting, judging) if selecting else (judging, None)
    if during := during_judge(validation):
        during.check_questions(ready.model)
    text, corpus = prepared.text, prepared.corpus
    aside = side_passes(
        recipe.evaluation,
        template=text.template,
        tokenizer=text.tokenizer,
        stop_ids=text.stop_ids,
        listener=listener,
        budget=int(recipe.training.micro_batch_tokens),
        layout=layout,
        rows=RunRows(corpus.train, corpus.held_out, corpus.together),
    )
    aside.check(ready.model)
    baselines = baseline_pass(
        recipe, judging or validation, prepared.survey, lambda: TrainedOn.of(prepared.survey, corpus),
        template=text.template, model=ready.model, listener=listener, left_out=aside.left_out,
    )  # fmt: skip
    return _Loaded(ready, Steps(recipe, corpus), validation, judging, aside, baselines)


def _first_epoch(steps: Steps) -> tuple[EpochTokens, Batch]:
    """The tokens of one pass over the rows, and its heaviest micro-batch. One step at a time is in memory."""
    tokens = EpochTokens()

    def counted() -> Iterator[Batch]:
        for batches in steps.first_epoch():
            for batch in batches:
                tokens.total += batch.tokens
                tokens.supervised += batch.supervised
                tokens.computed += batch.computed
                yield batch

    return tokens, heaviest(counted())


def _write_facts(
    run: Run, asked: Recipe, recipe: Recipe, prepared: Prepared, tokens: EpochTokens, listener: Listener
) -> None:
    """Writes the recipe, the data, the versions and the ledger. The status is last, because it makes this a run."""
    write_recipe(run, recipe)
    run.write_json("environment.json", environment(int(recipe.training.threads), gpu_name(recipe.model.device)))
    write_facts_of_rows(run, prepared, tokens)
    fingerprint(recipe, prepared.folder, listener).write(run)
    run.set_status("running", asked=portable(asked), started_in=str(Path.cwd()), step=0)


def _say_tokens(prepared: Prepared, steps: Steps, tokens: EpochTokens, listener: Listener) -> None:
    """Says where the rows went, and how many tokens an epoch has, computes and learns from."""
    ledger = replace(prepared.corpus.ledger, epoch=tokens)
    for line in [*ledger.in_words(), *prepared.corpus.shares(steps.order.epoch_rows(0))]:
        listener.say(line)
    listener.say(
        f"tokens in an epoch: {tokens.total:,} in the rows, {tokens.computed:,} computed "
        f"({1 - tokens.computed / tokens.total:.0%} saved), {tokens.supervised:,} supervised; "
        f"steps in all: {steps.order.total_steps}"
    )


def _verdict(
    prepared: Prepared,
    loaded: _Loaded,
    trained: Trained,
    validation: Judge | None,
    judging: Judge | None,
    listener: Listener,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compares the run's weights with the base. Returns the verdict, and the answers of both side by side.

    Both models are also asked what is asked besides.
    """
    judge, ready, aside, baselines = judging or validation, loaded.ready, loaded.aside, loaded.baselines
    if judge is None and not aside:
        return _no_verdict(trained), []
    base, name = untuned(
        ready.method,
        ready.recipe.method,
        ready.model,
        device=prepared.recipe.model.device,
        load_plain=lambda: load_base(prepared, {}),
    )
    if judge is None:
        with aside.after(base):
            pass
        aside.ask(ready.model)
        return _no_verdict(trained), []
    known = trained.scores if judging is None else None
    verdict, samples = judge.verdict(
        ready.model, baselines.after(aside.after(base)), listener=listener, known=known, baselines=baselines,
        left_out=aside.left_out, judge_may_fail=True,  # the training is done
    )  # fmt: skip
    aside.ask(ready.model)
    settings = ready.recipe.evaluation
    level = Level(settings.confidence, settings.resamples, settings.seed)
    with aside.left_out.noting("side_effects"):
        copied = training_answers(prepared.corpus.train, prepared.text.tokenizer)
        effects = side_effects(samples, copied, level)
        verdict |= {"side_effects": effects} if effects else {}
    verdict |= {"base_model": name, "step": trained.judged_step}
    found = trained.selection
    if judging is not None and validation is not None and found is not None:
        verdict["selection"] = {
            "metric": found.metric,
            "best_step": found.best_step,
            "best": found.best,
            "rows": validation.task.examples,
            "steps": trained.last_step,
            "stopped_early": found.stopped_at is not None,
        }
    return verdict, samples


def _no_verdict(trained: Trained) -> dict[str, Any]:
    nothing = "There are no held-out rows (data.eval is 0)."
    return {"verdict": "no evidence", "reason": nothing, "metrics": {}, "rows": 0, "step": trained.judged_step}


@contextmanager
def _recorded_status(run: Run, recipe: Recipe, listener: Listener) -> Iterator[None]:
    """Records in status.json how the work inside ends if it fails, and says how to continue after a stop."""
    try:
        yield
    except KeyboardInterrupt:
        run.set_status("stopped")
        saved = run.checkpoints
        kept = f"the checkpoint {saved[-1].name} is saved" if saved else "there is no checkpoint yet"
        again = f"`tunesmith train {shlex.quote(str(run.folder))} --resume{flags_of(recipe)}`"
        listener.say(f"stopped: {kept}. To continue: {again}")
        raise
    except TunesmithError as error:
        with suppress(OSError):  # the disk is full
            run.set_status("failed", error=error.to_json())
        raise
    except BaseException as error:
        with suppress(OSError):
            run.set_status("failed", error={"error": type(error).__name__, "what": str(error)})
        raise
