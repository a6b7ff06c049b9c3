"""Files are read as streams: packed or not, cut anywhere, and never held whole."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import pickle
import random
import subprocess
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from tests.data.loading import load

from tunesmith.data.files import csv_rows, streams
from tunesmith.data.files.formats import FORMATS
from tunesmith.data.files.locations import SourcePart, parts_of
from tunesmith.data.files.reader import example_of, open_source
from tunesmith.data.files.rows import BadRow, Block, Row
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

ROWS = [{"prompt": f"question {number}", "completion": f"answer é {number}"} for number in range(1, 4001)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


PACKED = {".gz": partial(gzip.compress, compresslevel=1), ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def part_of(path: Path) -> SourcePart:
    (part,) = parts_of(SourceSettings(path=str(path)), "train")[0]
    return part


def refused(path: Path, **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load(SourceSettings(path=str(path), **settings))
    return caught.value


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def write_rows(path: Path, rows: list[dict]) -> Path:
    """The rows in the format of the name."""
    import csv

    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1500)
        return path
    text = io.StringIO(newline="")
    if path.suffix in (".csv", ".tsv"):
        writer = csv.DictWriter(text, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
    elif path.suffix == ".json":
        json.dump(rows, text, ensure_ascii=False, indent=1)
    else:
        text.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return write(path, text.getvalue().encode())


@pytest.fixture(params=[".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def long_file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    rows = [row | {"completion": row["completion"] + " x" * 300} for row in ROWS]
    return write_rows(tmp_path / f"r{request.param}", rows)


def test_blocks_can_be_parsed_in_another_process_and_a_part_read_twice(long_file: Path):
    part = part_of(long_file)
    blocks = list(part.blocks())
    assert len(blocks) > 2
    starts = [block.start for block in blocks]
    assert starts == sorted(set(starts))
    here = list(part.rows())
    assert [row.fields["prompt"] for row in here if isinstance(row, Row)] == [row["prompt"] for row in ROWS]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        there = [row for rows in pool.map(parsed, [(long_file.suffix, block) for block in blocks]) for row in rows]
    assert there == here
    assert part.sha256 == hashlib.sha256(long_file.read_bytes()).hexdigest()


def parsed(task: tuple[str, Block]) -> list[Row | BadRow]:
    suffix, block = task
    return list(FORMATS[suffix].rows(block))


@pytest.mark.parametrize("compression", PACKED)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_packed_file_gives_the_same_rows_and_the_digest_of_what_lies_on_the_disk(
    tmp_path: Path, compression: str, suffix: str
):
    plain = write_rows(tmp_path / f"plain{suffix}", ROWS)
    path = write(tmp_path / f"r{suffix}{compression}", PACKED[compression](plain.read_bytes()))
    loaded = load(SourceSettings(path=str(path)))
    assert [example.messages[1].content for example in loaded.examples] == [row["completion"] for row in ROWS]
    assert loaded.files == [(str(path), hashlib.sha256(path.read_bytes()).hexdigest())]
    assert part_of(path).sha256 == loaded.files[0][1]


@pytest.mark.parametrize("compression", PACKED)
@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_a_damaged_packed_file_is_one_error(tmp_path: Path, compression: str, damage: str):
    packed = bytearray(PACKED[compression](random.Random(0).randbytes(300_000).hex().encode() + b"\n" + LINES))
    if damage == "cut":
        del packed[-len(packed) // 3 :]
    elif damage == "changed":
        packed[len(packed) // 2 : len(packed) // 2 + 200] = bytes(200)
    else:
        packed = bytearray(LINES)
    path = write(tmp_path / f"r.txt{compression}", bytes(packed))
    error = refused(path)
    assert (error.what, error.where) == (f"the {compression} file is damaged", str(path))


@pytest.mark.parametrize("compression", PACKED)
def test_packed_files_that_were_joined_are_read_one_after_the_other(tmp_path: Path, compression: str):
    pack = PACKED[compression]
    path = write(tmp_path / f"r.jsonl{compression}", pack(LINES[:70_000]) + pack(b"") + pack(LINES[70_000:]))
    assert len(load(SourceSettings(path=str(path))).examples) == len(ROWS)


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.parquet", "r.jsonl.gz"])
def test_a_git_lfs_pointer_is_said_to_be_one(tmp_path: Path, name: str):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    error = refused(write(tmp_path / name, pointer))
    assert error.what == "this is a git-lfs pointer, not the data"
    assert "git lfs pull" in str(error.remedy)


@pytest.mark.parametrize("name", ["r.jsonl", "r.txt", "r.csv"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\r\n \n", b"\n" * 1_200_000])
def test_a_file_without_rows_is_one_error(tmp_path: Path, name: str, content: bytes):
    if name == "r.csv" and b" " in content:
        pytest.skip("a space is a column's name")
    assert refused(write(tmp_path / name, content)).what == "there are no rows in it"


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.txt"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_one_error_and_its_remedy_leads_out(tmp_path: Path, name: str, encoding: str):
    row = '{"prompt": "a", "completion": "b"}\n' if "json" in name else "prompt,completion\na,b\n"
    row = f"[{row}]" if name == "r.json" else row
    path = write(tmp_path / name, row.encode(encoding))
    error = refused(path)
    assert error.what == "the file is UTF-16, not UTF-8"
    assert error.remedy == f"save it as UTF-8, or set data.encoding: {encoding}"
    assert load(SourceSettings(path=str(path), encoding=encoding)).examples


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.txt"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_utf_16_and_utf_32_are_read_by_their_mark(tmp_path: Path, name: str, encoding: str):
    row = '{"prompt": "é", "completion": "b"}\n' if name == "r.jsonl" else "prompt,completion\né,b\n"
    reader = open_source(SourceSettings(path=str(write(tmp_path / name, row.encode(encoding)))))
    assert f"encoding {encoding.upper()}, by its mark" in reader.reason
    assert any("é" in str(example) for example in reader.examples())


def test_a_mark_at_the_start_and_windows_line_ends_do_no_harm(tmp_path: Path):
    path = write(tmp_path / "r.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n"))
    loaded = load(SourceSettings(path=str(path)))
    assert [example.source for example in loaded.examples] == [f"{path}:{n}" for n in range(1, len(ROWS) + 1)]


def test_a_file_that_changes_between_two_passes_is_one_error(tmp_path: Path):
    part = part_of(write(tmp_path / "r.jsonl", LINES))
    assert len(list(part.rows())) == len(ROWS)
    write(tmp_path / "r.jsonl", LINES * 2)
    with pytest.raises(DataError, match="has changed while it was read"):
        list(part.rows())


def test_a_row_that_never_ends_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in ("rows", "csv_rows"):
        monkeypatch.setattr(f"tunesmith.data.files.{module}.LARGEST_ROW", 3_000_000)
    for name, head in (("r.jsonl", b'{"a": "'), ("r.txt", b""), ("r.json", b'[1, {"a": "'), ("r.csv", b"")):
        error = refused(write(tmp_path / name, head + b"x" * 8_000_000))
        assert (error.what, error.where) == ("a row of more than 2 MB", f"{tmp_path / name}:1")


def test_a_stray_quote_is_given_up_after_a_bounded_look_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = ["prompt,completion", '"stray,b', *(f"q{n},a{n}" for n in range(1000)), '"two\nlines",b']
    path = write(tmp_path / "r.csv", "\n".join(lines).encode())
    whole = list(part_of(path).rows())
    monkeypatch.setattr(csv_rows, "MOST_LINES", 20)
    bounded = list(part_of(path).rows())
    assert [row for row in bounded if isinstance(row, Row)] == [row for row in whole if isinstance(row, Row)]
    for rows in (whole, bounded):
        assert [(row.source, row.raw) for row in rows if isinstance(row, BadRow)] == [(f"{path}:2", '"stray,b')]
    assert whole[-1] == Row({"prompt": "two\nlines", "completion": "b"}, f"{path}:1003")
    monkeypatch.setattr(csv_rows, "MOST_CHARACTERS", 10)  # bounds what follows the first line, however long that is
    long = write(tmp_path / "long.csv", b'a,b\n"' + b"x" * 100 + b'",2\n"y\n' + b"z" * 100 + b'",3\n')
    assert [type(row) for row in part_of(long).rows()] == [Row, Row]


def test_a_column_that_only_a_later_row_has_can_be_mapped(tmp_path: Path):
    rows = [{"q": "a", "completion": "b"}] * 300 + [{"q": "a", "completion": "b", "context": "c"}]
    path = write_rows(tmp_path / "r.jsonl", rows)
    columns = {"prompt": "q", "system": "context"}
    assert load(SourceSettings(path=str(path), columns=columns)).examples[-1].messages[0].content == "c"
    error = refused(path, columns={"prompt": "q", "system": "contxt"})
    assert "did you mean context?" in str(error.remedy)


def test_a_mistyped_column_of_a_table_is_known_without_reading_on(tmp_path: Path):
    rows = "".join(f"{random.Random(number).randbytes(500).hex()},b\n" for number in range(3000))
    packed = gzip.compress(b"prompt,completion\n" + rows.encode())
    path = write(tmp_path / "r.csv.gz", packed[:-1000])  # what follows cannot be read
    assert refused(path, columns={"prompt": "promt"}).what == "data.columns: there is no column 'promt'"
    assert refused(path).what == "the .gz file is damaged"


def test_many_rows_of_another_shape_are_said_to_be_so(tmp_path: Path):
    rows = [{"text": "a"} if number % 4 == 0 else {"prompt": "a", "completion": "b"} for number in range(40)]
    error = refused(write_rows(tmp_path / "r.jsonl", rows))
    assert error.what == "10 of 40 rows cannot be used"
    said = "10 of the first 40 rows have the shape text (text), and are read as prompt_completion"
    assert str(error.why).splitlines()[-1] == said


def test_a_source_is_opened_without_reading_it_all_and_its_rows_become_examples_elsewhere(tmp_path: Path):
    path = write(tmp_path / "r.jsonl", LINES + b"{\n")
    source = SourceSettings(path=str(path))
    reader = open_source(source)
    assert (reader.shape, reader.mixture) == ("prompt_completion", None)
    row = pickle.loads(pickle.dumps(next(reader.parts[0].rows())))  # noqa: S301  (our own bytes)
    assert isinstance(row, Row)
    example = example_of(row, pickle.loads(pickle.dumps(source)), reader.shape)  # noqa: S301
    assert example == next(reader.examples())
    assert isinstance(list(reader.examples())[-1], BadRow)
    assert isinstance(example_of(Row({"prompt": 1}, "f:1"), source, reader.shape), BadRow)


MEASURED = """
import re, sys
from pathlib import Path
from tunesmith.data.files.reader import open_source
from tunesmith.recipe.data import SourceSettings
sizes = [len(example.messages[0].content) for example in open_source(SourceSettings(path=sys.argv[1])).examples()]
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]  # getrusage knows the parent's, too
print(len(sizes), max(sizes), int(peak) // 1024)
"""


def measured(path: Path) -> list[int]:
    """[rows, characters of the largest prompt, peak memory in MB] of a pass in a process of its own."""
    done = subprocess.run([sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r.jsonl", "r.json"])
def test_a_row_of_50_mb_needs_less_than_500(tmp_path: Path, name: str):
    row = '{"prompt": "' + "é" * 24_999_000 + 'a", "completion": "b"}'
    path = write(tmp_path / name, (f"[{row}]" if name == "r.json" else row + "\n").encode())
    assert path.stat().st_size > 49_000_000
    rows, largest, megabytes = measured(path)
    assert (rows, largest) == (1, 24_999_001)
    assert megabytes < 500


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.parquet", "r.jsonl.zst", "r.jsonl.gz"])
def test_a_pass_over_a_file_needs_less_memory_than_its_rows_are_long(tmp_path: Path, name: str):
    rows = [{"prompt": random.Random(n).randbytes(6000).hex(), "completion": "b"} for n in range(4000)]
    path, compression = tmp_path / name.removesuffix(".gz").removesuffix(".zst"), Path(name).suffix
    write_rows(path, rows * 5)
    if compression in PACKED:
        write(tmp_path / name, PACKED[compression](path.read_bytes()))
    count, _, megabytes = measured(tmp_path / name)
    assert count == 20_000
    assert megabytes < 200 < 20_000 * 12_000 // 2**20


def with_dictionary(packed: bytes, props: int) -> bytes:
    """An .xz file whose head asks for a dictionary of (2 | props & 1) << (props // 2 + 11) bytes; 40 is 4 GiB."""
    size = 4 * (packed[12] + 1)  # of the head of the first block, with its checksum
    head = bytearray(packed[12 : 12 + size - 4])
    at = head.index(b"\x21\x01")  # the filter LZMA2, with one byte of properties
    head[at + 2] = props
    return packed[:12] + bytes(head) + zlib.crc32(head).to_bytes(4, "little") + packed[12 + size :]


def test_a_dictionary_that_would_take_the_memory_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    packed = lzma.compress(LINES)
    said = refused(write(tmp_path / "r.jsonl.xz", with_dictionary(packed, 40)))
    assert "the .xz file needs too much memory to be unpacked" in said.what
    assert said.remedy == "unpack it yourself (xz -d), and name the unpacked file"
    assert (
        len(load(SourceSettings(path=str(write(tmp_path / "r.jsonl.xz", with_dictionary(packed, 28))))).examples)
        == 4000
    )
    zstandard = pytest.importorskip("zstandard")
    parameters = zstandard.ZstdCompressionParameters(window_log=29, enable_ldm=True)
    long = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    said = refused(write(tmp_path / "r.jsonl.zst", long.compress(LINES) + long.flush()))
    assert "the .zst file needs too much memory to be unpacked" in said.what


def test_memory_that_runs_out_while_a_file_is_unpacked_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hungry:
        def __init__(self, file: Any) -> None:
            pass

        def read(self, size: int) -> bytes:
            raise MemoryError

    monkeypatch.setitem(streams.COMPRESSIONS, ".gz", Hungry)  # type: ignore[arg-type]
    said = refused(write(tmp_path / "r.jsonl.gz", gzip.compress(LINES)))
    assert "the .gz file needs too much memory to be unpacked" in said.what


def test_xz_streams_behind_one_another_are_one_file_and_one_that_is_cut_is_damaged(tmp_path: Path) -> None:
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    two = lzma.compress(LINES[:half]) + bytes(8) + lzma.compress(LINES[half:]) + bytes(4)
    assert len(load(SourceSettings(path=str(write(tmp_path / "r.jsonl.xz", two)))).examples) == 4000
    for end in (0, 5, 40, len(two) // 3, len(two) - 20):
        assert "damaged" in refused(write(tmp_path / "r.jsonl.xz", two[:end])).what
    assert "damaged" in refused(write(tmp_path / "r.jsonl.xz", two + b"more")).what
