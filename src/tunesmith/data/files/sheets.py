"""Spreadsheets of Excel (.xlsx) and LibreOffice (.ods) -> rows, each with the number it has in its sheet."""

from __future__ import annotations

import datetime
import itertools
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO
from xml.parsers.expat import ExpatError

from tunesmith.data.examples.message import printable
from tunesmith.data.examples.row_shapes import listed
from tunesmith.data.files.expansion import Expansion
from tunesmith.data.files.rows import BLOCK_BYTES, BadRow, Block, LeftOut, blocks_of_rows
from tunesmith.data.files.sheet_sizes import INSTEAD, MOST_COLUMNS, MOST_ROWS, refuse_beyond_limits
from tunesmith.data.files.streams import seekable
from tunesmith.data.files.tables import HEADER_AGAIN, is_header, numbered, without_repeats
from tunesmith.errors import DataError, pip_install

SHEETS = (".xlsx", ".ods")
MOST_TITLES = 5  # lines above the header
ROWS_LOOKED_AT, COLUMNS_SAID = 100, 10  # for values in columns without a name
CELLS_AT_ONCE = 20_000
CELL_BYTES = 8  # of an empty one
SMALLEST_ZIP = 22  # bytes
OLD_OR_LOCKED = b"\xd0\xcf\x11\xe0"  # begins .xls files, and files with a password
MIDNIGHT = "T00:00:00"
FORMULA = b"<f"  # begins one in the XML of a sheet
BEGINS = 2  # rows of a sheet that are kept from the first look at an .ods file
MOST_SPACES = 2**20  # in a row of an .ods file, where one element stands for any number of them
_ODS_OFFICE, _ODS_TABLES, _ODS_TEXTS, _ODS_STYLING = (
    f"{{urn:oasis:names:tc:opendocument:xmlns:{name}:1.0}}" for name in ("office", "table", "text", "style")
)
_ODS_SPREADSHEET, _ODS_STYLES = f"{_ODS_OFFICE}spreadsheet", f"{_ODS_OFFICE}automatic-styles"
_ODS_TABLE, _ODS_ROW, _ODS_STYLE = f"{_ODS_TABLES}table", f"{_ODS_TABLES}table-row", f"{_ODS_STYLING}style"
_ODS_TABLE_NAME, _ODS_TABLE_STYLE = f"{_ODS_TABLES}name", f"{_ODS_TABLES}style-name"
_ODS_STYLE_NAME = f"{_ODS_STYLING}name"
_ODS_SPACES = f"{_ODS_TEXTS}s"
_ODS_WHITE = {f"{_ODS_TEXTS}tab": "\t", f"{_ODS_TEXTS}line-break": "\n"}

Cells = tuple[int, list[str | None]]  # a row's number and its texts; None: a formula whose value was never saved


