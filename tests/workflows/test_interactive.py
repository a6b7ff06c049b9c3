"""The commands as Python functions: rows for data, results that a notebook shows, and programs of every form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tunesmith.errors import DataError, RecipeError, RunError
from tunesmith.runs.cache import cache_dir
from tunesmith.runs.outputs import RECIPE_MARK

ROWS = [{"prompt": f"item {n}?", "completion": "red" if n % 2 else "blue"} for n in range(40)]
FAST = {"max_steps": 2, "batch_size": 4, "save_steps": 1, "report_to": "none", "threads": 1}
PROGRAM = """
import asyncio
import tunesmith

rows = [{{"prompt": f"item {{n}}?", "completion": "red" if n % 2 else "blue"}} for n in range(600)]
recipe = {{
    "model": {model!r}, "data": {{"train": rows}}, "output_dir": "run", "evaluation": {{"resamples": 100}},
    "training": {{"max_steps": 1, "batch_size": 4, "report_to": "none"}},
}}

async def main():
    print(tunesmith.check(rows).judgement)
    print(tunesmith.train(recipe).verdict["verdict"])
    print(tunesmith.load("run").generate("item 3?", max_new_tokens=2) is not None)

asyncio.run(main())
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(model: Path, rows: Any = ROWS) -> dict[str, Any]:
    return {
        "model": str(model),
        "data": {"train": rows},
        "training": FAST,
        "evaluation": {"samples": 0, "resamples": 100},
        "output_dir": "run",
    }


def test_the_public_names_are_listed_and_are_all_there() -> None:
    assert dir(tunesmith) == sorted(tunesmith.__all__)
    assert {"init", "check", "prepare", "plan", "train", "evaluate", "load", "list_runs"} <= set(dir(tunesmith))
    assert all(getattr(tunesmith, name).__doc__ for name in dir(tunesmith) if name != "__version__")


def test_rows_are_stored_beside_the_run_and_the_run_resumes_with_them_or_without(
    here: Path, tiny_model_dir: Path
) -> None:
    recipe = values(tiny_model_dir)
    result = tunesmith.train(recipe)
    (file,) = (here / "run.rows").iterdir()
    assert f"run.rows/{file.name}" in (result.run / "recipe.yaml").read_text()
    assert ("data", f"run.rows/{file.name}") in tunesmith.show_run("run").facts
    assert tunesmith.train(recipe, resume=True).already_finished
    assert tunesmith.train("run", resume=True).already_finished
    with pytest.raises(RunError, match="started with another recipe"):
        tunesmith.train(values(tiny_model_dir, ROWS[:-4]), resume=True)
    before = {*cache_dir().rglob("*.jsonl")}
    judged = tunesmith.evaluate("run", data=ROWS[:6])
    assert (judged["rows"], judged["data"]) == (6, "rows given in Python")
    assert tunesmith.show_run("run").evaluations[-1]["data"] == "rows given in Python"
    with pytest.raises(DataError, match="shape of the rows is not known") as failed:
        tunesmith.evaluate("run", data=[{"other": 1}])
    assert str(cache_dir()) not in str(failed.value)
    assert {*cache_dir().rglob("*.jsonl")} == before, "the rows are the user's, and nothing keeps them"
    (listed,) = tunesmith.list_runs(".")
    for shown in (result, tunesmith.show_run("run"), tunesmith.list_runs(".")):
        assert "<table>" in shown._repr_html_()
        assert listed.verdict is not None and listed.verdict in shown._repr_html_().lower()


def test_rows_may_stand_for_every_split_and_beside_settings_of_a_source(here: Path, tiny_model_dir: Path) -> None:
    import pandas

    recipe = values(tiny_model_dir)
    questions = pandas.DataFrame({"q": ["item 1?", "item 2?"], "a": ["red", "blue"]})
    recipe["data"] = {
        "train": [{"path": questions, "columns": {"prompt": "q", "completion": "a"}}, {"path": ROWS}],
        "eval": ROWS[:4],
    }
    found = tunesmith.check(recipe)
    assert [(source["side"], source["rows"]) for source in found.sources] == [("train", 2), ("train", 40), ("eval", 4)]
    assert found.lengths["unit"] == "tokens"
    assert "leakage" in found._repr_html_()


