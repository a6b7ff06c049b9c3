"""Where a run that began goes on: its newest checkpoint, or an earlier one if that is damaged."""

from __future__ import annotations

import json
from pathlib import Path

from tunesmith.model.weights.finite import not_finite_files
from tunesmith.model.weights.weight_files import trained_files
from tunesmith.runs.checkpoint_names import checkpoint_name
from tunesmith.runs.folder import Run
from tunesmith.runs.manifest import damage, has_manifest, in_words
from tunesmith.runs.plain_files import read_plain
from tunesmith.runs.progress import Listener
from tunesmith.runs.run_files import SET_ASIDE
from tunesmith.training.checkpoint import OPTIMIZER, STATE, has_optimizer

_OF_LATER_STEPS = ("step", "judged_step", "best", "selection", "seconds", "tokens")  # in status.json


def resume_point(run: Run, listener: Listener, *, selects: bool) -> Path | None:
    """The checkpoint to continue from; None: from the first step. Those after it are set aside, and that is said.

    A damaged newest checkpoint is replaced by the newest one before it that is whole and holds its optimizer state, so
    that the run ends with the same bytes as without the damage. So is one without that state: it was taken off when a
    newer one was saved, which is not there any more.

    Args:
        selects: whether the run ends with its best checkpoint, which must be whole, too.
    """
    saved = run.checkpoints
    if not saved:
        return None
    found, lost = faults(saved[-1], selects=selects), not has_optimizer(saved[-1])
    if not found and not lost:
        for note in run.notes_on(saved[-1]):
            listener.warn(note)
        return saved[-1]
    usable = (path for path in reversed(saved[:-1]) if has_optimizer(path) and not faults(path, selects=selects))
    point = next(usable, None)
    damaged = saved[-1]
    later = [path for path in saved if point is None or path.name > point.name]
    aside = [_set_aside(run, path) for path in later]  # the damaged one last: a kill in between changes no decision
    before = {name: value for name, value in run.status().items() if name not in _OF_LATER_STEPS}
    run.write_json("status.json", before)
    run.set_status("running", fell_back={"from": damaged.name, "to": None if point is None else point.name})
    way = (
        f"The run continues from {point.name}, which is whole"
        if point is not None
        else "No earlier checkpoint is whole and holds its optimizer state (by default only the newest keeps it; see "
        "training.save_optimizer), so the run starts again from its first step"
    )
    fault = (
        f"{damaged} is damaged: {in_words(found)}"
        if found
        else f"a newer checkpoint than {damaged} was saved and is not there, and this one has no optimizer state"
    )
    listener.warn(
        f"{fault}. {way}; the result is the same as without the damage. "
        f"{'The folder is' if len(aside) == 1 else f'{len(aside)} folders are'} kept in {aside[-1].parent}"
    )
    return point


def faults(checkpoint: Path, *, selects: bool) -> dict[str, str]:
    """What is damaged of a checkpoint, or of the best one so far if the run may end with that.

    Earlier versions, which wrote no manifests, also saved weights that are not finite.
    """
    found = damage(checkpoint) if has_manifest(checkpoint) else not_finite_files(_tensors_in(checkpoint))
    if found or not selects:
        return found
    best = _best_step(checkpoint)
    other = None if best is None else checkpoint.parent / checkpoint_name(best)
    if other is None or other == checkpoint:
        return {}
    return {f"../{other.name}/{name}".removesuffix("/."): why for name, why in damage(other).items()}


def _tensors_in(checkpoint: Path) -> list[Path]:
    """The files of tensors that a run which continues reads."""
    return [*trained_files(checkpoint), *([checkpoint / OPTIMIZER] if has_optimizer(checkpoint) else [])]


def _best_step(checkpoint: Path) -> int | None:
    try:
        state = json.loads(read_plain(checkpoint / STATE))
        best = state["totals"]["selection"].get("best_step")
        return best if isinstance(best, int) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None  # reading the state says what is wrong with it


def _set_aside(run: Run, checkpoint: Path) -> Path:
    folder = run.folder / SET_ASIDE
    folder.mkdir(exist_ok=True)
    names = (checkpoint.name, *(f"{checkpoint.name}.{number}" for number in range(2, 1000)))
    place = next(folder / name for name in names if not (folder / name).exists())
    return checkpoint.rename(place)
