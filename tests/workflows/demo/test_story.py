"""The demo trains and reports a verdict, and a finished one is reported again from its stored result."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import RunError
from tunesmith.recipe.file import dump, read_recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Advance, Silent
from tunesmith.workflows.demo import story


class Listener:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tasks: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        pass

    def task(self, title: str, total: int | None) -> AbstractContextManager[Advance]:
        self.tasks.append(title)
        return Silent().task(title, total)


@pytest.fixture
def small(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = story.recipe_values
    few = tmp_path / "few"
    few.mkdir()
    for name, count in (("train.jsonl", 12), ("test.jsonl", 6)):
        lines = story.ROWS.joinpath(name).read_bytes().splitlines(keepends=True)
        (few / name).write_bytes(b"".join(lines[:count]))

    def with_tiny_model(data: Path, folder: Path) -> dict[str, Any]:
        made = values(data, folder)
        made["model"] = str(tiny_model_dir)
        made["data"]["max_length"] = 2048
        made["training"]["threads"] = 1
        made["evaluation"]["max_new_tokens"] = 4
        return made

    monkeypatch.setattr(story, "recipe_values", with_tiny_model)
    monkeypatch.setattr(story, "ROWS", few)


def test_it_trains_shows_five_rows_and_gives_a_verdict(small: None, tmp_path: Path) -> None:
    listener = Listener()
    result = story.run(tmp_path / "demo", overwrite=False, listener=listener)
    assert set(result) == {"run", "verdict", "metrics", "seconds", "tokens"}
    assert next(iter(result["metrics"])) == "json_exact"
    text = "\n".join(listener.lines)
    for name in ("input", "base", "tuned", "truth"):
        assert text.count(f"\n    {name:<6} ") == 5, name
    assert any("supervised" in line for line in listener.lines)
    assert "json_exact" in listener.lines[-1] and "interval" in listener.lines[-1]
    assert (tmp_path / "demo-data" / "recipe.yaml").is_file()
    again = Listener()
    assert story.run(tmp_path / "demo", overwrite=False, listener=again) == result
    assert again.tasks == []
    assert "already finished" in again.lines[0]
    assert again.lines[-1] == listener.lines[-1]


def test_an_interrupted_demo_goes_on(small: None, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    story.run(folder, overwrite=False, listener=Listener())
    Run(folder).set_status("stopped")
    listener = Listener()
    story.run(folder, overwrite=False, listener=listener)
    assert "training" in listener.tasks
    assert Run(folder).status()["status"] == "finished"


def test_files_of_the_user_stay_and_a_recipe_with_notes_is_left_as_it_is(tmp_path: Path) -> None:
    data, folder = tmp_path / "demo-data", tmp_path / "demo"
    recipe = read_recipe(story.recipe_values(data, folder)).recipe
    data.mkdir()
    assert not story._check_ours(data, recipe)
    for name in ("train.jsonl", "test.jsonl"):
        story._copy_rows(name, data)
    (data / "recipe.yaml").write_text("# my notes\n" + dump(recipe))
    assert story._check_ours(data, recipe), "it says the same, so it stays"
    for name, content in (("recipe.yaml", "model: other\n"), ("recipe.yaml", "a: [\n"), ("train.jsonl", "mine\n")):
        (data / name).write_text(content)
        with pytest.raises(RunError, match="not known to be written by Tunesmith"):
            story._check_ours(data, recipe)
        assert (data / name).read_text() == content
        (data / name).unlink()
    (data / "recipe.yaml").symlink_to(tmp_path / "missing")
    with pytest.raises(RunError, match="link to a file that is not there"):
        story._check_ours(data, recipe)


def test_a_recipe_with_notes_is_as_it_was_after_the_demo(small: None, tmp_path: Path) -> None:
    data, folder = tmp_path / "demo-data", tmp_path / "demo"
    text = "# my notes\n" + dump(read_recipe(story.recipe_values(data, folder)).recipe)
    data.mkdir()
    (data / "recipe.yaml").write_text(text)
    story.run(folder, overwrite=False, listener=Listener())
    assert (data / "recipe.yaml").read_text() == text
