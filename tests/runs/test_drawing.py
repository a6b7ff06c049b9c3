"""Axes, marks and lines of a picture stand where they belong."""

from __future__ import annotations

import math

import pytest

from tunesmith.runs.drawing import Axis, Picture, labelled, powers, spread, thinned, ticks


def test_an_axis_goes_from_its_low_end_to_its_high_one_and_not_beyond() -> None:
    axis = Axis(1, 100, 0, 50, math.log10)
    assert [axis.at(value) for value in (1, 10, 100, 1000)] == [0, 25, 50, 50]
    assert Axis(3, 3, 0, 50).at(3) == 25


def test_round_tens_are_labelled_as_whole_numbers() -> None:
    assert [label for label, _ in labelled([0.0, 20.0, 40.0, 80.0])] == ["0", "20", "40", "80"]


def test_what_a_picture_shows_cannot_become_markup() -> None:
    picture = Picture(10, 10, "<a>")
    picture.add("text", "b & c", x=1, y=2.0, text_anchor="end", title="<d>")
    assert '<text x="1" y="2.0" text-anchor="end"><title>&lt;d&gt;</title>b &amp; c</text>' in picture.svg()
    assert 'aria-label="&lt;a&gt;"' in picture.inline_svg()


def test_powers_of_ten_have_others_between_them_where_they_are_few() -> None:
    assert powers(0.5, 30) == pytest.approx([0.5, 1, 2, 5, 10, 20])
    assert powers(1e-5, 1.0) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1])


def test_labels_that_meet_stand_on_lines_of_their_own() -> None:
    axis = Axis(0, 100, 0, 100)
    placed = spread([("aaaa", 20), ("bbbb", 21), ("cccc", 22), ("dddd", 80)], axis, levels=2, letter=7)
    assert placed == [("aaaa", 20, 0), ("bbbb", 21, 1), ("dddd", 80, 0)]


def test_long_curves_are_joined_in_means() -> None:
    points = [(step, float(step % 2)) for step in range(1, 2001)]
    drawn = thinned(points)
    assert len(drawn) == 500 and drawn[-1][0] == 2000
    assert {value for _, value in drawn} == {0.5}
    assert thinned(points[:500]) == points[:500]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (1.9, 4.1, [2.0, 2.5, 3.0, 3.5, 4.0]),
        (10, 300, [100, 200, 300]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([0.0, 0.2, 0.4, 0.6000000000000001], ["0", "0.2", "0.4", "0.6"]),
        ([2.3, 2.3001, 2.3002], ["2.3", "2.3001", "2.3002"]),
        ([0.0, 5e-5, 1e-4, 1.5e-4], ["0", "5e-5", "1e-4", "1.5e-4"]),
        ([0.1, 1.0, 10.0, 100.0], ["0.1", "1", "10", "100"]),
        ([-0.5, -1e-17, 0.5], ["-0.5", "0", "0.5"]),
        ([1234.0], ["1234"]),
        ([0.0], ["0"]),
        ([2e6, 4e6], ["2e6", "4e6"]),
    ],
)
def test_marks_can_be_told_apart(marks: list[float], expected: list[str]) -> None:
    assert labelled(marks) == list(zip(expected, marks, strict=True))
