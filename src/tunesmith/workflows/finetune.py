"""The composition root: a fine-tuning run from recipe to verdict, read from top to bottom."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tunesmith.data.batches.layout import Batch
from tunesmith.data.ledger import EpochTokens
from tunesmith.data.survey import Survey
from tunesmith.errors import RunError, TunesmithError
from tunesmith.evaluation.judge import check_questions, judge
from tunesmith.evaluation.metrics.answers import check_names
from tunesmith.evaluation.task import Task, task_batches
from tunesmith.methods.continued_adapter import CONFIG_FILE, KEPT, WEIGHTS_FILE
from tunesmith.model.weights.device import tf32
from tunesmith.recipe.complaints import dotted
from tunesmith.recipe.file import LoadedRecipe, dump, leaves, portable, read_recipe
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.environment import environment
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Listener, Silent
from tunesmith.runs.whole_files import whole_folder
from tunesmith.training.attach import load, load_base, untuned
from tunesmith.training.setup import Prepared, prepare
from tunesmith.training.trainer import Trainer, memory_faults

SIDES: tuple[Literal["train", "eval", "test"], ...] = ("train", "eval", "test")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came of a run: its folder, verdict.json, seconds of work, and token counts (rows, computed, supervised)."""

    run: Path
    verdict: dict[str, Any]
    seconds: float
    tokens: dict[str, int]
    already_finished: bool = False

    @property
    def metrics(self) -> dict[str, Any]:
        """Base, tuned, difference and interval by metric."""
        return self.verdict["metrics"]

    def to_json(self) -> dict[str, Any]:
        """``{"run", "verdict", "metrics", "seconds", "tokens"}``."""
        return {
            "run": str(self.run),
            "verdict": self.verdict["verdict"],
            "metrics": self.metrics,
            "seconds": self.seconds,
            "tokens": self.tokens,
        }


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> TrainResult:
    """Fine-tunes as the recipe says and judges the result on held-out rows.

    Args:
        recipe: a YAML file, a run folder to resume, a mapping of the recipe's shape, or a Recipe.
        overrides: ``section.key=value`` on top of it.
        resume: start, continue behind the last checkpoint, or return the stored result of a finished run.
        overwrite: replace a run that is in the folder.
        listener: hears what goes on; nobody by default.

    Raises:
        TunesmithError: one of the family in ``tunesmith.errors``; the run folder says how far it came.
    """
    listener = listener or Silent()
    loaded = _asked_recipe(recipe, overrides, resume=resume)
    asked = loaded.recipe
    for note in [*loaded.notes.values(), *_remarks(asked)]:
        listener.say(note)
    check_names(asked.evaluation.metrics)
    run = Run(asked.output_dir)
    continues = resume and run.exists()
    if not continues:
        run.check_free(overwrite=overwrite)
    with _no_empty_folder(run), run.lock():
        if continues:
            _check_same_recipe(run, asked)
            if run.status()["status"] == "finished":
                listener.say(f"{run.folder} is finished already")
                return stored_result(run)
        begin = time.perf_counter()
        kept = run.folder / KEPT if continues else None
        prepared = prepare(_stored_recipe(run) if continues else asked, listener, start=kept)
        if not continues:
            _check_start_stays(run, prepared)
        if continues:
            check_same_data(run, prepared.survey)
        torch.set_num_threads(int(prepared.recipe.training.threads))
        last = run.checkpoints[-1] if continues and run.checkpoints else None
        ready = load(prepared, last, listener)
        if prepared.task is not None:
            check_questions(ready.model, prepared.task, ready.recipe.evaluation)
        others = None if prepared.selecting is None else _batches(ready.recipe, prepared.task)
        validation = _batches(ready.recipe, prepared.validation)
        fit = Trainer(run, ready, prepared, eval_batches=validation, judge_batches=others)
        epoch = fit.first_epoch()
        if not continues:  # a run that has begun was measured then
            rehearsal = fit.rehearse(epoch)
            listener.say(str(rehearsal))
            run.clear()
            _keep_start(run, prepared)
            _write_facts(run, asked, ready.recipe, prepared)
            run.write_json("memory.json", {**asdict(rehearsal), "parts": asdict(prepared.plan.peak())})
        with _recorded_status(run), tf32(ready.recipe.training.tf32):
            run.set_status("running")
            _count_tokens(fit, epoch, listener)
            with memory_faults():
                fit.refer(listener)
            tokens = fit.run_steps(listener)
            verdict, samples = _judge(fit, listener)
            run.write_text("samples.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in samples))
            run.write_json("verdict.json", verdict)
            seconds = round(time.perf_counter() - begin, 1)
            run.set_status("finished", seconds=seconds, tokens=tokens)
    return TrainResult(run.folder, verdict, seconds, tokens)


def dry_run(
    recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = (), *, listener: Listener | None = None
) -> list[tuple[str, Any, str]]:
    """Every setting as (dotted key, resolved value, where it comes from). Data and tokenizer are read, no weights.

    What only the loaded model can tell (the layout) stays ``auto``. The listener hears what memory is predicted.
    """
    listener = listener or Silent()
    loaded = read_recipe(recipe, overrides)
    check_names(loaded.recipe.evaluation.metrics)
    prepared = prepare(loaded.recipe, listener)
    listener.say(str(prepared.plan))
    given = dict(leaves(loaded.recipe.model_dump()))
    lines = []
    for path, value in leaves(prepared.recipe.model_dump()):
        resolved = path not in given or value != given[path]
        lines.append((dotted(path), value, "auto" if resolved else loaded.origin(path)))
    return lines


def stored_result(run: Run) -> TrainResult:
    """The result of a finished run, from its folder. Raises RunError where it has none."""
    status = run.status()
    return TrainResult(
        run.folder, run.read_json("verdict.json"), status["seconds"], status["tokens"], already_finished=True
    )


def _asked_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str], *, resume: bool
) -> LoadedRecipe:
    """The recipe as asked for; a run folder stands for the recipe it was started with."""
    if isinstance(recipe, str | Path) and resume and Run(recipe).exists():
        return read_recipe(Run(recipe).status()["asked"], overrides)
    return read_recipe(recipe, overrides)


