"""How the fields of a table are quoted: by which mark, and how a mark within a field is written."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

MOST_RECORDS = 1000  # that are parsed to find out
MOST_RECORDS_FIT = 0.8
FEWEST_QUOTED = 3  # records
MARKS = "\"'\\"
# A number or NULL, which programs that quote every text write as it is.
BARE = re.compile(r"[+-]?\d[\d.,]*([eE][+-]?\d+)?|NULL|")
BACKSLASHED = re.compile(r"\\(.)", re.DOTALL)


class Quotes(NamedTuple):
    """``mark``: what stands around a quoted field; empty where nothing is quoted.

    ``escaped``: a mark within a field has a backslash before it; else it is written twice.
    """

    mark: str
    escaped: bool = False

    @property
    def said(self) -> tuple[str, ...]:
        """What was chosen, for the user; nothing of the usual quotes."""
        if not self.mark:
            return ("quotes are part of the text, as in a file that quotes nothing",)
        marks = (f"fields are quoted by {self.mark}",) if self.mark != USUAL.mark else ()
        return (*marks, f"a quote within a field is written \\{self.mark}") if self.escaped else marks


USUAL, BACKSLASH, NONE = Quotes('"'), Quotes('"', escaped=True), Quotes("")
SINGLE = (Quotes("'"), Quotes("'", escaped=True))


def parsed(lines: Iterable[str], delimiter: str, quotes: Quotes) -> Iterator[list[str]]:
    """The records of lines.

    Raises:
        csv.Error: on the way, where the quotes do not match.
    """
    if not quotes.mark:
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    if not quotes.escaped:
        return csv.reader(lines, delimiter=delimiter, quotechar=quotes.mark, strict=True)
    kept = map(partial(_with_backslashes, mark=quotes.mark), lines)
    return csv.reader(kept, delimiter=delimiter, quotechar=quotes.mark, escapechar="\\", doublequote=False, strict=True)


def _with_backslashes(line: str, mark: str) -> str:
    """The line with a second backslash before each that escapes nothing, such as that of a path, so that it stays."""
    return BACKSLASHED.sub(lambda found: found[0] if found[1] in (mark, "\\", "\r", "\n") else f"\\{found[0]}", line)


def records_of(text: str, delimiter: str, quotes: Quotes = USUAL) -> list[list[str]] | None:
    """The first records that are not blank; None where the quotes do not match."""
    found: list[list[str]] = []
    before = csv.field_size_limit(2**31 - 1)
    try:
        for record in parsed(io.StringIO(text, newline=""), delimiter, quotes):
            if record:
                found.append(record)
            if len(found) == MOST_RECORDS:
                break
    except csv.Error:
        return None
    finally:
        csv.field_size_limit(before)
    return found


def fits(text: str, delimiter: str, quotes: Quotes = USUAL) -> bool:
    """Whether a header of several columns is there and each record that is not blank has as many fields."""
    records = records_of(text, delimiter, quotes)
    return bool(records) and len(records[0]) > 1 and {*map(len, records)} == {len(records[0])}


def fits_most(records: Sequence[Sequence[str]], columns: int) -> bool:
    """Whether most records have so many fields."""
    return sum(len(record) == columns for record in records) > MOST_RECORDS_FIT * len(records)


def find_quotes(text: str, delimiters: Sequence[str]) -> Quotes:
    """How a table quotes: the usual way, unless that does not fit and another does, or all texts have other quotes.

    Args:
        text: how the file begins, up to the end of a line.
        delimiters: those that may separate its fields.
    """
    if {*MARKS} & {*delimiters}:
        return USUAL
    plain = [each for each in delimiters if fits(text, each)]
    if plain:
        return next((quotes for each in plain for quotes in SINGLE if _all_quoted(text, each, quotes)), USUAL)
    if any(_fits_escaped(text, each) for each in delimiters):
        return BACKSLASH
    protected = [quotes for each in delimiters for quotes in SINGLE if _protects(text, each, quotes)]
    if protected:
        return protected[0]
    if "\t" in delimiters and fits(text, "\t", NONE) and records_of(text, "\t") is None:
        return next((quotes for quotes in SINGLE if _all_quoted(text, "\t", quotes)), NONE)
    return USUAL


def _fits_escaped(text: str, delimiter: str) -> bool:
    """Whether marks have backslashes before them: read so most records fit, and read as usual they do not."""
    if f"\\{BACKSLASH.mark}" not in text:
        return False
    usual, escaped = records_of(text, delimiter), records_of(text, delimiter, BACKSLASH)
    if not escaped or len(escaped[0]) < 2 or not fits_most(escaped, len(escaped[0])):
        return False
    return not usual or not fits_most(usual, len(usual[0]))


def _protects(text: str, delimiter: str, quotes: Quotes) -> bool:
    """Whether the marks hold a separator or a line end within a field, and all records fit so."""
    if not fits(text, delimiter, quotes):
        return False
    return any(
        delimiter in field or "\n" in field for record in records_of(text, delimiter, quotes) or [] for field in record
    )


def _all_quoted(text: str, delimiter: str, quotes: Quotes) -> bool:
    """Whether the marks are no text: around each text or all texts of a column, or around each with a mark in it."""
    records = (records_of(text, delimiter, NONE) or [])[1:]
    marked = [field for record in records for field in record if quotes.mark in field]
    if not marked or not fits(text, delimiter, quotes):
        return False
    texts = [field for record in records for field in record if not BARE.fullmatch(field)]
    if all(_stands_within(field, quotes.mark) for field in texts):
        return True
    alike = len({*map(len, records)}) == 1 and len(records) >= FEWEST_QUOTED
    if alike and any(
        all(_stands_within(field, quotes.mark) for field in column) for column in zip(*records, strict=True)
    ):
        return True
    within = all(_stands_within(field, quotes.mark) for field in marked)
    return within and any(quotes.mark in field[1:-1] for field in marked)


def _stands_within(field: str, mark: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == mark
