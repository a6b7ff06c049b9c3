"""Answers that are JSON: whether they are, whether they match a schema, and how much of them is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tunesmith.data.files.json_rows import parse_json
from tunesmith.errors import RecipeError
from tunesmith.evaluation.metrics.base import AnswerRows, RowMetric, RowStatistics, needs_extra

SCHEMA_KEY = "evaluation.json_schema"


class JsonValid(RowMetric):
    """1 where the answer is JSON and nothing else (see parse_json). The truth does not matter."""

    name = "json_valid"

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """Accepts any JSON value."""
        return float(_json_fault(answer) is None)


class JsonExact(RowMetric):
    """1 where the answer is JSON equal to the truth's. The order of keys does not matter, and 1 equals 1.0."""

    name = "json_exact"

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """An answer that is not JSON scores 0."""
        return float(_json_fault(answer) is None and same_json(parse_json(answer), parse_json(truth)))

    def fault_of(self, truth: str) -> str | None:
        """The truth must be JSON itself."""
        fault = _json_fault(truth)
        return fault and f"it is not JSON: {fault}"


class JsonFields(RowMetric):
    """Equal fields of a JSON object over the fields that answer or truth have: |equal| / |answer's and truth's keys|.

    Top-level fields are compared, each as a whole. A missing, a wrong and an invented field cost the same. An answer
    that is not a JSON object scores 0. Two empty objects score 1.
    """

    name = "json_fields"

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """From 0 to 1."""
        found = None if _json_fault(answer) else parse_json(answer)
        expected = parse_json(truth)
        if not isinstance(found, dict):
            return 0.0
        keys = found.keys() | expected.keys()
        equal = sum(key in found and key in expected and same_json(found[key], expected[key]) for key in keys)
        return equal / len(keys) if keys else 1.0

    def fault_of(self, truth: str) -> str | None:
        """The truth must be a JSON object."""
        if fault := _json_fault(truth):
            return f"it is not JSON: {fault}"
        return None if isinstance(parse_json(truth), dict) else "it is JSON but not an object, so it has no fields"


class JsonSchema(RowMetric):
    """1 where the answer is JSON and valid under `evaluation.json_schema`, by the jsonschema library.

    The schema's own ``$schema`` says which draft it is; without one it is 2020-12. Nothing is fetched: a reference must
    be to a part of the schema itself.
    """

    name = "json_schema"

    def __init__(self, schema: Mapping[str, Any]) -> None:
        needs_extra(self.name, "jsonschema")
        from jsonschema import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry

        kind = validator_for(schema, default=Draft202012Validator)
        try:
            kind.check_schema(dict(schema))
        except SchemaError as error:
            raise _bad_schema(f"{error.message} (at {error.json_path})") from None
        for reference in _references(schema):
            if not reference.startswith("#"):
                raise _bad_schema(f"It refers to {reference!r}, which is outside of it")
        self._validator = kind(dict(schema), registry=Registry())  # an empty registry fetches nothing

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """0 or 1. The truth does not matter."""
        return float(_json_fault(answer) is None and self._fault(answer) is None)

    def fault_of(self, truth: str) -> str | None:
        """The truth must be valid itself."""
        if fault := _json_fault(truth):
            return f"it is not JSON: {fault}"
        fault = self._fault(truth)
        return fault and f"it does not match {SCHEMA_KEY}: {fault}"

    def _fault(self, text: str) -> str | None:
        from referencing.exceptions import Unresolvable

        try:
            error = next(self._validator.iter_errors(parse_json(text)), None)
        except Unresolvable as missing:
            raise _bad_schema(f"It refers to {missing.ref!r}, which it does not have") from None
        return None if error is None else f"{error.message[:200]} (at {error.json_path})"


class JsonFieldF1:
    """F1 over all fields of all rows: 2 x equal / (2 x equal + fields of answers alone + fields of truths alone).

    A field is a value at a path, down to the last one: ``{"a": {"b": [1, 2]}}`` has a.b.0 = 1 and a.b.1 = 2. A wrong
    value counts twice: as one that the truth lacks, and as one that the answer lacks. An answer that is not JSON has no
    fields.
    """

    name = "json_field_f1"

    def fault_of(self, truth: str) -> str | None:
        """The truth must be JSON."""
        fault = _json_fault(truth)
        return fault and f"it is not JSON: {fault}"

    def fault_of_all(self, truths: Sequence[str]) -> str | None:
        """None: each row is counted by itself."""
        return None

    def scores(self, rows: AnswerRows) -> RowStatistics:
        """Statistics: equal fields, fields of the answer alone, fields of the truth alone, [rows, 3]."""
        counts = np.array([_count(*pair) for pair in zip(rows.answers, rows.truths, strict=True)], dtype=np.float64)
        return RowStatistics(counts, _f1, _f1(counts), rows.group_numbers, extremes_of=extremes_of_fields)


def is_json_structure(text: str) -> bool:
    """Whether a text is a JSON object or list."""
    return _json_fault(text) is None and isinstance(parse_json(text), (dict, list))


def _count(answer: str, truth: str) -> tuple[int, int, int]:
    found = {} if _json_fault(answer) else dict(_fields(parse_json(answer)))
    expected = dict(_fields(parse_json(truth)))
    equal = sum(path in found and same_json(found[path], value) for path, value in expected.items())
    return equal, len(found) - equal, len(expected) - equal


def _fields(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """The values at the ends of all paths. An empty object or list is a value, so that there is always one."""
    waiting = [(path, value)]
    while waiting:
        path, value = waiting.pop()
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        below = [((*path, key), each) for key, each in inner]
        waiting += below
        if not below:
            yield path, value


def _f1(sums: np.ndarray) -> np.ndarray:
    """2 tp / (2 tp + fp + fn), [..., 3] -> [...]. A truth has a field, so the denominator is not 0."""
    return 2 * sums[..., 0] / (2 * sums[..., 0] + sums[..., 1] + sums[..., 2])


def extremes_of_fields(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An answer without fields, and the truth itself: [rows, 3] -> [rows, 3] each."""
    fields, none = counts[:, 0] + counts[:, 2], np.zeros(len(counts))  # [rows]: those of the truths
    return np.stack([none, none, fields], axis=1), np.stack([fields, none, none], axis=1)


def _references(schema: Any) -> Iterator[str]:
    """All ``$ref`` and ``$dynamicRef`` in a schema."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            yield from (value[key] for key in ("$ref", "$dynamicRef") if isinstance(value.get(key), str))
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _bad_schema(why: str) -> RecipeError:
    return RecipeError(
        "The schema cannot be used",
        where=SCHEMA_KEY,
        why=f"{why}.",
        remedy="Correct it, such as {type: object, required: [name]}. Put definitions in its own $defs.",
    )


def _json_fault(text: str) -> str | None:
    try:
        parse_json(text)
    except ValueError as error:
        return str(error)
    return None


def same_json(one: Any, other: Any) -> bool:
    """Equality of parsed JSON: 1 equals 1.0, true does not equal 1, the order of keys does not matter."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other
    return type(one) is type(other) and one == other
