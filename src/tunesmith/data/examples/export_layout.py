"""What a layout of an export is, and what layouts have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.examples.column_values import roots_of
from tunesmith.data.examples.message import RowError, printable

Fields = Mapping[str, Any]
COMPARED = "\0compared"
ANSWERS, HELD = "\0answers", "\0held"  # of a flat row: the names of its answers, and what its holder holds
BEFORE, MAPPED = "\0before", "\0mapped"  # the columns before the id, and the fields for which the user names columns
OWN_KEYS = (COMPARED, ANSWERS, HELD, BEFORE, MAPPED)
# Fields in place of which a user may name a column, by what an export fills in.
IN_PLACE = {
    "prompt": ("prompt", "input", "instruction", "text", "messages", "conversations"),
    "completion": ("completion", "output", "text", "messages", "conversations"),
}


class LeftOutRow(Exception):
    """The tool that wrote the row marks it as not to be used; its text says how, such as ``skipped``."""


class PerhapsAnswered(LeftOutRow):
    """A row that has no answer, unless a certain ``column`` is one; ``remedy`` says how that is said."""

    def __init__(self, why: str, column: str, remedy: str) -> None:
        super().__init__(why)
        self.column, self.remedy = column, remedy


class SeveralValues(RowError):
    """There is a choice; ``remedy`` says how it is made."""

    def __init__(self, field: str, found: str, expected: str, remedy: str) -> None:
        super().__init__(field, found, expected)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Export:
    """A layout. ``known``: whether a row has its keys. ``flat``: what stands in the row, under names without a path.

    Args:
        name: of the tool, with what it wrote.
        taken: what is made of it, in words.
        shape: of the rows.
        makes: field of the shape to what gives its value, of the flat row.
        holder: the key of the object with the texts of a row, if they are in one.
        gives_way: for an export whose column names may stand in other rows. Rows with the fields of a shape are never
            read as it, nor are rows for which this is true.
        replaces: keys of a row that have the name of a field and are none.
    """

    name: str
    taken: str
    shape: str
    known: Callable[[Fields], bool]
    flat: Callable[[Fields], dict[str, Any]]
    makes: Mapping[str, Callable[[Fields], Any]]
    holder: str | None = None
    gives_way: Callable[[Sequence[Fields]], bool] | None = None
    replaces: tuple[str, ...] = ()

    def asked(self, row: Fields, columns: Mapping[str, str], instruction: str | None = None) -> dict[str, Any]:
        """The row with the fields that its prompt needs. It may have no answer, and no mark leaves it out.

        Raises:
            RowError: a field cannot be told.
        """
        try:
            flat = {**row, **self.flat(row)}
        except LeftOutRow:
            flat = {**row, **(row[self.holder] if self.holder else {})}
        return self._made(row, flat, columns, instruction, [field for field in self.makes if field != "completion"])

    def fields(self, row: Fields, columns: Mapping[str, str], instruction: str | None = None) -> dict[str, Any]:
        """The row with the fields of the shape, but for those in whose place ``columns`` names others.

        With an instruction for all rows, prompt and completion are its input and output.

        Raises:
            LeftOutRow: the tool marks the row as not to be used.
            RowError: a field cannot be told.
        """
        return self._made(row, {**row, **self.flat(row)}, columns, instruction, [*self.makes])

    def _made(
        self,
        row: Fields,
        flat: dict[str, Any],
        columns: Mapping[str, str],
        instruction: str | None,
        fields: Sequence[str],
    ) -> dict[str, Any]:
        if self.holder and HELD not in flat:  # one of its fields may have its name
            flat[HELD] = row[self.holder]
        if self.gives_way is not None:  # a column that the user names for one field is not taken for the other
            taken = {root for column in columns.values() for root in roots_of(flat, column)}
            flat[HELD] = {name: value for name, value in flat[HELD].items() if name not in taken}
            flat[MAPPED] = {*columns}
        names = {} if instruction is None else {"prompt": "input", "completion": "output"}
        made = {
            names.get(field, field): self.makes[field](flat)
            for field in fields
            if not any(other in columns for other in IN_PLACE.get(field, (field,)))
        }
        return {**{name: value for name, value in flat.items() if name not in (*OWN_KEYS, *self.replaces)}, **made}


def only_value(values: Fields, field: str, what: str) -> Any:
    """The only one of several named values.

    Raises:
        RowError: there is none, or more than one.
    """
    if not values:
        raise RowError(field, f"no {what}", f"one {what}")
    if len(values) > 1:
        names = [printable(name) for name in values]
        raise SeveralValues(
            field,
            f"several of them: {', '.join(names)}",
            f"one {what}",
            f"set data.columns: {{{field}: {names[0]}}}, or another of {', '.join(names)}",
        )
    return next(iter(values.values()))


def answer_under(flat: Fields, name: str) -> Any:
    """The answer under a name, which may be a list of one."""
    value = flat[name]
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    if isinstance(value, list):
        raise SeveralValues(
            name,
            f"{len(value)} values: {', '.join(map(str, value[:5]))}",
            "one value",
            f"to learn all of them as one answer (`a, b`), set data.columns: {{completion: {{{name}}}}}; to learn the "
            f"first, set data.columns: {{completion: {name}.0}}",
        )
    return value


def texts_in(fields: Fields) -> dict[str, Any]:
    """The columns that hold a text which is not empty."""
    return {name: value for name, value in fields.items() if isinstance(value, str) and value.strip()}


def items_of(value: object) -> list[Any]:
    """The items of a list; of anything else none."""
    return value if isinstance(value, list) else []


def agreed(values: Sequence[Any], name: str) -> Any:
    """What all annotators say; their answers as lists in a list where they differ."""
    different = [value for number, value in enumerate(values) if value not in values[:number]]
    if len(different) > 1:
        return [item for value in different for item in (value if isinstance(value, list) else [value])]
    return different[0] if different else None
