"""What is written is read back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tunesmith.data.files import written_rows
from tunesmith.data.files.reader import open_source
from tunesmith.data.files.rows import Row
from tunesmith.data.files.written_rows import write_rows
from tunesmith.recipe.data import SourceSettings


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("wb") as stream:
        write_rows(stream, lambda: iter(rows), [*rows[0]], file.suffix, str(file))


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_every_end_of_a_line_in_a_value_is_read_back(tmp_path: Path, ending: str) -> None:
    texts = ["a\rb", "a\nb", "a\r\nb", "ends\r", "ends\r\n", 'a "b", c\t', "plain"]
    rows = [{"prompt": text, "completion": "x"} for text in texts]
    write(tmp_path / f"out{ending}", rows)
    reader = open_source(SourceSettings(path=str(tmp_path / f"out{ending}")))
    assert [row.fields for part in reader.parts for row in part.rows() if isinstance(row, Row)] == rows
    assert (tmp_path / f"out{ending}").read_bytes().endswith(b"plain" + (b"," if ending == ".csv" else b"\t") + b"x\n")


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ([2**60, 1, 0.5], [str(2**60), "1", "0.5"]),
        ([2, 1, 0.5], [2.0, 1.0, 0.5]),
        ([1, 2, None], [1, 2, None]),
        ([1, 2, "x"], ["1", "2", "x"]),
    ],
)
def test_a_column_of_parquet_holds_the_values_of_every_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any], read: list[Any]
) -> None:
    monkeypatch.setattr(written_rows, "PARQUET_ROWS", 2)
    write(tmp_path / "out.parquet", [{"n": value} for value in values])
    assert pq.read_table(tmp_path / "out.parquet")["n"].to_pylist() == read  # type: ignore[no-untyped-call]