@dataclass(frozen=True, slots=True)
class Sheet:
    """One sheet of a file. ``rows``: those that are not blank."""

    title: str
    hidden: bool
    rows: Iterable[Cells]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows are. ``header``: number of the last row of the header; ``said``: what was chosen, for the user.

    ``named``: columns that the user names.
    """

    title: str
    header: int
    names: tuple[str, ...]
    said: tuple[str, ...]
    named: tuple[str, ...] = ()


def find_sheet(file: BinaryIO, suffix: str, name: str, asked: str | None, *, headers: int = 1) -> Layout:
    """The sheet that is read: the recipe's, or the only visible one with rows.

    Raises:
        DataError: the file cannot be read, several sheets hold rows, or there is none as asked for.
    """
    with _sheets(file, suffix, name, counted=True) as sheets:
        if asked is not None:
            chosen = [sheet for sheet in sheets if sheet.title == asked]
            if not chosen:
                raise DataError(
                    f"there is no sheet {printable(asked)!r}",
                    where=name,
                    why=f"the sheets are {listed([sheet.title for sheet in sheets])}",
                    remedy="set data.sheet to one of them",
                )
            return _layout(chosen[0], name, (), headers=headers)
        filled = [sheet for sheet in sheets if len(list(itertools.islice(sheet.rows, 2))) > 1]
        shown = [sheet for sheet in filled if not sheet.hidden] or filled
        if not shown:
            raise DataError("there are no rows in it", where=name, remedy="give a sheet with a header and rows below")
        if len(shown) > 1:
            titles = [sheet.title for sheet in shown]
            raise DataError(
                "several sheets hold rows",
                where=name,
                why=f"they are {listed(titles)}",
                remedy=f'set data.sheet: "{titles[0]}", or another of them',
            )
        others = [sheet.title for sheet in filled if sheet is not shown[0]]
        return _layout(shown[0], name, (f"hidden, not read: {listed(others)}",) if others else (), headers=headers)


def sheet_blocks(file: BinaryIO, name: str, suffix: str, layout: Layout) -> Iterator[Block]:
    """Rows of a sheet as (number, text by column) or bad row; blank rows are passed over.

    Raises:
        DataError: the file is damaged.
    """
    with _sheets(file, suffix, name) as sheets:
        sheet = next(sheet for sheet in sheets if sheet.title == layout.title)
        rows = ((number, cells) for number, cells in sheet.rows if number > layout.header)
        yield from blocks_of_rows(_sized(rows, name, layout, _expansion(name, file.seek(0, 2))), name)


def _sized(rows: Iterable[Cells], name: str, layout: Layout, expansion: Expansion) -> Iterator[tuple[int, Any, int]]:
    """Rows with their sizes. A text can stand in the file once and in a million cells."""
    for number, cells in rows:
        size = sum(len(text or "") for text in cells) + CELL_BYTES * max(len(cells), len(layout.names))
        expansion.add(size)
        yield number, _row(number, cells, name, layout), size


def _row(number: int, cells: list[str | None], name: str, layout: Layout) -> tuple[int, dict[str, str | None]] | BadRow:
    names = [*layout.names, *[""] * (len(cells) - len(layout.names))]
    if cells == names and is_header(layout.names, layout.named):
        return LeftOut(f"{name}:{number}", "row", HEADER_AGAIN, "a row", " | ".join(layout.names))
    texts = [*cells, *[""] * (len(names) - len(cells))]
    return number, {column: text for column, text in zip(names, texts, strict=False) if column}


def _layout(sheet: Sheet, name: str, said: tuple[str, ...], *, headers: int) -> Layout:
    """The header is the first row, or several; lines of one cell above a row of several are a title."""
    lines = list(itertools.islice(sheet.rows, MOST_TITLES + max(headers, 1)))
    if not lines:
        raise DataError(
            f"the sheet {printable(sheet.title)!r} is empty", where=name, remedy="name another one as data.sheet"
        )
    if not headers:
        names = numbered(max(len(cells) for _, cells in lines))
        without = f"no header: the columns are {', '.join(names)}"
        return Layout(sheet.title, lines[0][0] - 1, names, (f"sheet {sheet.title}", without, *said))
    titles = len(list(itertools.takewhile(lambda line: _filled(line) == 1, lines)))
    titles = titles if titles < len(lines) else 0  # all have one cell: a sheet of one column
    number, names = lines[titles][0], tuple(text or "" for text in lines[titles][1])
    kept, repeats = without_repeats(names, f"{name}:{number}")
    names = tuple(new if old else "" for old, new in zip(names, kept, strict=True))
    looked = itertools.islice(sheet.rows, titles + 1, ROWS_LOOKED_AT)
    named = {at for at, column in enumerate(names) if column}
    beside = {at for _, cells in looked for at, text in enumerate(cells) if _holds(text) and at not in named}
    columns = ", ".join(str(at + 1) for at in sorted(beside)[:COLUMNS_SAID])
    repeats += [f"without a name and not used: column{'s' if len(beside) > 1 else ''} {columns}"] if beside else []
    title = (f"the header is row {number}, below a title",) if titles else ()
    unsaved = {column: None for _, cells in lines for column, text in zip(names, cells, strict=False) if text is None}
    formulas = (f"no value was saved for the formulas of {listed([*unsaved])}",) if unsaved else ()
    last = lines[min(titles + headers, len(lines)) - 1][0]
    more = (f"the header has {headers} lines, as data.header says",) if headers > 1 else ()
    return Layout(sheet.title, last, names, (f"sheet {sheet.title}", *title, *more, *repeats, *formulas, *said))


def _filled(row: Cells) -> int:
    return sum(1 for text in row[1] if _holds(text))


def _holds(text: str | None) -> bool:
    return text is not None and bool(text.strip())


@contextmanager
def _sheets(file: BinaryIO, suffix: str, name: str, *, counted: bool = False) -> Iterator[list[Sheet]]:
    """The sheets of a file; what its library says against the file is a data error. ``counted``: the first time."""
    try:
        content = seekable(file)
        _refuse_bomb(content, suffix, name, counted=counted)
        with _library(suffix, name), _xlsx(content) if suffix == ".xlsx" else _ods(content) as sheets:
            yield sheets
    except (
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        SyntaxError,
        OSError,
        EOFError,
        RecursionError,
        ExpatError,
    ) as error:
        raise DataError(f"the {suffix} file cannot be read", where=name, why=str(error)) from error


@contextmanager
def _library(suffix: str, name: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise DataError(
            f"{error.name} reads {suffix} files, and it is not installed",
            where=name,
            remedy=f"{pip_install(suffix[1:])}, or save the sheet as .csv",
        ) from error


def _refuse_bomb(file: BinaryIO, suffix: str, name: str, *, counted: bool) -> None:
    begins = file.read(4)
    if begins == OLD_OR_LOCKED:
        raise DataError(
            f"this is no {suffix} file",
            where=name,
            why="it has a password, or it is an old .xls file",
            remedy=f"save it as {suffix} without a password, or as .csv",
        )
    packed = file.seek(0, 2)
    if packed < SMALLEST_ZIP:
        raise zipfile.BadZipFile("it is cut off")
    if counted:
        refuse_beyond_limits(file, name, _expansion(name, packed))
    file.seek(0)


def _expansion(name: str, packed: int) -> Expansion:
    return Expansion(name, lambda: packed, INSTEAD)


def _xlsx(file: BinaryIO) -> AbstractContextManager[list[Sheet]]:
    import defusedxml  # noqa: F401 - openpyxl uses it where it is installed
    import openpyxl

    load = partial(openpyxl.load_workbook, read_only=True, keep_links=False)  # other files are never asked

    @contextmanager
    def opened() -> Iterator[list[Sheet]]:
        with ExitStack() as stack, warnings.catch_warnings():  # of styles and checks of input that are not kept
            warnings.simplefilter("ignore")
            values: Any = stack.enter_context(closing(load(file, data_only=True)))
            written: list[Any] = [None for _ in values.worksheets]
            if _has_formulas(file):
                written = stack.enter_context(closing(load(file))).worksheets
            yield [
                Sheet(sheet.title, sheet.sheet_state != "visible", _Rows(partial(_xlsx_rows, sheet, formulas)))
                for sheet, formulas in zip(values.worksheets, written, strict=True)
            ]

    return opened()


def _has_formulas(file: BinaryIO) -> bool:
    """Whether a sheet may hold one: then it is read twice, since ``openpyxl`` gives formulas or their values."""
    with zipfile.ZipFile(file) as archive:
        for entry in archive.namelist():
            if entry.startswith("xl/worksheets/") and entry.endswith(".xml"):
                with archive.open(entry) as content:
                    end = b""
                    while chunk := content.read(BLOCK_BYTES):
                        if FORMULA in end + chunk:
                            return True
                        end = chunk[-1:]
    return False


def _xlsx_rows(sheet: Any, formulas: Any | None) -> Iterator[Cells]:
    """The rows of a sheet. ``formulas``: the same sheet with formulas in place of values, if it has any."""
    sheet.reset_dimensions()  # some programs write wrong ones
    rows = enumerate(sheet.iter_rows(values_only=True), start=1)
    beside: Iterator[tuple[Any, ...]] = itertools.repeat(())
    if formulas is not None:
        formulas.reset_dimensions()
        beside = formulas.iter_rows(values_only=True)
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            some = _some(zip(rows, beside, strict=False))
        if not some:
            return
        for (number, row), written in some:
            cells: list[str | None] = [_text(value) for value in row]
            for at, formula in enumerate(written[: len(row)]):
                if row[at] is None and formula is not None:
                    cells[at] = None
            yield number, cells


def _some(rows: Iterator[tuple[tuple[int, Any], Any]]) -> list[tuple[tuple[int, Any], Any]]:
    """The next rows, with about ``CELLS_AT_ONCE`` cells: a row may have one text and 16,384 cells."""
    some, cells = [], 0
    for row in rows:
        some.append(row)
        cells += 1 + len(row[0][1])
        if cells > CELLS_AT_ONCE:
            break
    return some


def _text(value: Any) -> str:
    """A cell as the sheet shows it, without its number format."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat().removesuffix(MIDNIGHT)
    return str(value)