def _remarks(recipe: Recipe) -> list[str]:
    """What somebody who knows the setting from elsewhere might take otherwise."""
    training = recipe.training
    if training.early_stopping_patience is None or training.load_best_model_at_end:
        return []
    return [
        "early stopping without load_best_model_at_end: the run ends with the weights of the step that it stops at, as "
        "transformers does; with load_best_model_at_end: true it ends with the best step's"
    ]


def _stored_recipe(run: Run) -> Recipe:
    """The run's recipe with what was resolved when it began: a continued run re-uses it."""
    return read_recipe(run.folder / "recipe.yaml").recipe


def _check_same_recipe(run: Run, asked: Recipe) -> None:
    stored = read_recipe(run.status()["asked"]).recipe  # with what settings have been added since
    before, now = _all_said(stored), _all_said(asked)
    changed = [path for path in {**before, **now} if before.get(path) != now.get(path)]
    if changed:
        lines = [f"{dotted(path)}: {before.get(path)!r} then, {now.get(path)!r} now" for path in changed[:10]]
        raise RunError(
            "The run in this folder was started with another recipe",
            where=str(run.folder),
            why="\n".join(lines),
            remedy="Change the recipe back to continue, name another output_dir, or start over with --overwrite.",
        )


def _all_said(recipe: Recipe) -> dict[Any, Any]:
    """Every value by its way, each source's with what the section says for it."""
    values = portable(recipe)
    sides = {side: [each.model_dump(mode="json") for each in recipe.data.sources(side)] for side in SIDES}
    values["data"] |= {side: sources for side, sources in sides.items() if sources}
    return dict(leaves(values))


