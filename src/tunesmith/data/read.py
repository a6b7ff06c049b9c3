"""A source of the recipe -> examples, each with the file and line it comes from.

A source is, in this order: a path that exists, an fsspec URL (``s3://...``), a hub id ``user/name[@revision]``.

- jsonl, json (one array), csv, tsv and parquet files; txt files, where each line that is not blank is a document.
  Text is UTF-8, with or without a byte order mark, and may be compressed (.gz, .bz2, .xz).
- A folder of those: all its files in the order of their names. Hidden files are passed over, other files are named in
  `Loaded.ignored`. If some files are named for training and some for evaluation (train.csv and test.csv), each role
  reads its own.
- A folder that `datasets` saved to disk, and a hub id: the split named in the source, or the one for the role.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.data.example import Example, to_example
from tunesmith.data.message import RowError, describe
from tunesmith.data.rows import BadRow, Row
from tunesmith.data.shape import check_columns, check_mapping, detect_shape
from tunesmith.data.source import Part, parts_of, split_names
from tunesmith.data.splits import Role, held_out_split
from tunesmith.errors import DataError

if TYPE_CHECKING:
    from tunesmith.recipe import SourceSettings

__all__ = ["BadRow", "Loaded", "Role", "Row", "load", "own_eval_split"]

ROWS_THAT_TELL_THE_SHAPE = 100
BAD_ROWS_SHOWN = 10


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

    Args:
        source: path, and optionally format, columns, instruction, split and name.
        role: which of a dataset's own splits is read where the source names none.
        on_error: stop raises if there is any bad row, after all of them are found; skip hands them back.

    Raises:
        DataError: nothing is there, the file or its shape cannot be read, rows are bad, or no row is good.
    """
    parts, ignored, split = parts_of(source, role)
    shape, reason = _shape(source, parts)
    examples: list[Example] = []
    bad: list[BadRow] = []
    for part in parts:
        for row in part.rows:
            result = row if isinstance(row, BadRow) else _example(row, source, shape)
            if isinstance(result, BadRow):
                bad.append(result)
            else:
                examples.append(result)
    if bad and (on_error == "stop" or not examples):
        raise _bad_rows(source.path, bad, len(examples))
    files = [(part.name, part.sha256) for part in parts]
    return Loaded(examples, bad, shape, reason, files, ignored=ignored, split=split)


def own_eval_split(source: SourceSettings) -> str | None:
    """The split that the source itself holds out (validation before test), where it has one beside its training split.

    Read it with ``load(source.model_copy(update={"split": name}), role="eval")``.

    Raises:
        DataError: the source cannot be found.
    """
    names = split_names(source)
    trained = names[0] if source.split is None and len(names) == 1 else source.split
    split = held_out_split(names)
    return None if trained is not None and trained.partition("[")[0] == split else split


def _shape(source: SourceSettings, parts: Sequence[Part]) -> tuple[str, str]:
    """The shape of all rows and the reason, after the source's columns have been checked against the rows."""
    by_part = [[row.fields for row in part.rows if isinstance(row, Row)] for part in parts]
    rows = [fields for part in by_part for fields in part]
    first = [fields for part in by_part for fields in part[:ROWS_THAT_TELL_THE_SHAPE]]
    if not rows:
        raise _bad_rows(source.path, [row for part in parts for row in part.rows if isinstance(row, BadRow)], 0)
    try:
        check_mapping(rows, source.columns)
        if source.format == "auto":
            shape, reason = detect_shape(first, columns=source.columns, instruction=source.instruction)
        else:
            shape, reason = source.format, f"data.format: {source.format}"
        check_columns(rows, shape=shape, columns=source.columns, instruction=source.instruction)
    except DataError as error:
        raise DataError(error.what, where=source.path, why=error.why, remedy=error.remedy) from None
    return shape, reason


def _example(row: Row, source: SourceSettings, shape: str) -> Example | BadRow:
    try:
        return to_example(
            row.fields, shape=shape, source=row.source, columns=source.columns, instruction=source.instruction
        )
    except RowError as error:
        place = source.columns.get(error.field, error.field)
        return BadRow(row.source, place, error.found, error.expected, _raw(row.fields))


def _raw(fields: dict[str, Any]) -> str:
    """The row as one line of JSON; half characters and other types are written out."""
    try:
        text = json.dumps(fields, ensure_ascii=False, default=str)
    except RecursionError:  # a row nested so deeply that it could be read but not written
        text = describe(fields)
    return text.encode(errors="backslashreplace").decode()


def _bad_rows(path: str, bad: Sequence[BadRow], good: int) -> DataError:
    shown = "\n".join(str(row) for row in bad[:BAD_ROWS_SHOWN])
    more = f"\nand {len(bad) - BAD_ROWS_SHOWN} more" if len(bad) > BAD_ROWS_SHOWN else ""
    skip = ", or set data.on_error: skip to set them aside in rejected.jsonl" if good else ""
    return DataError(
        f"{len(bad):,} of {len(bad) + good:,} rows cannot be used",
        where=path,
        why=shown + more,
        remedy=f"correct the row{'s' if len(bad) > 1 else ''}{skip}",
    )
