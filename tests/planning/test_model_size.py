"""How large a model is, told without fetching anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from tunesmith.planning.model_size import model_size

LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip


def test_a_folder_is_counted_by_its_config(tiny_model_dir: Path) -> None:
    found = model_size(str(tiny_model_dir))
    assert (found.parameters, found.basis, found.folder) == (99_648, "config.json", tiny_model_dir)
    assert found.config is not None and found.config["model_type"] == "llama"


def test_a_hub_id_is_counted_where_its_config_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--maker--llama"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c" * 40)
    (repository / "snapshots" / ("c" * 40)).mkdir(parents=True)
    (repository / "snapshots" / ("c" * 40) / "config.json").write_text(json.dumps(LLAMA_8B))
    assert model_size("maker/llama").parameters == 8_030_261_248
    shutil.rmtree(repository)
    assert model_size("maker/llama").parameters is None


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def download(*arguments: Any, **named: Any) -> str:
        asked.append(named["local_files_only"])
        raise OSError("not here")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    assert model_size("maker/model-8B").parameters == 8 * 10**9
    assert asked == [True]
    assert model_size("smollm2-135m-instruct").parameters == 135 * 10**6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("maker/Llama-3.1-8B-Instruct", 8e9),
        ("maker/opt-1.3b", 1.3e9),
        ("maker/Mixtral-8x7B-v0.1", 56e9),
        ("maker/Qwen3-30B-A3B", 30e9),
        ("maker/gemma-2-2b-it@main", 2e9),
        ("models/7B/", 7e9),
        ("maker/llama-4bit", None),
        ("maker/phi-3-mini-4k-instruct", None),
        ("maker/model-A3B", None),
        ("12", None),
    ],
)
def test_the_name_tells_it_where_there_is_no_config(name: str, parameters: float | None) -> None:
    found = model_size(name)
    assert found.parameters == parameters
    assert found.config is None
    assert found.basis == ("its name" if parameters else "neither a config nor the name tells it")


def test_a_config_that_is_not_understood_leaves_the_name(tmp_path: Path) -> None:
    folder = tmp_path / "model-3B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "of tomorrow"}))
    assert (model_size(str(folder)).parameters, model_size(str(folder)).config) == (3 * 10**9, None)
