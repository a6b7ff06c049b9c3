from __future__ import annotations

import json
import time

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.chat.encoding import ControlTokens

TOKENS = ["<|im_end|>", "<|im_start|>", "<|im|>", "<s>", "</s>", "<think>", "a+(b", "<｜é｜>"]
START, END = "\U000f0000", "\U000f0001"


def test_the_first_control_token_is_found_wherever_it_stands():
    control = ControlTokens(TOKENS)
    assert control.find({"a": ["x", {"b": "y <s> <|im_end|>"}]}) == "<s>"
    assert control.find({"key </s>": 1}) == "</s>"
    assert control.find(["a+(b"]) == "a+(b"
    assert control.find({"a": [1, None, True, "<|im_en|>", "< s>"]}) is None


def test_an_assistant_may_write_thinking_tags():
    control = ControlTokens(TOKENS)
    assert control.find("<think>") == "<think>"
    assert control.find("<think>", assistant=True) is None
    assert control.find("<think><s>", assistant=True) == "<s>"


def test_the_longest_token_is_found_and_white_space_is_none():
    control = ControlTokens(["<a>", "<a><b>", "\n", " ", ""])
    assert control.find("x <a><b>\n") == "<a><b>"
    assert control.find("\n \n") is None


def test_no_control_tokens_find_nothing():
    assert ControlTokens([]).find("<s>") is None


def escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


@given(st.lists(st.sampled_from([*TOKENS, START, END, "<", ">", "x", "|im"]), max_size=12).map("".join))
def test_marked_text_splits_into_what_it_was(text):
    control = ControlTokens(TOKENS)
    for marked in (control.mark(text), escaped(control.mark(text))):
        pieces = control.split(marked)
        assert "".join(piece for _, piece, _ in pieces) == (text if marked == control.mark(text) else escaped(text))
        assert all(marked[start : start + len(piece)] == piece for start, piece, _ in pieces)
        assert all(control.find(piece) is None for _, piece, plain in pieces if not plain)


def test_a_mark_that_a_template_cut_off_is_no_text_and_joins_nothing():
    control = ControlTokens(TOKENS)
    first, second = control.mark("a<s>b").split("<s>")
    assert control.split(second + "|" + first) == [(1, "b|a", False)]
    assert control.split("<|im" + START + "_end|>") == [(0, "<|im", False), (5, "_end|>", False)]


def test_thinking_tags_of_an_assistant_are_not_marked():
    control = ControlTokens(TOKENS)
    assert control.mark({"content": "<think><s>"}, assistant=True) == {"content": f"<think>{START}<s>{END}"}
    assert control.mark("<think>") == f"{START}<think>{END}"


def test_thousands_of_control_tokens_are_looked_for_quickly():
    control = ControlTokens([f"<unused{number}>" for number in range(6000)])
    page = "<p>some <b>html</b></p>" * 4000
    began = time.process_time()
    assert control.find(page) is None
    assert control.find(page + "<unused5999>") == "<unused5999>"
    assert time.process_time() - began < 3
