"""The text side of a model: one way to it, and no token that the model has no row for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunesmith.deploy import tuned
from tunesmith.errors import ModelError
from tunesmith.model.weights.load import load_tokenizer
from tunesmith.model.weights.text_side import text_side
from tunesmith.recipe.data import DataSettings
from tunesmith.recipe.settings import ModelSettings
from tunesmith.workflows.finetune import train


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to spoil."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def with_tokens(folder: Path, *, special: bool) -> str:
    """Gives the tokenizer tokens up to one that is beyond the embedding, which is named."""
    tokenizer: Any = load_tokenizer(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    texts = [f"<new {number}>" for number in range(len(tokenizer), rows + 1)]
    tokenizer.add_tokens(texts, special_tokens=special)
    tokenizer.save_pretrained(folder)
    return texts[-1]


def recipe(folder: Path, model: Any) -> dict[str, Any]:
    rows = [{"prompt": f"Name thing {number}.", "completion": f"thing {number}"} for number in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"max_steps": 1, "batch_size": 4, "report_to": "none", "threads": 1}
    section = {"train": str(folder / "rows.jsonl"), "eval": 0.2}
    own = {"model": model, "data": section, "method": "lora", "training": training}
    return {**own, "evaluation": {"resamples": 100, "samples": 0}, "output_dir": str(folder / "run")}


def test_what_a_recipe_does_not_say_itself_is_said_once(folder: Path) -> None:
    said: list[str] = []
    data = DataSettings.model_validate({"train": "rows.jsonl", "max_length": 100_000, "date": "2025-01-31"})
    text = text_side(ModelSettings(path=str(folder), add_tokens=["<new>"]), data, say=said.append)
    positions = text.config.max_position_embeddings
    assert text.data.max_length == positions and text.template.rules.date == "2025-01-31"
    assert text.added.texts == ("<new>",) and text.stop_ids == (2,)
    assert [line for line in said if "max_length" in line] == [
        f"data.max_length: 100000 -> {positions}, the positions that this model has"
    ]
    assert len(said) == 2 and "<new>" in said[0]


def test_the_positions_of_families_that_call_them_otherwise_count_too(folder: Path) -> None:
    config = {"model_type": "gpt2", "n_positions": 32, "vocab_size": 400, "architectures": ["GPT2LMHeadModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    data = DataSettings.model_validate({"train": "rows.jsonl"})
    assert text_side(ModelSettings(path=str(folder)), data, say=lambda _: None).data.max_length == 32


def test_training_refuses_a_tokenizer_with_tokens_that_the_model_does_not_know(folder: Path, tmp_path: Path) -> None:
    with_tokens(folder, special=False)
    with pytest.raises(ModelError, match="highest token id is 400, the embedding has 400 rows"):
        train(recipe(tmp_path, str(folder)))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ModelError, match="highest token id is 400, the embedding has 400 rows"):
        tuned.load(folder, device="cpu")


def test_a_special_token_beyond_the_rows_is_refused_only_if_something_uses_it(folder: Path) -> None:
    token = with_tokens(folder, special=True)
    assert tuned.load(folder, device="cpu").generate("Hello", max_new_tokens=1)
    tokenizer: Any = load_tokenizer(folder)
    tokenizer.chat_template = token + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=f"Without a row: {token}"):
        tuned.load(folder, device="cpu")


def test_tokens_of_the_recipe_get_rows_of_their_own(folder: Path, tmp_path: Path) -> None:
    tokens = [f"<new {number}>" for number in range(30)]
    values = recipe(tmp_path, {"path": str(folder), "add_tokens": tokens})
    assert train(values).run.is_dir()
    assert tuned.load(tmp_path / "run", device="cpu").generate("Hello", max_new_tokens=1)