def check_same_data(run: Run, survey: Survey) -> None:
    """Raises RunError if a data file has other content than when the run was started."""

    def digests(sources: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
        return [(file["path"], file["sha256"]) for source in sources for file in source["files"]]

    before, now = digests(run.read_json("data.json")), digests(survey.sources)
    changed = sorted({path for path, _ in set(before) ^ set(now)})
    if changed:
        raise RunError(
            "The data has changed since this run was started",
            where=str(run.folder),
            why=f"Other content: {', '.join(changed[:5])}.",
            remedy="Put the data back, or start over with --overwrite.",
        )


def _check_start_stays(run: Run, prepared: Prepared) -> None:
    """Raises RunError where writing the run would remove the adapter that it goes on from."""
    if prepared.start is not None and run.folder.resolve() in prepared.start.parents:
        raise RunError(
            "The adapter to go on from is in the folder that would be overwritten",
            where=str(run.folder),
            why=f"It is {prepared.start}.",
            remedy="Name another output_dir.",
        )


def _keep_start(run: Run, prepared: Prepared) -> None:
    """Copies the adapter that the run goes on from into its folder; from then on nothing needs the other one."""
    if prepared.start is None:
        return
    kept = run.folder / KEPT
    with whole_folder(kept) as beside:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(prepared.start / name, beside / name)
    prepared.start = kept


def _write_facts(run: Run, asked: Recipe, recipe: Recipe, prepared: Prepared) -> None:
    """What the run was asked, on what, by which versions; status last, because it makes the folder a run."""
    run.write_text("recipe.yaml", dump(recipe))
    run.write_json("environment.json", environment(int(recipe.training.threads)))
    run.write_json("data.json", prepared.survey.sources)
    findings = [*prepared.survey.findings, *prepared.corpus.findings]
    run.write_json("findings.json", [finding.to_json() for finding in findings])
    run.write_json("template.json", prepared.template.describe())
    if prepared.survey.rejected:
        lines = (json.dumps(asdict(row), ensure_ascii=False) for row in prepared.survey.rejected)
        run.write_text("rejected.jsonl", "".join(f"{line}\n" for line in lines))
    run.write_json("ledger.json", prepared.corpus.ledger.to_json())
    run.set_status("running", asked=portable(asked), step=0)


def _batches(recipe: Recipe, task: Task | None) -> list[Batch]:
    """Rows that are judged share their prefixes also where those that train must not."""
    if task is None:
        return []
    layout = "padded" if recipe.training.layout == "padded" else "tree"
    return task_batches(task, budget=int(recipe.training.micro_batch_tokens), layout=layout)


def _count_tokens(fit: Trainer, batches: Sequence[Batch], listener: Listener) -> None:
    """Says how many tokens an epoch has, computes and learns from, and completes the ledger with them."""
    ledger = fit.prepared.corpus.ledger
    tokens = EpochTokens(
        *(sum(getattr(batch, name) for batch in batches) for name in ("tokens", "supervised", "computed"))
    )
    ledger.epoch = tokens
    fit.run.write_json("ledger.json", ledger.to_json())
    for line in ledger.in_words():
        listener.say(line)
    for line in fit.prepared.corpus.shares(fit.order.epoch_rows(0)):
        listener.say(line)
    listener.say(
        f"tokens in an epoch: {tokens.total:,} in the rows, {tokens.computed:,} computed "
        f"({1 - tokens.computed / tokens.total:.0%} saved), {tokens.supervised:,} supervised; "
        f"steps in all: {fit.order.total_steps}"
    )


def _judge(fit: Trainer, listener: Listener) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The run's weights against the base. Without held-out rows there is no evidence, and the verdict says so.

    Where held-out rows have selected the step, others judge it.
    """
    step, prepared, apart = fit.judged_step, fit.prepared, fit.judging is not None
    task = fit.judging if apart else fit.task
    if task is None:
        nothing = "There are no held-out rows (data.eval is 0)."
        return {"verdict": "no evidence", "reason": nothing, "metrics": {}, "rows": 0, "step": step}, []
    context, name = untuned(
        fit.ready.method,
        fit.ready.recipe.method,
        fit.ready.model,
        device=prepared.recipe.model.device,
        load_plain=lambda: load_base(prepared, {}),
    )
    with memory_faults():
        verdict, samples = judge(
            fit.ready.model,
            context,
            task,
            fit.judge_batches if apart else fit.eval_batches,
            tokenizer=prepared.tokenizer,
            stop_ids=prepared.stops,
            settings=fit.ready.recipe.evaluation,
            listener=listener,
            known=None if apart else fit.final_scores,
        )
    chosen = _selection(fit)
    return {**verdict, "base_model": name, "step": step, **chosen}, samples


def _selection(fit: Trainer) -> dict[str, Any]:
    """How held-out rows that do not judge have selected the step: ``{selection: {...}}``, or nothing."""
    selecting, found = fit.prepared.selecting, fit.selection
    if selecting is None or found is None:
        return {}
    return {
        "selection": {
            "metric": found.metric,
            "best_step": found.best_step,
            "best": found.best,
            "rows": selecting.examples,
            "steps": fit.last_step,
            "stopped_early": found.stopped_at is not None,
        }
    }


@contextmanager
def _no_empty_folder(run: Run) -> Iterator[None]:
    """A run that was refused before it began leaves no folder behind."""
    existed = run.folder.exists()
    try:
        yield
    except BaseException:
        if not existed and run.folder.is_dir() and {entry.name for entry in run.folder.iterdir()} <= {".lock"}:
            (run.folder / ".lock").unlink(missing_ok=True)
            run.folder.rmdir()
        raise


@contextmanager
def _recorded_status(run: Run) -> Iterator[None]:
    """However the work ends, status.json says how."""
    try:
        yield
    except KeyboardInterrupt:
        run.set_status("stopped")
        raise
    except TunesmithError as error:
        run.set_status("failed", error=error.to_json())
        raise
    except BaseException as error:
        run.set_status("failed", error={"error": type(error).__name__, "what": str(error)})
        raise
