"""The ledger adds up, findings name their rows, and the split follows the prompt."""

from __future__ import annotations

import json

import pytest

from tunesmith.data.check import Ledger, findings, split
from tunesmith.data.example import Example, Message
from tunesmith.errors import DataError


def pair(prompt: str, answer: str, line: int = 1) -> Example:
    return Example((Message("user", prompt), Message("assistant", answer)), f"rows.jsonl:{line}")


def by_id(train: list[Example], evaluation: list[Example] | None = None, **options: object) -> dict:
    return {finding.id: finding for finding in findings(train, evaluation or [], **options)}  # type: ignore[arg-type]


def test_the_ledger_sums_its_sources_and_is_plain_json():
    ledger = Ledger()
    first, second = ledger.source("a.jsonl"), ledger.source("b.csv")
    first.read, first.invalid, first.trained = 10, 1, 9
    second.read, second.too_long, second.held_out, second.trained, second.truncated = 5, 1, 1, 3, 2
    ledger.tokens.total, ledger.tokens.supervised, ledger.tokens.computed = 100, 40, 70
    ledger.check()
    assert ledger.source("a.jsonl") is first
    written = json.loads(json.dumps(ledger.to_json()))
    assert written["rows"] == {
        "read": 15,
        "invalid": 1,
        "duplicate": 0,
        "too_long": 1,
        "truncated": 2,
        "held_out": 1,
        "trained": 12,
    }
    assert written["tokens"] == {"total": 100, "supervised": 40, "computed": 70}
    assert written["sources"]["a.jsonl"]["read"] == 10


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("a row lost", {"read": 3, "trained": 2}),
        ("a row counted twice", {"read": 1, "trained": 1, "held_out": 1}),
        ("more truncated than kept", {"read": 2, "too_long": 2, "truncated": 1}),
        ("a negative count", {"read": 0, "invalid": -1, "trained": 1}),
    ],
)
def test_a_ledger_that_does_not_add_up_is_a_bug(name: str, counts: dict[str, int]):
    ledger = Ledger()
    for field, value in counts.items():
        setattr(ledger.source("a.jsonl"), field, value)
    with pytest.raises(AssertionError, match=r"a\.jsonl"):
        ledger.check()


def test_a_difference_in_one_source_is_not_hidden_by_another():
    ledger = Ledger()
    ledger.source("a").read = 1
    ledger.source("b").trained = 1
    with pytest.raises(AssertionError):
        ledger.check()


def test_more_labels_than_tokens_is_a_bug():
    ledger = Ledger()
    ledger.tokens.supervised = 1
    with pytest.raises(AssertionError):
        ledger.check()


def test_exact_duplicates_are_found_and_the_first_is_not_counted():
    found = by_id([pair("a", "b", 1), pair("a", "b", 2), pair("c", "d", 3), pair("a", "b", 4)])
    assert found["duplicate_rows"].count == 2
    assert found["duplicate_rows"].rows == ["rows.jsonl:2", "rows.jsonl:4"]
    assert "conflicting_answers" not in found


def test_one_prompt_with_different_answers_is_found():
    found = by_id([pair("a", "b", 1), pair("x", "b", 2), pair("a", "c", 3)])
    assert (found["conflicting_answers"].count, found["conflicting_answers"].rows) == (
        2,
        ["rows.jsonl:1", "rows.jsonl:3"],
    )
    assert found["conflicting_answers"].message == "1 prompt in training with different answers"


def test_a_prompt_on_both_sides_is_a_leak_and_an_error_where_most_held_out_rows_leak():
    train = [pair("a", "b", 1), pair("c", "d", 2)]
    few = by_id(train, [pair("a", "z", 7), pair("e", "f", 8)])["leakage"]
    assert (few.severity, few.count, few.rows) == ("warning", 1, ["rows.jsonl:7"])
    assert by_id(train, train)["leakage"].severity == "error"
    assert "leakage" not in by_id(train, [pair("A", "b")])


def test_raw_texts_can_repeat_and_leak_too():
    texts = [Example((), f"t.txt:{line}", text="Once.") for line in (1, 2)]
    found = by_id(texts[:1], texts[1:])
    assert found["leakage"].rows == ["t.txt:2"]
    assert by_id(texts)["duplicate_rows"].count == 1


def test_advice_on_size_follows_the_guide():
    rows = [pair(str(i), "a", i) for i in range(1000)]
    assert by_id(rows[:999])["few_rows"].message.startswith("999 rows to train on; the guide says 1K-10K")
    assert "few_rows" not in by_id(rows, method="lora")
    assert by_id(rows, method="full")["few_rows"].severity == "info"


def test_rows_that_are_probably_too_long_are_named():
    found = by_id([pair("a" * 33, "b" * 8, 5), pair("a", "b" * 39, 6)], max_length=10)
    assert found["long_rows"].rows == ["rows.jsonl:5"]


def test_a_finding_counts_all_rows_and_names_the_first_twenty():
    found = by_id([pair("a", "b", line) for line in range(50)])["duplicate_rows"]
    assert (found.count, len(found.rows)) == (49, 20)


def test_the_split_is_the_same_each_time_and_another_with_another_seed():
    rows = [pair(str(i), "a", i) for i in range(200)]
    train, held_out = split(rows, 0.25, 0)
    assert (train, held_out) == split(rows, 0.25, 0)
    assert held_out != split(rows, 0.25, 1)[1]
    assert sorted(row.source for row in train + held_out) == sorted(row.source for row in rows)
    assert 30 <= len(held_out) <= 70


def test_this_split_is_kept_across_releases():
    held_out = split([pair(str(i), "a", i) for i in range(20)], 0.25, 0)[1]
    assert [row.messages[0].content for row in held_out] == ["3", "6", "9", "11", "13"]


def test_two_answers_to_a_prompt_stay_together():
    rows = [pair(str(i % 50), str(i), i) for i in range(200)]
    train, held_out = split(rows, 0.3, 0)
    assert not {row.prompt_key() for row in train} & {row.prompt_key() for row in held_out}


def test_rows_added_later_move_no_row_to_the_other_side():
    rows = [pair(str(i), "a", i) for i in range(300)]
    before = {row.source for row in split(rows[:100], 0.2, 3)[1]}
    after = {row.source for row in split(rows[::-1], 0.2, 3)[1]}
    assert before == {source for source in after if int(source.rpartition(":")[2]) < 100}


def test_a_larger_share_holds_out_the_same_rows_and_more():
    rows = [pair(str(i), "a", i) for i in range(300)]
    small = {row.source for row in split(rows, 0.1, 0)[1]}
    assert small < {row.source for row in split(rows, 0.4, 0)[1]}


@pytest.mark.parametrize(
    ("rows", "share", "side"),
    [([("a", "1"), ("a", "2")], 0.5, ""), ([("a", "1"), ("b", "2")], 1e-9, "evaluation"), ([], 0.5, "training")],
)
def test_a_side_without_rows_is_an_error(rows: list[tuple[str, str]], share: float, side: str):
    with pytest.raises(DataError) as caught:
        split([pair(*row) for row in rows], share, 0)
    assert side in caught.value.what
    assert "data.eval: held_out.jsonl" in str(caught.value.remedy)
