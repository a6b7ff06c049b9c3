"""Facts of a run folder that are only shown: where its rows went, its sources, its versions, its labels.

A run may come from somebody else, or be damaged, so each file is held against its shape before anything is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tunesmith.runs.folder import Run
from tunesmith.runs.stored_shapes import LARGEST

LEAST_SAMPLED, LEAST_SHARE = 10, 0.2  # rows whose language was looked at, and the share of them in a language
ISO_639_1 = re.compile("[a-z]{2}")
_Count = Annotated[int, Field(ge=0, lt=LARGEST)]
_UNITS = ("rows", "tokens", "supervised")


class _Shape(BaseModel):
    """Other keys are ignored."""

    model_config = ConfigDict(strict=True)


class _Counts(_Shape):
    """Rows or tokens by where they went."""

    read: _Count
    held_out: _Count
    trained: _Count
    invalid: _Count = 0
    too_long: _Count = 0
    left_out: _Count = 0
    duplicate: _Count = 0
    leaked: _Count = 0
    unbalanced: _Count = 0
    test: _Count = 0


class _Account(_Shape):
    rows: _Counts
    tokens: _Counts | None = None
    supervised: _Counts | None = None


class _Accounts(_Account):
    sources: dict[str, _Account] = {}
    languages: _Languages | None = None  # earlier versions have none


class _Language(_Shape):
    name: str
    rows: int


class _Languages(_Shape):
    sampled: int
    counts: list[_Language]


class _SourceFile(_Shape):
    path: str
    sha256: str


class _Source(_Shape):
    path: str
    side: str
    format: str
    rows: int
    invalid: int
    split: str | None = None
    files: list[_SourceFile] = []


class _Environment(_Shape):
    python: str
    packages: dict[str, str | None]
    platform: str
    threads: int
    processor: str | None = None
    cpus: int | None = None
    memory_bytes: int | None = None
    command: list[str] = []
    git: dict[str, Any] | None = None


class _Label(_Shape):
    label: str
    precision: float
    recall: float
    f1: float
    rows: int


class _Cell(_Shape):
    truth: str | None
    answer: str | None
    rows: int


class _Classification(_Shape):
    labels: list[_Label]
    confusion: list[_Cell]


class _Copied(_Shape):
    source: str
    training_row: str
    words: int
    share: float
    text: str


class _BaselineMetric(_Shape):
    value: float
    interval: list[float]
    difference: float
    difference_interval: list[float]
    verdict: str


class _Baseline(_Shape):
    name: str
    metrics: dict[str, _BaselineMetric]
    outcome: str | None = None  # earlier versions have none


class _Baselines(_Shape):
    metric: str
    margin: float | None = None
    training_rows: int
    results: list[_Baseline]
    left_out: dict[str, str] = {}


_SHAPES: dict[str, TypeAdapter[Any]] = {
    "ledger.json": TypeAdapter(_Accounts),
    "data.json": TypeAdapter(list[_Source]),
    "environment.json": TypeAdapter(_Environment),
}
_BOTH_LABELS = TypeAdapter(dict[str, _Classification])
_EXAMPLES = TypeAdapter(list[_Copied])
_BASELINES = TypeAdapter(_Baselines)


def ledger_of(run: Run) -> dict[str, Any] | None:
    """Where rows and tokens went, in all and by source; None before it is known. Raises RunError if it is damaged."""
    found = _read(run, "ledger.json")
    if found is None:
        return None
    sources = found.get("sources", {})
    return {**_with_all_counts(found), "sources": {name: _with_all_counts(each) for name, each in sources.items()}}


def languages_of(run: Run) -> list[str]:
    """The languages of the rows as ISO 639-1, the most frequent first; none if too few rows say.

    The language of one row in 50 was looked at. A language counts if LEAST_SHARE of these rows are in it, and they are
    LEAST_SAMPLED at least: so a few rows whose language was mistaken name none. Raises RunError if it is damaged.
    """
    found = (_read(run, "ledger.json") or {}).get("languages") or {"sampled": 0, "counts": []}
    if found["sampled"] < LEAST_SAMPLED:
        return []
    counts = sorted(found["counts"], key=lambda each: (-each["rows"], each["name"]))
    least = LEAST_SHARE * found["sampled"]
    return [each["name"] for each in counts if each["rows"] >= least and ISO_639_1.fullmatch(each["name"])]


def sources_of(run: Run) -> list[dict[str, Any]]:
    """The sources of the rows with their files. Raises RunError if they cannot be shown."""
    return _read(run, "data.json") or []


def environment_of(run: Run) -> dict[str, Any] | None:
    """Versions and machine; None before they are written. Raises RunError if they cannot be shown."""
    return _read(run, "environment.json")


def classification_of(verdict: Mapping[str, Any]) -> dict[str, Any] | None:
    """Each label's figures and the confusion matrix of both models; None if answers are not labels, or not so told."""
    details = verdict.get("details")
    for name in ("classification", "classification_by_likelihood"):
        found = details.get(name) if isinstance(details, Mapping) else None
        if found and _fits(_BOTH_LABELS, found) and "tuned" in found:
            return found
    return None


def copies_of(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Answers that were copied from training rows; none if none is told."""
    found = ((verdict.get("side_effects") or {}).get("copied") or {}).get("examples")
    return found if found and _fits(_EXAMPLES, found) else []


def baselines_of(verdict: Mapping[str, Any]) -> dict[str, Any] | None:
    """What needs no tuned model, beside it; None if nothing was compared, or not so told."""
    found = verdict.get("baselines")
    return found if found and _fits(_BASELINES, found) else None


def _read(run: Run, name: str) -> Any:
    if not (run.folder / name).is_file():
        return None
    found = run.read_json(name)
    try:
        _SHAPES[name].validate_python(found, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise run.damaged(name, f"{'.'.join(map(str, first['loc'])) or 'It'}: {first['msg']}.") from None
    return found


def _fits(shape: TypeAdapter[Any], found: Any) -> bool:
    try:
        shape.validate_python(found, strict=True)
    except ValidationError:
        return False
    return True


def _with_all_counts(account: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of an account. Earlier versions lack some of them."""
    return {unit: _Counts(**account[unit]).model_dump() if account.get(unit) else None for unit in _UNITS}
