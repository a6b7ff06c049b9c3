"""Builds the recipe for evaluating a run, an adapter or a model again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.files.locations import holds_tables, holds_text
from tunesmith.errors import RecipeError, RunError
from tunesmith.recipe.file import portable, read_recipe
from tunesmith.recipe.paths import local
from tunesmith.recipe.row_shape import READING
from tunesmith.recipe.settings import SELECTING, Recipe


def evaluation_recipe(stored: Recipe | None, target: str, data: str | None, settings: Sequence[str]) -> Recipe:
    """The run's recipe, or a plain one, with the given rows and evaluation settings.

    Args:
        stored: the run's recipe, if the target has one.
        target: what is evaluated, for messages.
        data: the rows to judge on; None: the run's own held-out rows.
        settings: ``key=value`` of the evaluation section.
    """
    if stored is None and data is None:
        found = "this is not a run" if Path(local(target)).exists() else f"there is no folder {target} here"
        raise no_rows_to_judge(target, f"Only a run has held-out rows of its own, and {found}.")
    plain: dict[str, Any] = {"model": target, "data": {"train": data}, "output_dir": "unused"}
    raw = plain if stored is None else portable(stored)
    if data is not None:
        section = {key: value for key, value in raw["data"].items() if key not in READING}  # other files than the run's
        raw["data"] = {**section, "train": [read_like_training(stored, target, data)], "eval": 0.0}
        masked = raw["data"].get("clean", {}).get("mask_pii", False)
        raw["data"] |= {"split": None, "name": None, "test": None, "group": None, "stratify": False, "max_lost": None}
        raw["data"] |= {"sample_by": "auto"}  # the source names its own, if it is text
        if stored is not None and stored.data.too_long in ("split", "error"):  # which of the two depends on the rows
            raw["data"]["too_long"] = "auto"
        raw["data"]["clean"] = {"mask_pii": masked}  # the same prompts as in training, and every row
        of_steps = {"eval_steps", *SELECTING}  # there is no step to select
        raw["training"] = {name: value for name, value in raw.get("training", {}).items() if name not in of_steps}
    metrics = raw.pop("evaluation", {})
    function = metrics.get("compute_metrics")  # the step may be selected by it
    recipe = read_recipe({**raw, "evaluation": {"compute_metrics": function}}).recipe
    plain |= {"data": {"train": "unused"}, "objective": raw.get("objective", "sft"), "evaluation": metrics}
    judged = read_recipe(plain, _prefixed(settings)).recipe
    return recipe.model_copy(update={"evaluation": judged.evaluation})


def read_like_training(stored: Recipe | None, target: str, data: str, *, given: Collection[str] = ()) -> dict[str, Any]:
    """Reads new rows like the training rows, with the same format, columns, header and instruction.

    So the prompt is the same. ``given``: what the user says of the new rows instead.
    """
    if stored is None:
        return {"path": data}
    kept = ("format", "columns", "instruction", *(["sample_by"] if holds_text(data) else []))
    kept += ("header",) if holds_tables(data) else ()
    kept = tuple(name for name in kept if name not in given)
    ways = [{name: getattr(source, name) for name in kept} for source in stored.data.sources("train")]
    apart = [name for name in kept if any(way[name] != ways[0][name] for way in ways)]
    if apart:
        keys = " ".join(f"data.{name}={'{prompt: COLUMN}' if name == 'columns' else 'VALUE'}" for name in apart)
        raise RunError(
            "The run's training sources were read in different ways, so new rows could be read in any of them",
            where=target,
            why=f"They differ in {', '.join(apart)}.",
            remedy=f"Say how to read these: add {keys}."
            if given
            else "Train from one source and give rows of the form {messages}, or judge the run's own rows.",
        )
    return {"path": data, **ways[0]}


def no_rows_to_judge(target: str, why: str) -> RunError:
    """The error for a target without held-out rows."""
    return RunError("There are no rows to judge on", where=target, why=why, remedy="Name a file with --data.")


def typed_names(settings: Sequence[str]) -> set[str]:
    """The keys of the evaluation section that the user has typed."""
    names = [setting.partition("=")[0].strip().removeprefix("evaluation.") for setting in settings]
    return {name.partition(".")[0].partition("[")[0] for name in names}


def _prefixed(settings: Sequence[str]) -> list[str]:
    sections = tuple(f"{name}." for name in Recipe.model_fields if name != "evaluation")
    for setting in settings:
        if setting.startswith(sections):
            raise RecipeError(
                "only settings of the evaluation section can be given here",
                where=setting,
                remedy="Leave it out; --data FILE names other rows.",
            )
    return [setting if setting.startswith("evaluation.") else f"evaluation.{setting}" for setting in settings]
