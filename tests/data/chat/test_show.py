from __future__ import annotations

import io

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from tunesmith.data.chat.show import coloured_text, heading, plain_text, show, spans
from tunesmith.data.chat.template import ChatTemplate
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.message import Message
from tunesmith.recipe.data import DataSettings


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def encode(tokenizer):
    recipe = DataSettings(train=["x"])  # type: ignore[arg-type]
    template = ChatTemplate(tokenizer, stop_ids=[tokenizer.eos_token_id], settings=recipe, date="2024-05-06")
    return lambda user, answer: template.encode(
        Example((Message("user", user), Message("assistant", answer)), "rows.jsonl:4")
    )[0]


def printed(rows, tokenizer, **options) -> str:
    file = io.StringIO()
    show(rows, tokenizer, console=Console(file=file, width=40, **options))
    return file.getvalue()


def test_runs_of_learned_tokens_are_told_apart(encode, tokenizer):
    assert spans(encode("Hi?", "Yes."), tokenizer) == [
        ("<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Yes.<|im_end|>", True),
        ("\n", False),
    ]


def test_without_colour_learned_tokens_stand_between_marks(encode, tokenizer):
    row = encode("Hi?", "Yes.")
    text = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n[[Yes.<|im_end|>]]\n"
    assert plain_text(row, tokenizer) == text
    output = printed([row], tokenizer, color_system=None)
    assert output.startswith(f"{heading(row)}\n{text}")
    assert "between [[ and ]]" in output
    assert "\x1b" not in output


def test_no_color_is_honoured_on_a_terminal(encode, tokenizer, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    output = printed([encode("Hi?", "Yes.")], tokenizer, force_terminal=True)
    assert "[[Yes.<|im_end|>]]" in output


def test_in_colour_learned_tokens_are_green_and_without_marks(encode, tokenizer):
    row = encode("Hi?", "Yes.")
    text = coloured_text(row, tokenizer)
    assert [(text.plain[span.start : span.end], span.style) for span in text.spans if "green" in str(span.style)] == [
        ("Yes.<|im_end|>", "bold green")
    ]
    output = printed([row], tokenizer, force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[1;32mYes.<|im_end|>\x1b[0m" in output
    assert "[[" not in output


def test_rich_markup_and_terminal_escapes_in_the_data_are_shown_not_obeyed(encode, tokenizer):
    row = encode("[bold]x[/bold] [/nothing]", "a\x1b[2Jb\rc\x07")
    for options in ({"color_system": None}, {"force_terminal": True, "color_system": "standard", "no_color": False}):
        output = printed([row], tokenizer, **options)
        assert "[bold]x[/bold] [/nothing]" in output
        assert r"a\x1b[2Jb\x0dc\x07" in output
        assert "\x1b[2J" not in output


def test_the_heading_names_the_row_and_its_counts(encode):
    row = encode("Hi?", "Yes.")
    assert heading(row) == f"rows.jsonl:4: {len(row.ids)} tokens, {int(row.supervised.sum())} learned"
