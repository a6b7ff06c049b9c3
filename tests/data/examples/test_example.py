"""What a row of each shape becomes, and what is said of a row that cannot become an example."""

from __future__ import annotations

import pytest

from tunesmith.data.examples.example import Example, to_example
from tunesmith.data.examples.message import Message, RowError


def turns(row: dict, shape: str, **options: object) -> list[tuple[str, str]]:
    example = to_example(row, shape=shape, source="rows.jsonl:1", **options)  # type: ignore[arg-type]
    return [(message.role, message.content) for message in example.messages]


def refused(row: dict, shape: str, **options: object) -> RowError:
    with pytest.raises(RowError) as caught:
        turns(row, shape, **options)
    return caught.value


def test_alpaca_joins_instruction_and_input_with_a_blank_line():
    row = {"instruction": "Translate.", "input": "Hello", "output": "Bonjour"}
    assert turns(row, "alpaca") == [("user", "Translate.\n\nHello"), ("assistant", "Bonjour")]


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_alpaca_without_an_input_is_the_instruction_alone(empty: str | None):
    row = {"instruction": "Say hi.", "input": empty, "output": "hi", "system": "Be kind."}
    assert turns(row, "alpaca") == [("system", "Be kind."), ("user", "Say hi."), ("assistant", "hi")]
    del row["input"], row["system"]
    assert turns(row, "alpaca") == [("user", "Say hi."), ("assistant", "hi")]


@pytest.mark.parametrize("written", [[["1+1?", "2"], ["Sure?", "Yes."]], '[["1+1?", "2"], ["Sure?", "Yes."]]'])
def test_the_history_of_an_alpaca_row_becomes_earlier_turns_that_are_learned(written: object):
    row = {"instruction": "And 2+2?", "input": "", "output": "4", "system": "Be brief.", "history": written}
    made = to_example(row, shape="alpaca", source="f:1")
    assert [(turn.role, turn.content) for turn in made.messages] == [
        ("system", "Be brief."),
        ("user", "1+1?"),
        ("assistant", "2"),
        ("user", "Sure?"),
        ("assistant", "Yes."),
        ("user", "And 2+2?"),
        ("assistant", "4"),
    ]
    assert all(turn.train for turn in made.messages)


@pytest.mark.parametrize("none", [None, [], "", " "])
def test_an_alpaca_row_without_a_history_is_one_round(none: object):
    row = {"instruction": "Hi", "output": "Hello", "history": none}
    assert turns(row, "alpaca") == [("user", "Hi"), ("assistant", "Hello")]


@pytest.mark.parametrize(
    ("history", "field"),
    [
        ("hello", "history"),
        ([["a"]], "history[0]"),
        ([["a", "b"], ["c", ""]], "history[1][1]"),
        ([["a", 3]], "history[0][1]"),
    ],
)
def test_a_history_that_is_none_is_refused_with_its_place(history: object, field: str):
    assert refused({"instruction": "Hi", "output": "Hello", "history": history}, "alpaca").field == field


def test_columns_are_mapped_and_one_instruction_serves_all_rows():
    row = {"text": "Where is my card?", "category": "card_arrival"}
    columns = {"input": "text", "output": "category"}
    assert turns(row, "alpaca", columns=columns, instruction="Name the intent.") == [
        ("user", "Name the intent.\n\nWhere is my card?"),
        ("assistant", "card_arrival"),
    ]


def test_columns_can_change_places():
    row = {"input": "the answer", "output": "the question", "instruction": "x"}
    assert turns(row, "alpaca", columns={"input": "output", "output": "input"})[1] == ("assistant", "the answer")


def test_text_is_never_stripped():
    assert turns({"prompt": " a\n", "completion": " b "}, "prompt_completion") == [
        ("user", " a\n"),
        ("assistant", " b "),
    ]


def test_prompt_and_completion_may_be_messages_and_only_the_completion_is_learned():
    row = {
        "prompt": [
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "3"},
        ],
        "completion": [{"role": "assistant", "content": "4"}],
    }
    example = to_example(row, shape="prompt_completion", source="rows.jsonl:1")
    assert [(m.role, m.content, m.train) for m in example.messages if m.role == "assistant"] == [
        ("assistant", "2", False),
        ("assistant", "4", True),
    ]


def test_messages_with_tools_as_a_list_or_as_json_text():
    messages = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    listed = to_example({"messages": messages, "tools": [tool]}, shape="messages", source="a:1")
    written = to_example(
        {"messages": messages, "tools": '[{"type": "function", "function": {"name": "add", "parameters": {}}}]'},
        shape="messages",
        source="a:1",
    )
    assert listed == written
    assert listed.tools == (tool,)


def test_sharegpt_with_a_system_column():
    row = {"system": "s", "conversations": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}]}
    assert turns(row, "sharegpt") == [("system", "s"), ("user", "1"), ("assistant", "2")]


def test_raw_text_has_no_turns():
    assert to_example({"text": "Once."}, shape="text", source="a.txt:3") == Example((), "a.txt:3", text="Once.")


