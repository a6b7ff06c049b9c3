"""Checkpoints: a folder the ecosystem can load, with the optimizer's state beside it. Complete or not there at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tunesmith.errors import TrainError
from tunesmith.runs.whole_files import whole_folder
from tunesmith.training.optim import load_optimizer_state, optimizer_state

OPTIMIZER = "optimizer.safetensors"
STATE = "training_state.json"


def name(step: int) -> str:
    """``step-000100``."""
    return f"step-{step:06d}"


def save(
    folder: Path,
    step: int,
    *,
    write_model: Callable[[Path], None],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> Path:
    """Writes ``folder/step-NNNNNN``: the model by ``write_model``, the optimizer, and ``state`` as JSON.

    A kill leaves no half checkpoint. A step that is there already, of a run that was stopped before it could record
    it, is replaced. Raises TrainError if the checkpoint cannot be written.
    """
    target = folder / name(step)
    try:
        with whole_folder(target) as beside:
            write_model(beside)
            save_file(optimizer_state(optimizer), beside / OPTIMIZER)
            (beside / STATE).write_text(json.dumps({"step": step, **state}, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        raise TrainError(
            "The checkpoint cannot be written",
            where=str(target),
            why=str(error),
            remedy="Make room or choose another output_dir; earlier checkpoints are whole. Then train with --resume.",
        ) from error
    return target


def load(checkpoint: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Puts the optimizer's state back and returns the saved JSON. Raises TrainError if the checkpoint is damaged."""
    file = checkpoint / OPTIMIZER
    try:
        load_optimizer_state(optimizer, load_file(file))
        file = checkpoint / STATE
        return read_state(checkpoint)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise TrainError(
            "The checkpoint cannot be read",
            where=str(file),
            why=f"{type(error).__name__}: {error}",
            remedy="Remove this checkpoint folder: --resume then continues from the one before it.",
        ) from error


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON beside the weights: step, tokens, best step."""
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))


def prune(folder: Path, *, keep: int, protected: set[int]) -> None:
    """Removes the oldest checkpoints beyond ``keep``; the newest and the protected steps stay."""
    steps = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
    removable = [step for step in steps[:-1] if step not in protected]
    for step in removable[: max(0, len(steps) - keep)]:
        shutil.rmtree(folder / name(step))


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process was still writing."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path)
