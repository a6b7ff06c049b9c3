"""Writes a first recipe: looks at the rows and the machine, and comments each value with the reason for it."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.tokens import CommentToken

from tunesmith.data.checks.scan import Scan
from tunesmith.data.files.locations import missing_source
from tunesmith.data.files.reader import own_eval_split
from tunesmith.data.files.second_header import second_header
from tunesmith.data.files.splits import TRAIN
from tunesmith.data.files.text_that_is_rows import refuse_rows_in_text, with_marked_turns
from tunesmith.data.finding import rows_in_words
from tunesmith.data.survey import Survey, survey_rows
from tunesmith.errors import ModelError, RecipeError
from tunesmith.model.weights.bundled import BUNDLED
from tunesmith.model.weights.resolve import kind
from tunesmith.planning import advice, room, workload
from tunesmith.planning.advice import Choice
from tunesmith.planning.budget import gigabytes
from tunesmith.planning.devices import Device, this_device
from tunesmith.planning.model_size import ModelSize, model_size
from tunesmith.planning.workload import Workload
from tunesmith.recipe.data import DataSettings, SourceSettings
from tunesmith.recipe.file import parse_override, read_recipe
from tunesmith.recipe.methods import FULL_ROWS, METHOD_SETTINGS, AdapterSettings
from tunesmith.recipe.objectives import OBJECTIVE_SHAPES
from tunesmith.recipe.row_shape import READING, RowShape
from tunesmith.recipe.schedules import rate_text
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.notebook import paragraph, preformatted
from tunesmith.safe_text import one_line
from tunesmith.workflows.first_rows import (
    Evaluation,
    HeldOut,
    Length,
    counts,
    evaluation_of,
    length_of,
    needed_keys,
    preferred_objective,
    template_for_calls,
    texts_of,
)
from tunesmith.workflows.first_rows import held_out as rows_held_out

if TYPE_CHECKING:
    from tunesmith.planning.method_table import Line

ROWS_JUDGED_ON_A_CPU = 200
KEYS = ("sample_by", *READING)  # of the data section, that `init` takes
ENDINGS = re.compile(
    r"(\.(jsonl|ndjson|json|csv|tsv|parquet|txt|md|markdown|rst|html?|xlsx|ods))?(\.(gz|bz2|xz))?$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Starter:
    """A recipe's text, and what it was made from. ``bad`` rows are among none of the ``rows``.

    ``choices``: recipe key to value, reason and source. ``parameters`` of the model, None where they are not known.
    """

    text: str
    model: str
    output_dir: str
    rows: int
    bad: int
    shape: str
    reason: str
    metrics: tuple[str, ...]
    method: str
    parameters: int | None
    choices: dict[str, Choice]
    warnings: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        """What the text says, ready for ``tunesmith.train``."""
        return read_recipe(YAML(typ="safe", pure=True).load(self.text)).recipe

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return preformatted(self.text) + "".join(map(paragraph, self.warnings))


@dataclass(frozen=True, slots=True)
class _Start:
    """The hyperparameters by recipe key, what they rest on, the steps that they make, and what speaks against them."""

    size: ModelSize
    memory: str | None
    choices: dict[str, Choice]
    steps: int
    warnings: tuple[str, ...]


def starter_recipe(
    data: str,
    *,
    model: str | None = None,
    method: str | None = None,
    format: RowShape = "auto",
    columns: Mapping[str, str] | None = None,
    instruction: str | None = None,
    device: Device | None = None,
    overrides: Sequence[str] = (),
    name: str | None = None,
) -> Starter:
    """A commented recipe for the rows at ``data``: LoRA, unless another method is asked for or LoRA does not fit.

    Args:
        data: file, folder, dataset or URL of rows.
        model: the bundled one by default.
        method: one of the recipe's methods.
        format: format of the rows; found from them by default.
        columns: field to column of the file.
        instruction: one instruction for all rows.
        device: this machine's by default.
        overrides: ``key=value`` of the data section, about how the files are read.
        name: of the run, below ``runs``; that of the data by default.

    Raises:
        DataError: the data cannot be read, its format is not known, or no row is good.
        RecipeError: there is no such method.
        ModelError: the model is a path, and nothing is there.
    """
    _check_method(method)
    source = _source(data, overrides, format=format, columns=dict(columns or {}), instruction=instruction)
    source = with_marked_turns(source)
    refuse_rows_in_text(source)
    share = 0.0 if own_eval_split(source) is None else None
    preferred = preferred_objective(source)
    found = survey_rows(
        DataSettings.model_validate({"train": [source], "eval": share, "on_error": "skip"}),
        seed=0,
        objective=preferred[0] if preferred else None,
    )
    device, path = device or this_device(), model or next(iter(BUNDLED))
    if path.startswith((".", "/", "~")) or not Path(path).is_dir():
        kind(path, where="--model")  # a name that is no hub id must be something that is here
    size, texts = model_size(path), texts_of(found.scan)
    held_out, evaluation = rows_held_out(found), evaluation_of(found.scan, texts)
    length = length_of(found.scan, texts, size.config, size.folder)
    template, no_template = template_for_calls(texts, size.folder)
    reader = found.scan.sources[0].reader
    doubled = second_header(reader.parts, source.header)
    rows, bad = counts(found.scan, found.scan.sources[0].rows)
    objectives = [name for name, shape in OBJECTIVE_SHAPES.items() if shape == reader.shape]
    start = _start(
        method,
        objectives[0] if objectives else "sft",
        found,
        held_out.train,
        model=path,
        size=size,
        device=device,
        max_length=length.tokens,
    )
    also = f" (sft would learn from them as {preferred[1]})" if preferred else ""
    learns = f"; objective {objectives[0]}, which learns which answers are better{also}" if objectives else ""
    reason = "; ".join([reader.reason, *found.left_out_in_words()])
    about = f"{source.path}: {rows_in_words(rows)}, {reason}"
    if bad:
        about += f"; {rows_in_words(bad)} cannot be used (`tunesmith check` says why)"
    recipe = CommentedRecipe(one_line(" ".join(about.split())), f"Machine: {device.described}")
    recipe.add("model", path, _about_model(model is None, device, start.size))
    _add_data(recipe, source, found.scan, held_out, length, template)
    if start.memory:
        recipe.comment("method", start.memory)
    _add_choices(recipe, start, "method")
    if objectives:
        others = f"; also {', '.join(objectives[1:])}" if objectives[1:] else ""
        sft = f"; sft learns from them as {preferred[1]}" if preferred else ""
        why = f"learns which answers are better, of rows of the shape {reader.shape}{others}{sft}"
        recipe.add("objective", objectives[0], why)
    _add_training(recipe, start, evaluated=bool(held_out.rows))
    _add_evaluation(recipe, evaluation, held_out, device)
    output_dir = f"runs/{name_of_run(name or data)}"
    recipe.add("output_dir", output_dir)
    return Starter(
        text=recipe.text(),
        model=path,
        output_dir=output_dir,
        rows=rows,
        bad=bad,
        shape=reader.shape,
        reason=f"{reason}{learns}",
        metrics=evaluation.metrics if held_out.rows else (),
        method=start.choices["method.name"].value,
        parameters=start.size.parameters,
        choices=start.choices,
        warnings=(
            *start.warnings,
            *filter(None, (length.warning, no_template, doubled)),
            *(f"{each.message}: {each.remedy}" for each in found.findings if each.id == "one_answer"),
            *_secrets(source),
        ),
    )


def refuse_missing_rows(data: str, overrides: Sequence[str] = ()) -> None:
    """Raises DataError if there is nothing at the path of the data: an output that is there already matters later."""
    error = missing_source(_source(data, overrides))
    if error is not None:
        raise error


def _secrets(source: SourceSettings) -> list[str]:
    if source.address == source.path:
        return []
    return [
        f"The recipe holds the whole address of {source.path}, which may be a secret: keep it to yourself. A run does "
        "not store it, so resume with the recipe."
    ]


def _source(data: str, overrides: Sequence[str], **settings: Any) -> SourceSettings:
    """The source, with ``["data.encoding=cp1250"]`` about how its files are read.

    Raises:
        RecipeError: an override is of another kind, or its value cannot be used.
    """
    keys = []
    for argument in overrides:
        path, _ = parse_override(argument, example="data.encoding=cp1252")
        name = ".".join(map(str, path)).removeprefix("data.")
        if name not in KEYS:
            raise RecipeError(
                f"{argument} says nothing about how a file is read",
                where=argument,
                why=f"`init` takes {', '.join(f'data.{key}' for key in KEYS)}.",
                remedy="Correct it, or set it in the recipe that `init` writes.",
            )
        keys.append(f"data.{argument.strip().removeprefix('data.')}")
    section = {"train": [{"path": data}], **settings}
    read = read_recipe({"model": "unused", "data": section, "output_dir": "unused"}, keys)
    return read.recipe.data.sources("train")[0]


class CommentedRecipe:
    """A recipe that is written key by key, with a comment behind a value or above it."""

    def __init__(self, *title: str) -> None:
        self._values = CommentedMap()
        self._values.yaml_set_start_comment("\n".join(title) + "\n\n")
        self._above: dict[str, str] = {}

    def add(self, key: str, value: Any, why: str = "") -> None:
        """Adds a value. ``key``: ``section.name``, or the name alone."""
        section, _, name = key.rpartition(".")
        values = self._values.setdefault(section, CommentedMap()) if section else self._values
        values[name] = value
        if why:
            behind = CommentToken(f" # {why}", CommentMark(0))  # two spaces: ruamel puts one before it
            values.ca.items[name] = [None, None, behind, None]
        if section in self._above:
            values.yaml_set_comment_before_after_key(name, before=self._above.pop(section), indent=2)

    def comment(self, section: str, text: str) -> None:
        """Adds a comment on a line of its own, above the section's next key."""
        self._above[section] = text

    def text(self) -> str:
        """The YAML."""
        yaml, stream = YAML(), StringIO()
        yaml.width = 2**16  # a value stays on one line with its comment
        yaml.dump(self._values, stream)
        return stream.getvalue()


