"""Rows that a program hands over stay where a run or a written recipe names them, and nowhere else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tunesmith.errors import DataError, RecipeError, RunError, TunesmithError

SECRET = "Wilhelmine Kasimir"
ROWS = [{"prompt": f"item {n} of {SECRET}?", "completion": "red" if n % 2 else "blue"} for n in range(40)]
FAST = {"max_steps": 2, "batch_size": 4, "save_steps": 1, "report_to": "none", "threads": 1}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def recipe_of(model: Path, rows: Any = ROWS, **keys: Any) -> dict[str, Any]:
    judged = {"samples": 0, "resamples": 100}
    return {"model": str(model), "data": {"train": rows}, "training": FAST, "evaluation": judged, **keys}


def left(folder: Path) -> list[str]:
    """Files that hold rows, as text or as tokens."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    held = [file for file in files if file.suffix == ".arrow" or SECRET.encode() in file.read_bytes()]
    return [str(file.relative_to(folder)) for file in held]


def failed(call: Callable[[], object], kind: type[TunesmithError]) -> TunesmithError:
    with pytest.raises(kind) as caught:
        call()
    return caught.value


def test_calls_that_make_no_run_leave_no_rows_and_no_tokens_of_them(here: Path, tiny_model_dir: Path) -> None:
    recipe = recipe_of(tiny_model_dir, output_dir="run")
    model = str(tiny_model_dir)
    found = tunesmith.check(recipe)
    assert found.lengths["unit"] == "tokens" and str(here.parent) not in str(found.sources)
    tunesmith.check(ROWS, model=model, against=ROWS[:2], show=2)
    tunesmith.plan(recipe, exact=True, device="cpu")
    tunesmith.prepare(recipe, "prepared", ["test=0.1"])
    tunesmith.prepare(ROWS, "again", ["clean=[max_length]", "max_length=200"], model=model)
    assert left(here.parent / "cache") == []
    assert {name.partition("/")[0] for name in left(here)} == {"prepared", "again"}


def test_a_training_run_keeps_its_rows_beside_it_and_what_begins_no_run_keeps_none(
    here: Path, tiny_model_dir: Path
) -> None:
    cache = here.parent / "cache"
    failed(lambda: tunesmith.train(recipe_of(tiny_model_dir)), RecipeError)  # no output_dir
    failed(lambda: tunesmith.train(recipe_of(tiny_model_dir, output_dir="run", nonsense=1)), RecipeError)
    bad = [*ROWS, {"prompt": SECRET, "completion": ["no", "text"]}]
    error = failed(lambda: tunesmith.train(recipe_of(tiny_model_dir, bad, output_dir="run")), DataError)
    assert "row 41 of data.train: completion: found a list" in str(error.why)
    assert left(cache) == left(here) == [] and not (here / "run.rows").exists()
    tunesmith.train(recipe_of(tiny_model_dir, output_dir="run"))
    (stored,) = (here / "run.rows").iterdir()
    assert stored.stat().st_mode & 0o777 == 0o600
    assert {name.partition("/")[0] for name in left(cache)} == {"tokens"}
    other = recipe_of(tiny_model_dir, ROWS[:-4], output_dir="run")
    failed(lambda: tunesmith.train(other, resume=True), RunError)
    failed(lambda: tunesmith.train(other), RunError)
    assert [*(here / "run.rows").iterdir()] == [stored]
    assert tunesmith.train("run", resume=True).already_finished


def test_a_run_keeps_the_rows_of_a_recipe_that_is_in_no_file(here: Path, tiny_model_dir: Path) -> None:
    starter = tunesmith.init(ROWS, model=str(tiny_model_dir))
    (held,) = left(here.parent / "cache")
    assert "removed when this program ends" in starter.warnings[-1]
    few = ["training.max_steps=2", "evaluation.max_new_tokens=2", "training.threads=1", "output_dir=mine"]
    result = tunesmith.train(starter.recipe, few)
    (stored,) = (here / "mine.rows").iterdir()
    assert stored.name == Path(held).name
    assert f"mine.rows/{stored.name}" in (result.run / "recipe.yaml").read_text()
    assert tunesmith.train(starter.recipe, few, resume=True).already_finished
    (here.parent / "cache" / held).unlink()
    assert tunesmith.train("mine", resume=True).already_finished


ASK = """
import os, signal, tunesmith
rows = [{{"prompt": f"item {{n}} of {secret}?", "completion": "red" if n % 2 else "blue"}} for n in range(40)]
starter = tunesmith.init(rows, model="nobody/knows-0.1b")
assert os.path.isfile(starter.recipe.data.train[0].path)
if os.fork() == 0:
    raise SystemExit  # a child that ends takes nothing with it
os.wait()
assert os.path.isfile(starter.recipe.data.train[0].path)
{end}
"""


def asked(end: str) -> int:
    program = ASK.format(secret=SECRET, end=end)
    return subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL, check=False).returncode


def test_rows_of_a_recipe_in_no_file_go_with_the_program_and_what_a_killed_one_left_with_the_next(here: Path) -> None:
    cache = here.parent / "cache"
    assert asked("") == 0 and left(cache) == []
    assert asked("raise RuntimeError") == 1 and left(cache) == []
    assert asked("os.kill(os.getpid(), signal.SIGKILL)") == -signal.SIGKILL
    assert len(left(cache)) == 1
    assert tunesmith.check(ROWS).is_good
    assert left(cache) == [] and os.listdir(cache / "given") == []


def test_a_call_leaves_the_rows_of_another_that_still_runs(here: Path) -> None:
    first = tunesmith.init(ROWS, model="nobody/knows-0.1b")
    second = tunesmith.init(ROWS[:30], model="nobody/knows-0.1b")
    tunesmith.check(ROWS)
    assert [len(Path(each.recipe.data.train[0].path).read_text().splitlines()) for each in (first, second)] == [40, 30]
