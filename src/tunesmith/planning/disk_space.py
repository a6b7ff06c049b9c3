"""Predicts the bytes that a run's checkpoints take on the disk, from what its method trains and keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import TrainError
from tunesmith.planning.step_shape import StepBytes
from tunesmith.recipe.paths import local
from tunesmith.recipe.settings import Recipe, TrainingSettings

SHARD = 5 * 10**9  # bytes of a file of weights, at most
WHOLE = ("full", "freeze")  # methods whose checkpoints hold the whole model


@dataclass(frozen=True, slots=True)
class CheckpointBytes:
    """The bytes of one checkpoint: its weights, the optimizer's state, and the tokenizer with other small files."""

    weights: int
    optimizer: int
    text: int = 0

    @property
    def total(self) -> int:
        """All files."""
        return self.weights + self.optimizer + self.text

    @property
    def largest(self) -> int:
        """The largest file; weights are cut into shards."""
        return max(min(self.weights, SHARD), self.optimizer, self.text)


def least_bytes(recipe: Recipe) -> int:
    """The least that the run's first checkpoint takes, by the sizes of the model's files alone: 0 if they are not here.

    It needs no torch, so that what cannot fit at all is refused at once.
    """
    folder = Path(local(recipe.model.path))
    if recipe.method.name not in WHOLE or not folder.is_dir():
        return 0
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return stored if recipe.model.dtype == "float32" else stored // 2  # it may be stored in fp32 and trained in bf16


def does_not_fit(folder: Path, why: str, training: TrainingSettings, *, each: int, most: int) -> TrainError:
    """The refusal of a run whose checkpoints do not fit.

    Args:
        each: bytes of a checkpoint.
        most: bytes of all checkpoints that are there at a time.
    """
    fewer = "set training.save_total_limit: 1, " if training.save_total_limit != 1 and most > each else ""
    return TrainError(
        "The checkpoints of this run do not fit on the disk",
        where=str(folder),
        why=f"{why} A checkpoint takes {each:,} bytes or more, and up to {most:,} bytes of checkpoints are there at a "
        f"time (save_steps: {training.save_steps}, save_total_limit: {training.save_total_limit or 'none'}).",
        remedy=f"Make room, {fewer}or name an output_dir on another disk. If somebody removes checkpoints while it "
        "trains, set training.check_disk: false.",
    )


def checkpoint_bytes(shape: StepBytes, *, text: int = 0) -> CheckpointBytes:
    """One checkpoint of a run. full and freeze write a whole model, the others what they train.

    Args:
        text: bytes of the tokenizer's files.
    """
    weights = shape.trained
    if shape.method in WHOLE:  # freeze keeps copies of what trains in the memory of a CPU
        weights = shape.weights - (shape.trained if shape.method == "freeze" and shape.device == "cpu" else 0)
    return CheckpointBytes(weights, int(shape.states * shape.trained), text)


def most_bytes(each: CheckpointBytes, training: TrainingSettings, *, steps: int, epochs: float) -> int:
    """The bytes of all checkpoints at the moment when there are most: a new one is written before an old one goes.

    Args:
        steps: of the whole run.
        epochs: passes over the rows.
    """
    by_strategy = {"steps": math.ceil(steps / training.save_steps), "epoch": math.ceil(epochs), "no": 1}
    best = 1 if training.load_best_model_at_end else 0
    saves = min(by_strategy[training.save_strategy] + best, steps)
    models = saves
    if training.save_total_limit is not None:
        models = min(saves, max(training.save_total_limit, 1 + best) + 1)
    optimizers = models if training.save_optimizer == "all" else min(saves, 2)
    return models * (each.weights + each.text) + optimizers * each.optimizer
