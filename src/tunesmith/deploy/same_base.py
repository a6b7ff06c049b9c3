"""Is the base under a run still the one that it was trained on?"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tunesmith.model.weights.base_files import base_changes, base_files
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.drift import Change, Fingerprint, settle
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Listener


def check_base(
    run: Run | None, recipe: Recipe | None, folder: Path, allowed: Collection[str], listener: Listener
) -> tuple[Change, ...]:
    """The changes of the base that are allowed. There are none without a run, which alone knows its base.

    Args:
        run: that was trained on the base, with its ``recipe``.
        folder: of the base, where it is now.
        allowed: kinds of changes.

    Raises:
        RunError: the weights, the config, the tokenizer or the chat template are others than when the run was trained.
    """
    if run is None or recipe is None:
        return ()
    before = Fingerprint.read(run)
    if before is None:
        listener.warn(f"{run.folder} has no fingerprint, as an earlier version began it: a changed base is not noticed")
        return ()
    changes = base_changes(before, base_files(folder, say=listener.say), recipe)
    otherwise = "; or name the place of the right base with --model MODEL"
    return tuple(settle(changes, allowed, where=str(run.folder), listener=listener, otherwise=otherwise))
