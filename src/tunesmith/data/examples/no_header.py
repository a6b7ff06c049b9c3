"""A table whose first line is a row: how that is noticed, and what is said of its columns, which have no names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.examples.column_names import ColumnsUnclear, Proposal, samples_of

LONGEST_NAME, MOST_WORDS = 40, 4
VALUE = re.compile(r"[?!.。？！]$|\n|^[+-]?\d+([.,]\d+)?$|^__label__")
KEY = "data.header=false"


def first_line_is_a_row(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether what should be the names of the columns looks like values."""
    names = list(rows[0]) if rows else []
    return any(
        VALUE.search(name.strip())
        or len(name) > LONGEST_NAME
        or len(name.split()) > MOST_WORDS
        or (name.strip() and any(row.get(name) == name for row in rows))
        for name in names
    )


def without_names(
    rows: Sequence[Mapping[str, Any]], fields: tuple[str, str], *, read_so: bool, where: str
) -> ColumnsUnclear:
    """The error that columns have no names, with the pair if there are two columns.

    Args:
        rows: the first rows.
        fields: the names of the question's and the answer's field.
        read_so: the recipe says that there is no header; else the first line has been read as one.
        where: the file.
    """
    names = [f"column{number}" for number in range(1, len(rows[0]) + 1)]
    values = [list(row.values()) for row in rows]
    numbered = [dict(zip(names, row, strict=False)) for row in (values if read_so else [list(rows[0]), *values])]
    answer = _answer(numbered, names)
    question = next((name for name in names if name != answer), names[0])
    samples = samples_of(numbered, question, answer)
    pair = len(names) == 2
    mapping = f"{{{fields[0]}: {question}, {fields[1]}: {answer}}}" if len(names) > 1 else f"{{text: {names[0]}}}"
    shown = ", ".join(f"{name}: {value!r:.60}" for name, value in numbered[0].items())
    reason = f"{question} and {answer} are the columns of a table without a header"
    return ColumnsUnclear(
        "the columns have no names" if read_so else "the first line is a row, and not the names of the columns",
        where=where,
        why=f"it holds {shown}",
        remedy=f"say which column is what, such as data.columns: {mapping}"
        if read_so
        else "set data.header: false, or write a line with the names of the columns above the rows",
        proposal=Proposal({fields[0]: question, fields[1]: answer}, reason, samples, () if read_so else (KEY,))
        if pair
        else None,
    )


def _answer(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The only column whose values repeat, as labels do; else the last."""
    repeating = [name for name in names if 2 * len({str(row.get(name)) for row in rows}) <= len(rows)]
    return repeating[0] if len(repeating) == 1 else names[-1]
