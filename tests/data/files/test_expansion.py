"""Small files that would become gigabytes, and what the user can do about one that may."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tunesmith.data.files import expansion
from tunesmith.data.files.locations import parts_of
from tunesmith.data.files.reader import open_source
from tunesmith.data.files.rows import Row
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

ROW = (json.dumps({"prompt": "ask", "completion": "say" * 300}) + "\n").encode()
GIGABYTES = ROW * (2**20 // len(ROW)) * 64  # 64 MB, packed again and again


def zstd_of(pieces: int, path: Path) -> None:
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
        for _ in range(pieces):
            writer.write(GIGABYTES)


def packed(suffix: str, path: Path) -> None:
    """About 2 GB of rows that take some megabytes; members of one file one after the other."""
    whole: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lambda data: lzma.compress(data, preset=0),
    }
    if suffix == ".zst":
        zstd_of(32, path)
    else:
        path.write_bytes(whole[suffix](GIGABYTES) * 32)


def passed(path: Path) -> int:
    """The rows of a file, which is read to its end."""
    (part,), _, _ = parts_of(SourceSettings(path=str(path)), "train")
    return sum(1 for _ in part.rows())


def grown(act: Callable[[], object]) -> int:
    """The memory in MB that this process has never had before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    act()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])  # bzip2 unpacks slowly
def test_a_packed_file_that_becomes_gigabytes_is_stopped_after_the_first(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    packed(suffix, path)
    assert path.stat().st_size < 2**30 // expansion.MOST_TIMES

    def refused() -> None:
        with pytest.raises(DataError, match="times its size") as caught:
            passed(path)
        assert "TUNESMITH_MAX_UNPACKED_GB" in str(caught.value.remedy)
        assert "unpack it yourself" in str(caught.value.remedy)

    assert grown(refused) < 300


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_the_limit_is_one_of_size_and_of_times_and_the_variable_raises_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path, rows = tmp_path / f"rows.jsonl{suffix}", ROW * 20_000
    if suffix == ".zst":
        path.write_bytes(zstandard.compress(rows))
    else:
        path.write_bytes({".gz": gzip, ".bz2": bz2, ".xz": lzma}[suffix].compress(rows))
    assert passed(path) == 20_000  # more than 50 times its size, and small
    monkeypatch.setattr(expansion, "MOST_UNPACKED", 2**20)
    with pytest.raises(DataError, match="times its size"):
        passed(path)
    monkeypatch.setattr(expansion, "MOST_TIMES", 10**6)
    assert passed(path) == 20_000
    monkeypatch.undo()
    monkeypatch.setattr(expansion, "MOST_UNPACKED", 2**20)
    monkeypatch.setenv("TUNESMITH_MAX_UNPACKED_GB", "0.5")
    assert passed(path) == 20_000


@pytest.mark.parametrize("said", ["", "much", "-1", "0", "nan", "1e99"])
def test_a_limit_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(ROW))
    monkeypatch.setenv("TUNESMITH_MAX_UNPACKED_GB", said)
    with pytest.raises(DataError, match="no number of GB"):
        passed(tmp_path / "rows.jsonl.gz")


def write(table: pa.Table, path: Path, compression: str = "zstd") -> Path:
    pq.write_table(table, path, compression=compression, store_schema=False)
    return path


def repeated(text: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))


def endless(text: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(
        pa.Array.from_buffers(pa.int32(), rows, [None, pa.py_buffer(bytes(4 * rows))]), pa.array([text])
    )


def nested(text: str, count: int) -> pa.Array:
    """One row with a list of so many messages of one text."""
    message = pa.StructArray.from_arrays([repeated(text, count)], names=["content"])
    return pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), message)


def parquet_bombs(name: str, path: Path) -> Path:
    long = "a" * 900_000
    made: dict[str, Callable[[], pa.Table]] = {
        "one long text in each row": lambda: pa.table({"text": repeated(long, 4000)}),
        "rows without an end": lambda: pa.table({"text": endless("ab" * 20, 100_000_000)}),
        "several columns": lambda: pa.table({f"c{n}": repeated(long, 800) for n in range(6)}),
        "one row with a list of a long text": lambda: pa.table({"messages": nested(long, 3000)}),
        "one row with a list of numbers": lambda: pa.table({"x": zeros(150_000_000)}),
        "one row with a shorter list": lambda: pa.table({"x": zeros(40_000_000)}),
    }
    return write(made[name](), path)


def zeros(count: int) -> pa.Array:
    """One row with a list of so many numbers."""
    values = pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(bytes(8 * count))])
    return pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), values)


def made_by_another_process(name: str, path: Path) -> Path:
    """Writing them takes the memory that reading must not take."""
    child = os.fork()
    if child == 0:
        parquet_bombs(name, path)
        os._exit(0)
    os.waitpid(child, 0)
    return path


PARQUET = (
    "one long text in each row", "rows without an end", "several columns", "one row with a list of a long text",
    "one row with a list of numbers", "one row with a shorter list",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PARQUET)
