"""Layouts hold every token and every label of their rows, each where it belongs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.layout import Batch, Padded, Tree, micro_batches, padded_batch, tree_batch


@dataclass
class Row:
    ids: np.ndarray
    supervised: np.ndarray


def row(ids: list[int], labels: list[int]) -> Row:
    supervised = np.zeros(len(ids), dtype=bool)
    supervised[labels] = True
    return Row(np.array(ids, dtype=np.int32), supervised)


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
    batch = tree_batch(rows, [0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5]]
    assert isinstance(batch.attention, Tree)
    assert batch.attention.segment.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    assert batch.attention.parent.tolist() == [-1, 0, 0]
    assert (batch.computed, batch.tokens, batch.supervised) == (8, 11, 4)


def test_one_hidden_state_predicts_the_next_token_of_each_child() -> None:
    rows = [row([1, 2, 3], [2]), row([1, 2, 4], [2])]
    batch = tree_batch(rows, [0, 1])
    assert batch.predicts.tolist() == [[False, True, False, False]]
    assert batch.edges.logit.tolist() == [0, 0]
    assert batch.edges.target.tolist() == [3, 4]


def test_equal_rows_are_computed_once_and_counted_twice() -> None:
    rows = [row([1, 2, 3], [1, 2]), row([1, 2, 3], [1, 2])]
    batch = tree_batch(rows, [0, 1])
    assert batch.computed == 3
    assert batch.edges.row.tolist() == [0, 0, 1, 1]
    assert batch.edges.target.tolist() == [2, 3, 2, 3]


def test_rows_without_a_common_prefix_stand_side_by_side() -> None:
    batch = tree_batch([row([1, 2], [1]), row([3, 4], [1])], [0, 1])
    assert isinstance(batch.attention, Tree)
    assert batch.attention.parent.tolist() == [-1, -1, -1]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1]]


def test_padded_rows_keep_their_lengths() -> None:
    batch = padded_batch([row([1, 2, 3], [2]), row([4, 5], [1])], [0, 1])
    assert isinstance(batch.attention, Padded)
    assert batch.attention.lengths.tolist() == [3, 2]
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch.predicts.tolist() == [[False, True, False], [True, False, False]]


ROWS = st.lists(
    st.lists(st.integers(1, 3), min_size=2, max_size=12).flatmap(
        lambda ids: st.tuples(st.just(ids), st.sets(st.integers(1, len(ids) - 1), min_size=1))
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@settings(max_examples=100, deadline=None)
@given(made=ROWS, budget=st.integers(1, 60))
def test_no_label_is_lost_or_moved_and_the_budget_holds(layout: str, made: list, budget: int) -> None:
    rows = [row(ids, sorted(labels)) for ids, labels in made]
    batches = micro_batches(rows, budget=budget, layout=layout)  # type: ignore[arg-type]
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
