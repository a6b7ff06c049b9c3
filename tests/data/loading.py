"""All rows of a source at once, for tests of readers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tunesmith.data.examples.example import Example
from tunesmith.data.files.reader import open_source
from tunesmith.data.files.rows import BadRow
from tunesmith.data.files.splits import Role
from tunesmith.recipe.data import SourceSettings


@dataclass(slots=True)
class Loaded:
    """What one source holds. `len(examples) + len(bad)` is the number of rows read.

    `reason` says how the shape was found; `files` are (name, sha256 of the bytes), for a dataset (name, sha256 of its
    rows as JSON); `ignored` are names in the folder that are no data; `split` is the dataset's split that was read.
    """

    examples: list[Example]
    bad: list[BadRow]
    shape: str
    reason: str
    files: list[tuple[str, str]]
    ignored: list[str] = field(default_factory=list)
    split: str | None = None


def load(source: SourceSettings, *, role: Role = "train", on_error: Literal["stop", "skip"] = "stop") -> Loaded:
    """Every row of a source as an example, or as a bad row with what was found and what was expected.

    All of them are held: for a source that is too large for that, iterate over `open_source`.

    Args:
        source: path, and optionally format, columns, instruction, split and name.
        role: which of a dataset's own splits is read where the source names none.
        on_error: stop raises if there is any bad row, after all of them are found; skip hands them back.

    Raises:
        DataError: nothing is there, the file or its shape cannot be read, rows are bad, or no row is good.
    """
    reader = open_source(source, role=role)
    examples: list[Example] = []
    bad: list[BadRow] = []
    for result in reader.examples():
        if isinstance(result, BadRow):
            bad.append(result)
        else:
            examples.append(result)
    if bad and (on_error == "stop" or not examples):
        raise reader.refusal(bad, len(bad), len(examples))
    return Loaded(
        examples, bad, reader.shape, reader.reason, reader.files(), ignored=reader.ignored, split=reader.split
    )
