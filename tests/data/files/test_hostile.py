"""Files made to break readers: JSONTestSuite and utf8tests, every one through the public reader; skipped where absent.

The folder is TUNESMITH_SHARED_DATA, or ../shared/data.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest
from tests.data.loading import load

from tunesmith.data.files.formats import FORMATS
from tunesmith.data.files.rows import BadRow, Row
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

DOCUMENTS = {".txt", ".md", ".markdown", ".rst", ".html", ".htm"}
SHARED = Path(os.environ.get("TUNESMITH_SHARED_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
FILES = sorted((SHARED / "hostile" / "json").glob("*.json"))
OF_ONE_LINE = [file for file in FILES if b"\n" not in file.read_bytes()]
NO_NUMBER = {"n_number_NaN.json", "n_number_infinity.json", "n_number_minus_infinity.json"}  # pandas writes them: null
NOT_EVERY_KEY_ONCE = {"y_object_duplicated_key.json", "y_object_duplicated_key_and_value.json"}  # refused on purpose


def cases(files: list[Path]) -> pytest.MarkDecorator:
    """One case a file, or one that is skipped."""
    absent = pytest.param(None, marks=pytest.mark.skip(reason="the shared data are not here"))
    return pytest.mark.parametrize("file", files or [absent], ids=lambda file: file.name if file else "absent")


def rows_of(suffix: str, data: bytes) -> list[Row | BadRow] | DataError:
    try:
        kind = FORMATS[suffix]
        return [row for block in kind.blocks(io.BytesIO(data), "f") for row in kind.rows(block)]
    except DataError as error:
        return error


def is_good(found: list[Row | BadRow] | DataError) -> bool:
    return isinstance(found, list) and bool(found) and all(isinstance(row, Row) for row in found)


def complaints(found: list[Row | BadRow] | DataError) -> str:
    rows = found if isinstance(found, list) else []
    return (
        str(found) if isinstance(found, DataError) else "\n".join(str(row) for row in rows if isinstance(row, BadRow))
    )


@cases(FILES)
def test_an_element_of_an_array_is_read_as_the_suite_says(file: Path):
    """What must be refused is refused with its line and its byte."""
    found = rows_of(".json", b'[\n{"text":\n' + file.read_bytes() + b"}\n]")
    if file.name in NOT_EVERY_KEY_ONCE:
        assert "this key twice" in complaints(found)
    elif file.name.startswith("y_"):
        assert is_good(found)
    elif file.name in NO_NUMBER:
        assert complaints(found) == ""
    elif file.name.startswith("n_"):
        assert not is_good(found)
        assert re.search(r"f:\d+", complaints(found)) and re.search(r"\bbyte \d+", complaints(found))


@cases(OF_ONE_LINE)
def test_a_line_is_read_as_the_suite_says(file: Path):
    """What must be refused is refused with its line and its byte, and the lines around it are read."""
    found = rows_of(".jsonl", b'{"text": 1}\n{"text": ' + file.read_bytes() + b'}\n{"text": 3}')
    assert isinstance(found, list)
    assert [row.source for row in found] == ["f:1", "f:2", "f:3"]
    assert isinstance(found[0], Row) and isinstance(found[2], Row)
    if file.name in NOT_EVERY_KEY_ONCE:
        assert "this key twice" in complaints(found)
    elif file.name.startswith("y_"):
        assert is_good(found)
    elif file.name in NO_NUMBER:
        assert complaints(found) == ""
    elif file.name.startswith("n_"):
        assert re.search(r"^f:2: .*\bbyte \d+", complaints(found))


@cases(FILES)
def test_a_file_alone_is_never_a_traceback(file: Path, tmp_path: Path):
    """None is an array of usable rows, so each is one message with its place, whatever its name says it is."""
    for suffix in FORMATS:
        path = tmp_path / f"r{suffix}"
        path.write_bytes(file.read_bytes())
        try:
            assert load(SourceSettings(path=str(path), format="text")).examples  # a line of text is a document
            assert suffix in DOCUMENTS
        except DataError as error:
            assert str(error.where).startswith(str(path))


@cases(FILES)
def test_a_file_that_must_parse_is_refused_only_for_what_it_holds(file: Path):
    found = rows_of(".json", file.read_bytes())
    if file.name.startswith("y_"):
        assert "not JSON" not in complaints(found)
    elif file.name in NO_NUMBER:
        assert "found null" in complaints(found)
    elif file.name.startswith("n_"):
        assert not is_good(found)
        assert re.search(r"f:\d+", complaints(found)) and re.search(r"\bbyte \d+", complaints(found))


@pytest.mark.skipif(not FILES, reason="the shared data are not here")
def test_all_files_are_there():
    assert len(FILES) == 318
    assert len(OF_ONE_LINE) > 280


@pytest.mark.skipif(not FILES, reason="the shared data are not here")
def test_each_line_of_invalid_utf_8_is_refused_with_its_byte_and_each_valid_one_read():
    lines = (SHARED / "hostile" / "utf8tests.bin").read_bytes().split(b"\n")
    found = rows_of(".txt", b"\n".join(lines))
    assert isinstance(found, list)
    by_line = {row.source: row for row in found}
    invalid = 0
    for number, line in enumerate(lines, start=1):
        row = by_line.get(f"f:{number}")
        try:
            text = line.decode().rstrip("\r")
        except UnicodeDecodeError as error:
            invalid += 1
            assert isinstance(row, BadRow)
            assert row.found == f"the byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line"
            continue
        assert row == (Row({"text": text}, f"f:{number}") if text.strip() else None)
    assert invalid > 50
