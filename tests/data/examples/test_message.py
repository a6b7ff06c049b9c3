"""One turn of a conversation, in OpenAI's and in ShareGPT's form."""

from __future__ import annotations

import json

import pytest

from tunesmith.data.examples.example import to_example
from tunesmith.data.examples.message import Message, RowError, describe, openai_message, printable, sharegpt_message


def refused(turn: object) -> RowError:
    with pytest.raises(RowError) as caught:
        openai_message(turn, "messages[0]")
    return caught.value


def test_a_plain_turn_keeps_role_and_content_and_nothing_else():
    message = openai_message({"role": "user", "content": " hi\n"}, "messages[0]")
    assert message == Message("user", " hi\n")
    assert message.to_template() == {"role": "user", "content": " hi\n"}


def test_template_sees_every_key_that_is_set_and_never_the_train_flag():
    message = openai_message(
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add", "train": False}, "messages[0]"
    )
    assert message.to_template() == {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"}
    thinking = openai_message({"role": "assistant", "content": "4", "reasoning_content": "2+2"}, "messages[0]")
    assert thinking.to_template() == {"role": "assistant", "content": "4", "reasoning_content": "2+2"}


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_tool_call_arguments_become_an_object_whether_they_are_json_text_or_one(arguments: object):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    message = openai_message({"role": "assistant", "content": None, "tool_calls": [call]}, "messages[0]")
    assert message.content == ""
    assert message.tool_calls == ({"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}},)


def test_a_tool_call_may_leave_out_the_function_wrapper_the_id_and_the_arguments():
    message = openai_message({"role": "assistant", "content": "", "tool_calls": [{"name": "now"}]}, "messages[0]")
    assert message.tool_calls == ({"type": "function", "function": {"name": "now", "arguments": {}}},)


def test_text_parts_are_joined_and_other_parts_refused():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert openai_message({"role": "user", "content": parts}, "messages[0]").content == "ab"
    error = refused({"role": "user", "content": [*parts, {"type": "image_url", "image_url": {}}]})
    assert (error.field, error.found) == ("messages[0].content[2]", "a part of type the text 'image_url'")


@pytest.mark.parametrize(
    ("flags", "train"),
    [({}, True), ({"train": False}, False), ({"weight": 0}, False), ({"weight": 1}, True), ({"train": None}, True)],
)
def test_train_false_and_weight_0_leave_a_turn_unlearned(flags: dict, train: bool):
    assert openai_message({"role": "assistant", "content": "a", **flags}, "messages[0]").train is train


@pytest.mark.parametrize("key", ["train", "training", "trainable", "loss", "supervised", "weight", "loss_scale"])
@pytest.mark.parametrize(("value", "train"), [(False, False), (0, False), ("false", False), (True, True), (1.0, True)])
def test_the_names_of_other_tools_leave_a_turn_unlearned_too(key: str, value: object, train: bool):
    assert openai_message({"role": "assistant", "content": "a", key: value}, "messages[0]").train is train
    assert sharegpt_message({"from": "gpt", "value": "a", key: value}, "conversations[0]").train is train


def test_a_masked_turn_is_not_learned():
    for masked in (True, False):
        turn = openai_message({"role": "assistant", "content": "a", "masked": masked}, "messages[0]")
        assert turn.train is not masked


@pytest.mark.parametrize("value", [True, False, 1, 0])
def test_a_mask_without_a_certain_meaning_is_refused_with_what_to_write(value: object):
    error = refused({"role": "assistant", "content": "a", "mask": value})
    assert error.field == "messages[0].mask"
    assert "train: false" in error.expected
    assert openai_message({"role": "assistant", "content": "a", "mask": None}, "messages[0]").train


def test_a_part_of_a_turn_cannot_be_left_out():
    detail = [{"begin_offset": 0, "end_offset": 4, "train": False}]
    error = refused({"role": "assistant", "content": "a", "train_detail": detail})
    assert (error.field, error.found) == ("messages[0].train_detail", "a list of 1")
    assert openai_message({"role": "assistant", "content": "a", "train_detail": []}, "messages[0]").train


def test_masks_that_contradict_each_other_are_refused():
    error = refused({"role": "assistant", "content": "a", "train": True, "loss": False})
    assert (error.field, error.found) == ("messages[0]", "train: true and loss: false")
    assert not openai_message({"role": "assistant", "content": "a", "train": False, "weight": 0}, "messages[0]").train


def test_a_user_turn_that_is_to_be_learned_is_marked_as_asked():
    asked = [
        openai_message({"role": role, "content": "a", **flags}, "messages[0]").asked
        for role, flags in [("user", {"train": True}), ("user", {"loss": 0}), ("user", {}), ("assistant", {"train": 1})]
    ]
    assert asked == [True, False, False, False]


@pytest.mark.parametrize(
    ("turn", "field", "found"),
    [
        ("hi", "messages[0]", "the text 'hi'"),
        ({"content": "a"}, "messages[0].role", "an object with content"),
        ({"role": "bot", "content": "a"}, "messages[0].role", "the text 'bot'"),
        ({"role": ["user"], "content": "a"}, "messages[0].role", "a list of 1"),
        ({"role": "user"}, "messages[0].content", "no such field"),
        ({"role": "assistant", "content": None}, "messages[0].content", "null"),
        ({"role": "user", "content": 3}, "messages[0].content", "the number 3"),
        (
            {"role": "user", "content": "\ud800"},
            "messages[0].content",
            r"the lone surrogate '\ud800' (half of a character)",
        ),
        ({"role": "assistant", "content": "a", "weight": 0.5}, "messages[0].weight", "the number 0.5"),
        ({"role": "assistant", "content": "a", "train": "maybe"}, "messages[0].train", "the text 'maybe'"),
        (
            {"role": "user", "content": "a", "tool_calls": [{"name": "f"}]},
            "messages[0].tool_calls",
            "tool calls of a user turn",
        ),
        ({"role": "assistant", "content": "", "tool_calls": "f()"}, "messages[0].tool_calls", "the text 'f()'"),
        ({"role": "assistant", "content": "", "tool_calls": [7]}, "messages[0].tool_calls[0]", "the number 7"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{"}]},
            "messages[0].tool_calls[0].arguments",
            "the text '{'",
        ),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "[1]"}]},
            "messages[0].tool_calls[0].arguments",
            "a list of 1",
        ),
        (
            {"role": "assistant", "content": "", "function_call": {"name": "f"}},
            "messages[0].function_call",
            "an object with name",
        ),
        ({"role": "assistant", "content": "a", "thinking": "b"}, "messages[0].thinking", "the text 'b'"),
    ],
)
def test_a_turn_that_cannot_be_used_says_where_and_what_was_found(turn: object, field: str, found: str):
    error = refused(turn)
    assert (error.field, error.found) == (field, found)


