"""The order of rows is a pure function of seed, epoch and step."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.batches.order import Order


def order(rows: int, **changes: object) -> Order:
    values: dict = {"batch_size": 4, "epochs": 2.0, "max_steps": None, "seed": 0, **changes}
    return Order(values.pop("weights", [1.0] * rows), **values)


def test_each_epoch_sees_every_row_once_in_another_order() -> None:
    windows = list(order(10).windows())
    first, second = windows[:3], windows[3:]
    assert [len(window.rows) for window in windows] == [4, 4, 2, 4, 4, 2]
    for epoch in (first, second):
        assert sorted(itertools.chain.from_iterable(window.rows for window in epoch)) == list(range(10))
    assert [window.rows for window in first] != [window.rows for window in second]
    assert [window.step for window in windows] == [1, 2, 3, 4, 5, 6]


def test_continuing_after_a_step_gives_the_same_windows() -> None:
    whole = list(order(10).windows())
    for after in range(7):
        assert list(order(10).windows(after)) == whole[after:]


def test_another_seed_is_another_order() -> None:
    assert list(order(10).windows()) != list(order(10, seed=1).windows())


def test_a_fraction_of_an_epoch_and_max_steps_end_inside_a_pass() -> None:
    assert order(10, epochs=0.5).total_steps == 2
    assert order(10, epochs=1.5).total_steps == 5
    assert order(10, max_steps=8).total_steps == 8
    assert [window.step for window in order(10, max_steps=8).windows()][-1] == 8


def test_an_epoch_ends_on_a_whole_number() -> None:
    assert [window.epoch == int(window.epoch) for window in order(10).windows()] == [False, False, True] * 2


def test_weights_far_below_one_leave_a_row_in_every_epoch() -> None:
    made = order(3, weights=[1e-9] * 3)
    assert made.total_steps == 2
    assert [len(window.rows) for window in made.windows()] == [1, 1]


def test_a_weight_says_how_often_an_epoch_sees_a_row() -> None:
    made = order(2, weights=[2.0, 0.5])
    counts = np.array([np.bincount(made.epoch_rows(epoch), minlength=2) for epoch in range(400)])
    assert (counts[:, 0] == 2).all()
    assert set(counts[:, 1]) == {0, 1}
    assert 0.4 < counts[:, 1].mean() < 0.6


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 50), batch_size=st.integers(1, 20), epochs=st.floats(0.1, 4))
def test_the_number_of_steps_is_known_before(rows: int, batch_size: int, epochs: float) -> None:
    made = order(rows, batch_size=batch_size, epochs=epochs)
    assert len(list(made.windows())) == made.total_steps


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    wanted=st.lists(st.one_of(st.none(), st.integers(1, 80)), min_size=4, max_size=4),
    seed=st.integers(0, 5),
)
def test_a_quota_is_the_rows_of_a_source_in_every_epoch(sizes: list[int], wanted: list[int | None], seed: int) -> None:
    sources = np.repeat(np.arange(len(sizes)), sizes)
    quotas = {number: rows for number, rows in enumerate(wanted[: len(sizes)]) if rows is not None}

    def made() -> Order:
        return order(0, weights=[1.0] * len(sources), sources=sources, quotas=quotas, seed=seed)

    for epoch in range(3):
        rows = made().epoch_rows(epoch)
        copies = np.bincount(rows, minlength=len(sources))
        for number, size in enumerate(sizes):
            quota = quotas.get(number, size)
            assert copies[sources == number].sum() == quota
            assert set(copies[sources == number]) <= {quota // size, quota // size + 1}
        assert (rows == made().epoch_rows(epoch)).all()


def test_a_quota_below_the_size_of_its_source_draws_other_rows_in_another_epoch() -> None:
    made = order(0, weights=[1.0] * 40, sources=np.zeros(40, int), quotas={0: 10})
    drawn = [frozenset(made.epoch_rows(epoch).tolist()) for epoch in range(30)]
    assert all(len(rows) == 10 for rows in drawn)
    assert len(set(drawn)) == 30
    assert frozenset.union(*drawn) == frozenset(range(40))


def test_a_quota_for_a_source_without_rows_gives_none() -> None:
    made = order(0, weights=[1.0] * 3, sources=np.array([0, 0, 2]), quotas={1: 5})
    assert sorted(made.epoch_rows(0).tolist()) == [0, 1, 2]
