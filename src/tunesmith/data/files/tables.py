"""How a table of text is written: its delimiter, its quotes and its empty columns, found from its first records."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tunesmith.errors import DataError

DELIMITERS = (",", ";", "\t", "|")
NAMES = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)
MOST_RECORDS = 1000  # that are parsed to find out
EXCEL_BLOCK = 16  # records for which Excel writes the same number of columns
LONGEST_SHOWN = 60
NO_HEADER = "if the file has no header, set data.header: false"
INDEX_NAMES = ("", "Unnamed: 0")  # pandas writes an index under the first, and reads it as the second


@dataclass(frozen=True, slots=True)
class Table:
    """How records are read.

    ``skipped``: lines before the header; ``first``, ``last``: the columns that are used, without an index before and
    empty ones behind; ``shortest``: fields of a record whose last empty ones Excel did not write; ``names``: of the
    columns, if there is no header; ``said``: what was chosen, for the user.
    """

    delimiter: str
    quotes: bool = True
    skipped: int = 0
    first: int = 0
    last: int | None = None
    shortest: int | None = None
    names: tuple[str, ...] | None = None
    said: tuple[str, ...] = ()

    @property
    def columns(self) -> slice:
        """The columns that are used."""
        return slice(self.first, self.last)


def numbered(columns: int) -> tuple[str, ...]:
    """Names for the columns of a table without a header."""
    return tuple(f"column{number}" for number in range(1, columns + 1))


def find_table(text: str, *, whole: bool, usual: str, asked: str | None, name: str, header: bool = True) -> Table:
    """How a file is written, from its beginning.

    The delimiter is the recipe's, or that of a line ``sep=;``, or the one of DELIMITERS that gives a header of several
    columns and as many fields in each record. If several do, the usual one of the file's ending is taken, but no comma
    where all commas are decimal ones.

    Args:
        text: how the file begins, without a byte order mark.
        whole: whether that is all of it.
        usual: the delimiter of the file's ending.
        asked: the recipe's.
        name: of the file, for messages.
        header: whether the first line holds the names of the columns.

    Raises:
        DataError: no delimiter fits, or several do.
    """
    separator = SEPARATOR_LINE.match(text)
    text = text[separator.end() :] if separator else text
    if not whole:
        text = text[: text.rfind("\n") + 1] or text
    named = asked or (separator and separator[1])
    if named:
        reason = "as data.delimiter says" if asked else f"as its first line says: sep={named}"
        table = _read_as(text, named)
        said = (f"separator {NAMES.get(named, repr(named))}, {reason}",)
    else:
        table = _fitting(text, usual, name)
        said = (f"separator {NAMES[table.delimiter]}",) if table.delimiter != usual else ()
    said += () if table.quotes else ("quotes are part of the text, as in a file that quotes nothing",)
    table = replace(table, skipped=int(separator is not None), said=said)
    records = records_of(text, table.delimiter, quotes=table.quotes) or []
    if header:
        return _with_columns(table, records)
    names = numbered(max(map(len, records), default=1))
    return replace(table, names=names, said=(*table.said, f"no header: the columns are {', '.join(names)}"))


def fits(text: str, delimiter: str, *, quotes: bool = True) -> bool:
    """Whether a header of several columns is there and each record that is not blank has as many fields."""
    records = records_of(text, delimiter, quotes=quotes)
    return bool(records) and len(records[0]) > 1 and {*map(len, records)} == {len(records[0])}


def records_of(text: str, delimiter: str, *, quotes: bool = True) -> list[list[str]] | None:
    """The first records that are not blank; None where the quotes do not match."""
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    found: list[list[str]] = []
    before = csv.field_size_limit(2**31 - 1)
    try:
        for record in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=quotes, quoting=quoting):
            if record:
                found.append(record)
            if len(found) == MOST_RECORDS:
                break
    except csv.Error:
        return None
    finally:
        csv.field_size_limit(before)
    return found


def _read_as(text: str, delimiter: str) -> Table:
    unquoted = not fits(text, delimiter) and fits(text, delimiter, quotes=False)
    return Table(delimiter, quotes=not (unquoted and records_of(text, delimiter) is None and delimiter == "\t"))


def _fitting(text: str, usual: str, name: str) -> Table:
    fitting = [each for each in DELIMITERS if fits(text, each)]
    if not fitting and fits(text, "\t", quotes=False) and records_of(text, "\t") is None:
        return Table("\t", quotes=False)
    if not fitting:  # some record is short or broken: the header tells
        first = next((line for line in text.splitlines() if line.strip()), "")
        fitting = [each for each in DELIMITERS if len((records_of(first, each) or [[]])[0]) > 1]
        if not fitting:
            return Table(usual)  # one column
        text = first
    if len(fitting) > 1 and "," in fitting and _only_in_numbers(text):
        fitting.remove(",")
    if usual in fitting:
        return Table(usual)
    if len(fitting) == 1:
        return Table(fitting[0])
    raise _undecided(text, fitting, name)


def _only_in_numbers(text: str) -> bool:
    """Whether each comma stands between two digits, as decimal commas do, and each record has words beside numbers."""
    records = records_of(text, ",") or []
    pairs = [pair for record in records for pair in pairwise(record)]
    worded = all(any(char.isalpha() for field in record for char in field) for record in records)
    return worded and all(left[-1:].isdecimal() and right[:1].isdecimal() for left, right in pairs)


def _undecided(text: str, fitting: Sequence[str], name: str) -> DataError:
    line = next(line for line in text.splitlines() if line.strip())
    shown = [f"with {NAMES[each]}: {str((records_of(line, each) or [[]])[0])[:LONGEST_SHOWN]}" for each in fitting]
    return DataError(
        "several separators fit this table",
        where=name,
        why="its first row is, " + "; ".join(shown),
        remedy=f'set data.delimiter: "{fitting[0]}", or another of them',
    )


def _with_columns(table: Table, records: Sequence[list[str]]) -> Table:
    """The same with the columns that are none, and with records that Excel has cut short."""
    if not records:
        return table
    header, said = records[0], [*table.said]
    used = [record for record in records[1:] if any(map(str.strip, record))]
    indexes = 0
    while len(header) - indexes > 1 and header[indexes] in INDEX_NAMES and _counts(used, indexes):
        indexes += 1
    if indexes:
        said.append(f"column {' and '.join(str(each + 1) for each in range(indexes))} only counts the rows: left out")
    behind = len(header)
    while behind > 1 and not header[behind - 1].strip() and _is_empty(used, behind - 1):
        behind -= 1
    if behind < len(header):
        many = len(header) - behind
        said.append(f"{many} empty column{'s' if many > 1 else ''} behind the others left out")
    blank = sum(1 for record in records[1:] if not any(map(str.strip, record)))
    if blank and len(header) > 1:
        said.append("rows with nothing in them are passed over")
    shortest = _shortest(records)
    if shortest is not None:
        said.append(f"Excel left out empty fields at the end of some records: {', '.join(header[shortest:])}")
    last = behind if behind < len(header) else None
    return replace(table, first=indexes, last=last, shortest=shortest, said=tuple(said))


def _counts(records: Sequence[list[str]], column: int) -> bool:
    values = [record[column] for record in records if len(record) > column]
    numbers = [int(value) for value in values if re.fullmatch(r"\d{1,15}", value)]
    return bool(values) and len(numbers) == len(values) and numbers == [*range(numbers[0], numbers[0] + len(numbers))]


def _is_empty(records: Sequence[list[str]], column: int) -> bool:
    return not any(record[column].strip() for record in records if len(record) > column)


def _shortest(records: Sequence[list[str]]) -> int | None:
    """Fields of the shortest record, if records are short as Excel writes them: all of a block of 16, and no other."""
    width = len(records[0])
    blocks = [records[start : start + EXCEL_BLOCK] for start in range(0, len(records), EXCEL_BLOCK)]
    widths = [{*map(len, block)} for block in blocks]
    if any(len(each) > 1 for each in widths):
        return None
    shortest = min(min(each) for each in widths)
    return shortest if 1 < shortest < width and max(max(each) for each in widths) == width else None
