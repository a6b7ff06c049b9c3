"""How a table of text is written: its delimiter, its header and its empty columns, found from its first records."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tunesmith.data.examples.column_names import known_names
from tunesmith.data.examples.message import printable
from tunesmith.data.examples.row_shapes import FIELDS
from tunesmith.data.files.quoting import NONE, USUAL, Quotes, find_quotes, fits, fits_most, records_of
from tunesmith.errors import DataError

DELIMITERS = (",", ";", "\t", "|")
NAMES = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)
# What Anki writes above its notes. https://docs.ankiweb.net/importing/text-files.html#file-headers
ANKI = re.compile(r"#separator:(\w+|.)\r?\n(?:#.*\r?\n)*", re.IGNORECASE)
ANKI_COLUMNS = re.compile(r"^#columns:(.*?)\r?$", re.IGNORECASE | re.MULTILINE)
SIDES = ("front", "back")
ANKI_NAMES = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " ", "colon": ":"}
RULE = re.compile(r":?-+:?")  # below a header of Markdown
EXCEL_BLOCK = 16  # records for which Excel writes the same number of columns
LONGEST_SHOWN = 60
MOST_TITLES = 5  # lines above the header
NUMBERS, SENTENCES = "numbers", "sentences"
NO_HEADER = "if the file has no header, set data.header: false"
HEADER_AGAIN = "repeated header"  # why a record below it is left out
INDEX_NAMES = ("", "Unnamed: 0")  # pandas writes an index under the first, and reads it as the second


@dataclass(frozen=True, slots=True)
class Table:
    """How records are read.

    ``skipped``: lines before the header; ``first``, ``last``: the columns that are used, without an index before and
    empty ones behind; ``shortest``: fields of a record whose last empty ones Excel did not write; ``names``: of the
    columns, if there is no header; ``headers``: records of the header, of which the first has the names; ``named``:
    columns that the user names; ``framed``: a table of Markdown; ``spaced``: the names in the header keep spaces
    around them; ``said``: what was chosen, for the user.
    """

    delimiter: str
    quotes: Quotes = USUAL
    skipped: int = 0
    headers: int = 1
    first: int = 0
    last: int | None = None
    shortest: int | None = None
    names: tuple[str, ...] | None = None
    named: tuple[str, ...] = ()
    framed: bool = False
    spaced: bool = True
    said: tuple[str, ...] = ()

    @property
    def columns(self) -> slice:
        """The columns that are used."""
        return slice(self.first, self.last)


def numbered(columns: int) -> tuple[str, ...]:
    """Names for the columns of a table without a header."""
    return tuple(f"column{number}" for number in range(1, columns + 1))


def without_repeats(names: Sequence[str], where: str) -> tuple[list[str], list[str]]:
    """The names, where each repeat has a number of its own (Comment, Comment.2), and what was renamed, in words.

    Raises:
        DataError: a repeated name is a field of rows, so it would be used.
    """
    twice = [name for name in dict.fromkeys(names) if name and names.count(name) > 1]
    used = next((name for name in twice if name in FIELDS), None)
    if used is not None:
        raise DataError(
            f"the header names the column {printable(used)!r} twice",
            where=where,
            why="its values are used, and which of the columns is meant is not known",
            remedy=f"name each column once, or, {NO_HEADER}",
        )
    taken, found = {*names}, []
    for at, name in enumerate(names):
        number = 1
        while name in found:
            number += 1
            other = f"{names[at]}.{number}" if names[at] else f"column{at + number - 1}"
            name = name if other in taken else other
        found.append(name)
    said = [
        f"the column {printable(name)} is there {names.count(name)} times: "
        f"{', '.join(printable(new) for old, new in zip(names, found, strict=True) if old == name)}"
        for name in twice
    ]
    return found, said


def is_header(names: Sequence[str], named: Collection[str] = ()) -> bool:
    """Whether these are surely names of columns, so that a record that is equal to them is no row.

    Several are known, or the user names columns, ``named``, that are among them.
    """
    several = len({*names}) > 1 and bool(named) and {*named} <= {*names}
    return several or len({*known_names(names), *({*names} & {*FIELDS})}) > 1


def header_lines(asked: bool | int | None) -> int:
    """Those that ``data.header`` says; one by default."""
    return 1 if asked is None else int(asked)


def find_table(text: str, *, whole: bool, usual: str, asked: str | None, name: str, headers: int = 1) -> Table:
    """How a file is written, from its beginning.

    The delimiter is the recipe's, or that of a line ``sep=;``, or the one of DELIMITERS that gives a header of several
    columns and as many fields in each record. If several do, the usual one of the file's ending is taken, but no comma
    where all commas may be those of numbers and sentences: then a tab is taken, or a semicolon beside decimal commas.

    Args:
        text: how the file begins, without a byte order mark.
        whole: whether that is all of it.
        usual: the delimiter of the file's ending.
        asked: the recipe's.
        name: of the file, for messages.
        headers: lines of the header, of which the first holds the names of the columns.

    Raises:
        DataError: no delimiter fits, or several do.
    """
    separator, notes = SEPARATOR_LINE.match(text), ANKI.match(text)
    if notes is not None:
        return _of_notes(text, notes, asked, whole=whole)
    text = text[separator.end() :] if separator else text
    if not whole:
        text = text[: text.rfind("\n") + 1] or text
    named = asked or (separator and separator[1])
    quotes = find_quotes(text, [named] if named else DELIMITERS)
    if named:
        reason = "as data.delimiter says" if asked else f"as its first line says: sep={named}"
        table = Table(named, quotes)
        said = (f"separator {NAMES.get(named, repr(named))}, {reason}",)
    else:
        table = _fitting(text, usual, name, quotes)
        why = "".join(f", {each}" for each in table.said)
        said = (f"separator {NAMES[table.delimiter]}{why}",) if table.delimiter != usual else ()
    table = replace(table, skipped=int(separator is not None), headers=headers, said=(*said, *quotes.said))
    records = records_of(text, table.delimiter, quotes) or []
    if is_framed(records):
        table = replace(table, framed=True, said=(*table.said, "a table of Markdown"))
        records = [unframed(record) for record in records if not is_rule(record)]
    if headers:
        titles = 0 if table.framed else _titles(text, table)
        if titles:
            lines = f"{titles} line{'s' if titles > 1 else ''} above the header passed over"
            table = replace(table, skipped=table.skipped + titles, said=(*table.said, lines))
            records = records_of("".join(text.splitlines(keepends=True)[titles:]), table.delimiter, quotes) or []
        if headers > 1:
            table = replace(table, said=(*table.said, f"the header has {headers} lines, as data.header says"))
        return _with_columns(table, [*records[:1], *records[headers:]])
    names = numbered(max(map(len, records), default=1))
    return replace(table, names=names, said=(*table.said, f"no header: the columns are {', '.join(names)}"))


def _titles(text: str, table: Table) -> int:
    """Lines above the header: one field that is no known name of a column, or nothing, above a line with such names."""
    lines = text.splitlines(keepends=True)[: MOST_TITLES + 1]
    parsed = [(records_of(line, table.delimiter, table.quotes) or [[]])[0] for line in lines]
    titles = next((number for number, record in enumerate(parsed) if sum(map(bool, map(str.strip, record))) > 1), 0)
    above = [name.strip() for record in parsed[:titles] for name in record[:1]]
    told = len({*map(len, parsed[: titles + 1])}) == 1 and not any(any(record[1:]) for record in parsed[:titles])
    return titles if titles and told and above[0] and not known_names(above) and known_names(parsed[titles]) else 0


def is_anki(text: str) -> bool:
    """Whether these are notes of Anki, which say their separator."""
    return ANKI.match(text) is not None


def _of_notes(text: str, notes: re.Match[str], asked: str | None, *, whole: bool) -> Table:
    """The table of Anki's notes, which have no header, and names only where a line above them says these."""
    body = text[notes.end() :]
    body = body if whole else body[: body.rfind("\n") + 1] or body
    delimiter = asked or ANKI_NAMES.get(notes[1].lower(), notes[1])[:1]
    columns, records = ANKI_COLUMNS.search(notes[0]), records_of(body, delimiter) or []
    width = max(map(len, records), default=1)
    given = tuple(columns[1].split(delimiter)) if columns else ()
    names = given if len(given) == width == len({*given}) else (*SIDES[:width], *numbered(width)[2:])
    said = f"notes of Anki, with separator {NAMES.get(delimiter, repr(delimiter))} and the columns {', '.join(names)}"
    return Table(delimiter, skipped=notes[0].count("\n"), names=names, said=(said,))


