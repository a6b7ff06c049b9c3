"""The ledger adds up in every unit, and says so when it does not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.ledger import OUTCOMES, Account, Ledger, RowCounts

amounts = st.fixed_dictionaries({place: st.integers(0, 10**9) for place in OUTCOMES})


def filled(counts: dict[str, int]) -> RowCounts:
    return RowCounts(read=sum(counts.values()), **counts)


@given(st.lists(st.tuples(amounts, amounts), min_size=1, max_size=5))
def test_sums_over_sources_add_up_in_every_unit(parts: list[tuple[dict[str, int], dict[str, int]]]) -> None:
    ledger = Ledger(tokenized=True)
    for number, (rows, tokens) in enumerate(parts):
        halves = {place: count // 2 for place, count in tokens.items()}
        ledger.sources[f"{number}"] = Account(filled(rows), filled(tokens), filled(halves))
    ledger.check()
    written = json.loads(json.dumps(ledger.to_json()))
    for unit, which in (("rows", 0), ("tokens", 1)):
        assert written[unit]["read"] == sum(sum(part[which].values()) for part in parts)
        assert written[unit]["read"] == sum(written[unit][place] for place in OUTCOMES)
        assert written[unit]["read"] == sum(source[unit]["read"] for source in written["sources"].values())
    assert all(written["supervised"][place] <= written["tokens"][place] for place in OUTCOMES)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("a row lost", {"read": 3, "trained": 2}),
        ("a row counted twice", {"read": 1, "trained": 1, "held_out": 1}),
        ("a negative count", {"read": 0, "invalid": -1, "trained": 1}),
    ],
)
def test_a_ledger_that_does_not_add_up_is_a_bug(name: str, counts: dict[str, int]) -> None:
    ledger = Ledger()
    ledger.source("a.jsonl").rows = RowCounts(**counts)
    with pytest.raises(AssertionError, match=r"a\.jsonl"):
        ledger.check()


def test_more_rows_truncated_than_kept_is_a_bug() -> None:
    ledger = Ledger()
    ledger.sources["a"] = Account(RowCounts(read=2, too_long=2), truncated=1)
    with pytest.raises(AssertionError, match="truncated"):
        ledger.check()


def test_rows_that_were_split_are_said_and_written() -> None:
    ledger = Ledger()
    ledger.sources["a"] = Account(RowCounts(read=3, trained=3), split=2, blocks=1_234)
    ledger.sources["b"] = Account(RowCounts(read=1, trained=1), split=1, blocks=2)
    ledger.check()
    assert ledger.in_words()[-1] == "split: 3 of the rows, which are raw text, into 1,236 blocks"
    written = ledger.to_json()
    assert (written["split"], written["blocks"], written["sources"]["a"]["blocks"]) == (3, 1_236, 1_234)
    ledger.sources["b"].blocks = 1
    with pytest.raises(AssertionError, match="split into one block"):
        ledger.check()


def test_a_difference_in_one_source_is_not_hidden_by_another() -> None:
    ledger = Ledger()
    ledger.source("a").rows = RowCounts(read=1)
    ledger.source("b").rows = RowCounts(trained=1)
    with pytest.raises(AssertionError):
        ledger.check()


def test_more_labels_than_tokens_is_a_bug() -> None:
    ledger = Ledger()
    ledger.source("a").tokens = RowCounts(read=1, trained=1)
    ledger.source("a").supervised = RowCounts(read=2, trained=2)
    with pytest.raises(AssertionError, match="2 labels among 1 tokens"):
        ledger.check()


def test_what_is_not_known_is_null_and_what_is_zero_is_not_said() -> None:
    ledger = Ledger()
    ledger.source("a").rows = RowCounts(read=12_000, duplicate=1_000, trained=11_000)
    assert ledger.in_words() == ["rows: 12,000 read: 1,000 duplicate, 11,000 trained"]
    written = ledger.to_json()
    assert written["tokens"] is None and written["supervised"] is None and written["epoch"] is None
