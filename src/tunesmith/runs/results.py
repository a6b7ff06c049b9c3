"""Whether what a finished run made is whole: its verdict, its answers, and the weights that they are about."""

from __future__ import annotations

from tunesmith.runs.folder import Run
from tunesmith.runs.manifest import changes, damage, in_words
from tunesmith.runs.progress import Listener

RESULTS = ("samples.jsonl", "verdict.json")


def has_whole_result(run: Run) -> bool:
    """Whether nothing has to be made again. A run whose checkpoints were removed keeps its result."""
    return not _lost(run) and (run.result is None or not damage(run.result))


def tell_of_result(run: Run, listener: Listener) -> bool:
    """The same. Says which results are judged again, and what else of the run is damaged."""
    if lost := _lost(run):
        listener.warn(f"{run.folder}: {in_words(lost)}. The run is judged again")
    if not has_whole_result(run):
        return False
    notes = run.notes()
    for path in run.checkpoints[-1:]:  # it may be another one than that of the result
        found = damage(path)
        notes += run.notes_on(path) + ([f"{path} is damaged: {in_words(found)}"] if found else [])
    if run.result is not None and run.result not in run.checkpoints[-1:]:
        notes += run.notes_on(run.result)
    for note in notes:
        listener.warn(note)
    return True


def _lost(run: Run) -> dict[str, str]:
    return {name: why for name, why in changes(run.folder).items() if name in RESULTS}
