"""What a model folder is, by its files: what says the same is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.model.weights.base_files import base_changes, base_files
from tunesmith.recipe.file import read_recipe
from tunesmith.runs.drift import Fingerprint


def found(folder: Path) -> dict[str, dict[str, Any]]:
    return base_files(folder, say=lambda text: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64, "rope_scaling": {"factor": 2.0, "none": {}}}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "x", "chat_template": "{{ 1 }}"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_values_are_named_by_file_and_key(folder: Path) -> None:
    facts = found(folder)
    assert facts["config"] == {
        "config.json: hidden_size": 64,
        "config.json: rope_scaling.factor": 2.0,
        "config.json: rope_scaling.none": {},
    }
    assert list(facts["weights"]) == ["model.safetensors"]
    assert list(facts["tokenizer"]) == ["tokenizer.json", "tokenizer_config.json: eos_token"]
    assert list(facts["template"]) == ["default"]


def test_a_template_is_the_same_wherever_it_stands(folder: Path) -> None:
    before = found(folder)["template"]
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "x"}))
    assert found(folder)["template"] == {}
    for name, text in {
        "chat_template.json": json.dumps({"chat_template": "{{ 1 }}"}),
        "chat_template.jinja": "{{ 1 }}",
    }.items():
        (folder / name).write_text(text)
        assert found(folder)["template"] == before
        (folder / name).unlink()
    several = [{"name": "default", "template": "{{ 1 }}"}, {"name": "tool_use", "template": "{{ 2 }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    both = found(folder)["template"]
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 2 }}")
    assert found(folder)["template"] == both and both["default"] == before["default"]


def test_only_the_weights_that_are_read_count(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    assert list(found(folder)["weights"]) == ["model.safetensors"]
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "../x"}})
    )
    assert list(found(folder)["weights"]) == ["model-1.safetensors"]
    (folder / "model.safetensors.index.json").write_text("damaged")
    assert list(found(folder)["weights"]) == ["adapter_model.safetensors", "model-1.safetensors"]


def test_code_of_the_folder_counts_where_the_config_uses_it(folder: Path) -> None:
    (folder / "modeling_x.py").write_text("x = 1")
    assert "modeling_x.py" not in found(folder)["config"]
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling_x.X"}}))
    assert "modeling_x.py" in found(folder)["config"]


def test_a_file_that_is_no_json_counts_by_its_bytes(folder: Path) -> None:
    for text in ("{", "[1]", "\x00", "[" * 100_000):
        (folder / "config.json").write_text(text)
        assert list(found(folder)["config"]) == ["config.json"]


def test_code_in_folders_of_a_model_is_compared_where_the_model_uses_its_code(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "part.py").write_text("A = 1")
    (folder / ".git").mkdir()
    (folder / ".git" / "hook.py").write_text("A = 1")
    assert not any(key.endswith(".py") for key in found(folder)["config"])
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "model.Model"}}))
    (folder / "model.py").write_text("from .deep.er.part import A")
    before = found(folder)
    assert [key for key in before["config"] if key.endswith(".py")] == ["model.py", "deep/er/part.py"]
    (folder / "deep" / "er" / "part.py").write_text("A = 2")
    (folder / "deep" / "new.py").write_text("A = 3")
    recipe = read_recipe({"model": "m", "data": {"train": "r.jsonl"}, "output_dir": "o"}).recipe

    def changed(base: dict[str, dict[str, Any]]) -> list[str]:
        return [each.key for each in base_changes(Fingerprint(base, {}, {}, {}), found(folder), recipe)]

    assert changed(before) == ["Python files in folders", "deep/er/part.py", "deep/new.py"]
    earlier = {key: value for key, value in before["config"].items() if "/" not in key and " in " not in key}
    assert changed({**before, "config": earlier}) == []  # an earlier version did not look there
    (folder / "model.py").write_text("from .deep.new import A")
    assert changed({**before, "config": earlier}) == ["model.py"]
