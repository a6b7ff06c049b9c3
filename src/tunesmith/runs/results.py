"""Whether what a finished run made is whole: its verdict, its answers, and the weights that they are about.

And how a result that a later command made is kept in the folder of a run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from tunesmith.runs.disk import FULL, GONE, is_full, number_of, why_full
from tunesmith.runs.folder import Run, lines_of_json
from tunesmith.runs.manifest import MANIFEST, changes, damage, in_words, read_checked, take_off
from tunesmith.runs.progress import Failure, Listener

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

    On a disk that is full or lost it is a Failure. Returns whether it was kept.

    Two processes add their results one after the other, so the files beside belong to the newest line, which has their
    sha256 under ``files``: a kill between them leaves no line that takes the answers of another. What was there before
    is compared first: a damaged file or manifest is named, and nothing vouches for it.

    Args:
        name: of the file of JSON lines.
        found: the line.
        beside: files of JSON lines that belong to the newest result alone, so they are replaced.
    """
    file, lost = run.folder / name, False
    contents = {other: lines_of_json(lines) for other, lines in (beside or {}).items()}
    files = {other: sha256(content).hexdigest() for other, content in contents.items()}
    line = {**found, **({"files": files} if files else {})}
    try:
        with run.keeping():
            if lost := not file.exists() and read_checked(run.folder, name)[1] is not None:
                take_off(run.folder, name)
            run.append(name, line)
            refused = run.seal(name)
            for other, content in contents.items():
                run.write_bytes(other, content)
            if contents:
                run.settle()
    except OSError as error:
        if number_of(error) not in (*FULL, *GONE):
            listener.warn(f"{run.folder}: the result is not kept in the run ({error.strerror or error})")
            return False
        at = Path(os.fsdecode(error.filename or file))
        why = why_full(at, error) if is_full(error) else f"{error.strerror}."
        listener.warn(Failure(f"{at}: the result is not kept whole in the run. {why} Make room there, and judge again"))
        return False
    listener.say(f"kept in {file}; `tunesmith runs show {run.folder}` shows it")
    if lost:
        listener.warn(f"{file} was missing: the results that it held are lost, and this is its first line")
    if name in refused:
        listener.warn(
            f"{file} {refused[name]}: its last line is this result, and no line of it is verified. Put a good copy "
            f"of the lines before it back; if you changed them yourself, remove {run.folder / MANIFEST}"
        )
    if MANIFEST in refused:
        listener.warn(
            f"{run.folder / MANIFEST} {refused[MANIFEST]}: the result is kept, and cannot be verified, as all "
            "files of the run. Put a good copy of that file back, or remove it"
        )
    return True


def _lost(run: Run) -> dict[str, str]:
    return {name: why for name, why in changes(run.folder).items() if name in RESULTS}
