"""The rules of a check, one by one."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.errors import DataError
from tunesmith.evaluation.probe.rules import RULES, is_right, plain

CASES: list[tuple[dict[str, Any], str, str]] = [  # check, right, wrong
    ({"exact": "Paris"}, "**paris.**", "It is Paris"),
    ({"one_of": ["red", "blue"]}, "Blue!", "green"),
    ({"contains": "go"}, "Let us go.", "A goat."),
    ({"contains": ["one", "two"]}, "two and one", "one"),
    ({"contains": "東京"}, "日本の首都は東京です。", "京都です。"),
    ({"contains": "São Paulo"}, "Sa\u0303o   Paulo it is", "Sao Paulo"),
    ({"contains_any": ["°C", "degrees"]}, "8°C", "8 C"),
    ({"lacks": "cat"}, "A category.", "The cat."),
    ({"regex": "^a+$"}, "aaa", "aab"),
    ({"number": 1000}, "There are 1,000 of them.", "10,00"),
    ({"number": -5}, "4 - 9 = -5", "5"),
    ({"number": 0.75}, ".75", "75"),
    ({"json": {}}, "```json\n[1]\n```", "here: [1]"),
    ({"json": {"keys": ["a"]}}, '{"a": 1}', '{"a": 1, "b": 2}'),
    ({"json": {"equals": {"a": True}}}, '{"a": true}', '{"a": 1}'),
    ({"words": 2}, "Good - morning!", "Good"),
    ({"words": [1, 3]}, "a b c", "a b c d"),
    ({"lines": 2}, "a\n\nb", "a"),
    ({"items": 2}, "Two:\n- a\n2) b", "- a"),
    ({"case": "upper"}, "A, B!", "A, b!"),
    ({"case": "lower"}, "straße", "Straße"),
    ({"starts_with": "Well"}, "Well, yes", "As well"),
    ({"ends_with": "?"}, "Why?", "Why? Because."),
    ({"refusal": True}, "I’m sorry, but I can’t help with that.", "I can't wait to help you."),
    ({"refusal": False}, "Gladly.", "I cannot do this."),
    ({"contains": "a", "words": 1}, "a", "a b"),
]


@pytest.mark.parametrize(("check", "right", "wrong"), CASES, ids=lambda value: str(value)[:40])
def test_a_rule_holds_for_a_right_answer_and_not_for_a_wrong_one(check: dict[str, Any], right: str, wrong: str) -> None:
    assert all(RULES[name].fits(value) for name, value in check.items())
    assert (is_right(check, right), is_right(check, wrong)) == (True, False)


def test_every_rule_has_a_case_here() -> None:
    assert {name for check, _, _ in CASES for name in check} == set(RULES)


def test_thoughts_are_not_the_answer() -> None:
    assert is_right({"exact": "4"}, "<think>Is it 5? No.</think>\n4")
    assert not is_right({"contains": "5"}, "<think>It is 5")


def test_an_empty_answer_keeps_no_rule() -> None:
    assert not is_right({"refusal": False}, "  ")
    assert not is_right({"lacks": "x"}, "")


def test_a_text_of_punctuation_alone_is_compared_as_it_is() -> None:
    assert plain(" ?! ") == "?!"


def test_numbers_are_found_as_the_metric_number_match_finds_them() -> None:
    assert is_right({"number": 120000}, "about 1.2e5 people")
    assert is_right({"number": -4}, "It is \u22124 degrees.")
    assert not is_right({"number": 1}, "none") and not is_right({"number": 9}, "1e99999999999999999999999")


def test_a_pattern_without_end_is_refused() -> None:
    with pytest.raises(DataError, match="searches an answer for more than 1 second"):
        is_right({"regex": r"^(a|a|b)*(a|aa)+$c"}, "a" * 60 + "!")
