"""The prompt in serving is that of training, token for token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.workflows.test_answer_rows import Heard

from tunesmith.data.checks import personal
from tunesmith.data.examples.example import to_example
from tunesmith.data.examples.message import Message
from tunesmith.deploy import tuned
from tunesmith.deploy.run_prompt import TrainedPrompt, run_prompt
from tunesmith.errors import DataError, RecipeError, RunError
from tunesmith.recipe.file import read_recipe
from tunesmith.workflows.answer_rows import answer_rows
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
    assert model.prompt_ids(ASKED) == trained_prompt(model, input=""), "the turn of a row without an input"
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
    trained = TrainedPrompt.of_run(recipe)
    with pytest.raises(RunError) as failed:
        run_prompt(trained, where="runs/x")
    assert failed.value.why == "a.csv: 'Sum up.'; b.csv: none."
    assert "--instruction" in str(failed.value.remedy) and "--raw" in str(failed.value.remedy)
    assert run_prompt(trained, where="runs/x", raw=True).instruction is None
    assert run_prompt(trained, where="runs/x", instruction="Sum up.").instruction == "Sum up."


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
    trained = TrainedPrompt.of_run(recipe, [{"side": "train", "systems": [None, "Be brief."]}])
    found = run_prompt(trained, where="runs/x")
    assert found.system is None
    assert "no system turn, because the training rows have different ones" in str(found.note())


def test_a_model_without_a_run_has_no_instruction() -> None:
    assert run_prompt(None, where="m").note() is None


def raw_text_run(folder: Path, model: Path) -> tuned.Tuned:
    texts = [f"The {WORDS[n % 4]} hat {n} is on the table." for n in range(16)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    values: dict[str, Any] = {
        "model": str(model),
        "data": {"train": str(folder / "texts.jsonl"), "eval": 0.25},
        "method": {"name": "lora", "r": 2},
        "training": {"max_steps": 1, "batch_size": 4, "report_to": "none", "threads": 1},
        "evaluation": {"resamples": 100, "samples": 0},
        "output_dir": str(folder / "run"),
    }
    return tuned.load(train(values).run)


def test_after_raw_text_no_template_is_around_a_prompt(tmp_path: Path, tiny_model_dir: Path) -> None:
    model = raw_text_run(tmp_path, tiny_model_dir)
    row = to_example({"text": "The red hat 3 is on the table."}, shape="text", source="texts.jsonl:1")
    [encoded] = model.template.encode(row)
    prompt = model.prompt_ids("The red hat 3 is on the table.")
    assert prompt == encoded.ids.tolist()[:-1], "all but the end of the text"
    assert model.template.text_end == encoded.ids[-1] and model.template.text_end in model.stop_ids
    assert "without a chat template" in str(model.run_prompt().note())
    turns = [Message("user", "The red"), Message("assistant", " hat."), Message("user", "It is")]
    assert model.prompt_ids(turns) == model.prompt_ids("The red hat.\nIt is"), "a chat goes on with the text"
    with pytest.raises(RecipeError, match="a system turn cannot be sent"):
        model.prompt_ids([Message("system", "Be brief."), *turns])


def test_many_prompts_are_answered_as_each_alone(model: tuned.Tuned) -> None:
    turns = [{"role": "user", "content": "blue hat"}, {"role": "assistant", "content": "blue"}]
    prompts = ["red hat", [*turns, {"role": "user", "content": "white hat"}], [Message("user", "green hat")]]
    many = model.generate(prompts, max_new_tokens=6, batch_size=2)
    assert many == [model.generate(prompt, max_new_tokens=6) for prompt in prompts]
    assert model.generate([], max_new_tokens=6) == []
    drawn = model.generate(["red hat", "red hat"], max_new_tokens=6, do_sample=True, num_return_sequences=3)
    assert [len(each) for each in drawn] == [3, 3]


def test_one_turn_is_a_conversation_of_one(model: tuned.Tuned) -> None:
    turn = {"role": "user", "content": "red hat"}
    expected = model.generate("red hat", max_new_tokens=4)
    for given in (turn, Message("user", "red hat"), [turn]):
        assert model.generate(given, max_new_tokens=4) == expected
        assert model.prompt_ids(given) == model.prompt_ids("red hat")
    assert "".join(model.stream(turn, max_new_tokens=4)) == expected[0].text
    prompts = ["red hat", [turn]]
    assert model.generate(iter(prompts), max_new_tokens=4) == [expected, expected]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (None, "the prompt: found None, which is no prompt"),
        ([1, 2], "prompt 1: found 1, which is no prompt"),
        (["red", None], "prompt 2: found None, which is no prompt"),
        (b"red", "a value of the type bytes, which is no prompt"),
        ([["red", "blue"]], r"prompt 1: messages\[0\]: found the text 'red', expected a message"),
        ({"content": "x"}, r"prompt 1: messages\[0\]\.role: found"),
    ],
)
def test_what_is_no_prompt_is_named(model: tuned.Tuned, prompt: Any, said: str) -> None:
    with pytest.raises((RecipeError, DataError), match=said):
        model.generate(prompt)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, found 0"),
        ({"batch_size": "2"}, "batch_size must be a whole number of at least 1, found '2'"),
        ({"max_tokens": 2}, r"`max_tokens` is not a generation setting(?s:.*)Did you mean `max_new_tokens`\?"),
        ({"max_new_tokens": "2"}, "`max_new_tokens` must be a whole number, found '2'"),
        ({"do_sample": 1}, "`do_sample` must be true or false, found 1"),
    ],
)
def test_settings_of_a_program_are_checked_as_those_of_a_command(
    model: tuned.Tuned, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        model.generate("red hat", **given)


def test_settings_of_a_program_may_be_none_or_of_numpy(model: tuned.Tuned) -> None:
    import numpy as np

    expected = model.generate("red hat", max_new_tokens=4)
    assert model.generate("red hat", max_new_tokens=np.int64(4), max_length=None, temperature=1) == expected


def test_turns_beside_prompts_and_turns_that_are_none_are_refused(model: tuned.Tuned) -> None:
    with pytest.raises(RecipeError, match="the list holds turns and prompts"):
        model.generate([{"role": "user", "content": "red"}, "blue"])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"prompt 2: messages\[0\]\.role: found the text 'teacher', expected one of"):
        model.generate(["red", [{"role": "teacher", "content": "blue"}]])


def test_personal_data_is_masked_as_in_training_and_raw_sends_it(tmp_path: Path, tiny_model_dir: Path) -> None:
    mail = "write to ann.lee@example.org"
    rows = [{"prompt": f"hat {n}: {mail}", "completion": WORDS[n % 4]} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "model": str(tiny_model_dir),
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.25, "clean": {"mask_pii": ["email"]}},
        "method": {"name": "lora", "r": 2},
        "training": {"max_steps": 1, "batch_size": 4, "report_to": "none", "threads": 1},
        "evaluation": {"resamples": 100, "samples": 0},
        "output_dir": str(tmp_path / "run"),
    }
    model = tuned.load(train(values).run)
    [encoded] = model.template.encode(to_example(rows[3], shape="prompt_completion", source="rows.jsonl:4"))
    unmasked = encoded.ids[: int(encoded.supervised.nonzero()[0][0])].tolist()
    masked = model.template.prompt_ids([Message("user", "hat 3: write to [email]")])
    assert model.prompt_ids(f"hat 3: {mail}") == masked
    assert model.prompt_ids(f"hat 3: {mail}", raw=True) == unmasked != masked
    tool = {"type": "function", "function": {"name": "send", "description": mail}}
    [hidden] = model.run_prompt().masked((), [tool])[1]
    assert hidden["function"] == {"name": "send", "description": "write to [email]"}
    told = "prompt: personal data is replaced by [email], as in training (--raw sends it as it is)"
    assert model.run_prompt().note() == told and model.run_prompt(raw=True).note() is None
    (tmp_path / "in.csv").write_text(f"prompt\n{mail}\n")
    heard = Heard()
    for raw, text in ((False, "write to [email]"), (True, mail)):
        answer_rows(
            tmp_path / "run",
            str(tmp_path / "in.csv"),
            tmp_path / f"{raw}.jsonl",
            raw=raw,
            settings={"max_new_tokens": 4},
            listener=heard,
        )
        [alone] = model.generate(text, raw=True, max_new_tokens=4)
        assert json.loads((tmp_path / f"{raw}.jsonl").read_text()) == {"prompt": mail, "answer": alone.text}
    assert heard.lines.count(told) == 1


def test_a_merged_model_records_the_kinds_that_were_masked() -> None:
    clean = {"mask_pii": ["email", "iban"]}
    recipe = read_recipe({"model": "m", "data": {"train": "a.csv", "clean": clean}, "output_dir": "runs/x"}).recipe
    trained = TrainedPrompt.of_run(recipe)
    stored = json.loads(json.dumps(trained.to_json()))
    assert TrainedPrompt.from_json(stored).mask == ("email", "iban")
    stored.pop("mask")
    assert TrainedPrompt.from_json(stored).mask == (), "of a version before"
    with pytest.raises(ValueError, match="no kinds of personal data"):
        TrainedPrompt.from_json({**stored, "mask": ["x"]})


def test_a_kind_that_cannot_be_found_here_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(personal, "finds_phones", lambda: False)
    trained = TrainedPrompt(mask=("phone",))
    with pytest.raises(DataError, match="phonenumbers is not installed") as failed:
        run_prompt(trained, where="runs/x")
    assert "--raw" in str(failed.value.remedy)
    assert run_prompt(trained, where="runs/x", raw=True).mask == ()


def test_a_run_whose_rows_have_tools_says_how_a_prompt_gets_them(tmp_path: Path, tiny_model_dir: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    template = (
        "{% if tools %}{{ tools | tojson }}\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (model / "chat_template.jinja").write_text(template)
    rows = [{"prompt": f"hat {n}", "completion": WORDS[n % 4], "tools": [tool]} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "model": str(model),
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.25},
        "method": {"name": "lora", "r": 2},
        "training": {"max_steps": 1, "batch_size": 4, "report_to": "none", "threads": 1},
        "evaluation": {"resamples": 100, "samples": 0},
        "output_dir": str(tmp_path / "run"),
    }
    run = train(values).run
    note = tuned.load(run).run_prompt().note_on_tools()
    assert note is not None and note.startswith("tools: the run's rows have tools (weather), and this prompt has none.")
    for name, asked, told in (("with", {"tools": [tool]}, 0), ("without", {}, 1)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "hat 3", **asked}) + "\n")
        heard = Heard()
        answer_rows(
            run, str(tmp_path / f"{name}.jsonl"), tmp_path / f"{name}.out.jsonl", settings={"max_new_tokens": 4},
            listener=heard,
        )  # fmt: skip
        assert sum("these rows have none" in line for line in heard.lines) == told
