"""Answers that are numbers or truth values, as tables have them for labels: they are learned as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from tunesmith.data.examples.message import RowError, describe, printable

# The field of a row that may be a number: a prompt or a turn that is one is more likely a slip in the columns.
ANSWER = {"prompt_completion": "completion", "alpaca": "output", "unpaired_preference": "completion"}
NAMES_SHOWN = 8


def is_label(value: object) -> TypeGuard[bool | int | float]:
    """Whether it is a number or a truth value."""
    return isinstance(value, bool | int | float)


def label_text(value: float, where: str) -> str:
    """The number as text. A whole one has no point: pandas makes 2.0 of 2 where another row has no label.

    Raises:
        RowError: it is not finite.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RowError(where, "a number that is not finite", "a label")
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


def labels_in_words(answers: Iterable[Any], column: str) -> list[str]:
    """That answers are numbers, with one of the first rows as an example; nothing where they are texts."""
    values = [answer for answer in answers if is_label(answer)]
    if not values or (isinstance(values[0], float) and not math.isfinite(values[0])):
        return []
    kind, shown = ("truth values" if isinstance(values[0], bool) else "numbers"), describe(values[0])
    text = label_text(values[0], column)
    return [f"{printable(column)}: {kind} are taken as text, such as {shown.removeprefix('the number ')} as {text!r}"]


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Column to the names of its classes, if they have names, from features as `datasets` describes them."""
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        if isinstance(feature.get("names"), list) and feature["names"]
    }


def class_name(value: object, names: Sequence[str]) -> object:
    """The name of the class with this number. None for a number without a name: -1 stands for no label."""
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def classes_in_words(names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """That the numbers of columns stand for names, which are used.

    Args:
        names: column to the names of its classes.
    """
    said = []
    for column, classes in names.items():
        shown = ", ".join(printable(name) for name in classes[:NAMES_SHOWN])
        more = f" and {len(classes) - NAMES_SHOWN} more" if len(classes) > NAMES_SHOWN else ""
        said.append(f"{printable(column)}: each number is replaced by the name of its class ({shown}{more})")
    return tuple(said)
