"""Rows as columns: the same whatever the processes, each row in one place, and every finding naming its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.data.checks.pool import Processes
from tunesmith.data.checks.scan import first_of, scan
from tunesmith.data.placement import OUTCOME
from tunesmith.data.survey import Survey, survey_rows
from tunesmith.errors import DataError
from tunesmith.recipe.data import DataSettings, SourceSettings
from tunesmith.runs.progress import Silent

WORDS = [
    "river",
    "lamp",
    "stone",
    "paper",
    "glass",
    "winter",
    "market",
    "signal",
    "copper",
    "garden",
    "engine",
    "letter",
]


def row(prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, **more}


def sentence(number: int, length: int = 30) -> str:
    random = np.random.default_rng(number)
    return " ".join(random.choice(WORDS, length)) + f" {number}"


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return str(path)


def survey(tmp_path: Path, rows: Sequence[Mapping[str, Any]], *, near: bool = False, **section: Any) -> Survey:
    path = write(tmp_path / "rows.jsonl", rows)
    settings = DataSettings.model_validate({"train": path, "eval": 0.0, **section})
    return survey_rows(settings, seed=0, near=near)


def lines(found: Survey, identity: str) -> list[int]:
    finding = next(each for each in found.findings if each.id == identity)
    assert finding.count == len(finding.rows)
    return [int(name.rpartition(":")[2]) for name in finding.rows]


def placed(found: Survey, place: str) -> list[int]:
    return (np.flatnonzero(found.outcome == OUTCOME[place]) + 1).tolist()


def test_first_of_names_the_first_row_of_each_kind() -> None:
    prints = np.array([[1, 2], [3, 4], [1, 2], [1, 3], [3, 4]], np.uint64)
    assert first_of(prints).tolist() == [0, 1, 0, 3, 1]


def test_every_row_of_a_repeat_a_contradiction_and_a_near_repeat_is_named(tmp_path: Path) -> None:
    long = sentence(1, 60)
    rows = [
        row("a", "one"), row("a", "one"), row("b", "x"), row("b", "y"), row("c", "z"),
        row(long, "same"), row(long.replace("river", "rivers", 1), "same"),
    ]  # fmt: skip
    found = survey(tmp_path, rows, near=True)
    assert lines(found, "duplicate_rows") == [1, 2]
    assert lines(found, "conflicting_answers") == [3, 4]
    assert lines(found, "near_duplicates") == [6, 7]


def test_a_label_that_contradicts_itself_has_a_name_of_its_own(tmp_path: Path) -> None:
    rows = [row(sentence(number), ("yes", "no")[number % 2]) for number in range(20)]
    found = survey(tmp_path, [*rows, row(sentence(0), "no")])
    assert lines(found, "contradicting_labels") == [1, 21]
    assert "conflicting_answers" not in {finding.id for finding in found.findings}


def test_a_leak_names_the_rows_of_both_files(tmp_path: Path) -> None:
    other = write(tmp_path / "eval.jsonl", [row("q 3", "other answer"), row("new", "x")])
    found = survey(tmp_path, [row(f"q {number}", "x") for number in range(5)], eval=other)
    finding = next(each for each in found.findings if each.id == "leakage")
    assert finding.severity == "error"
    assert [Path(name).name for name in finding.rows] == ["rows.jsonl:4", "eval.jsonl:1"]


@pytest.mark.parametrize(
    ("clean", "place", "rows"),
    [
        (["dedupe"], "duplicate", [2, 8]),
        ({"near_dedupe": 0.85}, "duplicate", [2, 5, 8]),
        ({"balance": 2}, "unbalanced", 1),
        ({}, "duplicate", []),
    ],
)
def test_what_clean_names_is_taken_out_and_nothing_else(tmp_path: Path, clean: Any, place: str, rows: Any) -> None:
    long = sentence(2, 60)
    content = [
        row("a", "one"), row("a", "one"), row("b", "two"), row(long, "three"), row(long + " again", "three"),
        row("c", "four"), row("d", "two"), row("a", "one"),
    ]  # fmt: skip
    found = survey(tmp_path, content, clean=clean)
    taken = placed(found, place)
    assert len(taken) == rows if isinstance(rows, int) else taken == rows
    assert len(taken) + len(placed(found, "trained")) == len(content)


def test_rows_whose_prompt_is_held_out_can_be_dropped(tmp_path: Path) -> None:
    other = write(tmp_path / "eval.jsonl", [row("q 3", "x")])
    rows = [row(f"q {number}", f"answer {number}") for number in range(5)]
    found = survey(tmp_path, rows, eval=other, clean=["drop_leaked"])
    assert np.flatnonzero(found.outcome == OUTCOME["leaked"]).tolist() == [3]
    assert "leakage" not in {finding.id for finding in found.findings}


def test_rows_of_one_customer_stay_on_one_side(tmp_path: Path) -> None:
    rows = [row(f"q {number}", "x", customer=f"c{number % 40}") for number in range(400)]
    found = survey(tmp_path, rows, eval=0.25, test=0.25, group="customer")
    sides = [{int(found.outcome[n]) for n in range(400) if n % 40 == customer} for customer in range(40)]
    assert all(len(side) == 1 for side in sides)
    assert {place for side in sides for place in side} == {OUTCOME[name] for name in ("trained", "held_out", "test")}


def test_stratified_sides_have_the_same_share_of_each_answer(tmp_path: Path) -> None:
    rows = [row(f"q {number}", "rare" if number % 10 == 0 else "common") for number in range(400)]
    found = survey(tmp_path, rows, eval=0.25, stratify=True)
    held = np.array(placed(found, "held_out")) - 1
    assert (sum(number % 10 == 0 for number in held), len(held)) == (10, 100)


def test_more_rows_move_no_row_to_the_other_side(tmp_path: Path) -> None:
    rows = [row(f"q {number}", "x") for number in range(300)]
    before = survey(tmp_path, rows[:200], eval=0.2, test=0.1).outcome
    after = survey(tmp_path, rows, eval=0.2, test=0.1).outcome
    assert (before == after[:200]).all()
    assert {OUTCOME[name] for name in ("trained", "held_out", "test")} == set(before.tolist())


def test_personal_data_is_masked_before_rows_are_compared(tmp_path: Path) -> None:
    rows = [row("mail ann@firm.org now", "ok"), row("mail bob@firm.org now", "ok"), row("call", "me")]
    found = survey(tmp_path, rows, clean=["dedupe", "mask_pii"])
    assert placed(found, "duplicate") == [2]
    first = next(example for block in found.scan.examples() for _, example in block)
    assert first.messages[0].content == "mail [email] now"
    assert "email" not in {finding.id for finding in found.findings}


def test_a_side_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row for evaluation"):
        survey(tmp_path, [row("same", f"{number}") for number in range(50)], eval=0.3)


def test_bad_rows_stop_or_are_counted(tmp_path: Path) -> None:
    rows = [row("a", "b"), {"prompt": "no answer"}, row("c", "d")]
    with pytest.raises(DataError, match="1 of 3 rows cannot be used"):
        survey(tmp_path, rows)
    found = survey(tmp_path, rows, on_error="skip")
    assert placed(found, "invalid") == [2]
    assert found.ledger().total.rows.invalid == 1


@pytest.mark.parametrize(
    ("key", "kinds"),
    [("sheet", ".ods, .xlsx"), ("delimiter", ".csv, .tsv, .txt")],
)
def test_a_key_that_no_file_is_read_by_is_refused(tmp_path: Path, key: str, kinds: str) -> None:
    path = write(tmp_path / "rows.jsonl", [row("a", "b"), row("c", "d")])
    source = SourceSettings.model_validate({"path": str(path), key: ";"})
    with pytest.raises(DataError) as caught:
        scan([(source, "train")], seed=0, listener=Silent(), threshold=None, pool=Processes(1))
    assert (caught.value.what, caught.value.why) == (
        f"data.{key} says nothing about this file",
        f"it is for {kinds} files",
    )
    assert caught.value.remedy == f"take data.{key} out"


@pytest.mark.slow
def test_processes_and_blocks_do_not_show_in_the_result(tmp_path: Path) -> None:
    texts = [sentence(number % 5_000, 120) for number in range(12_000)]
    path = write(tmp_path / "rows.jsonl", [row(text, f"label {n % 7}") for n, text in enumerate(texts)])
    made = [
        scan([(SourceSettings(path=path), "train")], seed=0, listener=Silent(), threshold=0.85, pool=Processes(workers))
        for workers in (1, 2)
    ]
    one, two = made
    for name in ("file", "line", "good", "content", "prompt", "answer", "draw", "marks", "script", "near", "opening"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert (one.labels, one.openings, one.samples, one.languages) == (
        two.labels,
        two.openings,
        two.samples,
        two.languages,
    )
    assert one.near is not None
    assert 5_000 <= len(np.unique(one.near)) < 5_100  # 5,000 texts, each with two or three labels


def test_words_that_all_prompts_have_in_common_make_no_near_duplicates(tmp_path: Path) -> None:
    instruction = "Read the message of the customer with care, name its intent, and say nothing else at all. " * 3
    rows = [row(f"{instruction}\n\n{sentence(number, 6)}\n\nAnswer with one word.", "x") for number in range(30)]
    found = survey(tmp_path, rows, near=True)
    assert "near_duplicates" not in {finding.id for finding in found.findings}
    assert found.scan.sources[0].readings[0].before == f"{instruction}\n\n"
    assert found.scan.sources[0].readings[0].behind == "\n\nAnswer with one word."


def test_another_answer_to_the_same_prompt_is_a_contradiction_and_no_near_duplicate(tmp_path: Path) -> None:
    long = sentence(3, 60)
    rows = [row(long, "yes"), row(long, "no"), row(long + " again", "yes"), *(row(f"q {n}", "yes") for n in range(9))]
    found = survey(tmp_path, rows, near=True)
    assert lines(found, "contradicting_labels") == [1, 2]
    assert lines(found, "near_duplicates") == [1, 2, 3]
    cleaned = survey(tmp_path, rows, clean=["near_dedupe"])
    assert placed(cleaned, "duplicate") == [3]
    only = survey(tmp_path, [row(long, "yes"), row(long, "no"), *rows[3:]], near=True)
    assert "near_duplicates" not in {finding.id for finding in only.findings}


def test_rows_held_against_change_nothing_and_their_leak_is_told_even_where_leaks_are_dropped(tmp_path: Path) -> None:
    rows = [row(sentence(number), "x") for number in range(30)]
    path = write(tmp_path / "rows.jsonl", rows)
    other = SourceSettings(path=write(tmp_path / "test.jsonl", [rows[3], row("new", "x")]))
    settings = DataSettings.model_validate({"train": path, "eval": 0.2, "clean": ["drop_leaked"]})
    alone, beside = (survey_rows(settings, seed=0, against=against) for against in (None, other))
    assert (alone.outcome == beside.outcome[:30]).all()
    assert beside.ledger().total.rows.read == 30
    held_out = alone.outcome[3] == OUTCOME["held_out"]
    assert ("leakage" in {finding.id for finding in beside.findings}) is not held_out
    assert alone.notes == beside.notes


def test_a_prompt_in_another_case_is_a_near_leak(tmp_path: Path) -> None:
    rows = [row(f"How do I open account number {number}?", f"answer {number}") for number in range(9)]
    other = write(tmp_path / "eval.jsonl", [row("HOW DO I OPEN  ACCOUNT NUMBER 3? ", "something else")])
    found = survey(tmp_path, rows, near=True, eval=other)
    finding = next(each for each in found.findings if each.id == "near_leakage")
    assert [Path(name).name for name in finding.rows] == ["rows.jsonl:4", "eval.jsonl:1"]
    dropped = survey(tmp_path, rows, eval=other, clean=["near_dedupe", "drop_leaked"])
    assert np.flatnonzero(dropped.outcome == OUTCOME["leaked"]).tolist() == [3]


def test_a_single_row_is_compared_without_the_frame_of_the_training_rows(tmp_path: Path) -> None:
    instruction = "Read the message of the customer with care, name its intent, and say nothing else. " * 2
    rows = [row(f"{instruction}\n\n{sentence(number, 40)}", "x") for number in range(20)]
    edited = rows[5]["prompt"].replace(sentence(5, 40), sentence(5, 40) + " again")
    found = survey(tmp_path, rows, near=True, eval=write(tmp_path / "eval.jsonl", [row(edited, "x")]))
    finding = next(each for each in found.findings if each.id == "near_leakage")
    assert [Path(name).name for name in finding.rows] == ["rows.jsonl:6", "eval.jsonl:1"]


def test_an_empty_cell_is_no_group_and_a_number_is_one_however_it_is_written(tmp_path: Path) -> None:
    rows = [row(f"q {number}", "x", customer="" if number % 2 else number % 10 / 2) for number in range(200)]
    found = survey(tmp_path, rows, group="customer")
    assert len(np.unique(found.scan.unit[1::2])) == 100
    whole = [row("a", "x", customer=5), row("b", "x", customer=5.0)]
    assert len(np.unique(survey(tmp_path, whole, group="customer").scan.unit)) == 1


def test_labels_of_few_prompts_are_held_out_at_the_same_rate(tmp_path: Path) -> None:
    rows = [row(f"q {number}", f"label {number % 200}") for number in range(800)]
    found = survey(tmp_path, rows, eval=0.1, stratify=True)
    assert 60 <= len(placed(found, "held_out")) <= 100


def test_what_is_learned_of_a_row_tells_it_from_another(tmp_path: Path) -> None:
    def talk(train: bool) -> dict[str, Any]:
        turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
        made = [{"role": role, "content": text} for role, text in turns]
        return {"messages": [*made[:1], {**made[1], "train": train}, *made[2:]]}

    found = survey(tmp_path, [talk(True), talk(False), talk(False)], clean=["dedupe"])
    assert placed(found, "duplicate") == [3]


def test_personal_data_in_tool_calls_and_tools_is_masked(tmp_path: Path) -> None:
    call = {"name": "send", "arguments": {"to": ["ann@firm.org"]}}
    turns = [
        {"role": "user", "content": "write"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sent"},
        {"role": "assistant", "content": "done"},
    ]
    tools = [{"type": "function", "function": {"name": "send", "description": "mail bob@firm.org"}}]
    found = survey(tmp_path, [{"messages": turns, "tools": tools}], clean=["mask_pii"])
    example = next(example for block in found.scan.examples() for _, example in block)
    assert example.messages[1].tool_calls[0]["function"]["arguments"] == {"to": ["[email]"]}
    assert example.tools[0]["function"] == {"name": "send", "description": "mail [email]"}


def test_a_table_that_changes_between_the_passes_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"

    def fill(answer: str) -> None:
        pq.write_table(pa.table({"prompt": [f"q {n}" for n in range(9)], "completion": [answer] * 9}), path)

    fill("old")
    found = survey_rows(DataSettings.model_validate({"train": str(path), "eval": 0.0}), seed=0)
    found.sources[0]["files"]  # the digest is known from here on
    fill("new")
    with pytest.raises(DataError, match="has changed"):
        list(found.scan.examples())