def _on_one_line(values: list[str] | dict[str, str]) -> CommentedSeq | CommentedMap:
    made = CommentedSeq(values) if isinstance(values, list) else CommentedMap(values)
    made.fa.set_flow_style()
    return made


def _start(
    asked: str | None,
    objective: str,
    found: Survey,
    rows: int,
    *,
    model: str,
    size: ModelSize,
    device: Device,
    max_length: int,
) -> _Start:
    """Every hyperparameter that ``advice`` knows, from the model's size, the rows and what fits.

    Args:
        rows: to train on.
    """
    batch, epochs = advice.batch_size(rows), advice.epochs(rows)
    steps = epochs.value * math.ceil(rows / batch.value)
    recipe = Recipe.model_validate(
        {
            "model": {"path": model},
            "data": {"train": "rows", "max_length": max_length},
            "objective": objective,
            "training": {"batch_size": batch.value},
            "output_dir": "run",
        }
    )
    work = workload.of_survey(found, recipe)
    lines, refused = _planned(recipe, size, work, device)
    fits = {name: line.fits for name, line in lines.items()} or room.weights_fit(size.parameters, device)
    method = advice.method(asked, rows, fits)
    choices = {"method.name": method}
    if advice.is_adapter(method.value):
        learned = work.logits // 2 if objective == "kto" else work.logits  # half are answers to other rows' prompts
        each = lines[method.value].trainable // AdapterSettings().r if method.value in lines else None
        choices |= {"method.r": advice.rank(learned, each), "method.lora_alpha": advice.alpha()}
    choices |= {
        "training.num_train_epochs": epochs,
        "training.batch_size": replace(batch, reason=f"{batch.reason}, so about {steps:,} steps in all"),
        "training.learning_rate": advice.learning_rate(method.value, objective, size.parameters),
        "training.warmup_steps": advice.warmup(steps),
    }
    if not advice.is_adapter(method.value):
        choices["training.weight_decay"] = advice.weight_decay()
    warnings = []
    if method.value == "full" and rows < FULL_ROWS:
        warnings.append(f"full: {advice.too_few(rows)} (guide)")
    if method.value in lines and not lines[method.value].fits:
        warnings.append(f"{method.value} does not fit on this machine: {lines[method.value].why}")
    elif refused or method.value not in lines:
        warnings += [why for why in (refused, room.too_large(size, method.value, device)) if why][:1]
    if command := advice.to_install(method.value):
        warnings.append(f"{method.value} needs bitsandbytes, which is not installed: {command}")
    return _Start(size, _memory_in_words(lines, device), choices, steps, tuple(warnings))


