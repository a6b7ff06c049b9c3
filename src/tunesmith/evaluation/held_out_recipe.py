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
from tunesmith.recipe.settings import NEEDED_KEYS, SELECTING, Recipe

DURING = ("during", "during_rows")  # of the evaluation section, while training
SELECTED_BY = ("compute_metrics", *NEEDED_KEYS.values())
KEYS = ("format", "columns", "name", "split", "sample_by", "on_error", *READING)  # of the data section, for new rows


def evaluation_recipe(stored: Recipe | None, target: str, data: str | None, settings: Sequence[str]) -> Recipe:
    """The run's recipe, or a plain one, with the given rows and evaluation settings.

    Args:
        stored: the run's recipe, if the target has one.
        target: what is evaluated, for messages.
        data: the rows to judge on; None: the run's own held-out rows.
        settings: ``key=value`` of the evaluation section, and ``data.key=value`` that say how ``data`` is read.
    """
    reading = [setting for setting in settings if setting.startswith("data.")]
    settings = [setting for setting in settings if setting not in reading]
    given = names_of_reading(reading, names=(*KEYS, "instruction"))
    if given and data is None:
        raise RecipeError(
            "keys of the data section say how other rows are read, and no other rows are named",
            where=reading[0],
            remedy="Name them with --data FILE, or leave the key out.",
        )
    if stored is None and data is None:
        found = "this is not a run" if Path(local(target)).exists() else f"there is no folder {target} here"
        raise no_rows_to_judge(target, f"Only a run has held-out rows of its own, and {found}.")
    plain: dict[str, Any] = {"model": target, "data": {"train": data}, "output_dir": "unused"}
    raw = plain if stored is None else portable(stored)
    if data is not None:
        section = {key: value for key, value in raw["data"].items() if key not in {*READING, *given}}  # other files
        like = {"path": data} if stored is None else read_like_training(stored, target, data, given=given)
        raw["data"] = {**section, "train": [like], "eval": 0.0}
        masked = raw["data"].get("clean", {}).get("mask_pii", False)
        raw["data"] |= {"split": None, "name": None, "test": None, "group": None, "stratify": False, "max_lost": None}
        raw["data"] |= {"sample_by": "auto"}  # the source names its own, if it is text
        if stored is not None and stored.data.too_long in ("split", "error"):  # which of the two depends on the rows
            raw["data"]["too_long"] = "auto"
        raw["data"]["clean"] = {"mask_pii": masked}  # the same prompts as in training, and every row
        of_steps = {"eval_steps", *SELECTING}  # there is no step to select
        raw["training"] = {name: value for name, value in raw.get("training", {}).items() if name not in of_steps}
    metrics = raw.pop("evaluation", {})
    if any(_without_few_shot(setting) for setting in settings):
        metrics.pop("few_shot_rows", None)  # the run's own, which is of a baseline that nobody asks for now
    of_validations = {key: metrics.pop(key) for key in DURING if key in metrics}
    # The step may be selected by what these name, and then other rows judge.
    selecting = {key: metrics[key] for key in SELECTED_BY if key in metrics}
    if data is None:
        selecting |= of_validations
    recipe = read_recipe({**raw, "evaluation": selecting}, reading).recipe
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
            remedy=f"Say how to read these: add {keys}.",
        )
    return {"path": data, **ways[0]}


def names_of_reading(keys: Sequence[str], *, names: Sequence[str] = KEYS) -> set[str]:
    """The names in ``data.name=value`` or ``data.name.column=value``. Raises RecipeError for one that reads nothing."""
    given = set()
    for key in keys:
        name = key.partition("=")[0].strip().removeprefix("data.").partition(".")[0]
        if name not in names:
            raise RecipeError(
                f"data.{name} does not change how new rows are read",
                where=key,
                remedy=f"The keys are {', '.join(f'data.{each}' for each in names)}.",
            )
        given.add(name)
    return given


def no_rows_to_judge(target: str, why: str) -> RunError:
    """The error for a target without held-out rows."""
    return RunError("There are no rows to judge on", where=target, why=why, remedy="Name a file with --data.")


def typed_names(settings: Sequence[str]) -> set[str]:
    """The keys of the evaluation section that the user has typed, such as ``metrics`` and ``judge.timeout``."""
    return {setting.partition("=")[0].strip().removeprefix("evaluation.") for setting in settings}


def _without_few_shot(setting: str) -> bool:
    name, _, value = setting.partition("=")
    return name.strip().removeprefix("evaluation.") == "baselines" and "few_shot" not in value


def _prefixed(settings: Sequence[str]) -> list[str]:
    sections = tuple(f"{name}." for name in Recipe.model_fields if name != "evaluation")
    for setting in settings:
        if setting.startswith(sections):
            raise RecipeError(
                "only settings of the evaluation section can be given here",
                where=setting,
                remedy="Leave it out; --data FILE names other rows.",
            )
    while_training = sorted({name.partition(".")[0] for name in typed_names(settings)} & {*DURING})
    if while_training:
        raise RecipeError(
            f"evaluation.{while_training[0]} is about validations while a model trains",
            where=while_training[0],
            remedy="Leave it out; metrics=[...] names what is measured now.",
        )
    return [setting if setting.startswith("evaluation.") else f"evaluation.{setting}" for setting in settings]