def _ods(file: BinaryIO) -> AbstractContextManager[list[Sheet]]:
    import defusedxml.ElementTree  # noqa: F401 - a missing package is said before anything is read

    @contextmanager
    def opened() -> Iterator[list[Sheet]]:
        hidden: set[str | None] = set()
        sheets = []
        for number, parts in _ods_groups(file):
            if not number:  # what stands before the first table
                hidden = {style.get(_ODS_STYLE_NAME) for style in parts if _hides(style)}
                continue
            table = next(parts)
            begins = list(itertools.islice(_Rows(lambda parts=parts: _ods_rows(parts)), BEGINS))
            rows = _Begun(begins, _Rows(partial(_ods_sheet, file, number)))
            sheets.append(Sheet(table.get(_ODS_TABLE_NAME), table.get(_ODS_TABLE_STYLE) in hidden, rows))
        yield sheets

    return opened()


def _ods_groups(file: BinaryIO) -> Iterator[tuple[int, Iterator[Any]]]:
    """What stands before the first table, as number 0, and each table with its rows, numbered from 1."""
    tables = 0

    def number_of(part: Any) -> int:
        nonlocal tables
        tables += part.tag == _ODS_TABLE
        return tables

    return itertools.groupby(_ods_parts(file), number_of)


def _ods_parts(file: BinaryIO) -> Iterator[Any]:
    """The automatic styles, each table as it begins, and its rows. A row leaves the memory before the next is read.

    A table inside a row is a part of that row.
    """
    from defusedxml.ElementTree import iterparse

    path: list[Any] = []
    rows, found = 0, False
    with zipfile.ZipFile(file) as archive, archive.open("content.xml") as content:
        for event, element in iterparse(content, ("start", "end"), forbid_dtd=True):
            if event == "start":
                if element.tag == _ODS_TABLE and found and not rows:
                    yield element
                found = found or element.tag == _ODS_SPREADSHEET
                rows += element.tag == _ODS_ROW
                path.append(element)
                continue
            path.pop()
            if element.tag == _ODS_ROW:
                rows -= 1
                if not rows:
                    if found:
                        yield element
                    path[-1].remove(element)
            elif element.tag == _ODS_STYLE and path[-1].tag == _ODS_STYLES:
                yield element
    if not found:
        raise ValueError("it holds no spreadsheet")


