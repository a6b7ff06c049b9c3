"""What a spreadsheet becomes in memory, counted before a library reads it: sizes inside such a file may lie."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO
from xml.parsers import expat

from tunesmith.data.files.expansion import Expansion
from tunesmith.data.files.rows import BLOCK_BYTES
from tunesmith.errors import DataError

MOST_COLUMNS, MOST_ROWS = 16_384, 1_048_576  # of a sheet, in Excel and LibreOffice
NODE_BYTES, CLEARED_BYTES = 400, 120  # of an element that is held, and of one that has been emptied, measured
MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
SEPARATOR = "|"
ODS = "urn:oasis:names:tc:opendocument:xmlns"
EMPTIED = {  # by the root of a part: once it is read
    f"{MAIN}|worksheet": f"{MAIN}|row",
    f"{MAIN}|sst": f"{MAIN}|si",
    f"{ODS}:office:1.0|document-content": f"{ODS}:table:1.0|table-row",
}
LOCAL_HEADER = 30  # bytes before the name in front of a part
INSTEAD = "save the sheet as .csv"


def refuse_beyond_limits(file: BinaryIO, name: str, expansion: Expansion) -> None:
    """Unpacks each part a piece at a time, and counts its bytes, elements, rows and columns.

    Raises:
        DataError: they are too many, or a row or column lies beyond the last one of a sheet.
        zipfile.BadZipFile: a part has another size than the file says.
        expat.ExpatError: a part that is named as XML is none.
    """
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            part, taken = _Part(name), 0
            elements = True
            for piece in _pieces(file, entry):
                taken += len(piece)
                expansion.add(len(piece))
                elements = elements and part.feed(piece, named_xml=entry.filename.endswith((".xml", ".rels")))
                expansion.refuse_with(max(part.most, part.nodes) * NODE_BYTES + part.emptied * CLEARED_BYTES)
            if taken != entry.file_size:
                raise zipfile.BadZipFile(f"{entry.filename} has {taken:,} bytes, and the file says {entry.file_size:,}")


def _pieces(file: BinaryIO, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """A part's bytes as they are, whatever size the file says: ``zipfile`` would unpack all before it looks."""
    file.seek(entry.header_offset)
    header = file.read(LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{entry.filename} cannot be unpacked")
    at = entry.header_offset + LOCAL_HEADER + int.from_bytes(header[26:28], "little")
    at, left = at + int.from_bytes(header[28:30], "little"), entry.compress_size
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    while left:
        file.seek(at)
        packed = file.read(min(left, BLOCK_BYTES))
        if not packed:
            raise zipfile.BadZipFile("it is cut off")
        at, left = at + len(packed), left - len(packed)
        if entry.compress_type == zipfile.ZIP_STORED:
            yield packed
            continue
        while packed and not inflate.eof:
            yield inflate.decompress(packed, BLOCK_BYTES)
            packed = inflate.unconsumed_tail
    while entry.compress_type == zipfile.ZIP_DEFLATED and not inflate.eof:
        more = inflate.decompress(inflate.unconsumed_tail, BLOCK_BYTES)
        if not more:
            return
        yield more


class _Part:
    """Counts the elements of a part as a library would hold them: ``nodes`` now, ``most`` at once, ``emptied`` ones.

    Each row, or each shared text, is emptied once it is read. Rows and columns beyond the last are refused.
    """

    def __init__(self, name: str) -> None:
        self.nodes = self.most = self.emptied = 0
        self._name, self._root = name, ""
        self._row = self._column = 0
        self._before: list[int] = []  # nodes before each row that is open
        self._parser = expat.ParserCreate(namespace_separator=SEPARATOR)
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end

    def feed(self, piece: bytes, *, named_xml: bool) -> bool:
        """Counts more of the part; False if it is no XML, and is not named as such."""
        try:
            self._parser.Parse(piece, False)
        except expat.ExpatError:
            if named_xml:
                raise
            return False
        return True

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._root = self._root or tag
        if tag == EMPTIED.get(self._root):
            self._before.append(self.nodes)
        self.nodes += 1
        if tag == f"{MAIN}|row":
            self._row, self._column = int(float(attributes.get("r", self._row + 1))), 0
            if self._row > MOST_ROWS:
                self._refuse(f"row {self._row:,}")
        elif tag == f"{MAIN}|c" and self._before:
            self._column = _column(attributes["r"]) if attributes.get("r") else self._column + 1
            if self._column > MOST_COLUMNS:
                self._refuse(f"column {self._column:,}")

    def _end(self, tag: str) -> None:
        if tag == EMPTIED.get(self._root):
            before = self._before.pop()
            if not self._before:  # a row inside a row stays with it
                self.most, self.nodes = max(self.most, self.nodes), before
                self.emptied += 1

    def _refuse(self, what: str) -> None:
        raise DataError(
            f"{what} is beyond the end of a sheet",
            where=self._name,
            why=f"a sheet has at most {MOST_ROWS:,} rows and {MOST_COLUMNS:,} columns",
            remedy=INSTEAD,
        )


def _column(reference: str) -> int:
    """The number of the column in a reference such as AB12."""
    number = 0
    for letter in reference.upper():
        if not "A" <= letter <= "Z":
            break
        number = number * 26 + ord(letter) - ord("A") + 1
    return number
