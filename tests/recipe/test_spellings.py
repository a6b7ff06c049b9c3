"""Every path that a user can give takes ``~``, spaces, unicode, links, relative and absolute."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.data.files.reader import open_source
from tunesmith.recipe.data import SourceSettings
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.cache import cache_dir
from tunesmith.runs.folder import Run, find_runs

SPELLINGS: dict[str, Callable[[Path], str]] = {
    "absolute": str,
    "home": lambda path: f"~/{path.name}",
    "relative": lambda path: os.path.relpath(path),
    "dotted": lambda path: f"./sub/../{path.name}",
    "link": lambda path: _link(path),
}


def _link(path: Path) -> str:
    link = path.with_name(f"link to {path.name}")
    link.symlink_to(path)
    return str(link)


@pytest.fixture(params=["plain", "with space", "ünïcode 文"])
def home(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / request.param
    (folder / "sub").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_data_recipes_runs_and_the_cache_are_found(home: Path, spelling: str, monkeypatch: pytest.MonkeyPatch):
    spelled = SPELLINGS[spelling]
    rows, recipe, run = home / "my rows.jsonl", home / "r é.yaml", home / "run 1"
    rows.write_text(json.dumps({"text": "a"}))
    recipe.write_text(json.dumps({"model": "m", "data": {"train": str(rows)}, "output_dir": "x"}))
    run.mkdir()
    Run(run).write_json("status.json", {"status": "finished"})
    assert len(list(open_source(SourceSettings(path=spelled(rows))).examples())) == 1
    assert read_recipe(spelled(recipe)).recipe.output_dir == "x"
    opened = spelled(run)
    assert Run.open(opened).exists() and len(find_runs(opened)) == 1
    monkeypatch.setenv("TUNESMITH_CACHE", opened)
    assert cache_dir().samefile(run)


def test_the_keys_that_name_a_path_are_those_that_know_the_home_folder(home: Path):
    recipe = Recipe.model_validate(
        {
            "model": {"path": "~/m"},
            "data": {"train": [{"path": Path("~/t")}], "eval": ["~/e"], "test": "~/s"},
            "method": {"name": "lora", "adapter_name_or_path": "~/a"},
            "output_dir": "~/o",
        }
    )
    found = [recipe.model.path, recipe.output_dir, recipe.method.adapter_name_or_path]  # type: ignore[union-attr]
    found += [source.path for split in ("train", "eval", "test") for source in recipe.data.sources(split)]  # type: ignore[arg-type]
    assert found == [f"{home}/{name}" for name in "moates"]
