"""Writes and reads checkpoints: a model folder that other libraries load, with the optimizer's state beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tunesmith.errors import TrainError
from tunesmith.runs.checkpoint_names import checkpoint_name, checkpoints_in, step_of
from tunesmith.runs.disk import bytes_in, is_full, why_full
from tunesmith.runs.folder import Run
from tunesmith.runs.manifest import in_words, is_listed, refuse_damaged, take_off, write_manifest
from tunesmith.runs.plain_files import read_plain
from tunesmith.runs.progress import Listener, StepResult
from tunesmith.runs.recorder import Totals
from tunesmith.runs.stored_shapes import fields_fault, is_of
from tunesmith.runs.whole_files import recover_folder, remove_folder, whole_folder
from tunesmith.training.guard import Seen, refuse_to_save
from tunesmith.training.optim import load_optimizer_state, optimizer_state
from tunesmith.training.selection import Selection

OPTIMIZER = "optimizer.safetensors"
STATE = "training_state.json"
SMALLER = "smaller_micro_batches"  # [[first step, tokens]], in status.json and in checkpoints
ONLY_AS_BEST, ONLY_TO_STOP = "only_as_best", "only_to_stop"  # why a checkpoint is there that the recipe does not plan
UNWRITTEN = "unwritten"  # the result of a step whose line of metrics may still be due
_FORM: dict[str, Any] = {
    "step": int, "totals": dict[str, Any], "validation_due": float | None, ONLY_AS_BEST: bool | None,
    ONLY_TO_STOP: bool | None,
    SMALLER: list[Annotated[list[int], Field(min_length=2, max_length=2)]],
}  # fmt: skip


def save(
    folder: Path,
    step: int,
    *,
    write_model: Callable[[Path], None],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    needed: Callable[[], int] | None = None,
) -> Path:
    """Writes ``folder/step-NNNNNN``: the model by ``write_model``, the optimizer, ``state`` as JSON, and the manifest.

    A killed process leaves no incomplete checkpoint. A folder of the same step is replaced: it is of a run that was
    stopped before it could record the step.

    Raises:
        TrainError: the checkpoint cannot be written; ``needed`` gives the bytes for its message.
        NotFiniteError: it would hold infinite values or NaN.
    """
    target = folder / checkpoint_name(step)
    moments = optimizer_state(optimizer)
    refuse_to_save(moments, step=step, what="optimizer's state")
    try:
        with whole_folder(target) as beside:
            write_model(beside)
            save_file(moments, beside / OPTIMIZER)
            (beside / STATE).write_text(json.dumps({"step": step, **state}, indent=2) + "\n", encoding="utf-8")
            write_manifest(beside)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        raise TrainError(
            "The checkpoint cannot be written",
            where=str(target),
            why=why_full(folder, error, needed and needed()) if is_full(error) else str(error),
            remedy="Make room or choose another output_dir; earlier checkpoints are whole. Then train with --resume.",
        ) from error
    return target


def restore(checkpoint: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restores the optimizer's state, if it is kept, and returns the saved JSON.

    Raises TrainError if the checkpoint is damaged.
    """
    file = checkpoint / OPTIMIZER
    try:
        if has_optimizer(checkpoint):
            load_optimizer_state(optimizer, load_file(file))
        file = checkpoint / STATE
        return _state_of(checkpoint)
    except (OSError, SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise TrainError(
            "The checkpoint cannot be read",
            where=str(file),
            why=f"{type(error).__name__}: {error}",
            remedy="Remove this checkpoint folder: --resume then continues from the newest one that holds its "
            "optimizer state (by default none does), or else from the first step, with the same result.",
        ) from error


def smaller_in_status(run: Run) -> list[list[int]]:
    """The smaller micro-batches that status.json names. Raises RunError if they do not have that form."""
    found = run.status().get(SMALLER, [])
    if not is_of(_FORM[SMALLER], found):
        raise run.damaged("status.json", f"{SMALLER} is {str(found)[:40]!r}.")
    return found


def _state_of(checkpoint: Path) -> dict[str, Any]:
    """The saved JSON. Raises ValueError for what does not have the form that a run saves."""
    state = _read_state(checkpoint)
    if not isinstance(state, dict):
        raise ValueError("It is not a JSON object.")
    for name, hint in _FORM.items():
        if name in state and not is_of(hint, state[name]):
            raise ValueError(f"{name} is {str(state[name])[:40]!r}.")
    if state["step"] < 0:
        raise ValueError(f"step is {state['step']}.")
    totals = dict(state.get("totals", {}))
    parts = {"guard": (Seen, state.get("guard") or {}), "totals.selection": (Selection, totals.pop("selection", {}))}
    parts[UNWRITTEN] = (StepResult, state.get(UNWRITTEN) or {})
    for name, (kind, found) in {**parts, "totals": (Totals, totals)}.items():
        fault = fields_fault(kind, found) if found or kind not in (Selection, StepResult) else None
        if fault is not None:
            raise ValueError(f"{name}: {fault}")
    return state


def _read_state(checkpoint: Path) -> Any:
    return json.loads(read_plain(checkpoint / STATE))


def has_optimizer(checkpoint: Path) -> bool:
    """Whether the optimizer's state is kept with this checkpoint."""
    return (checkpoint / OPTIMIZER).is_file() and is_listed(checkpoint, OPTIMIZER)


def verify(checkpoint: Path | None, run: Run | None, listener: Listener) -> None:
    """Warns of files of a checkpoint and its run that are damaged and not needed, or that cannot be verified.

    Call it before the checkpoint is read by something that does not train. Raises RunError if it is damaged, which
    names another one.
    """
    if checkpoint is None:
        return
    unneeded = refuse_damaged(checkpoint, unread=[OPTIMIZER])
    notes = [f"{checkpoint}: {in_words(unneeded)}; only training needs that file"] if unneeded else []
    for note in notes if run is None else [*notes, *run.notes_on(checkpoint), *run.notes()]:
        listener.warn(note)


def remove_older_optimizers(folder: Path, *, newest: int) -> None:
    """Removes the optimizer's state from all checkpoints before the newest one. Call it once that one is saved."""
    for path in checkpoints_in(folder):
        if step_of(path) < newest and (path / OPTIMIZER).exists():
            take_off(path, OPTIMIZER)


def prune(folder: Path, *, keep: int, best: int | None) -> None:
    """Removes the oldest checkpoints beyond ``keep``. The newest and the best step's stay.

    A checkpoint that is there only because of a stop does not count, and goes once there is a newer one. So the others
    are those of a run without a stop.
    """
    saved = checkpoints_in(folder)
    of_stops = [path for path in saved if _is_marked(path, ONLY_TO_STOP)]
    for path in of_stops:
        if path != saved[-1]:
            remove_folder(path)
    steps = [step_of(path) for path in saved if path not in of_stops]
    removable = [step for step in steps[:-1] if step != best]
    for step in removable[: max(0, len(steps) - keep)]:
        remove_folder(folder / checkpoint_name(step))


def bytes_of_plan(folder: Path) -> int:
    """The bytes of the checkpoints in a folder, without those that are there only because of a stop."""
    return bytes_in(folder) - sum(bytes_in(path) for path in checkpoints_in(folder) if _is_marked(path, ONLY_TO_STOP))


def remove_former_best(folder: Path, *, best: int | None) -> None:
    """Removes checkpoints that were saved only because their step was the best, except the best and the newest one."""
    for path in checkpoints_in(folder)[:-1]:
        if path.name != checkpoint_name(best or 0) and _is_marked(path, ONLY_AS_BEST):
            remove_folder(path)


def _is_marked(checkpoint: Path, mark: str) -> bool:
    try:
        return bool(_read_state(checkpoint).get(mark))
    except (
        OSError,
        ValueError,
        AttributeError,
        RecursionError,
    ):  # a kill of an earlier version, which removed it
        return False


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process was still writing, and puts back a checkpoint that it was about to replace."""
    for end in (".tunesmith-old", ".old"):  # the second: of earlier versions
        for path in folder.glob(f".step-*{end}"):
            recover_folder(folder / path.name.removeprefix(".").removesuffix(end), earlier=())
    for path in folder.glob(".step-*"):
        shutil.rmtree(path)
