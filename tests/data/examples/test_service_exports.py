"""Conversations as Gemini, ChatGPT, Claude, Cohere and Amazon Nova write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.loading import Loaded, load

from tunesmith.data.examples.message import Message
from tunesmith.data.files.prompt_rows import open_prompts
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

Row = dict[str, Any]
TURNS = [("user", "ask"), ("assistant", "say")]


def loaded(tmp_path: Path, *rows: Row, **settings: Any) -> Loaded:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return load(SourceSettings.model_validate({"path": str(path), **settings}), on_error="skip")


def turns(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def gemini(**more: Any) -> Row:
    asked, said = [{"text": "a"}, {"text": "sk"}], [{"text": "say"}]
    return {"contents": [{"role": "user", "parts": asked}, {"role": "model", "parts": said}], **more}


def chatgpt(*said: tuple[str, Any], **message: Any) -> Row:
    """A conversation whose last branch has these turns, beside an answer that was made again."""
    mapping: Row = {"root": {"id": "root", "message": None, "parent": None, "children": ["0"]}}
    for number, (role, part) in enumerate(said):
        content = {"content_type": "text" if isinstance(part, str) else "multimodal_text", "parts": [part]}
        turn = {"author": {"role": role}, "content": content, "recipient": "all", **message}
        parent = str(number - 1) if number else "root"
        mapping[str(number)] = {"id": str(number), "message": turn, "parent": parent, "children": [str(number + 1)]}
    other = {"author": {"role": "assistant"}, "content": {"content_type": "text", "parts": ["no"]}}
    mapping["other"] = {"message": other, "parent": "0", "children": []}
    return {"title": "t", "mapping": mapping, "current_node": str(len(said) - 1), "conversation_id": "c"}


def claude(*said: tuple[str, str], **turn: Any) -> Row:
    rest = {"uuid": "u", "attachments": [], "files": [], **turn}
    turns = [{"sender": sender, "text": text, **rest} for sender, text in said]
    return {"uuid": "c", "name": "n", "account": {"uuid": "a"}, "chat_messages": turns}


def test_gemini_s_contents_become_messages_with_the_system_instruction_first(tmp_path: Path) -> None:
    system = {"role": "system", "parts": [{"text": "Be kind."}]}
    found = loaded(tmp_path, gemini(systemInstruction=system), gemini())
    assert [turns(example.messages) for example in found.examples] == [[("system", "Be kind."), *TURNS], TURNS]
    assert found.reason.startswith("an export of Gemini; contents are the conversation")
    call = gemini()
    call["contents"][1]["parts"] = [{"functionCall": {"name": "now"}}]
    (bad,) = loaded(tmp_path, gemini(), call).bad
    assert (bad.field, bad.expected) == ("contents[1].parts", 'parts with text: {"text": ...}')


def test_of_chatgpt_s_tree_the_branch_that_ends_at_its_current_node_is_read(tmp_path: Path) -> None:
    said = [("system", ""), ("user", "ask"), ("assistant", "say"), ("user", "more"), ("assistant", "so")]
    found = loaded(tmp_path, chatgpt(*said))
    assert turns(found.examples[0].messages) == [*TURNS, ("user", "more"), ("assistant", "so")]
    assert found.reason.startswith("an export of ChatGPT; the last branch")


def test_conversations_that_are_more_than_text_or_have_no_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    image = {"content_type": "image_asset_pointer"}
    whole = chatgpt(("user", "ask"), ("assistant", "say"))
    others = [chatgpt(("user", image), ("assistant", "a cat")), chatgpt(("user", "ask")), {**whole, "mapping": {}}]
    tool = chatgpt(("user", "ask"), ("assistant", "search()"), ("tool", "found"), ("assistant", "say"))
    found = loaded(tmp_path, whole, *others, tool)
    assert [turns(example.messages) for example in found.examples] == [TURNS]
    assert [row.found for row in found.bad] == [
        "with tools, images or files", "without an answer", "without an answer", "with tools, images or files"
    ]  # fmt: skip
    with_file = claude(("human", "ask"), ("assistant", "say"), files=[{"file_name": "a.pdf"}])
    found = loaded(tmp_path, claude(("human", "ask"), ("assistant", "say")), with_file)
    assert [turns(example.messages) for example in found.examples] == [TURNS]
    assert [row.found for row in found.bad] == ["with tools, images or files"]


def test_a_tree_in_a_circle_ends(tmp_path: Path) -> None:
    row = chatgpt(("user", "ask"), ("assistant", "say"))
    row["mapping"]["0"]["parent"] = "1"
    assert turns(loaded(tmp_path, row).examples[0].messages) == TURNS


@pytest.mark.parametrize("row", [gemini(), chatgpt(("user", "ask")), claude(("human", "ask"))], ids=len)
def test_their_conversations_can_be_answered(tmp_path: Path, row: Row) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row]))
    rows = open_prompts(SourceSettings(path=str(path)), wanted="messages", instruction=None).rows()
    (found,) = [each[1] for each in rows if isinstance(each, tuple)]
    assert turns(found.messages) == [("user", "ask")]  # type: ignore[union-attr]


def test_roles_of_other_services_and_parts_without_a_type_are_read(tmp_path: Path) -> None:
    said = [("System", "s"), ("User", "ask"), ("Chatbot", "say")]
    cohere = {"messages": [{"role": role, "content": text} for role, text in said]}
    nova = {
        "system": [{"text": "s"}],
        "messages": [{"role": role, "content": [{"text": text}]} for role, text in TURNS],
    }
    for row in (cohere, nova):
        assert turns(loaded(tmp_path, row).examples[0].messages) == [("system", "s"), *TURNS]


@pytest.mark.parametrize("written", [json.dumps, str], ids=["JSON", "Python"])
@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_turns_in_a_cell_of_a_table_are_read_as_json_and_as_python_writes_lists(
    tmp_path: Path, written: Any, key: str
) -> None:
    speaker, text = ("role", "content") if key == "messages" else ("from", "value")
    cell = written([{speaker: role, text: said} for role, said in TURNS])
    found = loaded(tmp_path, {"id": 1, key: cell})
    assert turns(found.examples[0].messages) == TURNS
    (tmp_path / "p.json").write_text(json.dumps([{key: cell}]))
    rows = open_prompts(SourceSettings(path=str(tmp_path / "p.json")), wanted=None, instruction=None).rows()
    (prompt,) = [each[1] for each in rows if isinstance(each, tuple)]
    assert turns(prompt.messages) == [("user", "ask")]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="a list of turns, or its JSON text"):
        load(SourceSettings.model_validate({"path": _broken(tmp_path, key)}))


def _broken(tmp_path: Path, key: str) -> str:
    path = tmp_path / "broken.json"
    path.write_text(json.dumps([{key: "[{'role': open('x')}]"}]))
    return str(path)
