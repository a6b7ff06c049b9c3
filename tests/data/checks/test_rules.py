from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.checks.rules import RULES, SAMPLE_CHARACTERS, Hit, look
from tunesmith.data.examples.example import Example, to_example
from tunesmith.data.examples.message import Message

CALL = {"type": "function", "function": {"name": "mail", "arguments": {"to": ["jo@example.com"]}}}


def row(answer: str, question: str = "What is it?") -> Example:
    return Example((Message("user", question), Message("assistant", answer)), "f:1")


def turns(*roles: str) -> Example:
    return Example(tuple(Message(role, "some text") for role in roles), "f:1")


def rules(example: Example) -> list[str]:
    return [hit.rule for hit in look(example)]


ANSWERS = {
    "answer_one_token": (["x", "ok", ")", " B "], ["7", "是", "👍", "yes", "°C", "a b c"]),
    "answer_placeholder": (
        ["N/A", "\\N", "null", "None.", "nan", "TODO", "...", "-", "- -", "<noinput>", "…"],
        ["[]", "{}", "None of these", "!=", ":-)", "-1", "todo list"],
    ),
    "assistant_leftover": (
        [
            "As an AI language model, I have no taste.",
            "Well, as an AI I cannot eat.",
            "I'm sorry, but I cannot do that.",
            "I’m sorry, but I can’t help.",
            "It was so as of my knowledge cutoff in 2021.",
            "My knowledge cutoff is 2023.",
            "I don't have access to real-time data.",
            "I do not have personal opinions.",
            "Sure! Here is the list.",
            "Certainly, here are three ideas.",
            "I am ChatGPT.",
            "I am a large language model trained by OpenAI.",
            "This is against OpenAI's content policy.",
            "See https://example.org/?utm_source=chatgpt.com",
            "The text.\nRegenerate response",
        ],
        [
            "OpenAI was founded in 2015, and ChatGPT followed.",
            "She works as an AI researcher.",
            "GPT-3 is known as a language model of 2020.",
            "'I'm sorry, but I can't come,' she said.".replace("'I", "She said 'I", 1),
            "Make sure! Here is where it starts.",
            "Of course the measure is good.",
            "I was trained to be a nurse.",
        ],
    ),
    "chat_markers": (
        ["### Response: yes", "Text\nHuman: and then?", "User: hello there", "<s>Hello", "so [/INST] yes", "<<SYS>> x"],
        ["### Responses", "The User: field", "User:\n", "Human: ", "### Instructions: mix", "a <span>"],
    ),
    "template_tokens": (
        ["so<|im_end|>", "a <end_of_turn>", "b</s>", "<｜User｜>hi", "<|eot_id|>", "[INST] x"],
        ["a <| b |> c", "<|unheard_of|>", "end_of_turn", "<em>", "List[str]"],
    ),
    "mojibake": (
        ["It â€™s broken", "cafÃ© au lait", "ÐŸÑ€Ð¸Ð²ÐµÑ‚", "lost \ufffd here"],
        ["It ’s fine", "café au lait, œuvre", "Привет «мир»", "今天", "20 °C – 30 °C"],
    ),
    "control_characters": (
        ["a\0b", "a\x1b[0mb", "a\x7f", "a\ufeffb", "abc\u202edef", "a\u2067b", "a\u202c", "a\u202bx\nb\u202c"],
        ["a\tb\r\nc", "می\u200cخواهم", "👩\u200d👧", "\u2067שלום\u2069 end", "\u202bשלום\u202c"],
    ),
    "mixed_newlines": (["a\r\nb\nc"], ["a\r\nb\r\nc", "a\nb", "a\rb\nc"]),
    "html_in_answer": (
        ["Tom &amp; Jerry", "one<br>two", "<p>Hello</p>", 'a <a href="x">link</a>'],
        [
            "Tom & Jerry; both",
            "if a <b and b> c",
            "use `<br>` here",
            "```\n<p>x</p>\n```",
            "the HTML tag <br>",
            "<5 &c.",
        ],
    ),
    "repeated_text": (
        ["It is what it is, as they say here. " * 8, "the same line over and over again\n" * 8],
        ["It is what it is. " * 8, " ".join(f"Sentence number {i} says a thing of its own." for i in range(20))],
    ),
    "mixed_scripts": (["log in at pаypal now"], ["5 μm and TNFα"]),
    "email": (["write to jo@example.com"], ["write to jo at example"]),
    "phone": (["call +1 415 555 2671"], ["on 2024-01-15"]),
    "iban": (["to DE89 3704 0044 0532 0130 00"], ["to DE89 3704 0044 0532 0130 01"]),
    "card_number": (["pay 4111 1111 1111 1111"], ["pay 4111 1111 1111 1112"]),
    "secret": (["key AKIAIOSFODNN7EXAMPLE"], ["the key is secret: nobody knows"]),
}
ORDERS = (
    ["user user assistant", "user assistant assistant", "system assistant user assistant", "user tool assistant"],
    ["user assistant", "system user assistant user assistant"],
)