def conversation(*turns_: tuple[str, str]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns_]}


@pytest.mark.parametrize(
    ("row", "shape", "field", "found"),
    [
        ({"instruction": "a"}, "alpaca", "output", "no such field"),
        ({"instruction": "a", "output": None}, "alpaca", "output", "null"),
        ({"instruction": "a", "output": " \n"}, "alpaca", "output", "a text of white space"),
        ({"instruction": 3, "output": "a"}, "alpaca", "instruction", "the number 3"),
        ({"prompt": True, "completion": "a"}, "prompt_completion", "prompt", "true"),
        ({"prompt": "a", "completion": float("nan")}, "prompt_completion", "completion", "a number that is not finite"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "alpaca", "input", "a list of 1"),
        ({"instruction": " ", "input": "", "output": "c"}, "alpaca", "instruction", "a text of white space"),
        ({"prompt": "", "completion": "b"}, "prompt_completion", "prompt", "an empty text"),
        ({"prompt": "a", "completion": ["b"]}, "prompt_completion", "completion", "a list of 1"),
        ({"prompt": [], "completion": "b"}, "prompt_completion", "completion", "the text 'b'"),
        (
            {"prompt": [{"role": "user", "content": "a"}], "completion": []},
            "prompt_completion",
            "completion",
            "an empty list",
        ),
        ({"messages": []}, "messages", "messages", "an empty list"),
        ({"messages": "a"}, "messages", "messages", "the text 'a'"),
        (conversation(("user", "a")), "messages", "messages", "no assistant turn"),
        (
            conversation(("user", "a"), ("assistant", "b"), ("user", "c")),
            "messages",
            "messages",
            "a user turn at the end",
        ),
        (conversation(("assistant", "b")), "messages", "messages", "no user turn"),
        (
            conversation(("user", "a"), ("system", "s"), ("assistant", "b")),
            "messages",
            "messages",
            "a system turn at position 2",
        ),
        (
            conversation(("user", "a"), ("assistant", " ")),
            "messages",
            "messages",
            "turn 2 (assistant) with a text of white space",
        ),
        (conversation(("user", ""), ("assistant", "b")), "messages", "messages", "turn 1 (user) with an empty text"),
        (
            conversation(("system", "s"), ("user", "a"), ("assistant", "b")) | {"system": "t"},
            "messages",
            "system",
            "a system text beside a system turn",
        ),
        (conversation(("user", "a"), ("assistant", "b")) | {"tools": "x"}, "messages", "tools", "the text 'x'"),
        (conversation(("user", "a"), ("assistant", "b")) | {"tools": ["x"]}, "messages", "tools[0]", "the text 'x'"),
        (
            conversation(("user", "a"), ("assistant", "b")) | {"tools": [{"a": float("inf")}]},
            "messages",
            "tools[0]",
            "a number that is not finite",
        ),
        ({"text": "a\udfff"}, "text", "text", r"the lone surrogate '\udfff' (half of a character)"),
        ({"text": ""}, "text", "text", "an empty text"),
    ],
)
def test_a_row_that_cannot_be_used_says_where_and_what_was_found(row: dict, shape: str, field: str, found: str):
    error = refused(row, shape)
    assert (error.field, error.found) == (field, found)


def test_a_conversation_in_which_no_turn_is_learned_is_refused():
    row = conversation(("user", "a"), ("assistant", "b"))
    row["messages"][1]["weight"] = 0
    assert "every assistant turn" in refused(row, "messages").found


def test_an_unlearned_turn_may_be_empty():
    row = conversation(("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c"))
    row["messages"][1]["train"] = False
    assert turns(row, "messages")[3] == ("assistant", "c")


def test_two_answers_to_a_prompt_share_its_key_and_differ_in_content():
    first = to_example({"prompt": "a", "completion": "b"}, shape="prompt_completion", source="x:1")
    second = to_example({"instruction": "a", "output": "c"}, shape="alpaca", source="y:9")
    assert first.prompt_key() == second.prompt_key() == '[[{"content":"a","role":"user"}],[]]'
    assert first.content_key() != second.content_key()


def test_the_prompt_key_holds_earlier_turns_and_tools():
    row = conversation(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    example = to_example(row, shape="messages", source="x:1")
    assert '"b"' in example.prompt_key() and '"d"' not in example.prompt_key()
    with_tools = to_example(row | {"tools": [{"name": "f"}]}, shape="messages", source="x:1")
    assert with_tools.prompt_key() != example.prompt_key()
    assert Example((), "x:1", text="t").prompt_key() == "t"
    assert Example((Message("user", "a"),), "x:1").prompt_key() == '[[{"content":"a","role":"user"}],[]]'


def test_length_in_characters():
    example = to_example({"prompt": "abc", "completion": "de"}, shape="prompt_completion", source="x:1")
    assert example.characters() == 5
    assert Example((), "x:1", text="abcd").characters() == 4
