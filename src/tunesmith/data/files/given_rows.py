"""Rows that a Python program hands over, instead of a path: written once to JSON lines, which a run can read again."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any, cast

from tunesmith.data.files.arrow_rows import arrow_rows, batch_blocks
from tunesmith.data.files.rows import BadRow
from tunesmith.errors import DataError
from tunesmith.runs.temporary import temporary

_WHERE = "rows"
_WAYS = "Give a list of dicts, a DataFrame of pandas or polars, a datasets.Dataset, or the path of a file."
_ARROW_BATCH = 1000
_MANY_SPLITS = "DatasetDict"


def is_rows(value: Any) -> bool:
    """Whether a value of ``data.train`` is rows: not a path, a share, or sources as a recipe names them."""
    if isinstance(value, list | tuple):  # dicts with a `path` are sources; rows with such a column go in as a table
        return bool(value) and isinstance(value[0], Mapping) and "path" not in value[0]
    if isinstance(value, Mapping):
        return type(value).__name__ == _MANY_SPLITS
    return not (value is None or isinstance(value, str | os.PathLike | float | int))


def store_rows(rows: Any, folder: Path, name: str) -> Path:
    """Writes rows to ``folder/name-HASH.jsonl``, which its owner alone may read.

    The same rows have the same file, so a run finds them again.

    Args:
        rows: mappings, a DataFrame of pandas or polars, or a datasets.Dataset, whose class labels become their names.
        folder: is made if it is not there.

    Raises:
        DataError: these are no rows, or a value has no form in JSON.
    """
    digest = hashlib.sha256()
    partial = folder / f".{name}-{os.getpid()}-{secrets.token_hex(4)}.partial"  # processes of two hosts share ids
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary(partial):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with open(os.open(partial, flags, 0o600), "wb") as file:  # for its owner alone
                for line in _lines(rows):
                    digest.update(line)
                    file.write(line)
            stored = folder / f"{name}-{digest.hexdigest()[:12]}.jsonl"
            partial.replace(stored)
    except OSError as error:
        remedy = "Name an output_dir where files can be written."
        raise DataError("the rows cannot be stored", where=str(folder), why=str(error), remedy=remedy) from error
    return stored


def _lines(rows: Any) -> Iterator[bytes]:
    number = 0
    for number, row in zip(count(1), _mappings(rows), strict=False):
        if not isinstance(row, Mapping):
            kind = type(row).__name__
            raise DataError(f"row {number} is no dict", where=_WHERE, why=f"It is of the type {kind}.", remedy=_WAYS)
        plain = {key: _plain(value, f"row {number}: `{key}`") for key, value in _with_text_keys(row, f"row {number}")}
        yield json.dumps(plain, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass") + b"\n"
    if not number:
        raise DataError("there are no rows", where=_WHERE, why="The list or table is empty.")


def _mappings(rows: Any) -> Iterable[Any]:
    """Rows as mappings, whatever holds them. A library is known by its name, so that none is imported for this."""
    library, kind = type(rows).__module__.partition(".")[0], type(rows).__name__
    if kind == _MANY_SPLITS:
        splits = ", ".join(rows)
        remedy = f"Give one of its splits, such as dataset[{next(iter(rows))!r}]."
        raise DataError("a DatasetDict has several splits", where=_WHERE, why=f"They are {splits}.", remedy=remedy)
    if library == "datasets" and kind == "Dataset":
        notes = rows.features.arrow_schema.metadata  # the names of class labels, which the tables have lost
        tables = rows.with_format("arrow").iter(batch_size=_ARROW_BATCH)
        return _of_arrow(table.replace_schema_metadata(notes) for table in tables)
    if kind == "DataFrame" and library == "polars":
        return _of_arrow([rows.to_arrow()])
    if kind == "DataFrame" and library == "pandas":
        import pyarrow as pa

        twice = list(dict.fromkeys(repr(name) for name in rows.columns[rows.columns.duplicated()]))
        if twice:
            raise DataError(
                "the DataFrame has several columns of one name",
                where=_WHERE,
                why=f"Given more than once: {', '.join(twice)}.",
                remedy="Rename them, or keep the first of each with frame.loc[:, ~frame.columns.duplicated()].",
            )
        try:
            return _of_arrow([pa.Table.from_pandas(rows, preserve_index=False)])
        except (pa.ArrowException, TypeError, ValueError) as error:
            why = "; ".join(str(part) for part in error.args)
            remedy = "Give each column values of one type, such as frame.astype({'label': str})."
            raise DataError("a column of the DataFrame has values of several types", where=_WHERE, why=why,
                            remedy=remedy) from error  # fmt: skip
    if isinstance(rows, list | tuple):
        return rows
    raise DataError("these are no rows", where=_WHERE, why=f"They are of the type {library}.{kind}.", remedy=_WAYS)


def _of_arrow(tables: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    """Rows of Arrow tables, as those of a parquet file are read."""
    batches = (batch for table in tables for batch in table.to_batches(max_chunksize=_ARROW_BATCH))
    for block in batch_blocks(batches, _WHERE):
        for row in arrow_rows(block):
            if isinstance(row, BadRow):
                raise DataError("a row cannot be read", where=row.source, why=f"found {row.found}")
            yield row.fields


def _with_text_keys(mapping: Mapping[Any, Any], where: str) -> Iterator[tuple[str, Any]]:
    """The items of a mapping under keys that are text, as JSON has them. Raises DataError if two keys become one."""
    seen: dict[str, Any] = {}
    for key, value in mapping.items():
        text = str(key)
        if text in seen:
            raise DataError(
                f"{where} has the key `{text}` twice",
                where=_WHERE,
                why=f"In JSON every key is text, so {seen[text]!r} and {key!r} are the same key.",
                remedy="Give one of them another name.",
            )
        seen[text] = key
        yield text, value


def _plain(value: Any, where: str) -> Any:
    """A value as JSON has it. pandas' missing values become null, and dates are written as in ISO 8601."""
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value)):
        return None
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item, where) for key, item in _with_text_keys(value, where)}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if type(value).__module__.partition(".")[0] == "numpy":
        return _plain(cast("Any", value).tolist(), where)
    if isinstance(value, float):
        raise DataError(
            f"{where} is infinity, which has no form in JSON",
            where=_WHERE,
            remedy="Replace it by a number, or by None for a missing value.",
        )
    raise DataError(
        f"{where} has no form in JSON",
        where=_WHERE,
        why=f"It is of the type {type(value).__module__}.{type(value).__name__}.",
        remedy="Make it a text, a number, a list or a dict.",
    )
