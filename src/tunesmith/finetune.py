"""The composition root: a fine-tuning run from recipe to verdict, read from top to bottom."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith import corpus as corpora
from tunesmith import plan
from tunesmith.corpus import Examples
from tunesmith.data.layout import Batch
from tunesmith.errors import RunError, TunesmithError
from tunesmith.evaluation.judge import Task, check_questions, judge, make_task, task_batches
from tunesmith.evaluation.text import check_names
from tunesmith.fit import Fit
from tunesmith.prepare import Prepared, Ready, load, load_base, prepare
from tunesmith.progress import Listener, Silent
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import dotted, dump, leaves, read_recipe
from tunesmith.run import Run, environment
from tunesmith.tuned import find
from tunesmith.tuned import load as load_tuned


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
    asked = _asked_recipe(recipe, overrides, resume=resume)
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
        prepared = prepare(_stored_recipe(run) if continues else asked, listener)
        if continues:
            _check_same_data(run, prepared.examples)
        torch.set_num_threads(int(prepared.recipe.training.threads))
        last = run.checkpoints[-1] if continues and run.checkpoints else None
        ready = load(prepared, last, listener)
        if not continues:
            run.clear()
            _write_facts(run, asked, ready.recipe, prepared)
        with _recorded_status(run):
            run.set_status("running")
            task = _task(ready.recipe, prepared)
            if task is not None:
                check_questions(ready.model, task, ready.recipe.evaluation)
            batches = _batches(ready.recipe, task)
            fit = Fit(run, ready, prepared, task=task, eval_batches=batches)
            _count_tokens(fit, listener)
            tokens = fit.run_steps(listener)
            verdict, samples = _judge(fit, batches, listener)
            run.write_text("samples.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in samples))
            run.write_json("verdict.json", verdict)
            seconds = round(time.perf_counter() - begin, 1)
            run.set_status("finished", seconds=seconds, tokens=tokens)
    return TrainResult(run.folder, verdict, seconds, tokens)


def dry_run(
    recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = (), *, listener: Listener | None = None
) -> list[tuple[str, Any, str]]:
    """Every setting as (dotted key, resolved value, where it comes from). Data and tokenizer are read, no weights.

    What only the loaded model can tell (layout, checkpointing) stays ``auto``.
    """
    loaded = read_recipe(recipe, overrides)
    check_names(loaded.recipe.evaluation.metrics)
    prepared = prepare(loaded.recipe, listener or Silent())
    given = dict(leaves(loaded.recipe.model_dump()))
    lines = []
    for path, value in leaves(prepared.recipe.model_dump()):
        resolved = path not in given or (given[path] in ("auto", None) and value != given[path])
        lines.append((dotted(path), value, "auto" if resolved else loaded.origin(path)))
    return lines


def stored_result(run: Run) -> TrainResult:
    """The result of a finished run, from its folder. Raises RunError where it has none."""
    status = run.status()
    return TrainResult(
        run.folder, run.read_json("verdict.json"), status["seconds"], status["tokens"], already_finished=True
    )


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
    recipe = _evaluation_recipe(find(str(target)).recipe, str(target), data, settings)
    check_names(recipe.evaluation.metrics)
    tuned = load_tuned(target, listener=listener)
    examples = corpora.read_examples(recipe.data, seed=recipe.training.seed)
    if data is not None:
        examples = corpora.only_held_out(examples)
    elif tuned.target.run is not None:
        _check_same_data(tuned.target.run, examples)
    corpora.check_metrics(recipe.evaluation.metrics, examples)
    corpus = corpora.encode(examples, tuned.template, recipe.data, listener=listener)
    task = make_task(
        corpus.held_out, corpus.groups, tokenizer=tuned.tokenizer, stop_ids=tuned.stop_ids, settings=recipe.evaluation
    )
    budget = plan.micro_batch_tokens(str(tuned.device), max(len(row.ids) for row in task.rows))
    verdict, _ = judge(
        tuned.model,
        tuned.reference(),
        task,
        task_batches(task, budget=budget, layout="padded" if recipe.training.layout == "padded" else "tree"),
        tokenizer=tuned.tokenizer,
        stop_ids=tuned.stop_ids,
        settings=recipe.evaluation,
        listener=listener,
    )
    return verdict


def _asked_recipe(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str], *, resume: bool) -> Recipe:
    """The recipe as asked for; a run folder stands for the recipe it was started with."""
    if isinstance(recipe, str | Path) and resume and Run(recipe).exists():
        return read_recipe(Run(recipe).status()["asked"], overrides).recipe
    return read_recipe(recipe, overrides).recipe


def _stored_recipe(run: Run) -> Recipe:
    """The run's recipe with what was resolved when it began: a continued run re-uses it."""
    return read_recipe(run.folder / "recipe.yaml").recipe


def _check_same_recipe(run: Run, asked: Recipe) -> None:
    before, now = dict(leaves(run.status()["asked"])), dict(leaves(asked.model_dump(mode="json")))
    changed = [path for path in {**before, **now} if before.get(path) != now.get(path)]
    if changed:
        lines = [f"{dotted(path)}: {before.get(path)!r} then, {now.get(path)!r} now" for path in changed[:10]]
        raise RunError(
            "The run in this folder was started with another recipe",
            where=str(run.folder),
            why="\n".join(lines),
            remedy="Change the recipe back to continue, name another output_dir, or start over with --overwrite.",
        )


