"""Layouts hold every token and every label of their rows, each where it belongs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.batches.layout import Batch, Padded, Tree, micro_batches, packed_batch, padded_batch, tree_batch


@dataclass
class Row:
    ids: np.ndarray
    supervised: np.ndarray


def row(ids: list[int], labels: list[int]) -> Row:
    supervised = np.zeros(len(ids), dtype=bool)
    supervised[labels] = True
    return Row(np.array(ids, dtype=np.int32), supervised)


ROWS = st.lists(
    st.lists(st.integers(1, 3), min_size=2, max_size=12).flatmap(
        lambda ids: st.tuples(st.just(ids), st.sets(st.integers(1, len(ids) - 1), min_size=1))
    ),
    min_size=1,
    max_size=12,
)


def edges_by_row(batch: Batch) -> dict[int, list[tuple[int, int, int]]]:
    """row -> sorted (depth of the predicting token, its id, target)."""
    depth = batch.position_ids[batch.predicts]
    token = batch.input_ids[batch.predicts]
    found: dict[int, list[tuple[int, int, int]]] = {}
    for number, logit, target in zip(
        *(getattr(batch.edges, name).tolist() for name in ("row", "logit", "target")), strict=True
    ):
        found.setdefault(number, []).append((int(depth[logit]), int(token[logit]), target))
    return {number: sorted(edges) for number, edges in found.items()}


def expected_edges(rows: list[Row]) -> dict[int, list[tuple[int, int, int]]]:
    return {
        number: [(int(t) - 1, int(item.ids[t - 1]), int(item.ids[t])) for t in np.flatnonzero(item.supervised)]
        for number, item in enumerate(rows)
        if item.supervised.any()
    }


def test_a_shared_prefix_is_laid_out_once() -> None:
    rows = [row([1, 2, 3, 4, 5], [3, 4]), row([1, 2, 3, 6, 7, 8], [4, 5])]
    batch = tree_batch(rows, [0, 1], least=1)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5]]
    assert isinstance(batch.attention, Tree)
    assert batch.attention.segment.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    assert batch.attention.parent.tolist() == [-1, 0, 0]
    assert (batch.computed, batch.tokens, batch.supervised) == (8, 11, 4)


def test_one_hidden_state_predicts_the_next_token_of_each_child() -> None:
    rows = [row([1, 2, 3], [2]), row([1, 2, 4], [2])]
    batch = tree_batch(rows, [0, 1], least=1)
    assert batch.predicts.tolist() == [[False, True, False, False]]
    assert batch.edges.logit.tolist() == [0, 0]
    assert batch.edges.target.tolist() == [3, 4]


def test_equal_rows_are_computed_once_and_counted_twice() -> None:
    rows = [row([1, 2, 3], [1, 2]), row([1, 2, 3], [1, 2])]
    batch = tree_batch(rows, [0, 1], least=1)
    assert batch.computed == 3
    assert batch.edges.row.tolist() == [0, 0, 1, 1]
    assert batch.edges.target.tolist() == [2, 3, 2, 3]


def test_rows_without_a_common_prefix_stand_side_by_side() -> None:
    batch = tree_batch([row([1, 2], [1]), row([3, 4], [1])], [0, 1])
    assert isinstance(batch.attention, Tree)
    assert batch.attention.parent.tolist() == [-1, -1]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1]]


def test_a_trie_branches_at_any_depth_also_inside_what_is_supervised() -> None:
    rows = [row([1, 2, 3, 4, 5], [1, 2, 3, 4]), row([1, 2, 3, 6], [2, 3]), row([1, 7], [1]), row([1, 2, 3, 4, 8], [4])]
    batch = tree_batch(rows, range(4), least=1)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 8, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 4, 3, 1]]
    assert isinstance(batch.attention, Tree)
    assert batch.attention.segment.tolist() == [[0, 1, 1, 2, 3, 4, 5, 6]]
    assert batch.attention.parent.tolist() == [-1, 0, 1, 2, 2, 1, 0]
    assert edges_by_row(batch) == expected_edges(rows)


def test_what_saves_fewer_tokens_than_a_branch_costs_is_not_shared_but_equal_rows_are() -> None:
    rows = [row([1, 2, 3, 4], [3]), row([1, 2, 3, 5], [3]), row([1, 2, 9, 5], [3]), row([1, 2, 9, 5], [2])]
    assert tree_batch(rows, range(4), least=3).input_ids.tolist() == [[1, 2, 3, 4, 5, 1, 2, 9, 5]]
    assert tree_batch(rows, range(4), least=4).computed == 12
    assert tree_batch(rows, range(4), least=1).computed == 7


def paths(batch: Batch) -> set[tuple[int, ...]]:
    """What every token sees of the line, itself last, as ids."""
    from tunesmith.model.compute.tree_pieces import dense_mask, pieces_of

    assert isinstance(batch.attention, Tree)
    mask = dense_mask(pieces_of(batch.attention, batch.position_ids), batch.computed, torch.device("cpu"))[0, 0]
    return {tuple(batch.input_ids[0][line].tolist()) for line in mask}


@settings(max_examples=200, deadline=None)
@given(made=ROWS, least=st.integers(1, 5))
def test_a_token_sees_exactly_the_beginning_of_its_row(made: list, least: int) -> None:
    rows = [row(ids, sorted(labels)) for ids, labels in made]
    batch = tree_batch(rows, range(len(rows)), least=least)
    beginnings = {tuple(ids[: end + 1]) for ids, _ in made for end in range(len(ids))}
    assert paths(batch) == beginnings
    assert batch.computed >= len(beginnings)
    if least == 1:
        assert batch.computed == len(beginnings), "no token is computed twice"


def test_runs_end_where_the_least_is_shared() -> None:
    """Four rows of two documents within a budget of two rows each: one batch a document, not one across both."""
    one, other = list(range(10, 30)), list(range(40, 60))
    rows = [row([*start, end], [20]) for end in (1, 2) for start in (one, other)]
    batches = micro_batches(rows, budget=43, layout="tree")
    assert sorted(batch.computed for batch in batches) == [22, 22]


def test_padded_rows_keep_their_lengths() -> None:
    batch = padded_batch([row([1, 2, 3], [2]), row([4, 5], [1])], [0, 1])
    assert isinstance(batch.attention, Padded)
    assert batch.attention.lengths.tolist() == [3, 2]
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch.predicts.tolist() == [[False, True, False], [True, False, False]]


def test_packed_rows_share_nothing_even_where_they_are_equal() -> None:
    rows = [row([1, 2, 3], [2]), row([1, 2, 3], [1]), row([1, 2, 3, 4], [3])]
    batch = packed_batch(rows, [0, 1, 2])
    assert batch.input_ids.tolist() == [[1, 2, 3, 1, 2, 3, 1, 2, 3, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1, 2, 3]]
    assert isinstance(batch.attention, Tree) and batch.attention.parent.tolist() == [-1, -1, -1]
    assert batch.row_lengths.tolist() == [[3, 3, 3, 3, 3, 3, 4, 4, 4, 4]]
    assert paths(batch) == {(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)}
    assert edges_by_row(batch) == expected_edges(rows)
    assert (batch.tokens, batch.computed) == (10, 10)


def test_packed_rows_fill_their_batches() -> None:
    rows = [row([1] * length, [1]) for length in (6, 3, 5, 4, 2)]
    batches = micro_batches(rows, budget=10, layout="packed")
    assert sorted(batch.computed for batch in batches) == [10, 10]


def test_the_length_of_a_row_is_its_own_whatever_its_padding() -> None:
    batch = padded_batch([row([1, 2, 3], [2]), row([4, 5], [1])], [0, 1])
    assert batch.row_lengths.tolist() == [[3, 3, 3], [2, 2, 2]]
    with pytest.raises(AssertionError, match="no length of its own"):
        _ = tree_batch([row([1, 2, 3], [2]), row([1, 2, 4], [2])], [0, 1], least=1).row_lengths


@pytest.mark.parametrize("layout", ["tree", "packed", "padded"])
@settings(max_examples=100, deadline=None)
@given(made=ROWS, budget=st.integers(1, 60), least=st.integers(1, 5))
def test_no_label_is_lost_or_moved_and_the_budget_holds(layout: str, made: list, budget: int, least: int) -> None:
    rows = [row(ids, sorted(labels)) for ids, labels in made]
    batches = micro_batches(rows, budget=budget, layout=layout, least=least)  # type: ignore[arg-type]
    found: dict[int, list[tuple[int, int, int]]] = {}
    for batch in batches:
        part = edges_by_row(batch)
        assert not set(part) & set(found), "a row is in two batches"
        found |= part
        assert batch.computed <= max(budget, max(len(item.ids) for item in rows))
    assert found == expected_edges(rows)
    assert sum(batch.tokens for batch in batches) == sum(len(item.ids) for item in rows)


def test_the_first_token_cannot_be_a_label() -> None:
    with pytest.raises(AssertionError, match="nothing that could predict it"):
        tree_batch([row([1, 2], [0])], [0])


def test_moving_a_batch_keeps_its_parts() -> None:
    batch = tree_batch([row([1, 2, 3], [2])], [0])
    assert batch.to("cpu") is batch
    assert batch.to(torch.device("meta")).edges.target.device.type == "meta"
