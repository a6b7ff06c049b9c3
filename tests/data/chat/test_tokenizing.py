"""Texts that a tokenizer gives up on: one message that names the row, wherever texts are encoded."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from tests.data.made_rows import STOP, example, in_blocks

from tunesmith.data import token_cache
from tunesmith.data.chat import tokenizing as module
from tunesmith.data.chat.template import ChatTemplate
from tunesmith.data.chat.tokenizing import UnencodableError, is_panic, tokenizing
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.message import Message
from tunesmith.errors import DataError
from tunesmith.model.weights.load import load_tokenizer
from tunesmith.recipe.data import DataSettings

DIGITS = "1" * 200
PATTERNS = (r"(?:\w|\d)+\s", r"(\w+)+\s", r"(?:\p{N}|\p{Nd})+\s")


def slow_tokenizer(tiny: Path, to: Path, pattern: str = PATTERNS[0]) -> Path:
    """A model's folder whose tokenizer takes more steps on digits than are allowed."""
    shutil.copytree(tiny, to)
    whole = json.loads((to / "tokenizer.json").read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    whole["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, whole["pre_tokenizer"]]}
    (to / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    return to


@pytest.fixture(params=PATTERNS)
def template(request: pytest.FixtureRequest, tiny_model_dir: Path, tmp_path: Path) -> ChatTemplate:
    return made(slow_tokenizer(tiny_model_dir, tmp_path / "model", request.param))


def made(folder: Path) -> ChatTemplate:
    settings = DataSettings.model_validate({"train": "rows.jsonl"})
    return ChatTemplate(load_tokenizer(folder), stop_ids=STOP, settings=settings, date="2026-01-31")


def test_the_message_of_a_text_that_the_tokenizer_gives_up_on_names_its_place(template: ChatTemplate) -> None:
    turns = (Message("user", DIGITS), Message("assistant", "yes"))
    rejected = Message("assistant", DIGITS)
    acts = {
        "rows.jsonl:7": lambda: template.encode(Example(messages=turns, source="rows.jsonl:7")),
        "rows.jsonl:8": lambda: template.encode(Example(messages=(), text=DIGITS, source="rows.jsonl:8")),
        "rows.jsonl:9": lambda: template.encode(
            Example(messages=(Message("user", "a"), turns[1]), rejected=rejected, source="rows.jsonl:9")
        ),
        "prompts.jsonl:2": lambda: template.prompt_ids(turns[:1], source="prompts.jsonl:2"),
        "the prompt": lambda: template.text_ids(DIGITS),
    }
    for where, act in acts.items():
        began = time.process_time()
        with pytest.raises(DataError, match="the tokenizer gives up on this text") as caught:
            act()
        assert caught.value.where == where
        assert "leave out this text" in str(caught.value.remedy)
        assert time.process_time() - began < 5
    assert len(template.encode(example(0))) == 1  # and other texts are encoded as before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_row_that_the_tokenizer_gives_up_on_is_named_by_the_process_that_encodes_it(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(token_cache, "POOL_FROM", 30)
    folder = slow_tokenizer(tiny_model_dir, tmp_path / "model")
    turns = (Message("user", DIGITS), Message("assistant", "yes"))
    rows = [example(number) for number in range(60)]
    rows[47] = Example(messages=turns, source="rows.jsonl:48")
    given: dict[str, Any] = {"folder": folder, "key": "k", "cache": tmp_path / "cache", "workers": workers}
    with pytest.raises(DataError, match="gives up on this text") as caught:
        token_cache.encode_rows(in_blocks(rows, 10), template=made(folder), **given)
    assert caught.value.where == "rows.jsonl:48"


def test_a_text_that_takes_far_too_long_is_a_message_and_other_errors_stay_what_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.05)
    with pytest.raises(UnencodableError, match="takes too long"), tokenizing(10, where="x:1"):
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass
    with tokenizing(10):
        time.sleep(0.1)
    with pytest.raises(KeyboardInterrupt), tokenizing(10):
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), tokenizing(10):
        raise ZeroDivisionError
    assert not is_panic(KeyboardInterrupt())
