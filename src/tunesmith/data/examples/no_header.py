"""A table whose first line is a row, or whose second line is none: how that is noticed, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tunesmith.data.examples.column_kinds import FIGURE, are_figures, is_a_value, text_columns
from tunesmith.data.examples.column_names import PLACE, ColumnsUnclear, Proposal, known_names, samples_of, short
from tunesmith.data.examples.message import printable

LONGEST_NAME, MOST_WORDS = 40, 4
MARK = re.compile(r"[?!.。？！]$")  # that ends a sentence
VALUE = re.compile(rf"{MARK.pattern}|\n|^[+-]?\d+([.,]\d+)?$|^__label__")
NOTHING = ("n/a", "na", "nan", "null", "none", "unknown", "unbekannt")  # a row may have in place of a number
LONGEST_UNIT = 12
TYPES = frozenset((
    "string", "str", "text", "object", "category", "categorical", "char", "varchar", "int", "integer", "number",
    "numeric", "float", "double", "decimal", "bool", "boolean", "date", "datetime", "timestamp",
))  # fmt: skip
KEY, OTHER_KEY = "data.header=false", "data.header: true"
First = Literal["names", "perhaps a row", "a row"]


def what_the_first_line_is(rows: Sequence[Mapping[str, Any]]) -> First:
    """What the line is that should be the names of the columns.

    Numbers or dates below a name that is neither settle it: the line holds names. A label of fastText is a value, and
    so is what stands below itself twice, where the line as a whole does not (files that were joined). What only
    looks like a value, such as a question or a year, may be a name all the same, unless all of the line are
    sentences as those below them.
    """
    names = list(rows[0]) if rows else []
    below = max((sum(row.get(name) == name for row in rows) for name in names if name.strip()), default=0)
    again = any(all(row.get(name) == name for name in names) for row in rows)
    if any(name.startswith("__label__") for name in names) or (below > 1 and not again):
        return "a row"
    if any(_is_name_of_figures(name, rows) for name in names):
        return "names"
    if not below and not any(map(_looks_like_a_value, names)):
        return "names"
    texts = text_columns(rows, names)
    texts = [name for name in names if name in texts or not is_a_value(rows, name)]
    return "a row" if all(_ends_as_those_below(name, rows) for name in texts) else "perhaps a row"


def is_second_header(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the first row looks like a second line of the header: translated names, units or types.

    Two known names stand below two known names, or a word above numbers alone beside other short words, or each value
    is the name of a type.
    """
    if len(rows) < 3:
        return False
    first = {name: str(value).strip() for name, value in rows[0].items() if str(value or "").strip()}
    if sum(bool(known_names([name])) and bool(known_names([value])) for name, value in first.items()) > 1:
        return True
    if len(first) > 1 and all(value.strip("()[]").casefold() in TYPES for value in first.values()):
        return True
    if any(map(_looks_like_a_value, first.values())):
        return False
    units = [name for name, value in first.items() if any(map(str.isalpha, value)) and len(value) <= LONGEST_UNIT]
    units = [name for name in units if first[name].casefold() not in NOTHING and not FIGURE.match(first[name])]
    return any(are_figures(rows[1:], name, least=2) for name in units)


def _looks_like_a_value(name: str) -> bool:
    return bool(VALUE.search(name.strip())) or len(name) > LONGEST_NAME or len(name.split()) > MOST_WORDS