def _planned(recipe: Recipe, size: ModelSize, work: Workload, device: Device) -> tuple[dict[str, Line], str | None]:
    """What each method would need here, if the model's config is at hand, and why there is no plan.

    Imports torch only then.
    """
    if size.config is None:
        return {}, size.fault and f"the model cannot be trained: {size.fault}"
    from tunesmith.planning.method_table import plan_methods

    try:
        planned = plan_methods(recipe, size.config, work, device, folder=size.folder)
    except ModelError as error:
        return {}, f"the model cannot be trained on this machine: {error}"
    return {line.method: line for line in planned.lines if line.tokens}, None


def _memory_in_words(lines: Mapping[str, Line], device: Device) -> str | None:
    if not lines:
        return None
    needs = [
        f"{line.method} {gigabytes(line.memory.total)}{'' if line.fits else ' (does not fit)'}"
        for line in lines.values()
    ]
    return f"Memory, of {gigabytes(device.memory)}: {', '.join(needs)}; `tunesmith plan` says more"


def _check_method(name: str | None) -> None:
    if name is not None and name not in METHOD_SETTINGS:
        near = difflib.get_close_matches(name, METHOD_SETTINGS, n=1, cutoff=0.6)
        known = f"The methods are {', '.join(METHOD_SETTINGS)}."
        raise RecipeError(
            f"there is no method {name!r}",
            where="--method",
            remedy=f"Did you mean {near[0]}? {known}" if near else known,
        )


