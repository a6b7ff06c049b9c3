"""Refuses a run whose checkpoints do not fit on the disk, before its weights are loaded."""

from __future__ import annotations

from pathlib import Path

from tunesmith.planning.disk_space import checkpoint_bytes, does_not_fit, most_bytes
from tunesmith.runs.disk import no_room
from tunesmith.training.setup import Prepared
from tunesmith.training.step_rows import order_of

_TEXT = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "*.jinja", "*.model", "*.tiktoken")


def refuse_full_disk(folder: Path, prepared: Prepared, *, there: int) -> None:
    """Raises TrainError where the checkpoints of a run take more than is free.

    Args:
        folder: of the run.
        there: bytes of checkpoints that are there already, or that the run replaces.
    """
    training, order = prepared.recipe.training, order_of(prepared.recipe, prepared.corpus)
    each = checkpoint_bytes(prepared.plan.shape, text=_text_bytes(prepared.folder))
    steps = order.total_steps
    most = most_bytes(each, training, steps=steps, epochs=steps / order.steps_in(0))
    why = no_room(folder, most - there, file=each.largest)
    if why is not None:
        raise does_not_fit(folder, why, training, each=each.total, most=most)


def _text_bytes(base: Path) -> int:
    """The bytes of the tokenizer's files in a model folder."""
    files = {file for pattern in _TEXT for file in base.glob(pattern) if file.is_file()}
    return sum(file.stat().st_size for file in files)