def is_framed(records: Sequence[list[str]]) -> bool:
    """Whether records are those of a table of Markdown: nothing before and behind the fields, and a line of dashes."""
    return len(records) > 1 and is_rule(records[1]) and all(record[0] == record[-1] == "" for record in records)


def unframed(record: list[str]) -> list[str]:
    """The fields of a record of Markdown."""
    return [field.strip() for field in record[1:-1]]


def is_rule(record: Sequence[str]) -> bool:
    """Whether it is the line of dashes below a header of Markdown."""
    return len(record) > 2 and all(RULE.fullmatch(field.strip()) for field in record[1:-1])


def _fitting(text: str, usual: str, name: str, quotes: Quotes) -> Table:
    if quotes == NONE:
        return Table("\t", quotes)
    fitting = [each for each in DELIMITERS if fits(text, each, quotes)] or _fitting_most(text, quotes)
    if not fitting:
        return Table(usual, quotes)  # one column
    if len(fitting) == 1:
        return Table(fitting[0], quotes)
    within = _commas_within(text, quotes) if "," in fitting else set()
    if within:
        sure = _beside_commas([each for each in fitting if each != ","], within, text, quotes)
        if sure is not None:
            said = f"and not ',', which stands only within {' and '.join(sorted(within))}"
            return Table(sure, quotes, said=(said,))
    elif usual in fitting:
        return Table(usual, quotes)
    raise _undecided(text, fitting, name, quotes)


