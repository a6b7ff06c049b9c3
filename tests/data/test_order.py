"""The order of rows is a pure function of seed, epoch and step."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.order import Order


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
