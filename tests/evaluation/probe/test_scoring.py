"""What a probe says of two models' answers: exact counts, order, tests and words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from tunesmith.evaluation.probe.items import ProbeItems, probe_of
from tunesmith.evaluation.probe.scoring import compared, values
from tunesmith.evaluation.probe.wording import probe_lines
from tunesmith.evaluation.statistics import mcnemar

PROBE = cast("ProbeItems", probe_of(True))
WRITTEN = [json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text("utf-8").splitlines()]
RIGHT = [each["right"] for each in WRITTEN]
WRONG = [each["wrong"] for each in WRITTEN]
NUMBERS = {item.id: number for number, item in enumerate(PROBE.items)}


def of_kind(kind: str, count: int) -> list[int]:
    return [number for number, item in enumerate(PROBE.items) if item.kind == kind][:count]


def answers(*, wrong: list[int]) -> list[str]:
    return [WRONG[number] if number in wrong else RIGHT[number] for number in range(len(RIGHT))]


def test_a_model_that_lost_arithmetic_is_worse_and_arithmetic_comes_first() -> None:
    lost, gained = of_kind("arithmetic", 20), of_kind("facts", 2)
    found = compared(PROBE, answers(wrong=gained), answers(wrong=lost))
    assert found["verdict"] == "worse"
    assert found["items"] == 253
    assert [NUMBERS[each] for each in found["lost"]] == lost
    assert [NUMBERS[each] for each in found["gained"]] == gained
    assert found["difference"] == pytest.approx(-18 / 253)
    assert found["p_value"] == pytest.approx(mcnemar(2, 20))
    assert found["interval"][0] < -18 / 253 < found["interval"][1] < 0
    assert found["equivalence"] is not None
    assert found["equivalence"]["outcome"] == "not shown"
    first, last = found["kinds"][0], found["kinds"][-1]
    assert (first["kind"], first["items"], first["base"], first["tuned"]) == ("arithmetic", 44, 1.0, 24 / 44)
    assert last["kind"] == "facts"
    assert first["adjusted_p_value"] == pytest.approx(6 * first["p_value"])
    lines = probe_lines({"probe": found})
    assert len(lines) == 3
    assert lines[0].startswith("Probe (the built-in probe): The tuned model lost abilities: 251 -> 233 of 253 answers")
    assert "right before, wrong now: 20; wrong before, right now: 2" in lines[1]
    assert lines[1].split("no worse than 2 points: ")[1].startswith("not shown")
    assert "arithmetic 44 -> 24 of 44" in lines[2]


def test_equal_answers_are_shown_to_be_as_good() -> None:
    found = compared(PROBE, RIGHT, RIGHT)
    assert found["equivalence"] is not None
    assert (found["verdict"], found["equivalence"]["outcome"]) == ("no worse", "equivalent")
    assert (found["lost"], found["gained"]) == ([], [])
    assert found["interval"] == pytest.approx([-0.015, 0.015], abs=5e-4)  # 253 equal answers bound the change
    assert "as good as the base, within 2 points" in probe_lines({"probe": found})[0]


def test_two_models_that_get_nothing_right_are_not_as_good_as_each_other() -> None:
    every = [*range(len(RIGHT))]
    found = compared(PROBE, answers(wrong=every), answers(wrong=every[1:]))
    assert (found["base"], found["tuned"]) == (0.0, 1 / 253)
    assert found["verdict"] == "no evidence"
    lines = probe_lines({"probe": found})
    assert lines[0].startswith("Probe (the built-in probe): Both models get almost nothing right, so this says nothing")
    assert "as good as" not in lines[0] and lines[1].endswith("no margin was tested")
    assert compared(PROBE, answers(wrong=every[2:]), answers(wrong=every))["reason"] == found["reason"]
    assert compared(PROBE, RIGHT, answers(wrong=every))["verdict"] == "worse"


def test_few_items_without_a_difference_are_no_evidence_and_not_the_same() -> None:
    few = ProbeItems("few", PROBE.items[:20])  # type: ignore[union-attr]
    found = compared(few, RIGHT[:20], RIGHT[:20])
    assert found["verdict"] == "no evidence"
    assert found["equivalence"] is not None
    assert found["equivalence"]["outcome"] == "not shown"
    assert "does not show that it is the same" in probe_lines({"probe": found})[0]


def test_many_changes_in_both_directions_do_not_show_that_it_is_no_worse() -> None:
    found = compared(PROBE, answers(wrong=of_kind("facts", 15)), answers(wrong=of_kind("formats", 15)))
    assert (len(found["lost"]), len(found["gained"])) == (15, 15)
    assert found["verdict"] == "no evidence"
    assert found["equivalence"] is not None
    assert found["equivalence"]["not_worse"] > 0.05


def test_a_wider_margin_can_be_shown() -> None:
    wrong = of_kind("facts", 5)
    found = compared(PROBE, RIGHT, answers(wrong=wrong), margin=0.1)
    assert found["equivalence"] is not None
    assert (found["equivalence"]["outcome"], found["equivalence"]["margin"]) == ("equivalent", 0.1)


def test_a_model_alone_has_values() -> None:
    found = values(PROBE, answers(wrong=of_kind("languages", 48)))
    assert found["value"] == pytest.approx(205 / 253)
    assert found["kinds"][0] == {"kind": "languages", "items": 48, "value": 0.0}
    lines = probe_lines({"probe": found})
    assert lines == [
        "Probe (the built-in probe): 205 of 253 answers right.",
        "  worst kinds: languages 0 of 48, instructions 38 of 38, facts 45 of 45",
    ]
