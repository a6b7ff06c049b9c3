"""Measures real steps of one method in a process of its own, and compares them with the prediction.

The process is ``python -m tunesmith.workflows.trial JOB.json RESULT.json``. Each method has a fresh one, because a peak
that was reached once hides every lower one after it, and a heap that has grown does not shrink. The steps change
nothing: the learning rate is 0, and nothing is saved.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.data.batches.layout import Batch
from tunesmith.data.chat.template import Encoded
from tunesmith.errors import ModelError, TunesmithError
from tunesmith.model.weights.added_tokens import NO_TOKENS, AddedTokens
from tunesmith.model.weights.load import load_config
from tunesmith.model.weights.resolve import resolve
from tunesmith.model.weights.text_side import tokenizer_of
from tunesmith.planning import memory
from tunesmith.planning.budget import Plan
from tunesmith.planning.devices import Device, sgemm
from tunesmith.planning.method_table import Line, as_started, methods_to_plan, typical_row, with_method
from tunesmith.planning.shape_from_model import ModelCounter, recipe_config
from tunesmith.planning.step_time import step_seconds
from tunesmith.recipe.file import portable, read_recipe
from tunesmith.recipe.methods import AdapterSettings, method_label
from tunesmith.recipe.settings import SELECTING, Recipe
from tunesmith.runs.child_processes import clean_environment, python_command
from tunesmith.runs.progress import Silent, StepResult
from tunesmith.runs.temporary import temporary_folder
from tunesmith.training.attach import ModelInputs, load_for_training, optimizer_of
from tunesmith.training.loop import Hooks, Step, train_steps
from tunesmith.training.objectives.preference import PreferenceObjective
from tunesmith.training.objectives.supervised import CrossEntropy
from tunesmith.training.objectives.table import preference_objective
from tunesmith.training.rehearsal import heaviest
from tunesmith.training.setup import prepare_training
from tunesmith.training.step_rows import lay_out_step, order_of

MEASURED_STEPS = 3  # the first makes the optimizer's moments and is not timed
MADE_ROWS = 16  # of random tokens


def at_measure(line: Line, recipe: Recipe, device: Device) -> Recipe:
    """The recipe of the steps to measure for a line: its method, micro-batch and checkpointing, all resolved."""
    recipe = as_started(recipe)
    settings = next(each for each, _ in methods_to_plan(recipe) if method_label(each) == line.method)
    asked = with_method(recipe, settings, device)
    return asked.with_values(training={"micro_batch_tokens": line.budget, "gradient_checkpointing": line.checkpointing})


@dataclass(frozen=True, slots=True)
class Comparison:
    """Predicted beside measured for the very same micro-batch; errors are predicted / measured - 1."""

    method: str
    tokens: int
    predicted_bytes: int
    measured_bytes: int
    memory_error: float
    predicted_seconds: float
    measured_seconds: float
    time_error: float


def compare_prediction(
    config: Mapping[str, Any], asked: Recipe, device: Device, trial: Trial, *, folder: Path | None = None
) -> Comparison:
    """What would have been predicted for the steps that were measured.

    Args:
        config: of the model, as config.json has it.
        asked: the recipe of the steps (``at_measure``).
        trial: the speed of a CPU is what it was next to the steps.
        folder: the model's, if there is one.
    """
    counted = ModelCounter(recipe_config(asked, config, folder), folder).count(asked)
    checkpointing = bool(asked.training.gradient_checkpointing)
    chosen = Plan(counted.shape, int(asked.training.micro_batch_tokens), trial.tokens, checkpointing, device.memory)
    if trial.flops:
        device = replace(device, fp32=trial.flops)
    seconds = step_seconds(
        counted,
        asked,
        device,
        computed=trial.tokens,
        logits=trial.logits,
        pairs=trial.pairs,
        checkpointing=checkpointing,
    )
    predicted = chosen.peak_of_many_steps(typical_row(trial.tokens, trial.pairs)).training
    return Comparison(
        method=method_label(asked.method),
        tokens=trial.tokens,
        predicted_bytes=predicted,
        measured_bytes=trial.peak,
        memory_error=predicted / trial.peak - 1,
        predicted_seconds=seconds,
        measured_seconds=trial.seconds,
        time_error=seconds / trial.seconds - 1,
    )


@dataclass(frozen=True, slots=True)
class Trial:
    """What some steps of the heaviest micro-batch took.

    ``peak`` is the most bytes held, ``seconds`` the fastest of the timed steps. ``tokens`` are those computed,
    ``logits`` those of them whose logits a label needs, ``pairs`` the pairs of tokens that see each other,
    ``rows_tokens`` what the rows hold. ``flops``: what a CPU gave on a matrix product, next to the steps; 0 on a GPU.
    """

    peak: int
    seconds: float
    tokens: int
    rows_tokens: int
    logits: int
    pairs: int
    flops: float


def run_trial(recipe: Recipe, *, length: int | None = None, limit: float = 600.0) -> Trial:
    """Measures in a fresh process.

    Args:
        recipe: with micro-batch, checkpointing, device, dtype and threads resolved.
        length: of made-up rows; None: the recipe's own.
        limit: seconds.

    Raises:
        ModelError: the steps could not be measured: out of memory, or not within the limit.
    """
    with temporary_folder("tunesmith-") as folder:
        job, result, said = (folder / name for name in ("job.json", "result.json", "output.txt"))
        asked = {"recipe": {**_steps_only(recipe), "output_dir": str(folder / "run")}, "length": length}
        job.write_text(json.dumps(asked), encoding="utf-8")
        with said.open("wb") as output:
            try:
                done = subprocess.run(
                    python_command("-m", "tunesmith.workflows.trial", str(job), str(result)),
                    env=clean_environment(OMP_NUM_THREADS=str(recipe.training.threads)),
                    stdout=output,
                    stderr=output,
                    stdin=subprocess.DEVNULL,
                    timeout=limit,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise _failed(recipe, f"They were not done within {limit:.0f} s.") from None
        found = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
        if "error" in found:
            raise _failed(recipe, found["error"])
        if not found:
            lines = [line for line in said.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            raise _failed(recipe, lines[-1] if lines else f"The process ended with {done.returncode} (out of memory?).")
        return Trial(**found)


def _steps_only(recipe: Recipe) -> dict[str, Any]:
    """The recipe without metrics, which are of no use to the steps: a function would need consent to be run."""
    values = portable(recipe)
    values["training"] = {name: value for name, value in values["training"].items() if name not in SELECTING}
    return {**values, "evaluation": {}}


def _failed(recipe: Recipe, why: str) -> ModelError:
    return ModelError(
        f"Steps of {recipe.method.name} could not be measured",
        where=recipe.model.path,
        why=why,
        remedy="Plan without --measure, or fix what it names.",
    )


def measure_steps(recipe: Recipe, *, length: int | None) -> Trial:
    """Measures in this process; see ``run_trial``."""
    threads = int(recipe.training.threads)
    torch.set_num_threads(threads)
    inputs, steps = _own_rows(recipe) if length is None else _made_rows(recipe, length)
    ready = load_for_training(inputs, None, Silent())
    preference = preference_objective(ready.recipe)
    batch = heaviest(_micro_batches(ready.recipe, steps, preference))
    optimizer, device = optimizer_of(ready), ready.recipe.model.device
    on_cpu = torch.device(device).type == "cpu"
    speeds = [sgemm(threads)] if on_cpu else []
    results: list[StepResult] = []
    memory.begin_peak(device)
    train_steps(
        ready.model,
        [Step(number, 0.0, [batch]) for number in range(1, MEASURED_STEPS + 1)],
        objective=preference or CrossEntropy(),
        optimizer=optimizer,
        rate=lambda _: 0.0,
        max_grad_norm=ready.recipe.training.max_grad_norm,
        seed=ready.recipe.training.seed,
        hooks=Hooks(on_step=results.append),
    )
    peak = memory.peak(device)
    speeds += [sgemm(threads)] if on_cpu else []
    return Trial(
        peak=peak,
        seconds=min(result.seconds for result in results[1:]),
        tokens=batch.computed,
        rows_tokens=batch.tokens,
        logits=int(batch.predicts.sum()),
        pairs=int((batch.position_ids + 1).sum()),
        flops=sum(speeds) / len(speeds) if speeds else 0.0,
    )


def _micro_batches(
    recipe: Recipe, steps: Iterable[Sequence[Encoded]], objective: PreferenceObjective | None
) -> Iterator[Batch]:
    settings = recipe.training
    assert settings.layout != "auto", "the layout is resolved when the model is loaded"
    for rows in steps:
        yield from lay_out_step(rows, objective, budget=int(settings.micro_batch_tokens), layout=settings.layout)


def _own_rows(recipe: Recipe) -> tuple[ModelInputs, Iterable[Sequence[Encoded]]]:
    """The recipe's data, and the rows of each step of its first epoch."""
    prepared = prepare_training(recipe, Silent())
    return prepared, islice(prepared.rows_of_steps(), order_of(prepared.recipe, prepared.corpus).steps_in(0))