def test_init_writes_a_recipe_and_keeps_the_rows_beside_it(here: Path, tiny_model_dir: Path) -> None:
    starter = tunesmith.init(ROWS, "tickets.yaml", model=str(tiny_model_dir))
    (file,) = (here / "tickets.rows").iterdir()
    assert starter.recipe.data.train[0].path == f"tickets.rows/{file.name}"
    assert starter.recipe.output_dir == starter.output_dir == "runs/tickets"
    assert (here / "tickets.yaml").read_text() == RECIPE_MARK + starter.text
    assert starter._repr_html_().startswith("<pre># tickets.rows/")
    assert starter.recipe == tunesmith.Recipe.model_validate(starter.recipe.model_dump(exclude_unset=True))
    with pytest.raises(RecipeError, match=r"exists already(?s:.*)overwrite=True"):
        tunesmith.init(ROWS, "tickets.yaml")
    tunesmith.init(ROWS, "tickets.yaml", model=str(tiny_model_dir), overwrite=True)
    planned = tunesmith.plan("tickets.yaml", device="h100")
    assert planned.recommended == "lora"
    assert "<td>qlora</td>" in planned._repr_html_() and planned.reason in planned._repr_html_()


def test_a_home_folder_is_meant_by_its_sign(here: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = here / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    starter = tunesmith.init(ROWS, "~/nb.yaml", model=str(tiny_model_dir))
    (file,) = (home / "nb.rows").iterdir()
    assert starter.recipe.data.train[0].path == str(file) and (home / "nb.yaml").is_file()
    with pytest.raises(RecipeError, match="exists already"):
        tunesmith.init(ROWS, "~/nb.yaml")
    (home / "base").symlink_to(tiny_model_dir)
    found = tunesmith.check({"model": "~/base", "data": {"train": ROWS}, "output_dir": "~/run"})
    assert found.lengths["unit"] == "tokens"
    assert not (here / "~").exists() and not (here / "~.rows").exists()


def test_prepare_writes_the_rows_of_a_program(here: Path) -> None:
    made = tunesmith.prepare([*ROWS, ROWS[0]], here / "prepared", ["clean=[dedupe]", "test=0.1"])
    assert sum(made.splits.values()) == 40
    assert (here / "prepared" / "dataset_dict.json").is_file()
    assert "<td>train</td>" in made._repr_html_()
    assert "<td>rejected.jsonl</td><td>1</td>" in made._repr_html_()


@pytest.mark.slow
def test_a_program_needs_no_main_guard_and_may_run_in_an_event_loop(here: Path, tiny_model_dir: Path) -> None:
    (here / "program.py").write_text(PROGRAM.format(model=str(tiny_model_dir)))
    environment = {**os.environ, "TUNESMITH_WORKERS": "2", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("600 rows can be used.")
    assert lines[1] in ("better", "worse", "no evidence") and lines[2] == "True"
    assert "threads: 1" in (here / "run" / "recipe.yaml").read_text()


FOREIGN = [{"frage": f"Was kostet Nummer {n}?", "antwort": f"{n} Euro"} for n in range(30)]


def test_columns_are_proposed_as_an_argument_and_nothing_is_left_behind(
    here: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(here / "cache"))
    for ask in (tunesmith.init, tunesmith.check, lambda rows: tunesmith.init(rows, "faq.yaml")):
        with pytest.raises(DataError) as caught:
            ask(FOREIGN)
        assert (caught.value.where, "--" in str(caught.value), "data." in str(caught.value)) == (
            "the rows",
            False,
            False,
        )
        assert 'set columns={"prompt": "frage", "completion": "antwort"}; otherwise' in str(caught.value.remedy)
        assert "Was kostet Nummer 0? -> 0 Euro" in str(caught.value.why)
        assert [path for path in here.rglob("*") if path.is_file()] == []
    assert not (here / "faq.rows").exists()
    columns = {"prompt": "frage", "completion": "antwort"}
    assert tunesmith.check(FOREIGN, columns=columns).is_good
    assert [path for path in here.rglob("*") if path.is_file()] == []
    starter = tunesmith.init(FOREIGN, columns=columns, model=str(tiny_model_dir))
    stored = Path(starter.recipe.data.train[0].path)
    assert stored.stat().st_mode & 0o777 == 0o600
    with pytest.raises(DataError):
        tunesmith.init(FOREIGN)
    assert stored.is_file()  # the recipe of the call before names it


def test_a_run_that_is_there_is_refused_with_arguments(here: Path, tiny_model_dir: Path) -> None:
    recipe = values(tiny_model_dir)
    tunesmith.train(recipe)
    with pytest.raises(RunError) as caught:
        tunesmith.train(recipe)
    assert str(caught.value.remedy).startswith("Add resume=True to continue or finish it, overwrite=True to replace it")


def test_a_table_without_names_is_read_with_the_argument_that_is_named(here: Path) -> None:
    (here / "t.csv").write_text("Where is it?,In Lyon.\nWhen is it?,At nine.\n" * 5)
    with pytest.raises(DataError) as caught:
        tunesmith.check("t.csv")
    columns = {"prompt": "column1", "completion": "column2"}
    said = f'columns={json.dumps(columns)} and settings=["header=false"]'
    assert said in str(caught.value.remedy)
    assert tunesmith.check("t.csv", columns=columns, settings=["header=false"]).ledger.total.rows.read == 10