def test_every_rule_has_examples_and_a_message_that_counts_rows():
    assert {*ANSWERS, "role_order", "asked_to_learn"} == set(RULES)
    for name, rule in RULES.items():
        assert rule.id == name
        assert rule.message.format(rows="12 rows").startswith("12 rows ")


@pytest.mark.parametrize(("rule", "answer"), [(rule, text) for rule, (bad, _) in ANSWERS.items() for text in bad])
def test_a_rule_finds_what_it_is_for(rule: str, answer: str):
    assert rules(row(answer)).count(rule) == 1


@pytest.mark.parametrize(("rule", "answer"), [(rule, text) for rule, (_, good) in ANSWERS.items() for text in good])
def test_a_rule_leaves_what_only_resembles_it(rule: str, answer: str):
    assert rule not in rules(row(answer))


@pytest.mark.parametrize(
    ("order", "bad"), [(order, bad) for bad, orders in zip((True, False), ORDERS, strict=True) for order in orders]
)
def test_turns_take_turns(order: str, bad: bool):
    assert rules(turns(*order.split())) == ["role_order"] * bad


def test_a_tool_answers_a_call_and_the_arguments_of_a_call_are_read():
    call = Message("assistant", "", tool_calls=(CALL,))
    asked = Message("user", "some text")
    good = Example(
        (asked, call, Message("tool", "sent"), Message("tool", "read"), Message("assistant", "Done so.")), "f:1"
    )
    assert look(good) == [Hit("email", "jo…om")]


def test_a_template_token_counts_in_every_turn_and_a_leftover_only_in_learned_answers():
    assert rules(row("a fine answer", "hi<|im_end|><|im_start|>assistant")) == ["template_tokens"]
    assert rules(row("a fine answer", "As an AI language model, I am asked.")) == []
    early = (Message("user", "a b"), Message("assistant", "As an AI, I wait.", train=False))
    assert rules(Example((*early, *row("a fine answer").messages), "f:1")) == []


def test_a_raw_text_has_no_answers_but_may_be_broken():
    text = "<|endoftext|>As an AI, I wait.\n### Response: cafÃ© of jo@example.com"
    assert rules(Example((), "f:1", text=text)) == ["mojibake", "email"]


def test_a_newline_between_two_turns_mixes_nothing():
    assert rules(row("one\r\ntwo", "three\nfour")) == []


def test_samples_are_short_and_safe_and_show_no_personal_data():
    example = row("\x1b[31m jo@example.com wrote cafÃ© to +14155552671 " + "x" * 500)
    hits = {hit.rule: hit.sample for hit in look(example)}
    assert hits["email"] == "jo…om"
    assert hits["phone"] == "+1…71"
    assert "jo@" not in "".join(hits.values()) and "4155552671" not in "".join(hits.values())
    assert r"\x1b[31m jo…om " in hits["control_characters"]
    assert all(sample.isprintable() and len(sample) <= SAMPLE_CHARACTERS for sample in hits.values())


def check_samples(example: Example) -> None:
    hits = look(example)
    assert len({hit.rule for hit in hits}) == len(hits)
    for hit in hits:
        assert hit.rule in RULES
        assert hit.sample.isprintable() and 0 < len(hit.sample) <= SAMPLE_CHARACTERS
        assert not re.search(r"jo@example\.com|4111111111111111", hit.sample)


ANY_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.lists(
        st.sampled_from([text for bad, good in ANSWERS.values() for text in bad + good] + ["4111111111111111"])
    ).map(" ".join),
)


@given(ANY_TEXT, ANY_TEXT)
def test_any_text_can_be_looked_at(question: str, answer: str):
    check_samples(row(answer, question))
    check_samples(Example((), "f:1", text=answer))


def test_naughty_strings_can_be_looked_at():
    beside = Path(__file__).parents[3].parent / "shared" / "data"
    path = Path(os.environ.get("TUNESMITH_SHARED_DATA", beside)) / "hostile" / "blns.json"
    if not path.is_file():
        pytest.skip("the shared data are not here")
    naughty = json.loads(path.read_text())
    assert len(naughty) > 400
    for text in naughty:
        check_samples(row(text, text))


def test_a_turn_that_is_asked_to_be_learned_and_never_is_stands_out():
    turns = [{"role": "user", "content": "Hi", "train": True}, {"role": "assistant", "content": "Hello", "train": True}]
    asked = to_example({"messages": turns}, shape="messages", source="f:1")
    assert [hit.sample for hit in look(asked) if hit.rule == "asked_to_learn"] == ["turn 1: user"]
    turns[0]["train"] = False
    assert look(to_example({"messages": turns}, shape="messages", source="f:1")) == []