def _fitting_most(text: str, quotes: Quotes) -> list[str]:
    """The delimiters of the header, where some record is short or broken; the one that fits most records, if one does.

    None for a table of one column.
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    headers = {each: (records_of(first, each, quotes) or [[]])[0] for each in DELIMITERS}
    fitting = [each for each, header in headers.items() if len(header) > 1]
    found = {each: records_of(text, each, quotes) or [] for each in fitting}
    most = [each for each, records in found.items() if fits_most(records, len(headers[each]))]
    return most if len(most) == 1 else fitting


def _commas_within(text: str, quotes: Quotes) -> set[str]:
    """What all commas stand within, numbers or sentences, if they may separate nothing; else nothing."""
    pairs = [pair for record in _comma_records(text, quotes) for pair in pairwise(record)]
    found = {
        NUMBERS if left[-1:].isdecimal() and right[:1].isdecimal() else SENTENCES if right[:1] == " " else ""
        for left, right in pairs
    }
    return set() if "" in found else found


def _beside_commas(others: Sequence[str], within: set[str], text: str, quotes: Quotes) -> str | None:
    """The delimiter that is sure: a tab, which texts do not have, or a semicolon, as programs write decimal commas."""
    if "\t" in others:
        return "\t"
    worded = all(any(char.isalpha() for field in record for char in field) for record in _comma_records(text, quotes))
    return ";" if others == [";"] and within == {NUMBERS} and worded else None


def _comma_records(text: str, quotes: Quotes) -> list[list[str]]:
    return records_of(text, ",", quotes) or records_of(text.partition("\n")[0], ",", quotes) or []


def _undecided(text: str, fitting: Sequence[str], name: str, quotes: Quotes) -> DataError:
    line = next(line for line in text.splitlines() if line.strip())
    first = {each: (records_of(line, each, quotes) or [[]])[0] for each in fitting}
    shown = [f"with {NAMES[each]}: {str(record)[:LONGEST_SHOWN]}" for each, record in first.items()]
    keys = ["set data.delimiter: " + ("tab" if each == "\t" else f'"{each}"') for each in fitting]
    return DataError(
        "several separators fit this table",
        where=name,
        why="its first row is, " + "; ".join(shown),
        remedy=f"{' or '.join(keys)}; if each line is one text, give the file the ending .txt",
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
    said += _repeats(header[indexes:last], table)
    return replace(table, first=indexes, last=last, shortest=shortest, said=tuple(said))


def _repeats(header: Sequence[str], table: Table) -> list[str]:
    """What is said of repeated names; where they are refused, whoever reads the rows hears of it."""
    try:
        return without_repeats([name.strip() if not table.spaced else name for name in header], "")[1]
    except DataError:
        return []


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