def _made_rows(recipe: Recipe, length: int) -> tuple[ModelInputs, Iterable[Sequence[Encoded]]]:
    """Rows of random tokens, which share nothing. Each learns its second half, and two answers have one prompt."""
    folder = resolve(recipe.model.path, revision=recipe.model.revision, say=Silent().say)
    config = load_config(folder, trust_remote_code=recipe.model.trust_remote_code)
    added = tokenizer_of(folder, recipe.model)[1] if recipe.model.named_tokens else NO_TOKENS
    objective = preference_objective(recipe)
    answers = 1 if objective is None else objective.answers
    learned = np.arange(length) >= length // 2  # [tokens]
    vocabulary = config.get_text_config().vocab_size
    ids = np.random.default_rng(0).integers(0, vocabulary, (MADE_ROWS, answers, length), dtype=np.int32)
    ids[:, :, ~learned] = ids[:, :1, ~learned]  # the answers of an example have its first answer's prompt
    rows = [Encoded(row, learned, "made", number) for number, example in enumerate(ids) for row in example]
    start = recipe.method.adapter_name_or_path if isinstance(recipe.method, AdapterSettings) else None
    size = recipe.training.batch_size * answers
    steps = [rows[first : first + size] for first in range(0, len(rows), size)]
    return _MadeRows(recipe, folder, added, None if start is None else Path(start), rows, steps), steps


@dataclass(frozen=True, slots=True)
class _MadeRows:
    """A recipe's model with made-up rows: what ``load`` needs to know."""

    recipe: Recipe
    folder: Path
    added: AddedTokens
    start: Path | None
    rows: Sequence[Encoded]
    steps: Sequence[Sequence[Encoded]]
    started_in: Path = field(default_factory=Path.cwd)

    def rows_of_steps(self) -> Iterator[Sequence[Encoded]]:
        """The rows of each optimizer step."""
        return iter(self.steps)


def _main(job: Path, result: Path) -> None:
    """Reads a job, writes what was measured, or ``{"error"}``."""
    asked = json.loads(job.read_text(encoding="utf-8"))
    try:
        found = asdict(measure_steps(read_recipe(asked["recipe"]).recipe, length=asked["length"]))
    except TunesmithError as error:
        found = {"error": error.render()}
    except MemoryError:
        found = {"error": "Memory ran out."}
    result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
