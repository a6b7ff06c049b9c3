"""The probe's items, each against a right and a wrong answer; and files of a user's own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.checks.scripts import script_of
from tunesmith.errors import DataError
from tunesmith.evaluation.probe.items import BUILT_IN, probe_of

ITEMS = {item.id: item for item in probe_of(True).items}  # type: ignore[union-attr]
ANSWERS = [json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text("utf-8").splitlines()]
GOOD: dict[str, Any] = {
    "id": "sky",
    "kind": "facts",
    "messages": [{"role": "user", "content": "What colour is the sky?"}],
    "check": {"contains": "blue"},
}


def written(folder: Path, *rows: Any) -> str:
    file = folder / "own.jsonl"
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")
    return str(file)


def refused(folder: Path, *rows: Any) -> str:
    with pytest.raises(DataError) as caught:
        probe_of(written(folder, *rows))
    return str(caught.value)


def test_every_item_has_a_right_and_a_wrong_answer_here() -> None:
    assert [each["id"] for each in ANSWERS] == list(ITEMS)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda each: each["id"])
def test_an_item_accepts_its_right_answer_and_refuses_its_wrong_one(answer: dict[str, str]) -> None:
    item = ITEMS[answer["id"]]
    found = item.is_right(answer["right"]), item.is_right(answer["wrong"]), item.is_right("")
    assert found == (True, False, False)


def test_no_item_is_right_for_noise() -> None:
    noise = "the the the the the the the the the the the the the"
    assert [item.id for item in ITEMS.values() if item.is_right(noise)] == []


def test_the_probe_has_all_kinds_and_many_scripts() -> None:
    kinds = Counter(item.kind for item in ITEMS.values())
    assert kinds.keys() == {"instructions", "facts", "arithmetic", "refusals", "formats", "languages"}
    assert min(kinds.values()) >= 30
    assert len(ITEMS) >= 200
    languages = {item.id.split("/")[1].split("-")[0] for item in ITEMS.values() if item.kind == "languages"}
    assert len(languages) >= 10
    scripts = {script_of(item.messages[-1].content) for item in ITEMS.values() if item.kind == "languages"}
    assert scripts >= {"Latin", "Cyrillic", "Greek", "Han", "Hangul", "Arabic", "Devanagari"}


def test_half_of_the_refusals_are_harmless_and_must_be_answered() -> None:
    wanted = Counter(item.check["refusal"] for item in ITEMS.values() if item.kind == "refusals")
    assert wanted[True] >= 15
    assert wanted[False] >= 15


def test_no_question_is_asked_twice() -> None:
    asked = Counter(tuple(turn.content for turn in item.messages) for item in ITEMS.values())
    assert [question for question, times in asked.items() if times > 1] == []


def test_a_file_of_ones_own_is_read_in_the_same_format(tmp_path: Path) -> None:
    probe = probe_of(written(tmp_path, GOOD, "", {**GOOD, "id": "sky/2", "check": {"regex": "^blue$"}}))
    assert probe is not None
    assert probe.name == str(tmp_path / "own.jsonl")
    assert [(item.id, item.source) for item in probe.items] == [
        ("sky", f"{tmp_path}/own.jsonl:1"),
        ("sky/2", f"{tmp_path}/own.jsonl:3"),
    ]
    assert [item.is_right("It is blue.") for item in probe.items] == [True, False]


def test_a_recipe_asks_for_no_probe_or_for_the_built_in_one() -> None:
    assert probe_of(False) is None
    built_in = probe_of(True)
    assert built_in is not None
    assert built_in.name == BUILT_IN


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"check": {"contain": "blue"}}, "own.jsonl:2: check.contain: found an unknown rule, expected contains"),
        ({"check": {}}, "own.jsonl:2: check: found"),
        ({"check": {"number": "8"}}, "own.jsonl:2: check.number: found"),
        ({"check": {"regex": "("}}, "own.jsonl:2: check.regex: found"),
        ({"check": {"words": [5, 2]}}, "own.jsonl:2: check.words: found"),
        ({"check": {"json": {"key": 1}}}, "own.jsonl:2: check.json: found"),
        ({"check": {"refusal": "yes"}}, "own.jsonl:2: check.refusal: found"),
        ({"messages": []}, "own.jsonl:2: messages: found"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "own.jsonl:2: messages[0].role: found assistant"),
        ({"messages": [{"role": "user", "content": 3}]}, "own.jsonl:2: messages[0].content"),
        ({"id": ""}, "own.jsonl:2: id is empty"),
        ({"kind": 3}, "own.jsonl:2: kind: found"),
        ({"answer": "blue"}, "own.jsonl:2: answer: found an unknown field"),
    ],
)
def test_a_bad_line_is_refused_with_its_place(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, GOOD, {**GOOD, "id": "other", **change})


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    message = refused(tmp_path, "not JSON", GOOD, {"id": "x"}, GOOD, {**GOOD, "id": "fine"})
    assert "3 lines are no item of a probe" in message
    assert "own.jsonl:1: row: found not JSON" in message
    assert "own.jsonl:3: kind: found nothing, expected the fields id, kind, messages, check" in message
    assert "own.jsonl:4: id: found 'sky', which" in message


def test_the_item_that_a_refusal_shows_is_an_item(tmp_path: Path) -> None:
    message = refused(tmp_path, "[]")
    shown = message[message.index('{"id"') :].rstrip(".")
    assert len(probe_of(written(tmp_path, shown)).items) == 1  # type: ignore[union-attr]


def test_what_is_no_file_with_items_is_refused(tmp_path: Path) -> None:
    assert "The file has no items" in refused(tmp_path)
    with pytest.raises(DataError, match="There is no such file of probe items"):
        probe_of(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="cannot be read"):
        probe_of(str(tmp_path))
