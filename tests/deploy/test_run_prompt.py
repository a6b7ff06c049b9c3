"""The prompt in serving is that of training, token for token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.examples.example import to_example
from tunesmith.data.examples.message import Message
from tunesmith.deploy import tuned
from tunesmith.deploy.run_prompt import run_prompt
from tunesmith.errors import RecipeError, RunError
from tunesmith.recipe.file import read_recipe
from tunesmith.workflows.finetune import train

ASKED = "Which colour is it?"
WORDS = ["red", "green", "blue", "white"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuned.Tuned:
    """A run whose rows are texts with labels, under one instruction."""
    folder = tmp_path_factory.mktemp("prompt")
    rows = [{"thing": f"{WORDS[n % 4]} hat {n}", "colour": WORDS[n % 4]} for n in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"input": "thing", "output": "colour"}
    values: dict[str, Any] = {
        "model": str(tiny_model_dir),
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.25, "columns": columns, "instruction": ASKED},
        "method": {"name": "lora", "r": 2},
        "training": {"max_steps": 1, "batch_size": 4, "report_to": "none", "threads": 1},
        "evaluation": {"resamples": 100, "samples": 0},
        "output_dir": str(folder / "run"),
    }
    return tuned.load(train(values).run)


def trained_prompt(model: tuned.Tuned, **fields: Any) -> list[int]:
    """The ids before the answer of the training row with these fields."""
    row = to_example({"output": "red", **fields}, shape="alpaca", source="rows.jsonl:1", instruction=ASKED)
    [encoded] = model.template.encode(row)
    return encoded.ids[: int(encoded.supervised.nonzero()[0][0])].tolist()


def test_a_text_gets_the_instruction_as_in_training(model: tuned.Tuned) -> None:
    assert model.prompt_ids("red hat 3") == trained_prompt(model, input="red hat 3")
    assert model.prompt_ids("") == trained_prompt(model, input="")
    assert model.prompt_ids([Message("user", "red hat 3")]) == trained_prompt(model, input="red hat 3")


def test_a_conversation_gets_it_where_a_row_with_a_system_text_has_it(model: tuned.Tuned) -> None:
    asked = [Message("system", "Be brief."), Message("user", "red hat")]
    assert model.prompt_ids(asked) == trained_prompt(model, system="Be brief.", input="red hat")


def test_a_later_message_has_it_and_the_history_does_not(model: tuned.Tuned) -> None:
    turns = [Message("user", "red hat"), Message("assistant", "red"), Message("user", "blue hat")]
    framed = model.run_prompt().around(turns)
    assert [turn.content for turn in framed] == ["red hat", "red", f"{ASKED}\n\nblue hat"]


def test_raw_leaves_it_out_and_another_replaces_it(model: tuned.Tuned) -> None:
    assert model.prompt_ids("red hat", raw=True) == model.template.prompt_ids([Message("user", "red hat")])
    other = model.template.prompt_ids([Message("user", "Say it.\n\nred hat")])
    assert model.prompt_ids("red hat", instruction="Say it.") == other
    with pytest.raises(RecipeError, match="--raw sends no instruction"):
        model.prompt_ids("red hat", raw=True, instruction="Say it.")


def test_an_instruction_that_is_typed_is_not_sent_twice(model: tuned.Tuned) -> None:
    assert model.prompt_ids(f"{ASKED}\n\nred hat") == model.prompt_ids("red hat")
    assert model.prompt_ids(f"{ASKED}!") == trained_prompt(model, input=f"{ASKED}!"), "only begins like it"


def test_base_and_tuned_model_get_the_same_prompt(model: tuned.Tuned) -> None:
    with model.base() as base:
        assert base.prompt_ids("red hat") == model.prompt_ids("red hat")


def test_answers_come_from_that_prompt(model: tuned.Tuned) -> None:
    [plain] = model.generate("red hat", max_new_tokens=4)
    [typed] = model.generate(f"{ASKED}\n\nred hat", raw=True, max_new_tokens=4)
    assert plain.tokens == typed.tokens
    assert "".join(model.stream("red hat", max_new_tokens=4)) == plain.text


def test_sources_with_different_instructions_ask_for_a_choice() -> None:
    sources = [{"path": "a.csv", "instruction": "Sum up."}, {"path": "b.csv"}]
    recipe = read_recipe({"model": "m", "data": {"train": sources}, "output_dir": "runs/x"}).recipe
    with pytest.raises(RunError) as failed:
        run_prompt(recipe, where="runs/x")
    assert failed.value.why == "a.csv: 'Sum up.'; b.csv: none."
    assert "--instruction" in str(failed.value.remedy) and "--raw" in str(failed.value.remedy)
    assert run_prompt(recipe, where="runs/x", raw=True).instruction is None
    assert run_prompt(recipe, where="runs/x", instruction="Sum up.").instruction == "Sum up."


def test_the_system_turn_that_all_rows_share_is_sent(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = [{"system": "Be brief.", "prompt": f"{WORDS[n % 4]} hat {n}", "completion": WORDS[n % 4]} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "model": str(tiny_model_dir),
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.25},
        "method": {"name": "lora", "r": 2},
        "training": {"max_steps": 1, "batch_size": 4, "report_to": "none", "threads": 1},
        "evaluation": {"resamples": 100, "samples": 0},
        "output_dir": str(tmp_path / "run"),
    }
    model = tuned.load(train(values).run)
    [encoded] = model.template.encode(to_example(rows[3], shape="prompt_completion", source="rows.jsonl:4"))
    trained = encoded.ids[: int(encoded.supervised.nonzero()[0][0])].tolist()
    assert model.prompt_ids("white hat 3") == trained
    own = [Message("system", "Be long."), Message("user", "white hat 3")]
    assert model.prompt_ids(own) == model.template.prompt_ids(own)
    assert model.prompt_ids("white hat 3", raw=True) == model.template.prompt_ids(own[1:])
    note = model.run_prompt().note()
    assert note == "prompt: before your text goes the run's system turn 'Be brief.' (--raw leaves it out)"
    assert model.run_prompt().note(system="Be long.") is None


def test_rows_with_different_system_turns_send_none_and_say_so() -> None:
    recipe = read_recipe({"model": "m", "data": {"train": "a.csv"}, "output_dir": "runs/x"}).recipe
    found = run_prompt(recipe, [{"side": "train", "systems": [None, "Be brief."]}], where="runs/x")
    assert found.system is None
    assert "no system turn, because the training rows have different ones" in str(found.note())


def test_a_model_without_a_run_has_no_instruction() -> None:
    assert run_prompt(None, where="m").note() is None
