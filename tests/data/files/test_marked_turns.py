"""Text files of questions and answers behind marks: sure ones open as rows, others are asked about, none in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.cli.options import in_flags
from tunesmith.data.files.marked_turns import find_marks
from tunesmith.data.files.reader import open_source
from tunesmith.data.files.rows import BadRow
from tunesmith.data.files.text_that_is_rows import with_marked_turns
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

SURE = {
    "Q: Where is {n}?\nA: In {n}.\nBehind it.\n": "utf-16",
    "P{n}: ¿Dónde está {n}?\n\nR{n}: In {n}.\nBehind it.\n\n": "utf-8",
    "Frage: Wo ist {n}?\r\nAntwort: In {n}.\r\nBehind it.\r\n\r\n": "cp1252",
    "**User:** Where is {n}?\n**Assistant:** In {n}.\nBehind it.\n---\n": "utf-8",
    "问：{n} 在哪里\n答：In {n}.\nBehind it.\n": "utf-8",
}


def source(path: Path, **settings: object) -> SourceSettings:
    return SourceSettings.model_validate({"path": str(path), **settings})


@pytest.mark.parametrize(("lines", "encoding"), SURE.items())
def test_questions_and_answers_open_as_rows(tmp_path: Path, lines: str, encoding: str) -> None:
    path = tmp_path / "faq.txt"
    path.write_text("".join(lines.format(n=n) for n in range(20)), encoding=encoding, newline="")
    found = with_marked_turns(source(path))
    assert found.format == "prompt_completion"
    reader = open_source(found)
    rows = [row.messages for row in reader.examples() if not isinstance(row, BadRow)]
    assert len(rows) == 20
    assert [turn.content for turn in rows[7]][1] == "In 7.\nBehind it."
    assert "7" in rows[7][0].content
    assert "-> 'In 0. Behind it.'" in reader.reason
    assert "(data.format: prompt_completion reads questions and answers)" in open_source(source(path)).reason
    assert with_marked_turns(source(path, format="text")).format == "text"


def test_with_an_instruction_the_questions_are_inputs(tmp_path: Path) -> None:
    path = tmp_path / "faq.txt"
    path.write_text("Q: Where?\nA: Here.\n" * 5)
    reader = open_source(with_marked_turns(source(path, instruction="Answer.")))
    assert [reader.shape, len(list(reader.examples()))] == ["alpaca", 5]


def test_a_chat_of_several_turns_is_asked_about_and_each_command_leads_out(tmp_path: Path) -> None:
    path = tmp_path / "chat.txt"
    path.write_text("".join(f"User: Hi {n}\nAssistant: Yes?\nUser: Why?\nAssistant: So.\n\n" for n in range(5)))
    with pytest.raises(DataError, match="User: and Assistant: in turn") as caught:
        with_marked_turns(source(path))
    remedy = str(in_flags(caught.value, "tunesmith init chat.txt").remedy)
    for shape, rows in (("prompt_completion", 10), ("messages", 5), ("text", 20)):
        assert f"run `tunesmith init chat.txt --format {shape}`" in remedy
        made = list(open_source(with_marked_turns(source(path, format=shape))).examples())
        assert [len(made), [row for row in made if isinstance(row, BadRow)]] == [rows, []]


def test_questions_that_stand_alone_are_bad_rows_and_many_are_asked_about(tmp_path: Path) -> None:
    path = tmp_path / "faq.txt"
    path.write_text("Q: Where?\nA: Here.\n" * 20 + "Q: Why?\nQ: When?\nA: Now.\n")
    bad = [row for row in open_source(with_marked_turns(source(path))).examples() if isinstance(row, BadRow)]
    assert [str(row) for row in bad] == [
        f"{path}:41: row: found a question alone, expected an answer behind it",
    ]
    path.write_text("Q: Where?\nA: Here.\n" * 5 + "Q: Why?\n" * 5)
    with pytest.raises(DataError, match="is not sure"):
        with_marked_turns(source(path))


@pytest.mark.parametrize(
    "text",
    [
        "He said: no.\nShe said: yes.\n" * 5,
        "A: one\nB: two\n" * 5,
        "Once.\nQ: one\nA: two\n" * 5,
        "Q: one\nA: two\n",
        "Note: one\nWarning: two\n" * 5,
    ],
)
def test_other_texts_have_no_marks(text: str) -> None:
    assert find_marks(text) is None
