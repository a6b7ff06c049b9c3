"""A recipe to begin with: looks at the rows and the machine and writes YAML that says why each value is what it is."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.data.checks.scan import Scan
from tunesmith.data.files.reader import own_eval_split
from tunesmith.data.files.splits import TRAIN
from tunesmith.data.finding import rows_in_words
from tunesmith.data.placement import OUTCOME, place_rows
from tunesmith.data.report.findings import CHARACTERS_PER_TOKEN, labels_of
from tunesmith.data.survey import Survey, survey_rows
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.evaluation.metrics.answers import JsonFields
from tunesmith.planning import advice, workload
from tunesmith.planning.advice import Choice
from tunesmith.planning.budget import gigabytes
from tunesmith.planning.devices import Device
from tunesmith.planning.method_table import Line, plan_methods
from tunesmith.planning.model_size import ModelSize, model_size
from tunesmith.planning.workload import Workload
from tunesmith.recipe.data import DataSettings, SourceSettings
from tunesmith.recipe.methods import FULL_ROWS, METHOD_SETTINGS, AdapterSettings
from tunesmith.recipe.objectives import OBJECTIVE_SHAPES
from tunesmith.recipe.row_shape import RowShape
from tunesmith.recipe.schedules import rate_text
from tunesmith.recipe.settings import Recipe

BUNDLED_MODEL = "smollm2-135m-instruct"
SHARES = (0.1, 0.2, 0.3, 0.5)
ENOUGH_HELD_OUT = 20  # rows; fewer seldom show a difference
ROWS_JUDGED_ON_A_CPU = 200
PLAIN_YAML = re.compile(r"[A-Za-z_./][\w./-]*")
YAML_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n", "."})
ENDINGS = re.compile(r"(\.(jsonl|ndjson|json|csv|tsv|parquet|txt))?(\.(gz|bz2|xz))?$", re.IGNORECASE)
NOT_PRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run would have. ``gpu`` is its name, ``gpu_bytes`` its memory, ``bf16`` whether it computes in that."""

    cpus: int
    memory_bytes: int
    gpu: str | None = None
    gpu_bytes: int = 0
    bf16: bool = True

    def __str__(self) -> str:
        gpu = f"{self.gpu} ({self.gpu_bytes / GIB:.0f} GB)" if self.gpu else "no GPU"
        return f"{self.cpus} CPU{'s' * (self.cpus != 1)}, {self.memory_bytes / GIB:.0f} GB of memory, {gpu}"


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


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """Metrics with the reason for them, and tokens of the longest answer."""

    metrics: tuple[str, ...]
    reason: str
    new_tokens: int | None


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """The line of data.eval, and the rows on both sides."""

    line: str
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


def this_machine() -> Machine:
    """CPUs that this process may use, memory in all, and the GPU that torch sees."""
    import torch

    from tunesmith.planning.memory import total_memory

    cpus, memory = len(os.sched_getaffinity(0)), total_memory("cpu")
    if not torch.cuda.is_available():
        return Machine(cpus, memory)
    gpu = torch.cuda.get_device_properties(0)
    return Machine(cpus, memory, gpu.name, gpu.total_memory, torch.cuda.is_bf16_supported(including_emulation=False))