def _check_same_data(run: Run, examples: Examples) -> None:
    def digests(sources: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
        return [(file["path"], file["sha256"]) for source in sources for file in source["files"]]

    before, now = digests(run.read_json("data.json")), digests(examples.sources)
    changed = sorted({path for path, _ in set(before) ^ set(now)})
    if changed:
        raise RunError(
            "The data has changed since this run was started",
            where=str(run.folder),
            why=f"Other content: {', '.join(changed[:5])}.",
            remedy="Put the data back, or start over with --overwrite.",
        )


def _write_facts(run: Run, asked: Recipe, recipe: Recipe, prepared: Prepared) -> None:
    """What the run was asked, on what, by which versions; status last, because it makes the folder a run."""
    run.write_text("recipe.yaml", dump(recipe))
    run.write_json("environment.json", environment(int(recipe.training.threads)))
    run.write_json("data.json", prepared.examples.sources)
    run.write_json("findings.json", [asdict(finding) for finding in prepared.examples.findings])
    run.write_json("template.json", prepared.template.describe())
    if prepared.examples.rejected:
        lines = (json.dumps(asdict(row), ensure_ascii=False) for row in prepared.examples.rejected)
        run.write_text("rejected.jsonl", "".join(f"{line}\n" for line in lines))
    run.write_json("ledger.json", prepared.corpus.ledger.to_json())
    run.set_status("running", asked=asked.model_dump(mode="json"), step=0)


def _task(recipe: Recipe, prepared: Prepared) -> Task | None:
    """Held-out rows to judge on; raw text is judged by its tokens alone."""
    corpus = prepared.corpus
    if not corpus.held_out:
        return None
    task = make_task(
        corpus.held_out,
        corpus.groups,
        tokenizer=prepared.tokenizer,
        stop_ids=prepared.stops,
        settings=recipe.evaluation,
    )
    return replace(task, questions=[]) if prepared.examples.raw_text else task


def _batches(recipe: Recipe, task: Task | None) -> list[Batch]:
    layout = recipe.training.layout
    assert layout != "auto"
    return task_batches(task, budget=int(recipe.training.micro_batch_tokens), layout=layout) if task else []


def _count_tokens(fit: Fit, listener: Listener) -> None:
    """Says how many tokens an epoch has, computes and learns from, and completes the ledger with them."""
    steps = fit.order.steps_in(0)
    batches = [batch for step in fit.steps() if step.number <= steps for batch in step.batches]
    rows, computed, supervised = (
        sum(getattr(batch, name) for batch in batches) for name in ("tokens", "computed", "supervised")
    )
    ledger = fit.prepared.corpus.ledger
    ledger.tokens.computed = computed
    fit.run.write_json("ledger.json", ledger.to_json())
    counts = ledger.rows
    listener.say(
        f"rows: {counts.read} read, {counts.invalid} invalid, {counts.too_long} too long, "
        f"{counts.held_out} held out, {counts.trained} to train on"
    )
    listener.say(
        f"tokens in an epoch: {rows:,} in the rows, {computed:,} computed ({1 - computed / rows:.0%} saved), "
        f"{supervised:,} supervised; {fit.order.total_steps} steps in all"
    )


def _judge(fit: Fit, batches: list[Batch], listener: Listener) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last checkpoint against the base. Without held-out rows there is no evidence, and the verdict says so."""
    if fit.task is None:
        nothing = "There are no held-out rows (data.eval is 0)."
        return {
            "verdict": "no evidence",
            "reason": nothing,
            "metrics": {},
            "rows": 0,
            "step": fit.order.total_steps,
        }, []
    context, name = _reference(fit.ready, fit.prepared)
    verdict, samples = judge(
        fit.ready.model,
        context,
        fit.task,
        batches,
        tokenizer=fit.prepared.tokenizer,
        stop_ids=fit.prepared.stops,
        settings=fit.ready.recipe.evaluation,
        listener=listener,
        known=fit.final_scores,
    )
    return {**verdict, "base_model": name, "step": fit.order.total_steps}, samples


def _reference(ready: Ready, prepared: Prepared) -> tuple[AbstractContextManager[nn.Module], str]:
    """The untuned model and what it is: for qlora the unquantized one, where it fits beside the tuned model."""
    if ready.method.name != "qlora":
        return ready.method.reference(ready.model), "untuned"
    parameters = sum(parameter.numel() for parameter in ready.model.parameters())
    if not plan.unquantized_base_fits(parameters, memory=plan.total_memory(prepared.recipe.model.device)):
        return ready.method.reference(ready.model), "untuned, quantized"

    @contextmanager
    def unquantized() -> Iterator[nn.Module]:
        yield load_base(prepared, {})

    return unquantized(), "untuned, unquantized"


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


def _evaluation_recipe(stored: Recipe | None, target: str, data: str | None, settings: Sequence[str]) -> Recipe:
    """The run's recipe, or a plain one, with the rows to judge on and the settings that were given."""
    if stored is None and data is None:
        raise RunError(
            "There are no rows to judge on",
            where=target,
            why="This is no run, so it has no held-out rows of its own.",
            remedy="Name them with --data.",
        )
    raw: dict[str, Any] = {"model": target, "data": {"train": data}, "output_dir": "unused"}
    if stored is not None:
        raw = stored.model_dump(exclude_unset=True)
    if data is not None:
        section = {key: value for key, value in raw["data"].items() if key not in ("train", "eval", "split", "name")}
        raw["data"] = {**section, "train": data, "eval": 0.0}
        raw["training"] = {key: value for key, value in raw.get("training", {}).items() if key != "eval_steps"}
    metrics = raw.pop("evaluation", {})
    recipe = read_recipe(raw, []).recipe
    evaluation = read_recipe({**raw, "data": {"train": "unused"}, "evaluation": metrics}, _prefixed(settings)).recipe
    return recipe.model_copy(update={"evaluation": evaluation.evaluation})


def _prefixed(settings: Sequence[str]) -> list[str]:
    return [setting if setting.startswith("evaluation.") else f"evaluation.{setting}" for setting in settings]