def test_a_parquet_file_of_some_hundred_bytes_does_not_fill_the_memory(tmp_path: Path, name: str) -> None:
    path = made_by_another_process(name, tmp_path / "rows.parquet")
    assert path.stat().st_size < (1_000_000 if name == "rows without an end" else 20_000)

    def refused() -> None:
        with pytest.raises(DataError) as caught:
            passed(path)
        assert caught.value.remedy

    assert grown(refused) < 400


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "none"])
def test_rows_that_share_long_texts_are_read_in_order_and_whole(tmp_path: Path, compression: str) -> None:
    texts = [chr(97 + n % 7) * 70_000 for n in range(500)]
    numbers = list(range(500))
    path = write(pa.table({"text": texts, "n": numbers, "l": [[n] * (n % 3) for n in numbers]}), tmp_path / "a.parquet",
                 compression)  # fmt: skip
    (part,), _, _ = parts_of(SourceSettings(path=str(path)), "train")
    rows = [row for row in part.rows() if isinstance(row, Row)]
    assert [row.fields["text"] for row in rows] == texts
    assert [row.fields["n"] for row in rows] == numbers
    assert [row.source.rpartition(":")[2] for row in rows] == [str(n + 1) for n in numbers]


def test_a_parquet_page_that_is_larger_than_its_footer_says_is_refused(tmp_path: Path) -> None:
    path = write(pa.table({"text": ["abc" * 50] * 20}), tmp_path / "a.parquet")
    data = bytearray(path.read_bytes())
    assert data[4:6] == b"\x15\x04"  # the type of the first page: a dictionary
    start = 6
    assert data[start] == 0x15
    assert data[start + 2] < 0x80  # the unpacked bytes take two places
    data[start + 1 : start + 3] = b"\xff\x7f"
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        passed(path)


def test_a_sheet_that_repeats_a_cell_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("odf")
    from odf.opendocument import OpenDocumentSpreadsheet
    from odf.table import Table, TableCell, TableRow
    from odf.text import P

    document, sheet = OpenDocumentSpreadsheet(), Table(name="a")
    for many, text in ((1, "head"), (1_000_000, "x" * 500)):
        row = TableRow(numberrowsrepeated=many)
        for _ in range(3):
            cell = TableCell(valuetype="string")
            cell.addElement(P(text=text + str(_)))
            row.addElement(cell)
        sheet.addElement(row)
    cast("Any", document).spreadsheet.addElement(sheet)
    document.save(str(tmp_path / "a.ods"))
    monkeypatch.setattr(expansion, "MOST_UNPACKED", 2**26)
    with pytest.raises(DataError, match="times its size"):
        passed(tmp_path / "a.ods")


@pytest.mark.parametrize("name", ["../../outside.txt", "/tmp/outside.txt", "xl/../../outside.txt", "link"])
def test_an_archive_puts_nothing_outside_and_nothing_beside(tmp_path: Path, name: str) -> None:
    pytest.importorskip("openpyxl")
    import openpyxl

    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    book = openpyxl.Workbook()
    for values in (["prompt", "completion"], ["ask", "say"]):
        sheet = book.active
        assert sheet is not None
        sheet.append(values)
    book.save(folder / "a.xlsx")
    with zipfile.ZipFile(folder / "a.xlsx", "a") as archive:
        entry = zipfile.ZipInfo(name)
        if name == "link":
            entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    assert passed(folder / "a.xlsx") == 1
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.xlsx"]
    assert not Path("/tmp/outside.txt").exists()


def test_the_message_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(ROW * 20_000))
    monkeypatch.setattr(expansion, "MOST_UNPACKED", 2**20)
    with pytest.raises(DataError) as caught:
        list(open_source(SourceSettings(path=str(path))).examples())
    assert caught.value.where == str(path)


def test_lists_of_texts_that_share_a_large_dictionary_are_read_in_order_and_whole(tmp_path: Path) -> None:
    texts = [chr(97 + n) * 200_000 for n in range(4)]
    rows = [
        [{"role": "user", "content": texts[n % 4]}, {"role": "assistant", "content": None if n % 5 else f"say {n}"}]
        for n in range(700)
    ]
    path = write(
        pa.table({"messages": rows, "tags": [["a", "b"][: n % 3] for n in range(700)]}), tmp_path / "a.parquet"
    )
    assert path.stat().st_size < 100_000
    (part,), _, _ = parts_of(SourceSettings(path=str(path)), "train")
    read = [row for row in part.rows() if isinstance(row, Row)]
    assert [row.fields["messages"][0]["content"] for row in read] == [texts[n % 4] for n in range(700)]
    assert [row.fields["messages"][1].get("content") for row in read] == [
        None if n % 5 else f"say {n}" for n in range(700)
    ]
    assert [row.fields["tags"] for row in read] == [["a", "b"][: n % 3] for n in range(700)]
    assert [row.source.rpartition(":")[2] for row in read] == [str(n + 1) for n in range(700)]
