"""How a file is read: its format, encoding and layout, from its ending, the recipe and its first bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from tunesmith.data.files.encodings import UTF8, Encoding, find_encoding, known_encoding, mark_of, transcoded
from tunesmith.data.files.formats import FORMATS, TEXT_FORMATS, Format, table_format
from tunesmith.data.files.rows import BLOCK_BYTES
from tunesmith.data.files.streams import COMPRESSIONS
from tunesmith.data.files.tables import find_table, fits
from tunesmith.errors import DataError

if TYPE_CHECKING:
    from tunesmith.recipe.data import SourceSettings

TEXT = ".txt"
TABLES = {".csv": ",", ".tsv": "\t"}
BINARY = frozenset({".parquet"})
Open = Callable[[], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True, slots=True)
class Opening:
    """A format, the encoding of the text, and what was chosen in the words for the user."""

    format: Format
    encoding: str = UTF8.name
    said: tuple[str, ...] = ()

    def text(self, file: BinaryIO) -> BinaryIO:
        """The file's text as UTF-8."""
        return transcoded(file, self.encoding)


def suffix_of(name: str) -> tuple[str, str | None]:
    """(.jsonl, .gz) for rows.jsonl.gz."""
    path = PurePosixPath(name.lower())
    compression = path.suffix if path.suffix in COMPRESSIONS else None
    return (PurePosixPath(path.stem).suffix if compression else path.suffix), compression


def format_of(name: str, sample_by: str) -> Format:
    """The format of a file's ending.

    Raises:
        DataError: there is none.
    """
    suffix, _ = suffix_of(name)
    if suffix not in FORMATS:
        raise DataError(
            f"{suffix} files are not supported" if suffix else "the file's name has no ending",
            where=name,
            why=f"the formats are {', '.join(FORMATS)}, as they are or with {', '.join(COMPRESSIONS)}",
            remedy="convert the file, or give it the ending of its format",
        )
    return TEXT_FORMATS[sample_by] if suffix == TEXT else FORMATS[suffix]


def find_opening(file: Open, name: str, source: SourceSettings) -> Opening:
    """How a file is read.

    Args:
        file: opens its contents, which are unpacked.
        name: of the file.
        source: the recipe's word on it.

    Raises:
        DataError: the encoding or the separator cannot be told, or the recipe's does not exist.
    """
    suffix, kind = suffix_of(name)[0], format_of(name, source.sample_by)
    if suffix in BINARY:
        return Opening(kind)
    encoding = _encoding(file, name, source, tells=suffix in TABLES or suffix == TEXT)
    said = (encoding.said,) if encoding.said else ()
    usual = TABLES.get(suffix)
    if usual is None and not (suffix == TEXT and (source.delimiter or encoding.name == "utf-16")):
        return Opening(kind, encoding.name, said)
    text, whole = _beginning(file, encoding.name)
    if usual is None and source.delimiter is None and not fits(text if whole else text[: text.rfind("\n") + 1], "\t"):
        return Opening(kind, encoding.name, said)  # UTF-16 that is no table
    table = find_table(text, whole=whole, usual=usual or ",", asked=source.delimiter, name=name)
    return Opening(table_format(table), encoding.name, (*table.said, *said))


def _encoding(file: Open, name: str, source: SourceSettings, *, tells: bool) -> Encoding:
    """``tells``: whether bytes that are not UTF-8 may be another encoding, which JSON's are not."""
    if source.encoding is not None:
        return known_encoding(source.encoding, name)
    try:
        with file() as content:
            if tells:
                return find_encoding(_chunks(content), name)
            marked = mark_of(content.read(4))
    except DataError as error:
        if error.remedy is not None and "data.encoding" in error.remedy:
            raise
        return UTF8  # a damaged file: whoever reads the rows hears of it where it is
    return Encoding(marked, f"encoding {marked.upper()}, by its mark") if marked else UTF8


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(BLOCK_BYTES):
        yield chunk


def _beginning(file: Open, encoding: str) -> tuple[str, bool]:
    """The first characters of a file, without its mark, and whether those are all."""
    with file() as content:
        data = io.BytesIO(content.read(BLOCK_BYTES))
        whole = len(data.getvalue()) < BLOCK_BYTES
    text = transcoded(data, encoding).read().decode("utf-8", "surrogateescape")
    return text.removeprefix("\ufeff"), whole
