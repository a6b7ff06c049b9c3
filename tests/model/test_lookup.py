"""Guesses by copying."""

from __future__ import annotations

from tunesmith.model.lookup import Lookup, worth_guessing


def test_the_tokens_behind_the_last_ones_in_the_reference_are_the_guess() -> None:
    lookup = Lookup([10, 11, 12, 13, 14, 15, 16, 17], length=2)
    assert lookup.guess([1, 2, 10, 11], 10) == [12, 13, 14, 15, 16, 17]
    assert lookup.guess([1, 2, 10, 11], 2) == [12, 13]
    assert lookup.guess([1, 2, 10, 11], 0) == []


def test_an_answer_with_one_other_token_goes_on_as_the_reference_does() -> None:
    lookup = Lookup([10, 11, 12, 13], length=1)
    assert lookup.guess([1, 10, 99], 10) == [12, 13]
    assert Lookup([10, 11, 12, 13], length=1).guess([1, 10, 98, 11], 10) == [12, 13]


def test_the_prompt_is_copied_where_two_tokens_stand_in_it() -> None:
    lookup = Lookup([], length=6)
    text = [1, 20, 21, 22, 23, 3, 20, 21]
    assert lookup.guess(text, 10) == [22, 23, 3, 20, 21]
    assert Lookup([], length=6).guess([1, 20, 21, 22, 23, 3, 21], 10) == [], "one token is too little"


def test_of_several_places_the_nearest_counts() -> None:
    lookup = Lookup([7, 1, 7, 2, 7, 3], length=0)
    assert lookup.guess([9, 9, 9, 9, 7], 1) == [3]
    assert Lookup([7, 1, 7, 2, 7, 3], length=0).guess([7], 1) == [1]


def test_at_most_sixteen_tokens_are_guessed() -> None:
    assert Lookup(list(range(100)), length=0).guess([0, 1, 2], 50) == list(range(3, 19))


def test_the_count_follows_what_was_right() -> None:
    lookup = Lookup(list(range(1000)), length=0)
    sizes = []
    for right in (1, 1, 1, 1, 1, 1, 0, 0, 0):
        guess = lookup.guess([0, 1, 2], 50, worth=0.5)
        sizes.append(len(guess))
        lookup.learn([*guess, 3 + len(guess)] if right else [999])
    assert sizes == [1, 5, 16, 16, 16, 16, 16, 12, 6]


def test_guesses_that_are_not_computed_are_learned_from() -> None:
    lookup = Lookup(list(range(100)), length=0)
    sizes = []
    for _ in range(5):
        guess = lookup.guess([0, 1, 2], 50, worth=0.8)
        sizes.append(len(guess))
        lookup.learn([*guess, 3 + len(guess)])
    assert sizes == [0, 1, 2, 4, 11]


def test_a_guess_must_be_the_surer_the_more_texts_share_a_pass() -> None:
    assert worth_guessing(1, 20) == 1 / 21
    assert worth_guessing(20, 20) == 0.5
    assert worth_guessing(60, 20) == 0.75
    # One of two guesses right: 2 tokens a pass in place of 1, for one token more.
    texts, reading = 20, 20
    plain = reading + texts  # for a token of each text
    guessed = (reading + 2 * texts) / 1.5
    assert guessed == plain