def _is_name_of_figures(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a word stands above values that are all numbers or dates, and several."""
    if name.strip().casefold() in NOTHING:
        return False
    return any(map(str.isalpha, name)) and not FIGURE.match(name.strip()) and are_figures(rows, name, least=2)


def _ends_as_those_below(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the name is a sentence with the mark that most values of its column end with."""
    mark = MARK.search(name.strip())
    return mark is not None and 2 * sum(str(row.get(name)).strip().endswith(mark[0]) for row in rows) > len(rows)


def without_names(
    rows: Sequence[Mapping[str, Any]],
    fields: tuple[str, str],
    *,
    read_so: bool,
    sure: bool,
    cut: Sequence[str],
    where: str,
) -> ColumnsUnclear:
    """The error that columns have no names, with the pair if there are two columns.

    Args:
        rows: the first rows.
        fields: the names of the question's and the answer's field.
        read_so: the recipe says that there is no header; else the first line has been read as one.
        sure: it is a row. Else nothing is proposed.
        cut: the separators that were chosen, in words.
        where: the file.
    """
    names = [f"column{number}" for number in range(1, len(rows[0]) + 1)]
    values = [list(row.values()) for row in rows]
    numbered = [dict(zip(names, row, strict=False)) for row in (values if read_so else [list(rows[0]), *values])]
    found = _pair(numbered, names)
    likely = len(names) == 2 or (found is not None and len(text_columns(numbered, names)) == 2)

    def mapping(known: Sequence[str], *, swapped: bool = False) -> str:
        if len(names) == 1:
            return f"data.columns: {{text: {_to_map(known[0])}}}"
        asked, said = (known[names.index(name)] for name in found) if found else (PLACE, PLACE)
        asked, said = (said, asked) if swapped else (asked, said)
        return f"data.columns: {{{fields[0]}: {_to_map(asked)}, {fields[1]}: {_to_map(said)}}}"

    shown = ", ".join(f"{name}: {short(str(value))!r}" for name, value in numbered[0].items())
    named = "" if read_so else mapping(list(rows[0]))
    named = "" if PLACE in named else f" and {named}"
    if read_so:
        what, remedy = "the columns have no names", f"say which column is what, such as {mapping(names)}"
        otherwise = f"set {mapping(names, swapped=True)}"
    elif sure:
        what = "the first line is a row, and not the names of the columns"
        behind = f"; if it holds the names of the columns, set {OTHER_KEY}"
        remedy = f"set data.header: false and {mapping(names)}{behind}"
        otherwise = f"set data.header: false and {mapping(names, swapped=True)} for the other way round{behind}"
    else:
        what = "the first line may be a row or the names of the columns"
        otherwise = remedy = (
            f"if it is a row, set data.header: false and {mapping(names)}; if they are the names of the columns, set "
            f"{OTHER_KEY}{named}; or with other columns"
        )
    proposal = None
    if found is not None and likely and (read_so or sure):
        rest = [name for name in names if name not in found]
        left = f" ({', '.join(rest)}: ids, figures, a licence or one text in all rows)" if rest else ""
        reason = f"{found[0]} and {found[1]} are the columns of a table without a header{left}"
        samples = samples_of(numbered, *found)
        keys = () if read_so else (KEY,)
        proposal = Proposal({fields[0]: found[0], fields[1]: found[1]}, reason, samples, keys, otherwise)
    return ColumnsUnclear(
        what,
        where=where,
        why="; ".join([f"it holds {shown}", *cut]),
        remedy=f"{remedy}; if each line is one text, give the file the ending .txt" if cut else remedy,
        proposal=proposal,
    )


def _to_map(name: str) -> str:
    """The name as a mapping takes it, or a place for it."""
    taken = 0 < len(name.strip()) <= LONGEST_NAME and not set(name) & set(",:{}[]`\"'#\n\r")
    return printable(name) if taken and not (len(name.split()) > MOST_WORDS and MARK.search(name.strip())) else PLACE


def _pair(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[str, str] | None:
    """The longest texts, and beside them the only column whose values repeat, as labels do, or the other of two.

    None where several columns may be the answer.
    """
    texts = text_columns(rows, names)
    repeating = [name for name in texts if 2 * len({str(row.get(name)) for row in rows}) <= len(rows)]
    if len(texts) > 2 and len(repeating) != 1:
        return None
    answer = repeating[0] if len(repeating) == 1 else texts[-1]
    others = [name for name in texts if name != answer]
    return max(others, key=lambda name: sum(len(str(row.get(name))) for row in rows), default=names[0]), answer
