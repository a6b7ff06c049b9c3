"""Whether what a finished run made is whole: its verdict, its answers, and the weights that they are about.

And how a result that a later command made is kept in the folder of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


def keep_result(
    run: Run,
    name: str,
    found: Mapping[str, Any],
    listener: Listener,
    *,
    beside: Mapping[str, Sequence[dict[str, Any]]] | None = None,
) -> bool:
    """Adds a result to those that a file of the run's folder holds. A folder that takes no files is only a warning.

    Returns whether it was kept.

    Args:
        name: of the file of JSON lines.
        found: the line.
        beside: files of JSON lines that belong to the newest result alone, so they are replaced.
    """
    try:
        run.append(name, dict(found))
        run.seal(name)
        for file, lines in (beside or {}).items():
            run.write_lines(file, lines)
        if beside:
            run.settle()
    except OSError as error:
        listener.warn(f"{run.folder}: the result is not kept in the run ({error.strerror or error})")
        return False
    listener.say(f"kept in {run.folder / name}; `tunesmith runs show {run.folder}` shows it")
    return True


def _lost(run: Run) -> dict[str, str]:
    return {name: why for name, why in changes(run.folder).items() if name in RESULTS}
