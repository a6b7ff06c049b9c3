"""What the values of a column are, where they are no text to learn: figures, ids, and a licence or an attribution."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.examples.column_values import MISSING, value_of

# A number, with a sign, a unit or separators; a date or a time.
FIGURE = re.compile(
    r"^[+-]?\s?[$€£¥]?\s?\d[\d.,'’ \u00a0\u202f]*\s?([$€£¥%]|EUR|USD|CHF)?$"
    r"|^\d{1,4}([-./])\d{1,2}\2\d{1,4}([ T]\d{1,2}:\d{2}(:\d{2})?.{0,9})?$|^\d{1,2}:\d{2}(:\d{2})?$"
)
# Words of a licence or an attribution, or an address alone.
LICENCE = re.compile(
    r"\bCC[- ]?(BY|0)\b|\blicen[cs]|\battribution\b|\bcopyright\b|©|^\s*(https?://|www\.)\S+\s*$", re.IGNORECASE
)
CHANGING = re.compile(r"\([^()]*\)|\S*@\S+|\d+")  # of one text, from row to row: a user or a number
ID = re.compile(r"(?=\D*\d)[^\s]{1,64}")
MOST = 0.9  # share of the values
FEW = 20  # one different text for so many rows


def are_figures(rows: Sequence[Mapping[str, Any]], name: str, least: int = 1) -> bool:
    """Whether all values are numbers or dates, and at least so many."""
    values = _values(rows, name)
    return len(values) >= least and all(map(FIGURE.match, values))


def text_columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """The columns that may be learned, of at least two: the others hold figures, ids, licences, or one text alone.

    A text counts as one if only numbers and names in brackets change in it. Texts made from a pattern look so, too:
    they stay where fewer than two columns would be left.
    """
    for is_other in (_is_constant_or_other, _is_other):
        kept = [name for name in names if not is_other(rows, name)]
        if len(kept) > 1:
            return kept
    return [*names]


def is_a_value(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether the name of a column is a licence, a figure, or a value of the column with another number or name."""
    pattern = CHANGING.sub("#", name.strip())
    if LICENCE.search(name) or FIGURE.match(name.strip()):
        return True
    return pattern != name.strip() and any(CHANGING.sub("#", value) == pattern for value in _values(rows, name))


def _is_constant_or_other(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return _is_other(rows, name) or _is_constant(_values(rows, name))


def _is_other(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    values = _values(rows, name)
    most = MOST * len(values)
    ids = sum(bool(ID.fullmatch(value)) for value in values) >= most and len({*values}) >= most
    return not values or are_figures(rows, name) or ids or sum(bool(LICENCE.search(value)) for value in values) >= most


def _is_constant(values: Sequence[str]) -> bool:
    """Whether the values are one text, or few in which a number or a name changes; labels are not."""
    different, patterns = {*values}, {CHANGING.sub("#", value) for value in values}
    changing = len(different) > 2 * len(patterns) and len(patterns) * FEW <= max(len(values), FEW)
    return len(values) > 1 and (len(different) == 1 or changing)


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    values = [value_of(row, name) for row in rows]
    return [text for value in values if value is not None and value is not MISSING and (text := str(value).strip())]
