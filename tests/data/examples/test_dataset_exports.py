"""SQuAD's questions about a text, and OpenAssistant's trees of messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.loading import Loaded, load

from tunesmith.data.files.prompt_rows import open_prompts
from tunesmith.recipe.data import SourceSettings

Row = dict[str, Any]


def loaded(path: Path, content: Any, **settings: Any) -> Loaded:
    lines = "".join(json.dumps(row) + "\n" for row in content) if path.suffix == ".jsonl" else json.dumps(content)
    path.write_text(lines)
    return load(SourceSettings.model_validate({"path": str(path), **settings}), on_error="skip")


def pairs(found: Loaded) -> list[tuple[str, str]]:
    return [(example.messages[0].content, example.answer()) for example in found.examples]


def article(*questions: Row) -> Row:
    return {"title": "Tea", "paragraphs": [{"context": "Tea is hot.", "qas": list(questions)}]}


HOT = {"id": "1", "question": "How is tea?", "answers": [{"text": "hot", "answer_start": 7}, {"text": "is hot"}]}
NONE = {"id": "2", "question": "Why?", "answers": [], "is_impossible": True}


def test_each_question_of_squad_is_a_row_with_its_context_and_first_answer(tmp_path: Path) -> None:
    found = loaded(tmp_path / "dev.json", {"version": "1.1", "data": [article(HOT, NONE), article(HOT)]})
    assert pairs(found) == [("Tea is hot.\n\nHow is tea?", "hot")] * 2
    assert [example.source.rpartition(":")[2] for example in found.examples] == ["1", "3"]
    assert [row.found for row in found.bad] == ["without an answer"]
    assert "each question of a paragraph is a row" in found.reason
    assert found.reason.startswith("an export of SQuAD; the context and the question are the prompt, the first")


def test_a_broken_paragraph_of_squad_is_a_bad_row(tmp_path: Path) -> None:
    found = loaded(tmp_path / "dev.json", {"data": [article(HOT), {"title": "x", "paragraphs": ["y"]}, 7]})
    assert pairs(found) == [("Tea is hot.\n\nHow is tea?", "hot")]
    assert [row.field for row in found.bad] == ["paragraphs", "row"]


@pytest.mark.parametrize(
    "answers",
    [{"text": ["hot", "is hot"], "answer_start": [7, 4]}, {"text": "hot"}, [{"text": "hot", "answer_start": 7}]],
    ids=str,
)
def test_rows_of_squad_as_the_hub_has_them_are_read(tmp_path: Path, answers: Any) -> None:
    row = {"id": "1", "context": "Tea is hot.", "question": "How is tea?", "answers": answers}
    found = loaded(tmp_path / "rows.jsonl", [row, {**row, "answers": {"text": [], "answer_start": []}}])
    assert pairs(found) == [("Tea is hot.\n\nHow is tea?", "hot")]
    assert [each.found for each in found.bad] == ["without an answer"]
    named = loaded(tmp_path / "rows.jsonl", [row], columns={"prompt": "question"})
    assert pairs(named) == [("How is tea?", "hot")]


def test_questions_of_squad_without_an_answer_can_be_asked(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text(json.dumps({"data": [article({"id": "1", "question": "How is tea?"})]}))
    rows = open_prompts(SourceSettings(path=str(tmp_path / "test.json")), wanted=None, instruction=None).rows()
    (prompt,) = [each[1] for each in rows if isinstance(each, tuple)]
    assert prompt.messages[0].content == "Tea is hot.\n\nHow is tea?"  # type: ignore[union-attr]


def message(name: str, parent: str | None, text: str, role: str = "assistant", **facts: Any) -> Row:
    return {"message_id": name, "parent_id": parent, "text": text, "role": role, **facts}


TREE = [
    message("q", None, "ask", "prompter"),
    message("b", "q", "worse", rank=1),
    message("d", "q", "deleted", rank=0, deleted=True),
    message("a", "q", "better", rank=0),
    message("r", "q", "refused", rank=0, review_result=False),
    message("m", "a", "more", "prompter"),
    message("n", "m", "so", rank=None),
    message("o", "m", "or so", rank=None),
    message("p", "n", "thanks", "prompter"),
]


def turns(found: Loaded) -> list[list[tuple[str, str]]]:
    return [[(turn.role, turn.content) for turn in example.messages] for example in found.examples]


BEST = [("user", "ask"), ("assistant", "better"), ("user", "more"), ("assistant", "so")]


@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_of_each_tree_of_messages_the_best_ranked_path_is_learned_and_said(tmp_path: Path, ending: str) -> None:
    others = [message("lone", None, "anybody?", "prompter"), message("lost", "gone", "hello?")]
    found = loaded(tmp_path / f"m{ending}", [*TREE[3:], *TREE[:3], *others])
    assert turns(found) == [BEST]
    assert [row.found for row in found.bad] == ["a reply to a message that is not in the file", "without an answer"]
    assert "the path of the best-ranked replies" in found.reason and "joined to trees by parent_id" in found.reason


def test_replies_within_one_another_are_the_same_tree(tmp_path: Path) -> None:
    nodes: dict[str, Row] = {row["message_id"]: {**row, "replies": []} for row in TREE}
    for row in TREE[1:]:
        nodes[row["parent_id"]]["replies"].append(nodes[row["message_id"]])
    for row in ({"message_tree_id": "t", "prompt": nodes["q"]}, nodes["q"]):
        assert turns(loaded(tmp_path / "trees.jsonl", [row])) == [BEST]


def test_messages_in_a_circle_and_with_one_id_end_and_are_told_of(tmp_path: Path) -> None:
    circle = [message("x", "y", "a"), message("y", "x", "b", "prompter")]
    found = loaded(tmp_path / "m.jsonl", [*TREE, TREE[0], *circle])
    assert turns(found) == [BEST]
    assert [row.field for row in found.bad] == ["message_id"]


def test_the_prompt_of_a_tree_can_be_asked_and_named_columns_are_rows_as_they_are(tmp_path: Path) -> None:
    found = loaded(tmp_path / "m.jsonl", TREE, columns={"text": "text"}, format="text")
    assert len(found.examples) == len(TREE)
    rows = open_prompts(SourceSettings(path=str(tmp_path / "m.jsonl")), wanted=None, instruction=None).rows()
    (prompt,) = [each[1] for each in rows if isinstance(each, tuple)]
    assert [turn.content for turn in prompt.messages] == ["ask", "better", "more"]  # type: ignore[union-attr]
