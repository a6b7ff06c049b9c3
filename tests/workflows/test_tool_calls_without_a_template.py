"""Tool calls on a model whose template writes none: init names a template of ours, and the calls are learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from tunesmith.data.chat.packaged import CHATML_TOOLS, PACKAGED
from tunesmith.recipe.file import read_recipe
from tunesmith.workflows.finetune import train
from tunesmith.workflows.first_recipe import starter_recipe

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _turns(city: str) -> list[dict]:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
    return [
        {"role": "user", "content": f"How is the weather in {city}?"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "sun"},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": f"Sun, then rain in {city}."},
    ]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    lines = [json.dumps({"messages": _turns(f"C{n}"), "tools": [TOOL]}) for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "rows.jsonl")


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """The tiny model with a template that knows no tools."""
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(PLAIN)
    return folder


def test_each_turn_is_written_once_and_a_prompt_is_the_beginning_of_the_whole() -> None:
    def rendered(count: int, *, prompt: bool) -> str:
        turns = [{"role": "system", "content": "Be brief."}, *_turns("Rome")][:count]
        [text], _ = chat_template_utils.render_jinja_template(
            [turns], tools=[TOOL], chat_template=PACKAGED[CHATML_TOOLS], add_generation_prompt=prompt
        )
        return text

    whole = rendered(6, prompt=False)
    assert whole.startswith(rendered(2, prompt=True)) and whole.startswith(rendered(5, prompt=True))
    system, user, calls, results, answer, rest = whole.split("<|im_end|>\n")
    assert system.startswith("<|im_start|>system\nBe brief.\n\n") and json.dumps(TOOL) in system
    assert user == "<|im_start|>user\nHow is the weather in Rome?"
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    assert calls == f"<|im_start|>assistant\n{call}\n{call}"
    results_of = [f"\n<tool_response>\n{text}\n</tool_response>" for text in ("sun", "rain")]
    assert results == f"<|im_start|>user{''.join(results_of)}"
    assert (answer, rest) == ("<|im_start|>assistant\nSun, then rain in Rome.", "")


def test_init_names_the_template_and_the_run_keeps_it(rows: str, model: Path, tmp_path: Path) -> None:
    starter = starter_recipe(rows, model=str(model))
    assert starter.recipe.data.chat_template == CHATML_TOOLS
    assert not starter.warnings
    values = ["training.max_steps=1", "evaluation.metrics=[loss]", f"output_dir={tmp_path / 'run'}"]
    done = train(starter.recipe, values)
    saved = AutoTokenizer.from_pretrained(next((done.run / "checkpoints").iterdir()))
    assert saved.chat_template == PACKAGED[CHATML_TOOLS]


def test_a_model_whose_template_writes_calls_keeps_it(rows: str, model: Path) -> None:
    (model / "chat_template.jinja").write_text(PACKAGED[CHATML_TOOLS])
    assert starter_recipe(rows, model=str(model)).recipe.data.chat_template is None


def test_a_model_without_chatml_is_said_to_write_no_calls(rows: str, model: Path) -> None:
    text = (model / "tokenizer.json").read_text().replace("<|im_end|>", "<|end|>")
    (model / "tokenizer.json").write_text(text)
    starter = starter_recipe(rows, model=str(model))
    assert starter.recipe.data.chat_template is None
    assert ["does not write tool calls" in warning for warning in starter.warnings] == [True]


def test_the_name_of_our_template_is_taken_in_a_recipe() -> None:
    recipe = read_recipe(
        {"model": "m", "data": {"train": "rows.jsonl", "chat_template": CHATML_TOOLS}, "output_dir": "run"}
    ).recipe
    assert recipe.data.chat_template == CHATML_TOOLS
