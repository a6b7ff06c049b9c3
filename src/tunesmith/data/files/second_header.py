"""A warning about a table whose first row looks like a second line of its header: it is learned unless that is said."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from tunesmith.data.examples.no_header import is_second_header
from tunesmith.data.examples.row_shapes import listed
from tunesmith.data.files.opening import is_table
from tunesmith.data.files.rows import Row
from tunesmith.data.files.source_part import SourcePart

ROWS = 100
KEY = "data.header=2"


def second_header(parts: Sequence[SourcePart], header: bool | int | None) -> str | None:
    """The warning, for the first table that has such a row; None: there is none, or the user says what the header is.

    Args:
        parts: of a source.
        header: what the recipe says of the header.
    """
    for part in parts if header is None else ():
        if not is_table(part.name):
            continue
        rows = [row for row in islice(part.rows(), ROWS) if isinstance(row, Row)]
        if is_second_header([row.fields for row in rows]):
            values = listed(value for value in rows[0].fields.values() if value)
            return (
                f"{rows[0].source} may be a second line of the header ({values}), and it is learned as a row. To leave "
                f"it out, add {KEY} to this command, or set data.header: 2 in the recipe"
            )
    return None
