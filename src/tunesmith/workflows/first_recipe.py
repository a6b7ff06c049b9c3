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
from tunesmith.data.files.reader import own_eval_split
from tunesmith.data.files.splits import TRAIN
from tunesmith.data.finding import rows_in_words
from tunesmith.data.placement import OUTCOME, place_rows
from tunesmith.data.report.findings import CHARACTERS_PER_TOKEN, labels_of
from tunesmith.data.survey import Survey, survey_rows
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.evaluation.metrics.answers import JsonFields
from tunesmith.model.weights.bundled import BUNDLED
from tunesmith.planning import advice, workload
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

if TYPE_CHECKING:
    from tunesmith.planning.method_table import Line

SHARES = (0.1, 0.2, 0.3, 0.5)
ENOUGH_HELD_OUT = 20  # rows; fewer seldom show a difference
ROWS_JUDGED_ON_A_CPU = 200
ENDINGS = re.compile(
    r"(\.(jsonl|ndjson|json|csv|tsv|parquet|txt|md|markdown|rst|html?))?(\.(gz|bz2|xz))?$", re.IGNORECASE
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

    def _repr_html_(self) -> str:
        return preformatted(self.text) + "".join(map(paragraph, self.warnings))


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """Metrics with the reason for them, and tokens of the longest answer."""

    metrics: tuple[str, ...]
    reason: str
    new_tokens: int | None


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """The share of rows for data.eval, None for a split of the data's own; why; and the rows of both splits."""

    share: float | None
    reason: str
    train: int
    rows: int


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

    Raises:
        DataError: the data cannot be read, its format is not known, or no row is good.
        RecipeError: there is no such method.
    """
    _check_method(method)
    source = SourceSettings.model_validate(
        {
            "path": data,
            "format": format,
            "columns": dict(columns or {}),
            "instruction": instruction,
            **_reading(overrides),
        }
    )
    share = 0.0 if own_eval_split(source) is None else None
    found = survey_rows(DataSettings.model_validate({"train": [source], "eval": share, "on_error": "skip"}), seed=0)
    device = device or this_device()
    held_out, evaluation = _held_out(found), _evaluation(found.scan)
    reader = found.scan.sources[0].reader
    rows, bad = _counts(found.scan, found.scan.sources[0].rows)
    objectives = [name for name, shape in OBJECTIVE_SHAPES.items() if shape == reader.shape]
    max_length = _max_length(found.scan)
    path = model or next(iter(BUNDLED))
    start = _start(
        method,
        objectives[0] if objectives else "sft",
        found,
        held_out.train,
        model=path,
        device=device,
        max_length=max_length,
    )
    about = f"{data}: {rows_in_words(rows)}, {reader.reason}"
    if bad:
        about += f"; {rows_in_words(bad)} cannot be used (`tunesmith check` says why)"
    recipe = CommentedRecipe(_printable(about), f"Machine: {device.described}")
    recipe.add("model", path, _about_model(model is None, device, start.size))
    _add_data(recipe, source, found.scan, held_out, max_length)
    if start.memory:
        recipe.comment("method", start.memory)
    _add_choices(recipe, start, "method")
    if objectives:
        others = f"; also {', '.join(objectives[1:])}" if objectives[1:] else ""
        why = f"learns which answers are better, of rows of the shape {reader.shape}{others}"
        recipe.add("objective", objectives[0], why)
    _add_training(recipe, start, evaluated=bool(held_out.rows))
    _add_evaluation(recipe, evaluation, held_out, device)
    recipe.add("output_dir", f"runs/{_name(data)}")
    return Starter(
        text=recipe.text(),
        model=path,
        output_dir=f"runs/{_name(data)}",
        rows=rows,
        bad=bad,
        shape=reader.shape,
        reason=reader.reason,
        metrics=evaluation.metrics if held_out.rows else (),
        method=start.choices["method.name"].value,
        parameters=start.size.parameters,
        choices=start.choices,
        warnings=start.warnings,
    )


def _reading(overrides: Sequence[str]) -> dict[str, Any]:
    """``["data.encoding=cp1250"]`` as settings of a source."""
    found: dict[str, Any] = {}
    for argument in overrides:
        path, value = parse_override(argument, example="data.encoding=cp1252")
        name = ".".join(map(str, path)).removeprefix("data.")
        if name not in READING or not isinstance(value, str):
            raise RecipeError(
                f"{argument} says nothing about how a file is read",
                where=argument,
                why=f"`init` takes {', '.join(f'data.{key}' for key in READING)}, and each is a text.",
                remedy="Correct it, or set it in the recipe that `init` writes.",
            )
        found[name] = value
    return found


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
    asked: str | None, objective: str, found: Survey, rows: int, *, model: str, device: Device, max_length: int
) -> _Start:
    """Every hyperparameter that ``advice`` knows, from the model's size, the rows and what fits.

    Args:
        rows: to train on.
    """
    size = model_size(model)
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
    lines = _planned(recipe, size, work, device)
    method = advice.method(asked, rows, {name: line.fits for name, line in lines.items()})
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
    if command := advice.to_install(method.value):
        warnings.append(f"{method.value} needs bitsandbytes, which is not installed: {command}")
    return _Start(size, _memory_in_words(lines, device), choices, steps, tuple(warnings))


def _planned(recipe: Recipe, size: ModelSize, work: Workload, device: Device) -> dict[str, Line]:
    """What each method would need here, if the model's config is at hand. Imports torch only then."""
    if size.config is None:
        return {}
    from tunesmith.planning.method_table import plan_methods

    try:
        planned = plan_methods(recipe, size.config, work, device, folder=size.folder)
    except ModelError:
        return {}
    return {line.method: line for line in planned.lines if line.tokens}


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


def _name(data: str) -> str:
    """The name of a run on this data: the file without its endings, or the folder for train.csv and such."""
    path = data.rstrip("/") if "://" in data else str(Path(data).absolute())
    parts = [ENDINGS.sub("", part).partition("@")[0] for part in path.split("/")[-2:]]
    name = parts[0] if parts[-1].lower() in (*TRAIN, "data") and parts[0] else parts[-1]
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "data"


def _counts(scan: Scan, rows: slice) -> tuple[int, int]:
    good = int(scan.good[rows].sum())
    return good, rows.stop - rows.start - good


def _held_out(found: Survey) -> _HeldOut:
    """The dataset's own split; else the smallest share that holds out enough rows, else the one with the most."""
    train, held_out = (_counts(found.scan, each.rows)[0] for each in (found.scan.sources[0], found.scan.sources[-1]))
    if len(found.scan.sources) > 1:
        split = found.scan.sources[-1].reader.split
        return _HeldOut(None, f"eval: the data's own split {split} ({held_out:,} rows) is held out", train, held_out)
    best = _HeldOut(0, "too few different prompts to hold any out, so there will be no verdict", train, 0)
    for share in SHARES:
        try:
            outcome = place_rows(found.scan, found.settings, eval_share=share, test_share=0.0)
        except DataError:
            continue
        rows = int((outcome == OUTCOME["held_out"]).sum())
        if rows > best.rows:
            why = f"{rows:,} rows are held out, chosen by their prompts, to judge on"
            best = _HeldOut(share, why, train - rows, rows)
        if rows >= ENOUGH_HELD_OUT:
            break
    return best


def _evaluation(scan: Scan) -> _Evaluation:
    """Metrics by what the answers look like."""
    shape = scan.sources[0].reader.shape
    if shape == "preference":
        return _Evaluation(("preference_accuracy",), "how often the model finds the chosen answer likelier", None)
    if shape == "unpaired_preference":
        return _Evaluation(("loss",), "kto's own: there are no pairs to compare", None)
    if not (scan.good & ~scan.raw_text).any():
        return _Evaluation((), "raw text has no answers to compare, so the verdict is by loss", None)
    answers = (example.answer() for block in scan.examples() for _, example in block if example.text is None)
    most_bytes, json_objects = 0, True
    for answer in answers:
        most_bytes = max(most_bytes, len(answer.encode(errors="replace")))
        json_objects = json_objects and JsonFields().fault_of(answer) is None
    new_tokens = min(1024, 32 * math.ceil((most_bytes / 2 + 16) / 32))  # few tokenizers need one for two bytes
    if json_objects:
        return _Evaluation(
            ("json_exact", "json_fields"),
            "every answer is a JSON object: equal as a whole, and field by field",
            new_tokens,
        )
    labels = labels_of(scan)
    if labels is not None:
        longest = int(scan.answer_characters.max())
        reason = f"the answers are labels: {len(labels):,} different ones, of at most {longest} characters"
        return _Evaluation(("exact_match",), reason, new_tokens)
    reason = "free text has many right answers, so the verdict is by loss; or name a function: [my_module:score]"
    return _Evaluation((), reason, new_tokens)


def _about_model(bundled: bool, device: Device, size: ModelSize) -> str:
    if not bundled:
        if size.parameters is None:
            return f"its size is not known here: {size.basis}"
        return f"{advice.in_short(size.parameters)} parameters, by {size.basis}"
    if device.kind == "cpu":
        return "small enough for a CPU; a larger one (hub id, folder or .gguf file) learns more and takes longer"
    billions = 0.7 * device.memory / 3e9  # bf16 weights, and half as much again for activations
    return f"the smallest; this GPU has room for about {billions:.0f}B parameters under lora (a hub id or folder)"


def _max_length(scan: Scan) -> int:
    if _only_documents(scan):
        return 2048  # longer ones are split
    return 2 ** math.ceil(math.log2(max(2048, 1.25 * _longest(scan))))


def _only_documents(scan: Scan) -> bool:
    return not (scan.good & ~scan.raw_text).any()


def _longest(scan: Scan) -> int:
    """Tokens, by characters."""
    return int(scan.characters[scan.sources[0].rows].max()) // CHARACTERS_PER_TOKEN


def _add_data(recipe: CommentedRecipe, source: SourceSettings, scan: Scan, held_out: _HeldOut, max_length: int) -> None:
    recipe.add("data.train", source.path)
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
    for key in READING:
        if getattr(source, key) is not None:
            recipe.add(f"data.{key}", getattr(source, key))
    why = f"tokens; the longest row has about {max(_longest(scan), 1):,}, by its characters"
    if _only_documents(scan):
        why = "tokens; a longer document is split into blocks, none is lost"
    recipe.add("data.max_length", max_length, why)


def _add_training(recipe: CommentedRecipe, start: _Start, *, evaluated: bool) -> None:
    steps, between = start.steps, max(1, round(start.steps / 5))
    _add_choices(recipe, start, "training")
    recipe.add("training.lr_scheduler_type", "cosine")
    recipe.add("training.logging_steps", max(1, min(10, steps // 20)))
    if evaluated:
        recipe.add("training.eval_steps", between, "steps between validation losses")
    recipe.add("training.save_steps", between, "a run that was stopped continues from its last checkpoint")
    recipe.add("training.seed", 0)


def _add_evaluation(recipe: CommentedRecipe, evaluation: _Evaluation, held_out: _HeldOut, device: Device) -> None:
    if not held_out.rows:
        return
    recipe.add("evaluation.metrics", _on_one_line(list(evaluation.metrics)), evaluation.reason)
    if evaluation.new_tokens is not None:
        recipe.add("evaluation.max_new_tokens", evaluation.new_tokens, "room for the longest answer")
    if device.kind == "cpu" and held_out.rows > ROWS_JUDGED_ON_A_CPU and evaluation.metrics:
        why = "answers take their time on a CPU; more rows: a narrower interval"
        recipe.add("evaluation.max_rows", ROWS_JUDGED_ON_A_CPU, why)


def _printable(text: str) -> str:
    """A text that cannot end the comment that it is in."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))