def _hides(style: Any) -> bool:
    return any(part.get(f"{_ODS_TABLES}display") == "false" for part in style)


def _ods_sheet(file: BinaryIO, wanted: int) -> Iterator[Cells]:
    """The rows of one table. The file is read again up to its end."""
    for number, parts in _ods_groups(file):
        if number == wanted:
            next(parts)
            yield from _ods_rows(parts)
            return


def _ods_rows(rows: Iterable[Any]) -> Iterator[Cells]:
    number = 1
    for row in (each for outer in rows for each in outer.iter(_ODS_ROW)):
        if sum(map(_spaces, row.iter(_ODS_SPACES))) > MOST_SPACES:
            raise ValueError(f"row {number:,} has more than {MOST_SPACES:,} spaces")
        cells: list[str | None] = []
        for cell in row:
            text = _ods_text(cell)
            cells += [text] * _repeated(cell, "number-columns-repeated", MOST_COLUMNS - len(cells))
        while cells and not _holds(cells[-1]):
            cells.pop()
        many = _repeated(row, "number-rows-repeated", MOST_ROWS)
        if cells:
            yield from ((each, cells) for each in range(number, number + many))
        number += many


def _repeated(element: Any, key: str, most: int) -> int:
    return max(min(int(element.get(f"{_ODS_TABLES}{key}") or 1), most), 0)


def _ods_text(cell: Any) -> str:
    kind = cell.get(f"{_ODS_OFFICE}value-type")
    if kind in ("float", "currency", "percentage"):
        return _text(float(cell.get(f"{_ODS_OFFICE}value")))
    if kind == "boolean":
        return str(cell.get(f"{_ODS_OFFICE}boolean-value"))
    if kind == "date":
        return str(cell.get(f"{_ODS_OFFICE}date-value")).removesuffix(MIDNIGHT)
    lines = cell.findall(f"{_ODS_TEXTS}p")  # and no comments
    return "\n".join("".join(_ods_pieces(line)) for line in lines)


def _ods_pieces(element: Any) -> Iterator[str]:
    """The text of a paragraph. Spaces, tabs and line breaks are elements of their own."""
    yield element.text or ""
    for part in element:
        if part.tag == _ODS_SPACES:
            yield " " * _spaces(part)
        elif part.tag in _ODS_WHITE:
            yield _ODS_WHITE[part.tag]
        else:
            yield from _ods_pieces(part)
        yield part.tail or ""


def _spaces(element: Any) -> int:
    return max(int(element.get(f"{_ODS_TEXTS}c") or 1), 0)


class _Begun:
    """Rows whose first ``BEGINS`` are known: the others are read only if they are asked for."""

    def __init__(self, begins: list[Cells], rows: Iterable[Cells]) -> None:
        self._begins, self._rows = begins, rows

    def __iter__(self) -> Iterator[Cells]:
        yield from self._begins
        if len(self._begins) == BEGINS:
            yield from itertools.islice(self._rows, BEGINS, None)


class _Rows:
    """Rows that can be gone through more than once."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Cells]:
        return ((number, cells) for number, cells in self._rows() if any(map(_holds, cells)))
