"""Guesses by copying."""

from __future__ import annotations

from tunesmith.model.lookup import Lookup


def test_the_tokens_behind_the_last_ones_in_the_reference_are_the_guess() -> None:
    lookup = Lookup([10, 11, 12, 13, 14, 15, 16, 17], length=2)
    assert lookup.guess([1, 2, 10, 11], 10) == [12, 13, 14, 15]
    assert lookup.guess([1, 2, 10, 11], 2) == [12, 13]
    assert lookup.guess([1, 2, 10, 11], 0) == []


def test_an_answer_with_one_other_token_goes_on_as_the_reference_does() -> None:
    lookup = Lookup([10, 11, 12, 13], length=1)
    assert lookup.guess([1, 10, 99], 10) == [12, 13]
    assert Lookup([10, 11, 12, 13], length=1).guess([1, 10, 98, 11], 10) == [12, 13]


def test_the_prompt_is_copied_where_two_tokens_stand_in_it() -> None:
    lookup = Lookup([], length=6)
    text = [1, 20, 21, 22, 23, 3, 20, 21]
    assert lookup.guess(text, 10) == [22, 23, 3, 20]
    assert Lookup([], length=6).guess([1, 20, 21, 22, 23, 3, 21], 10) == [], "one token is too little"


def test_of_several_places_the_nearest_counts() -> None:
    lookup = Lookup([7, 1, 7, 2, 7, 3], length=0)
    assert lookup.guess([9, 9, 9, 9, 7], 1) == [3]
    assert Lookup([7, 1, 7, 2, 7, 3], length=0).guess([7], 1) == [1]


def test_the_count_follows_what_was_right() -> None:
    lookup = Lookup(list(range(100)), length=0)
    sizes = []
    for guessed_right in (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0):
        guess = lookup.guess([0, 1, 2], 50)
        sizes.append(len(guess))
        lookup.learn(len(guess), int(len(guess) * guessed_right))
    assert sizes == [4, 8, 16, 16, 8, 4, 2, 1, 1, 1]