def starter_recipe(
    data: str,
    *,
    model: str | None = None,
    method: str | None = None,
    format: RowShape = "auto",
    columns: Mapping[str, str] | None = None,
    instruction: str | None = None,
    machine: Machine | None = None,
) -> Starter:
    """A commented recipe for the rows at ``data``, LoRA unless it is asked otherwise or does not fit.

    Args:
        data: file, folder, dataset or URL of rows.
        model: the bundled one unless given.
        method: one of the recipe's methods.
        format: shape of the rows; found from them unless given.
        columns: field to column of the file.
        instruction: one instruction for all rows.
        machine: this one unless given.

    Raises:
        DataError: the data cannot be read, its shape is not known, or no row is good.
        RecipeError: there is no such method.
    """
    _check_method(method)
    source = SourceSettings.model_validate(
        {"path": data, "format": format, "columns": dict(columns or {}), "instruction": instruction}
    )
    share = 0.0 if own_eval_split(source) is None else None
    found = survey_rows(DataSettings.model_validate({"train": [source], "eval": share, "on_error": "skip"}), seed=0)
    machine = machine or this_machine()
    held_out = _held_out(found)
    evaluation = _evaluation(found.scan)
    own = found.scan.sources[0]
    rows, bad = _counts(found.scan, own.rows)
    objectives = [name for name, shape in OBJECTIVE_SHAPES.items() if shape == own.reader.shape]
    max_length = _max_length(found.scan)
    start = _start(
        method,
        objectives[0] if objectives else "sft",
        found,
        held_out.train,
        model=model or BUNDLED_MODEL,
        machine=machine,
        max_length=max_length,
    )
    output_dir = f"runs/{_name(data)}"
    about = f"{rows_in_words(rows)}, {own.reader.reason}"
    if bad:
        about += f"; {rows_in_words(bad)} cannot be used (`tunesmith check` says why)"
    lines = [
        f"# {_comment(data)}: {_comment(about)}",
        f"# Machine: {machine}",
        "",
        *_model_lines(model, machine, start.size),
        *_data_lines(source, found.scan, held_out, max_length),
        "method:",
        *([f"  # {start.memory}"] if start.memory else []),
        *_chosen(start, "method"),
        *_objective_lines(objectives, own.reader.shape),
        *_training_lines(start, evaluated=bool(held_out.rows)),
        *_evaluation_lines(evaluation, held_out, machine),
        f"output_dir: {_yaml(output_dir)}",
    ]
    return Starter(
        text="\n".join(lines) + "\n",
        model=model or BUNDLED_MODEL,
        output_dir=output_dir,
        rows=rows,
        bad=bad,
        shape=own.reader.shape,
        reason=own.reader.reason,
        metrics=evaluation.metrics if held_out.rows else (),
        method=start.choices["method.name"].value,
        parameters=start.size.parameters,
        choices=start.choices,
        warnings=start.warnings,
    )


def _start(
    asked: str | None, objective: str, found: Survey, rows: int, *, model: str, machine: Machine, max_length: int
) -> _Start:
    """Every hyperparameter that ``advice`` knows, from size, rows and what fits.

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
    lines = _planned(recipe, size, work, machine)
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
    return _Start(size, _memory_in_words(lines, machine), choices, steps, tuple(warnings))


def _planned(recipe: Recipe, size: ModelSize, work: Workload, machine: Machine) -> dict[str, Line]:
    """What each method would take here, where the model's config is at hand. Speeds play no part in that."""
    if size.config is None:
        return {}
    kind, memory = ("cuda", machine.gpu_bytes) if machine.gpu else ("cpu", machine.memory_bytes)
    device = Device(machine.gpu or "cpu", kind, memory, fp32=1.0, bf16=machine.bf16)
    try:
        planned = plan_methods(recipe, size.config, work, device, folder=size.folder)
    except ModelError:
        return {}
    return {line.method: line for line in planned.lines if line.tokens}


def _memory_in_words(lines: Mapping[str, Line], machine: Machine) -> str | None:
    if not lines:
        return None
    needs = [
        f"{line.method} {gigabytes(max(line.memory.total, line.judging))}{'' if line.fits else ' (does not fit)'}"
        for line in lines.values()
    ]
    total = gigabytes(machine.gpu_bytes if machine.gpu else machine.memory_bytes)
    return f"Memory, of {total}: {', '.join(needs)}; `tunesmith plan` says more"


def _check_method(name: str | None) -> None:
    if name is not None and name not in METHOD_SETTINGS:
        near = difflib.get_close_matches(name, METHOD_SETTINGS, n=1, cutoff=0.6)
        known = f"The methods are {', '.join(METHOD_SETTINGS)}."
        raise RecipeError(
            f"there is no method {name!r}",
            where="--method",
            remedy=f"Did you mean {near[0]}? {known}" if near else known,
        )


def _chosen(start: _Start, section: str) -> list[str]:
    """The lines of a section's choices."""
    lines = []
    for key, choice in start.choices.items():
        of, _, name = key.partition(".")
        if of == section:
            value = rate_text(choice.value) if name == "learning_rate" else choice.value
            lines.append(f"  {name}: {value}  # {choice}")
    return lines


def _name(data: str) -> str:
    """What a run on this data is called: the file without its endings, or the folder for train.csv and such."""
    place = data.rstrip("/") if "://" in data else str(Path(data).absolute())
    parts = [ENDINGS.sub("", part).partition("@")[0] for part in place.split("/")[-2:]]
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
        return _HeldOut(f"  # eval: the data's own split {split} ({held_out:,} rows) is held out", train, held_out)
    none = "  eval: 0  # too few different prompts to hold any out, so there will be no verdict"
    best = _HeldOut(none, train, 0)
    for share in SHARES:
        try:
            outcome = place_rows(found.scan, found.settings, eval_share=share, test_share=0.0)
        except DataError:
            continue
        rows = int((outcome == OUTCOME["held_out"]).sum())
        line = f"  eval: {share}  # {rows:,} rows are held out, chosen by their prompts, to judge on"
        if rows > best.rows:
            best = _HeldOut(line, train - rows, rows)
        if rows >= ENOUGH_HELD_OUT:
            break
    return best


