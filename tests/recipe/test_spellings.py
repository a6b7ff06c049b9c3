"""Every path that a user can give takes ``~``, spaces, unicode, links, relative and absolute."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.cli.app import main
from tunesmith.data.files.reader import open_source
from tunesmith.recipe.data import SourceSettings
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.cache import cache_dir
from tunesmith.runs.folder import Run, find_runs
from tunesmith.workflows.finetune import train

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


def test_flags_that_name_a_file_take_every_spelling(home: Path):
    for name in ("rows é.jsonl", "other.jsonl"):
        rows = [{"prompt": f"{name} {n}", "completion": "red" if n % 2 else "blue"} for n in range(12)]
        (home / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, (name, spelled) in enumerate(SPELLINGS.items()):
        if name == "link":  # of what is not there yet
            continue
        recipe, page, made = (home / f"{number} {kind}" for kind in ("r.yaml", "page.html", "prepared"))
        rows = spelled(home / "rows é.jsonl")
        against = ["--against", spelled(home / "other.jsonl")]
        for command in (
            ["init", rows, "--out", spelled(recipe)],
            ["check", rows, *against, "--html", spelled(page)],
            ["prepare", rows, "--out", spelled(made), "test=0.25"],
        ):
            with pytest.raises(SystemExit) as ended:
                main(command)
            assert ended.value.code == 0, command
        assert recipe.is_file() and page.is_file() and (made / "dataset_dict.json").is_file()


def test_the_model_the_template_and_the_merged_folder_take_every_spelling(home: Path, tiny_model_dir: Path):
    model, template = home / "mödel", home / "chat é.jinja"
    shutil.copytree(tiny_model_dir, model)
    template.write_text("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    rows = [{"prompt": f"say {n}", "completion": "red" if n % 2 else "blue"} for n in range(12)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "data": {"train": "rows.jsonl", "eval": 0},
        "method": {"name": "lora", "r": 2},
        "training": {"max_steps": 1, "batch_size": 4, "learning_rate": 1e-3, "report_to": "none", "threads": 1},
    }
    for number, spelled in enumerate(SPELLINGS.values()):
        values = {**recipe, "model": spelled(model), "output_dir": f"~/run {number}"}
        values["data"] = {**recipe["data"], "chat_template": spelled(template)}
        run = train(values).run
        assert run == home / f"run {number}"
        merged = home / f"merged {number}"
        with pytest.raises(SystemExit) as ended:
            main(["merge", f"~/run {number}", "--out", f"~/merged {number}"])
        assert ended.value.code == 0 and (merged / "model.safetensors").is_file()
