"""Summarises a run from its folder, for `runs list` and `runs show`. It does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.recipe.paths import local
from tunesmith.runs.drift import FILE as FINGERPRINT
from tunesmith.runs.drift import in_words as allowed_changes
from tunesmith.runs.folder import Run, find_runs
from tunesmith.runs.later_results import later_results
from tunesmith.runs.manifest import MANIFEST, changes, has_manifest, has_other_bytes, in_words, read_checked
from tunesmith.runs.notebook import html_table, metrics_html, metrics_text
from tunesmith.runs.run_files import ANSWERS, RECIPE
from tunesmith.runs.samples import SAMPLES, is_wrong
from tunesmith.runs.stored_shapes import (
    answer_lines,
    evaluation_lines,
    ledger_rows,
    metric_lines,
    status_of,
    verdict_of,
)


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of a list of runs. ``metric`` decides the verdict; ``base`` and ``tuned`` are its values."""

    name: str
    run: str
    status: str
    step: int | None = None
    total_steps: int | None = None
    verdict: str | None = None
    metric: str | None = None
    base: float | None = None
    tuned: float | None = None
    updated: str | None = None


@dataclass(frozen=True, slots=True)
class Details:
    """All about a run. ``training`` and ``validation`` are (step, loss), and ``facts`` are (name, text).

    ``evaluations`` are the results of `eval`, oldest first, with time, target, data and settings; ``benchmarks`` are
    those of `eval --tasks`, and ``comparisons`` those of `compare` with this run as the first.
    """

    summary: Summary
    facts: list[tuple[str, str]]
    verdict: dict[str, Any] | None
    error: dict[str, Any] | None
    training: list[tuple[int, float]]
    validation: list[tuple[int, float]]
    checkpoints: list[Path]
    best: dict[str, Any] | None
    evaluations: list[dict[str, Any]]
    benchmarks: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]

    def __str__(self) -> str:
        facts = [f"{name}: {text}" for name, text in (("status", self.summary.status), *self.facts)]
        return "\n".join([self.summary.run, *facts, *([metrics_text(self.verdict)] if self.verdict else [])])

    def _repr_html_(self) -> str:
        state = ("status", self.summary.status)
        return html_table(("run", self.summary.name), [state, *self.facts]) + (
            metrics_html(self.verdict) if self.verdict else ""
        )

    def to_json(self) -> dict[str, Any]:
        """The summary's fields, and those of this class; ``result`` is the verdict."""
        return {
            **asdict(self.summary),
            "facts": dict(self.facts),
            "result": self.verdict,
            "error": self.error,
            "training": self.training,
            "validation": self.validation,
            "checkpoints": [str(path) for path in self.checkpoints],
            "best": self.best,
            "evaluations": self.evaluations,
            "benchmarks": self.benchmarks,
            "comparisons": self.comparisons,
        }


def summaries(folder: str | Path) -> list[Summary]:
    """The runs in a folder and one level below. A run with damaged files is listed as ``damaged``.

    Raises RunError if there is no such folder.
    """
    if not Path(local(folder)).is_dir():
        raise RunError(
            "There is no such folder",
            where=str(folder),
            remedy="Train a run first, or name the folder that holds runs.",
        )
    return [summary(run) for run in find_runs(folder)]


def summary(run: Run) -> Summary:
    """The run in one line."""
    name = run.folder.name or run.folder.resolve().name
    try:
        status, verdict, lines = status_of(run), verdict_of(run), metric_lines(run)
    except RunError:
        return Summary(name, str(run.folder), "damaged")
    metrics = (verdict or {}).get("metrics", {})
    metric = (verdict or {}).get("decided_by") if metrics else None
    values = metrics.get(metric, {})
    state = status.get("status", "unknown")
    return Summary(
        name=name,
        run=str(run.folder),
        status="interrupted" if state == "running" and not run.is_held() else state,
        step=max((at for at in (status.get("step"), lines[-1].get("step") if lines else None) if at), default=None),
        total_steps=status.get("total_steps"),
        verdict=verdict.get("verdict") if verdict else None,
        metric=metric,
        base=values.get("base"),
        tuned=values.get("tuned"),
        updated=status.get("updated"),
    )


def _edits(run: Run) -> list[str]:
    """What was edited in the run's recipe, where that is no damage: a place, or what may change."""
    from tunesmith.runs.edited_recipe import edits

    if not has_other_bytes(run.folder, RECIPE) or RECIPE in changes(run.folder):
        return []
    return edits(run.folder / RECIPE, run.folder / FINGERPRINT)


