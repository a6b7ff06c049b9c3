"""What a file is found to be does not depend on the order of its keys and columns: programs write them as they like."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.door.files import FILES, write
from tests.door.real_file import RealFile

from tunesmith.data.examples.column_names import ColumnsUnclear
from tunesmith.data.examples.example import Example
from tunesmith.data.files.reader import open_source
from tunesmith.data.files.rows import Row
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

Found = tuple[str, Any]
ORDERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "as written": lambda value: value.items(),
    "backwards": lambda value: reversed(value.items()),
    "sorted": lambda value: sorted(value.items()),
    "sorted backwards": lambda value: sorted(value.items(), reverse=True),
}
JSON = (".json", ".jsonl")
FOLDERS = ("openai_batch", "slack_export")
FILES_OF_JSON = [file for file in FILES if "json" in file.path or file.name in FOLDERS]


def in_order(value: Any, order: str) -> Any:
    """The value with the keys of all its objects in an order."""
    if isinstance(value, dict):
        return {key: in_order(item, order) for key, item in ORDERS[order](value)}
    return [in_order(item, order) for item in value] if isinstance(value, list) else value


def found_in(path: Path, file: RealFile) -> Found:
    """The shape and the rows in some order, or what is refused and proposed. A file's own columns are named for it."""
    try:
        return _read(path)
    except DataError as error:
        proposal = error.proposal if isinstance(error, ColumnsUnclear) else None
        columns = proposal.columns if proposal is not None else file.columns
        refused = (sorted(re.findall(r"\w+", error.what)), proposal and (proposal.columns, proposal.keys))
        try:
            return ("refused", (refused, _read(path, columns=dict(columns))))
        except DataError as again:
            return ("refused", (refused, again.what))


def _read(path: Path, **settings: Any) -> Found:
    reader = open_source(SourceSettings.model_validate({"path": str(path), **settings}))
    rows = list(reader.examples())
    said = reader.reason.partition(";")[0] if reader.export else ""
    return reader.shape, (said, sorted(row.keys()[1] if isinstance(row, Example) else row.found for row in rows))


def test_tables_and_files_of_json_are_among_the_files() -> None:
    assert len(FILES) > 40 and len(FILES_OF_JSON) > 20 and {*FOLDERS} <= {file.name for file in FILES_OF_JSON}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_rows_mean_the_same_in_any_order_of_their_columns(file: RealFile, tmp_path: Path) -> None:
    for module in file.needs:
        pytest.importorskip(module)
    path = write(file, tmp_path)
    try:
        reader = open_source(SourceSettings.model_validate({"path": str(path), "columns": dict(file.columns)}))
    except DataError as error:
        pytest.skip(f"refused: {error.what}")
    rows = [row.fields for part in reader.parts for row in part.rows() if isinstance(row, Row)]
    results = {}
    for order in ORDERS:
        there = tmp_path / f"{order.replace(' ', '-')}.jsonl"
        lines = (json.dumps(in_order(row, order), ensure_ascii=False, default=str) for row in rows)
        there.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        results[order] = found_in(there, file)
    assert results == dict.fromkeys(ORDERS, results["as written"])


@pytest.mark.parametrize("file", FILES_OF_JSON, ids=lambda file: file.name)
def test_a_file_of_json_is_read_the_same_in_any_order_of_its_keys(file: RealFile, tmp_path: Path) -> None:
    for module in file.needs:
        pytest.importorskip(module)
    results = {}
    for order in ORDERS:
        path = write(file, tmp_path / order.replace(" ", "-"))
        for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
            _rewrite(each, order)
        results[order] = found_in(path, file)
    assert results == dict.fromkeys(ORDERS, results["as written"])


def _rewrite(path: Path, order: str) -> None:
    """Puts the keys of a file into an order, in the file's own layout."""
    if not path.is_file() or not path.name.removesuffix(".gz").endswith(JSON):
        return
    packed = path.suffix == ".gz"
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    encoding = (
        "utf-16" if data.startswith(b"\xff\xfe") else "utf-8-sig" if data.startswith(b"\xef\xbb\xbf") else "utf-8"
    )
    text = data.decode(encoding)
    values, at, decoder = [], 0, json.JSONDecoder()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        values.append(value)
        at += len(text[at:]) - len(text[at:].lstrip())
    indent = 2 if text.count("\n") > len(values) + 1 else None
    lines = [json.dumps(in_order(value, order), ensure_ascii=False, indent=indent) for value in values]
    content = "\n".join(lines).encode(encoding)
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