def _add_choices(recipe: CommentedRecipe, start: _Start, section: str) -> None:
    for key, choice in start.choices.items():
        if key.startswith(f"{section}."):
            value = YAML().load(rate_text(choice.value)) if key.endswith("learning_rate") else choice.value
            recipe.add(key, value, str(choice))


def name_of_run(data: str) -> str:
    """The name of a run on this data: the file without its endings, or the folder for train.csv and such."""
    path = data.partition("?")[0].rstrip("/") if "://" in data else str(Path(data).absolute())
    parts = [ENDINGS.sub("", part).partition("@")[0] for part in path.split("/")[-2:]]
    name = parts[0] if parts[-1].lower() in (*TRAIN, "data") and parts[0] else parts[-1]
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "data"


def _about_model(bundled: bool, device: Device, size: ModelSize) -> str:
    if not bundled:
        if size.parameters is None:
            return f"its size is not known here: {size.basis}"
        return f"{advice.in_short(size.parameters)} parameters, by {size.basis}"
    if device.kind == "cpu":
        return "small enough for a CPU; a larger one (hub id, folder or .gguf file) learns more and takes longer"
    billions = 0.7 * device.memory / 3e9  # bf16 weights, and half as much again for activations
    return f"the smallest; this GPU has room for about {billions:.0f}B parameters under lora (a hub id or folder)"


def _add_data(
    recipe: CommentedRecipe,
    source: SourceSettings,
    scan: Scan,
    held_out: HeldOut,
    length: Length,
    template: str | None,
) -> None:
    recipe.add("data.train", source.address)
    if held_out.share is None:
        recipe.comment("data", held_out.reason)
    else:
        recipe.add("data.eval", held_out.share, held_out.reason)
    if source.format != "auto":
        recipe.add("data.format", source.format)
    if source.columns:
        recipe.add("data.columns", _on_one_line(source.columns))
    if source.instruction is not None:
        recipe.add("data.instruction", source.instruction)
    for key in KEYS:
        if getattr(source, key) != type(source).model_fields[key].default:
            recipe.add(f"data.{key}", getattr(source, key))
    for key, (value, why) in needed_keys(scan, template).items():
        recipe.add(f"data.{key}", value, why)
    recipe.add("data.max_length", length.tokens, length.reason)
    if length.warning:
        recipe.add("data.too_long", "drop", "rows that are longer than that are left out, and counted")


def _add_training(recipe: CommentedRecipe, start: _Start, *, evaluated: bool) -> None:
    steps, between = start.steps, max(1, round(start.steps / 5))
    _add_choices(recipe, start, "training")
    recipe.add("training.lr_scheduler_type", "cosine")
    recipe.add("training.logging_steps", max(1, min(10, steps // 20)))
    if evaluated:
        recipe.add("training.eval_steps", between, "steps between validation losses")
    recipe.add("training.save_steps", between, "a run that was stopped continues from its last checkpoint")
    recipe.add("training.seed", 0)


def _add_evaluation(recipe: CommentedRecipe, evaluation: Evaluation, held_out: HeldOut, device: Device) -> None:
    if not held_out.rows:
        return
    recipe.add("evaluation.metrics", _on_one_line(list(evaluation.metrics)), evaluation.reason)
    if evaluation.new_tokens is not None:
        recipe.add("evaluation.max_new_tokens", evaluation.new_tokens, "room for the longest answer")
    if device.kind == "cpu" and held_out.rows > ROWS_JUDGED_ON_A_CPU and evaluation.metrics:
        why = "answers take their time on a CPU; more rows: a narrower interval"
        recipe.add("evaluation.max_rows", ROWS_JUDGED_ON_A_CPU, why)
