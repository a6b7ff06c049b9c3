"""JSON files that are neither an array nor an object a line: rows under a key, columns, one object after another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Literal

from tunesmith.data.examples.labels import class_name, class_names
from tunesmith.data.examples.row_shapes import listed
from tunesmith.data.files.json_rows import Position, Window, elements, parse_rows, row_of
from tunesmith.data.files.rows import BadRow, Block, Row, RowStream, blocks_of_rows, refuse_too_large, text_chunks
from tunesmith.data.files.tables import is_header
from tunesmith.errors import DataError

Kind = Literal["rows", "list", "object", "text", "other"]
KINDS: Mapping[str, Kind] = {"{": "object", '"': "text"}  # by the first character
FEWEST_PAIRS = 3
VIEWER = {"features", "rows"}  # keys of an answer of the hub's dataset viewer; its rows are {row_idx, row}


def outline(file: BinaryIO, name: str) -> dict[str, Kind]:
    """The keys of the object that a file is, and what each holds; rows are passed over one by one.

    Raises:
        DataError: its syntax is broken.
    """
    window = Window(file, name)
    found: dict[str, Kind] = {}
    for key in _keys(window):
        mark = window.next_mark()
        if mark != "[":
            window.element()
            found[key] = KINDS.get(mark, "other")
            continue
        _, first = next(items := elements(window, whole=False), (None, ""))
        for _ in items:
            pass
        found[key] = "rows" if first.startswith("{") else "list"
    return found


def keyed_blocks(file: BinaryIO, name: str, key: str) -> Iterator[Block]:
    """The elements of the array under a key, as those of an array.

    Raises:
        DataError: the syntax is broken, or an element does not end.
    """
    found = under_key(file, name, key)
    return blocks_of_rows(((each[0].line, each, len(each[1])) for each in found), name)


def under_key(file: BinaryIO, name: str, key: str) -> Iterator[tuple[Position, str]]:
    """Where each element of the array under a key begins, and its text.

    Raises:
        DataError: the syntax is broken, or an element does not end.
    """
    window = Window(file, name)
    for found in _keys(window):
        if window.next_mark() != "[":
            window.element()
        elif found == key:
            yield from elements(window, whole=False)
        else:
            for _ in elements(window, whole=False):
                pass


def pair_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """The keys of an object of texts and what stands under each, as rows {key, value} with their numbers.

    Raises:
        DataError: the syntax is broken, or a value does not end.
    """
    window = Window(file, name)

    def pairs() -> Iterator[tuple[int, tuple[int, dict[str, Any]], int]]:
        for number, key in enumerate(_keys(window), start=1):
            window.next_mark()
            text = window.element()[1]
            yield number, (number, {"key": key, "value": json.loads(text)}), len(key) + len(text)

    return blocks_of_rows(pairs(), name)


def viewer_classes(file: BinaryIO, name: str) -> dict[str, list[str]]:
    """Column to class names, from the ``features`` of an answer of the hub's dataset viewer.

    Raises:
        DataError: the syntax is broken.
    """
    window = Window(file, name)
    for key in _keys(window):
        if window.next_mark() != "[":
            window.element()
            continue
        found = elements(window, whole=False)
        if key == "features":
            features = [row.fields for row in (row_of(text, name, at) for at, text in found) if isinstance(row, Row)]
            return class_names({str(each.get("name")): each.get("type") for each in features})
        for _ in found:
            pass
    return {}


def viewer_rows(block: Block, classes: Mapping[str, Sequence[str]] | None = None) -> RowStream:
    """The elements of an array; one that is {row_idx, row} is what stands under row.

    ``classes``: column to the names of its classes, which replace their numbers.
    """
    for position, text in block.payload:
        row = row_of(text, block.name, position)
        if isinstance(row, Row) and row.fields.keys() >= {"row_idx", "row"} and isinstance(row.fields["row"], dict):
            fields = {
                name: class_name(value, classes[name]) if classes and name in classes else value
                for name, value in row.fields["row"].items()
            }
            row = Row(fields, row.source)
        yield row


def object_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """Objects behind one another, each over any number of lines, as the elements of an array.

    Raises:
        DataError: the syntax is broken, or an object does not end.
    """
    window = Window(file, name)

    def objects() -> Iterator[tuple[Position, str]]:
        while window.next_mark():
            yield window.element()

    return blocks_of_rows(((each[0].line, each, len(each[1])) for each in objects()), name)


def numbered_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """The elements of an array on one line, each with its number in place of a line.

    Raises:
        DataError: the syntax is broken, or an element does not end.
    """
    numbered = (
        (number, (Position(number, each.characters, each.bytes), text), len(text))
        for number, (each, text) in enumerate(elements(Window(file, name)), start=1)
    )
    return blocks_of_rows(numbered, name)


def column_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """Rows of an object of columns, which are lists of equal length, or objects by an index as pandas writes them.

    Raises:
        DataError: the file is too large to be read at once, its syntax is broken, or the columns do not agree.
    """
    chunks, size = [], 0
    for chunk in text_chunks(file, name):
        chunks.append(chunk)
        size += len(chunk)
        refuse_too_large(size, name, 1, "write one object a line: pandas' to_json(orient='records', lines=True)")
    try:
        columns = parse_rows(b"".join(chunks).decode())
    except ValueError as error:
        raise DataError("no JSON", where=name, why=str(error), remedy="correct the file") from None
    rows = _rows_of_columns(columns, name)
    sized = ((number, row, sum(map(len, map(str, row.values())))) for number, row in enumerate(rows, start=1))
    return blocks_of_rows(((number, (number, row), size) for number, row, size in sized), name)


def column_rows(block: Block) -> Iterator[Row | BadRow]:
    """Rows of a table of columns, each with its number."""
    for number, fields in block.payload:
        yield Row(fields, f"{block.name}:{number}")


def _rows_of_columns(columns: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    if is_split(columns) and all(isinstance(row, list) for row in columns["data"]):
        return [dict(zip(map(str, columns["columns"]), row, strict=False)) for row in columns["data"]]
    index = next(iter(columns.values()))
    keys = list(index) if isinstance(index, dict) else range(len(index))
    if isinstance(index, dict) and not are_columns([*columns], [*index]):
        return [*columns.values()]
    for column, values in columns.items():
        if len(values) != len(keys) or (isinstance(index, dict) and values.keys() != index.keys()):
            raise DataError(
                f"the columns of {name} do not have the same rows",
                where=name,
                why=f"{next(iter(columns))} has {len(keys)} values and {column} {len(values)}",
                remedy="write one object a row",
            )
    return [{column: values[key] for column, values in columns.items()} for key in keys]


def are_columns(names: Sequence[str], keys: Sequence[str]) -> bool:
    """Whether objects are columns of values by an index, as pandas writes them; else they are rows under their ids.

    Args:
        names: of the objects.
        keys: of the first.
    """
    return all(map(str.isdecimal, keys)) or (len(names) <= len(keys) and not all(map(str.isdecimal, names)))


def are_pairs(found: Mapping[str, Kind]) -> bool:
    """Whether the keys of an object may be questions and the texts under them their answers; else it may be one row."""
    return len(found) >= FEWEST_PAIRS and {*found.values()} == {"text"} and not is_header([*found])


def is_split(names: Iterable[str]) -> bool:
    """Whether these are the keys that pandas writes with ``to_json(orient="split")``."""
    return {*names} in ({"columns", "index", "data"}, {"columns", "data"})


def keys_of_first(file: BinaryIO, name: str) -> list[str]:
    """The keys of the first object that stands under a key of the object that the file is.

    Raises:
        DataError: the syntax is broken.
    """
    window = Window(file, name)
    for _ in _keys(window):
        window.next_mark()
        value = json.loads(window.element()[1])
        return [*value] if isinstance(value, dict) else []
    return []


def _keys(window: Window) -> Iterator[str]:
    """The keys of the object that the file is; whoever asks for the next has taken the value."""
    window.next_mark()
    window.take(window.index + 1)
    mark = window.next_mark()
    while mark != "}":
        if mark != '"':
            raise window.fault("no key of an object")
        key = json.loads(window.element()[1])
        if window.next_mark() != ":":
            raise window.fault("no colon after a key")
        window.take(window.index + 1)
        yield key
        mark = window.next_mark()
        if mark == ",":
            window.take(window.index + 1)
            mark = window.next_mark()
        elif mark != "}":
            raise window.fault("no comma and no } after a value")
    window.take(window.index + 1)
    if window.next_mark():
        raise window.fault("more after the end of the object")


def choose_key(found: Mapping[str, Kind], asked: str, name: str) -> str:
    """The recipe's key.

    Raises:
        DataError: it is not there, or holds no rows.
    """
    if found.get(asked) == "rows":
        return asked
    rows = [key for key, kind in found.items() if kind == "rows"]
    raise DataError(
        f"there is no array of rows under the key {asked!r}",
        where=name,
        why=f"the keys are {listed(list(found))}",
        remedy=f"set data.key: {rows[0]}" if rows else "name a key that holds an array of objects",
    )
