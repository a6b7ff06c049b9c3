"""What ``data.columns`` can name: a column, a dotted path to a nested value, or a template that joins several.

A name that the row itself has comes first, so a column whose name holds a dot or a brace is that column.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tunesmith.data.examples.labels import is_label, label_text
from tunesmith.data.examples.message import RowError, checked_text, describe, printable

MISSING = object()  # no value, where null is one
PLACE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")  # {name}, and doubled braces for braces
DEEPEST = 6  # levels of nesting in which columns are looked for
MOST_ITEMS = 20  # of a list


def is_template(column: str) -> bool:
    """Whether the text has a place for a column."""
    return any(match[1] for match in PLACE.finditer(column))


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """The value that a column, a path or a template has in a row; MISSING where it has none.

    Raises:
        RowError: a template names a value that is no text, number or list of those.
    """
    if column in row:
        return row[column]
    if is_template(column):
        return _joined(row, column)
    return _at(row, column) if "." in column else MISSING


def names_in(column: str, rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names that a template has places for; of anything else, and of a column that a row has, the name itself."""
    if not is_template(column) or any(column in row for row in rows):
        return (column,)
    return tuple(dict.fromkeys(match[1] for match in PLACE.finditer(column) if match[1]))


def roots_of(row: Mapping[str, Any], column: str) -> Iterator[str]:
    """The row's own columns that a mapped one takes."""
    if column in row:
        yield column
        return
    for part in names_in(column, ()):
        yield next((key for key in _keys(part) if key in row), part)


def leaves(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns of all rows, in the order of their first appearance; of an object, the paths to what it holds."""
    seen: dict[str, None] = {}
    for row in rows:
        seen.update(dict.fromkeys(_leaves(row, "", DEEPEST)))
    return list(seen)


def start_of(value: object, characters: int, depth: int = DEEPEST) -> Any:
    """The beginning of a value, which may be large: texts and lists are cut."""
    if isinstance(value, str):
        return value[:characters]
    if is_label(value):
        return value
    if depth and isinstance(value, Mapping):
        return {name: start_of(item, characters, depth - 1) for name, item in value.items()}
    if depth and isinstance(value, list | tuple):
        return [start_of(item, characters, depth - 1) for item in value[:MOST_ITEMS]]
    return None


def texts_of(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether the values of a column are texts, where they are not null."""
    values = [value_of(row, column) for row in rows]
    values = [value for value in values if value is not None and value is not MISSING]
    return bool(values) and all(isinstance(value, str) for value in values)


def _leaves(value: Mapping[str, Any], before: str, depth: int) -> Iterator[str]:
    for name, item in value.items():
        if depth and isinstance(item, Mapping) and item and all(isinstance(key, str) for key in item):
            yield from _leaves(item, f"{before}{name}.", depth - 1)
        else:
            yield f"{before}{name}"


def _joined(row: Mapping[str, Any], template: str) -> str:
    """The template with its values. White space at the ends is left out where a value is empty."""
    values = {name: _text(value_of(row, name), name) for name in names_in(template, ())}
    if not any(text.strip() for text in values.values()):
        return ""
    text = PLACE.sub(lambda place: values[place[1]] if place[1] else place[0][0], template)
    return text if all(value.strip() for value in values.values()) else text.strip()


def _text(value: Any, name: str) -> str:
    if value is None or value is MISSING:
        return ""
    if isinstance(value, list) and not any(isinstance(item, list | Mapping) for item in value):
        return ", ".join(_text(item, name) for item in value)
    if is_label(value):
        return label_text(value, printable(name))
    if not isinstance(value, str):
        raise RowError(printable(name), describe(value), "a text, a number, or a list of those")
    return checked_text(value, printable(name))


def _at(value: Any, path: str) -> Any:
    """The value at a dotted path; a number counts the items of a list from 0, and a key may hold dots of its own."""
    if isinstance(value, list):
        index, _, rest = path.partition(".")
        if not index.isdecimal() or int(index) >= len(value):
            return MISSING
        return _at(value[int(index)], rest) if rest else value[int(index)]
    if not isinstance(value, Mapping):
        return MISSING
    for key in _keys(path):
        if key in value:
            found = value[key] if key == path else _at(value[key], path[len(key) + 1 :])
            if found is not MISSING:
                return found
    return MISSING


def _keys(path: str) -> Iterator[str]:
    """a.b.c, a.b and a: what the first key of a path may be."""
    key = path
    while key:
        yield key
        key = key.rpartition(".")[0]