def _objective_lines(names: list[str], shape: str) -> list[str]:
    if not names:
        return []
    other = f"; also {', '.join(names[1:])}" if names[1:] else ""
    return [f"objective: {names[0]}  # learns which answers are better, of rows of the shape {shape}{other}"]


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


def _model_lines(model: str | None, machine: Machine, size: ModelSize) -> list[str]:
    if model is not None:
        if size.parameters is None:
            return [f"model: {_yaml(model)}  # its size is not known here: {size.basis}"]
        return [f"model: {_yaml(model)}  # {advice.in_short(size.parameters)} parameters, by {size.basis}"]
    if machine.gpu is None:
        why = "small enough for a CPU; a larger one (hub id, folder or .gguf file) learns more and takes longer"
    else:
        billions = 0.7 * machine.gpu_bytes / 3e9  # bf16 weights, and half as much again for activations
        why = f"the smallest; this GPU has room for about {billions:.0f}B parameters under lora (a hub id or folder)"
    return [f"model: {BUNDLED_MODEL}  # {why}"]


def _max_length(scan: Scan) -> int:
    if _only_documents(scan):
        return 2048  # longer ones are split
    return 2 ** math.ceil(math.log2(max(2048, 1.25 * _longest(scan))))


def _only_documents(scan: Scan) -> bool:
    return not (scan.good & ~scan.raw_text).any()


def _longest(scan: Scan) -> int:
    """Tokens, by characters."""
    return int(scan.characters[scan.sources[0].rows].max()) // CHARACTERS_PER_TOKEN


def _data_lines(source: SourceSettings, scan: Scan, held_out: _HeldOut, max_length: int) -> list[str]:
    lines = ["data:", f"  train: {_yaml(source.path)}", held_out.line]
    if source.format != "auto":
        lines.append(f"  format: {source.format}")
    if source.columns:
        pairs = ", ".join(f"{_yaml(field)}: {_yaml(column)}" for field, column in source.columns.items())
        lines.append(f"  columns: {{{pairs}}}")
    if source.instruction is not None:
        lines.append(f"  instruction: {_yaml(source.instruction)}")
    if _only_documents(scan):
        return [*lines, f"  max_length: {max_length}  # tokens; a longer document is split into blocks, none is lost"]
    longest = max(_longest(scan), 1)
    lines.append(f"  max_length: {max_length}  # tokens; the longest row has about {longest:,}, by its characters")
    return lines


def _training_lines(start: _Start, *, evaluated: bool) -> list[str]:
    steps, between = start.steps, max(1, round(start.steps / 5))
    lines = [
        "training:",
        *_chosen(start, "training"),
        "  lr_scheduler_type: cosine",
        f"  logging_steps: {max(1, min(10, steps // 20))}",
        f"  save_steps: {between}  # a run that was stopped goes on from its last checkpoint",
        "  seed: 0",
    ]
    if evaluated:
        lines.insert(-2, f"  eval_steps: {between}  # steps between validation losses")
    return lines


def _evaluation_lines(evaluation: _Evaluation, held_out: _HeldOut, machine: Machine) -> list[str]:
    if not held_out.rows:
        return []
    lines = ["evaluation:", f"  metrics: [{', '.join(evaluation.metrics)}]  # {evaluation.reason}"]
    if evaluation.new_tokens is not None:
        lines.append(f"  max_new_tokens: {evaluation.new_tokens}  # room for the longest answer")
    if machine.gpu is None and held_out.rows > ROWS_JUDGED_ON_A_CPU and evaluation.metrics:
        lines.append(
            f"  max_rows: {ROWS_JUDGED_ON_A_CPU}  # answers take their time on a CPU; more rows: a narrower interval"
        )
    return lines


def _yaml(text: str) -> str:
    """A text as a YAML scalar on one line: bare where that is safe, else in double quotes."""
    if PLAIN_YAML.fullmatch(text) and text.lower() not in YAML_WORDS:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return NOT_PRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


def _comment(text: str) -> str:
    """A text that cannot end the comment it stands in."""
    return NOT_PRINTABLE.sub("?", " ".join(text.split()))
