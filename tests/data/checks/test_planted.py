"""What is found of faults planted in known rows: precision and recall for each kind, and silence on clean rows."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from tests.data.planted import (
    NOUNS,
    PLANTED,
    TEMPTING,
    Planted,
    edited,
    plant,
    plant_labels,
    plant_temptations,
    plant_turns,
)

from tunesmith.workflows.check import inspect

NEAR = ("near_duplicates", "near_leakage")  # found by chance, if one that nearly never fails
LEAST_RECALL = 0.95


@dataclass(frozen=True)
class Result:
    """What was planted, and what was named, by finding."""

    planted: Planted
    found: Mapping[str, set[str]]

    def precision(self, kind: str) -> float:
        named = self.found.get(kind, set())
        return len(named & self.planted.faults[kind]) / len(named) if named else 0.0

    def recall(self, kind: str) -> float:
        rows = self.planted.faults[kind]
        return len(rows & self.found.get(kind, set())) / len(rows)

    def differences(self, kind: str) -> str:
        named, rows = self.found.get(kind, set()), self.planted.faults[kind]
        return f"missed: {sorted(rows - named)[:5]}; named wrongly: {sorted(named - rows)[:5]}"


def result(planted: Planted) -> Result:
    report = inspect(str(planted.path), against=None if planted.against is None else str(planted.against))
    return Result(planted, {finding.id: set(finding.rows) for finding in report.findings})


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return result(plant(tmp_path_factory.mktemp("planted")))


@pytest.fixture(scope="session")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return result(plant_labels(tmp_path_factory.mktemp("planted")))


@pytest.fixture(scope="session")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return result(plant_turns(tmp_path_factory.mktemp("planted")))


@pytest.fixture(scope="session")
def temptations(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return result(plant_temptations(tmp_path_factory.mktemp("planted")))


@pytest.mark.parametrize("kind", [kind for kind in PLANTED if kind not in NEAR])
def test_exactly_the_planted_rows_are_named(rows: Result, kind: str) -> None:
    assert (rows.precision(kind), rows.recall(kind)) == (1.0, 1.0), rows.differences(kind)


@pytest.mark.parametrize("kind", NEAR)
def test_rows_with_a_tenth_of_their_words_edited_are_found_and_no_others(rows: Result, kind: str) -> None:
    assert rows.precision(kind) == 1.0, rows.differences(kind)
    assert rows.recall(kind) >= LEAST_RECALL, rows.differences(kind)


def test_nothing_is_found_that_was_not_planted(rows: Result) -> None:
    assert set(rows.found) == set(PLANTED)


@pytest.mark.parametrize("kind", ["contradicting_labels", "rare_labels"])
def test_exactly_the_planted_labels_are_named(labels: Result, kind: str) -> None:
    assert (labels.precision(kind), labels.recall(kind)) == (1.0, 1.0), labels.differences(kind)
    assert set(labels.found) == {"contradicting_labels", "rare_labels"}


def test_exactly_the_turns_out_of_order_are_named(turns: Result) -> None:
    assert (turns.precision("role_order"), turns.recall("role_order")) == (1.0, 1.0), turns.differences("role_order")
    assert set(turns.found) == {"role_order"}


@pytest.mark.parametrize("name", TEMPTING)
def test_what_only_looks_like_a_fault_is_passed_over(temptations: Result, name: str) -> None:
    (row,) = temptations.planted.faults[name]
    assert [kind for kind, named in temptations.found.items() if row in named] == []


def test_a_file_without_faults_has_no_findings(temptations: Result) -> None:
    assert temptations.found == {}


def test_a_tenth_of_the_words_is_edited() -> None:
    text = " ".join(NOUNS[:100])
    changed = edited(text, random.Random(0)).split(" ")
    kept = sum(word in changed for word in NOUNS[:100])
    assert 90 <= kept < 100
    assert 90 <= len(changed) <= 110