def test_a_sharegpt_turn_where_messages_are_expected_names_the_shape():
    assert "sharegpt" in refused({"from": "human", "value": "a"}).expected


@pytest.mark.parametrize("depth", [65, 990])
def test_arguments_nested_without_end_are_refused(depth: int):
    arguments = '{"a":' * depth + "1" + "}" * depth
    call = {"name": "f", "arguments": arguments}
    error = refused({"role": "assistant", "content": "", "tool_calls": [call]})
    assert error.field == "messages[0].tool_calls[0].arguments"


@pytest.mark.parametrize(
    ("speaker", "role"),
    [
        ("human", "user"),
        ("user", "user"),
        ("gpt", "assistant"),
        ("GPT", "assistant"),
        ("chatgpt", "assistant"),
        ("bard", "assistant"),
        ("model", "assistant"),
        ("system", "system"),
        ("tool", "tool"),
        ("observation", "tool"),
    ],
)
def test_sharegpt_speakers_have_these_roles(speaker: str, role: str):
    assert sharegpt_message({"from": speaker, "value": "a"}, "conversations[0]") == Message(role, "a")


def test_a_sharegpt_function_call_becomes_a_tool_call():
    value = json.dumps({"name": "add", "arguments": {"a": 1}})
    message = sharegpt_message({"from": "function_call", "value": value}, "conversations[0]")
    assert message.role == "assistant"
    assert message.tool_calls[0]["function"] == {"name": "add", "arguments": {"a": 1}}
    both = sharegpt_message({"from": "function_call", "value": f"[{value}, {value}]"}, "conversations[0]")
    assert len(both.tool_calls) == 2


def test_calls_of_ms_swift_are_one_assistant_turn_and_their_answers_tool_turns():
    add, times = ({"name": name, "arguments": {"a": 1}} for name in ("add", "times"))
    turns = [
        {"role": "user", "content": "1 + 1, and 1 * 1?"},
        {"role": "assistant", "content": "I will see."},
        {"role": "tool_call", "content": json.dumps(add)},
        {"role": "tool_call", "content": json.dumps(times)},
        {"role": "tool_response", "content": "2"},
        {"role": "tool_response", "content": "1"},
        {"role": "assistant", "content": "2 and 1."},
    ]
    example = to_example({"messages": turns}, shape="messages", source="rows.jsonl:1")
    said = [(turn.role, turn.content, [call["function"] for call in turn.tool_calls]) for turn in example.messages]
    assert said == [
        ("user", "1 + 1, and 1 * 1?", []),
        ("assistant", "I will see.", [add, times]),
        ("tool", "2", []),
        ("tool", "1", []),
        ("assistant", "2 and 1.", []),
    ]
    turns[3]["loss"] = False  # type: ignore[assignment]
    apart = to_example({"messages": turns}, shape="messages", source="rows.jsonl:1").messages
    assert [(turn.train, len(turn.tool_calls)) for turn in apart[1:4]] == [(True, 1), (False, 1), (True, 0)]


@pytest.mark.parametrize(
    ("turn", "field"),
    [
        ({"from": "alien", "value": "a"}, "conversations[0].from"),
        ({"role": "user", "content": "a"}, "conversations[0].from"),
        ({"from": "human"}, "conversations[0].value"),
        ({"from": "human", "value": None}, "conversations[0].value"),
        ({"from": "function_call", "value": "add(1)"}, "conversations[0].value"),
        ("hi", "conversations[0]"),
    ],
)
def test_a_sharegpt_turn_that_cannot_be_used_says_where(turn: object, field: str):
    with pytest.raises(RowError) as caught:
        sharegpt_message(turn, "conversations[0]")
    assert caught.value.field == field


def test_what_is_found_in_a_file_is_said_without_control_characters():
    assert describe("a\x1b[31mred\u202e") == r"the text 'a\x1b[31mred\u202e'"
    assert describe("x" * 100) == "the text '" + "x" * 37 + "'..."
    assert describe({"\x1b": 1, "b": 2}) == r"an object with '\x1b', b"
    assert describe(10**5000) == "a very large number"
    assert describe(float("nan")) == "nan, which is not a number"
    assert describe(float("-inf")) == "-inf, which is not finite"
    assert [describe(v) for v in (None, True, "", " \n", [], {}, 1.5)] == [
        "null",
        "true",
        "an empty text",
        "a text of white space",
        "an empty list",
        "an empty object",
        "the number 1.5",
    ]
    assert printable("größe") == "größe"
    assert printable("") == "''"