def details(folder: str | Path) -> Details:
    """All about the run in a folder. A damaged file of later results is named, and the rest is shown.

    Raises RunError if there is none, or a file that its training wrote is damaged.
    """
    from tunesmith.runs.start_folder import recipe_of

    run = Run.open(folder)
    status, lines = status_of(run), metric_lines(run)
    recipe = recipe_of(run)
    training = recipe.training
    length = f"{training.max_steps} steps" if training.max_steps else f"{training.num_train_epochs:g} epochs"
    changed, later = allowed_changes(run), later_results(run)
    damaged = {**later.damaged, **changes(run.folder)}
    unverified = ", ".join(run.unverified()) if has_manifest(run.folder) else f"the run has no {MANIFEST}"
    facts = [
        ("model", recipe.model.path),
        ("method", recipe.method.name),
        *([] if recipe.objective.name == "sft" else [("objective", recipe.objective.name)]),
        ("data", ", ".join(source.path for source in recipe.data.train)),
        ("training", f"{length}, batch size {training.batch_size}, learning rate {recipe.learning_rate:g}"),
        *_counts(run, status),
        *([("changed", "; then ".join(changed))] if changed else []),
        *([("damaged", in_words(damaged))] if damaged else []),
        *([("edited", f"{RECIPE}: {'; '.join(edited)}")] if (edited := _edits(run)) else []),
        *([("not verified", unverified)] if unverified else []),
    ]
    return Details(
        summary=summary(run),
        facts=facts,
        verdict=verdict_of(run),
        error=status.get("error") if status.get("status") == "failed" else None,
        training=[(line["step"], line["loss"]) for line in lines if "loss" in line],
        validation=[(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line],
        checkpoints=run.checkpoints,
        best=status.get("best"),
        evaluations=later.evaluations,
        benchmarks=later.benchmarks,
        comparisons=later.comparisons,
    )


@dataclass(frozen=True, slots=True)
class WrongAnswers:
    """Lines of samples.jsonl whose answer is not right. ``rows`` were judged, and ``answers`` of them answered."""

    wrong: list[dict[str, Any]]
    answers: int
    rows: int
    metric: str | None

    def to_json(self) -> dict[str, Any]:
        """``{"rows", "answers", "metric", "wrong"}``."""
        return {"rows": self.rows, "answers": self.answers, "metric": self.metric, "wrong": self.wrong}


def wrong_answers(folder: str | Path, *, of_eval: bool = False) -> WrongAnswers:
    """Every answer of a run's verdict that is not right by the metric that decides, or else by the first that scores.

    Args:
        folder: of the run.
        of_eval: of its newest `eval` instead.

    Raises:
        RunError: there is no run or no verdict, or its files are damaged.
    """
    run = Run.open(folder)
    verdict = (evaluation_lines(run) or [None])[-1] if of_eval else verdict_of(run)
    if verdict is None:
        raise RunError(
            "This run has no evaluation" if of_eval else "This run has no verdict yet",
            where=str(folder),
            remedy=f"Run `tunesmith eval {folder}` first."
            if of_eval
            else f"Finish it with `tunesmith train {folder} --resume`.",
        )
    if of_eval:
        _refuse_answers_of_another(run, verdict)
    answers = answer_lines(run, ANSWERS if of_eval else SAMPLES)
    scores = answers[0].get("scores", {}) if answers else {}
    decided = verdict.get("decided_by")
    metric = decided if decided in scores else next(iter(scores), None)
    wrong = [each for each in answers if is_wrong(each, metric)]
    return WrongAnswers(wrong, len(answers), max(len(answers), verdict.get("rows") or 0), metric)


def _refuse_answers_of_another(run: Run, evaluation: Mapping[str, Any]) -> None:
    """Raises RunError if the answers are not those of the newest evaluation, whose line has their sha256."""
    files = evaluation.get("files")
    if not isinstance(files, Mapping) or ANSWERS not in files:  # of an earlier version
        return
    content, changed = read_checked(run.folder, ANSWERS)
    if content is None and changed is not None and (run.folder / ANSWERS).exists():  # it is too large to be read
        raise run.damaged(ANSWERS, f"It {changed}.")
    if content is None or sha256(content).hexdigest() != files[ANSWERS]:
        raise RunError(
            "The answers of the newest evaluation are not there",
            where=str(run.folder / ANSWERS),
            why="The command ended before it had written them, or the file was changed.",
            remedy=f"Run `tunesmith eval {run.folder}` again.",
        )


def _counts(run: Run, status: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    if rows := ledger_rows(run):
        used = [f"{rows.pop('trained'):,} trained", f"{rows.pop('held_out'):,} held out"]
        others = [f"{count:,} {name.replace('_', ' ')}" for name, count in rows.items() if count and name != "read"]
        found.append(("rows", ", ".join([*used, *others])))
    tokens = status.get("tokens") or {}
    if tokens:
        found.append(("tokens", ", ".join(f"{tokens[name]:,} {name}" for name in ("computed", "supervised"))))
    if status.get("seconds") is not None:
        found.append(("seconds", f"{status['seconds']:,.0f}"))
    return found
