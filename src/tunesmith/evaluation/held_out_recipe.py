"""The recipe by which a run, an adapter or a model is evaluated again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.data.files.locations import holds_text
from tunesmith.errors import RunError
from tunesmith.recipe.file import portable, read_recipe
from tunesmith.recipe.settings import SELECTING, Recipe


def evaluation_recipe(stored: Recipe | None, target: str, data: str | None, settings: Sequence[str]) -> Recipe:
    """The run's recipe, or a plain one, with the rows to judge on and the settings that were given."""
    if stored is None and data is None:
        raise no_rows_to_judge(target, "This is no run, so it has no held-out rows of its own.")
    plain: dict[str, Any] = {"model": target, "data": {"train": data}, "output_dir": "unused"}
    raw = plain if stored is None else portable(stored)
    if data is not None:
        raw["data"] = {**raw["data"], "train": [_read_like_training(stored, target, data)], "eval": 0.0}
        masked = raw["data"].get("clean", {}).get("mask_pii", False)
        raw["data"] |= {"split": None, "name": None, "test": None, "group": None, "stratify": False, "max_lost": None}
        raw["data"] |= {"sample_by": "line"}  # named at the source, where it has a meaning
        if stored is not None and stored.data.too_long in ("split", "error"):  # which of them is a matter of the rows
            raw["data"]["too_long"] = "auto"
        raw["data"]["clean"] = {"mask_pii": masked}  # the same prompts as in training, and every row
        unmeant = {"eval_steps", *SELECTING}  # there is no step to select
        raw["training"] = {name: value for name, value in raw.get("training", {}).items() if name not in unmeant}
    metrics = raw.pop("evaluation", {})
    function = metrics.get("compute_metrics")  # may be what the step was selected by
    recipe = read_recipe({**raw, "evaluation": {"compute_metrics": function}}).recipe
    plain |= {"data": {"train": "unused"}, "objective": raw.get("objective", "sft"), "evaluation": metrics}
    judged = read_recipe(plain, _prefixed(settings)).recipe
    return recipe.model_copy(update={"evaluation": judged.evaluation})


def _read_like_training(stored: Recipe | None, target: str, data: str) -> dict[str, Any]:
    """New rows are read as the training rows were: the same shape, columns and instruction, so the same prompt."""
    if stored is None:
        return {"path": data}
    kept = ("format", "columns", "instruction", *(["sample_by"] if holds_text(data) else []))
    ways = [{name: getattr(source, name) for name in kept} for source in stored.data.sources("train")]
    apart = [name for name in kept if any(way[name] != ways[0][name] for way in ways)]
    if apart:
        raise RunError(
            "The run's training sources were read in different ways, so it is not known how to read other rows",
            where=target,
            why=f"They differ in {', '.join(apart)}.",
            remedy="Give rows of the shape {messages}, and train with a recipe of one source; or judge the run's own.",
        )
    return {"path": data, **ways[0]}


def no_rows_to_judge(target: str, why: str) -> RunError:
    """The error for a target without held-out rows."""
    return RunError("There are no rows to judge on", where=target, why=why, remedy="Name them with --data.")


def _prefixed(settings: Sequence[str]) -> list[str]:
    return [setting if setting.startswith("evaluation.") else f"evaluation.{setting}" for setting in settings]
