"""docs/python.md as a program and as a notebook in a real kernel, and what reaches the user's screen."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tunesmith.evaluation.wording import sentence
from tunesmith.runs.from_python import quiet_libraries

ROWS = [{"prompt": f"item <{n}>?", "completion": "red" if n % 2 else "blue"} for n in range(40)]
CELLS = [
    "import tunesmith",
    "rows = [{{'prompt': f'item <{{n}}>?', 'completion': 'red' if n % 2 else 'blue'}} for n in range(40)]",
    "tunesmith.init(rows, 'recipe.yaml', model={model!r})",
    "tunesmith.check('recipe.yaml')",
    "tunesmith.plan('recipe.yaml')",
    "tunesmith.train('recipe.yaml', ['training.max_steps=2', 'training.threads=1', 'output_dir=run'])",
    "tunesmith.load('run').generate(['item <3>?', [{{'role': 'user', 'content': 'item <4>?'}}]], max_new_tokens=2)",
    "tunesmith.evaluate('run', progress=False)",
    "tunesmith.list_runs('.')",
    "tunesmith.show_run('run')",
]


def recipe(model: Path, rows: Any) -> dict[str, Any]:
    training = {"max_steps": 2, "batch_size": 4, "report_to": "none", "threads": 1}
    evaluation = {"samples": 0, "resamples": 100}
    data = {"train": rows}
    return {"model": str(model), "data": data, "training": training, "evaluation": evaluation, "output_dir": "run"}


@pytest.mark.slow
def test_a_notebook_shows_progress_in_place_and_results_as_tables(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
    monkeypatch.setenv("PYTHONPATH", str(Path(tunesmith.__file__).parents[1]))
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(cell.format(model=str(tiny_model_dir))) for cell in CELLS]
    nbclient.NotebookClient(made, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs for cell in made.cells]
    assert [output for cell in outputs for output in cell if output.output_type == "stream"] == []
    shown = ["".join(output.data.get("text/html", "") for output in cell) for cell in outputs]
    init, check, plan, train, answers, evaluate, runs, run = shown[2:]
    assert init.startswith("<pre># recipe.rows/") and "can be used" in check and "<td>qlora</td>" in plan
    assert train.count("<progress") >= 2 and 'value="2" max="2"' in train and "item <" not in train
    assert "about the loss alone" in train and "about the loss alone" in evaluate and "<progress" not in evaluate
    assert answers == "" and "<td>finished</td>" in runs and "Verdict: " in run


def test_a_program_sees_lines_and_no_warning_of_a_library_and_may_silence_them(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FutureWarning)
        before = list(warnings.filters)
        result = tunesmith.train(recipe(tiny_model_dir, ROWS))
        assert warnings.filters == before
    assert [str(each.message) for each in caught if issubclass(each.category, FutureWarning)] == []
    shown = capsys.readouterr()
    assert shown.out == "" and "\ntraining  2/2 (100%)  loss " in shown.err and "Warning" not in shown.err
    tunesmith.train(recipe(tiny_model_dir, ROWS), overwrite=True, progress=False)
    tunesmith.evaluate("run", progress=False)
    answers = tunesmith.load("run", progress=False).generate(["item 1?", "item 2?"], max_new_tokens=2)
    shown = capsys.readouterr()
    assert len(answers) == 2 and shown.out == shown.err == ""
    lines = str(result).splitlines()
    assert lines[0] == sentence(result.verdict) and "This is about the loss alone" in lines[0]
    assert lines[1].startswith("loss: base ") and lines[-1] == "Run: run"
    assert "decided by loss" in str(tunesmith.show_run("run"))


def test_a_program_keeps_its_own_warnings_and_gets_its_filters_back() -> None:
    @quiet_libraries()
    def call() -> None:
        warnings.warn_explicit("theirs", UserWarning, "x.py", 1, module="transformers.modeling_utils", registry={})
        warnings.warn_explicit("mine", UserWarning, "x.py", 1, module="score", registry={})

    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
            warnings.warn_explicit("after", FutureWarning, "x.py", 1, module="transformers", registry={})
        assert [str(each.message) for each in caught] == ["mine", "after"]


def test_rows_of_polars_are_rows(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    polars = pytest.importorskip("polars", reason="needs polars")
    monkeypatch.chdir(tmp_path)
    result = tunesmith.train(recipe(tiny_model_dir, polars.DataFrame(ROWS)), progress=False)
    assert dict(tunesmith.show_run(result.run).facts)["rows"] == "37 trained, 3 held out"
    listed = tunesmith.check(ROWS, progress=False)
    assert tunesmith.check(polars.DataFrame(ROWS), progress=False).to_json()["sources"] == listed.to_json()["sources"]


@pytest.mark.slow
def test_the_page_about_python_works_as_it_stands(
    tmp_path: Path, tiny_model_dir: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (pytestconfig.rootpath / "docs" / "python.md").read_text(encoding="utf-8")
    program = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    named = f'"colours.yaml", model={str(tiny_model_dir)!r})'
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program.replace('"colours.yaml")', named, 1), names)
    assert len(names["answers"]) == 4
    assert (tmp_path / "colours-model" / "config.json").is_file() and (tmp_path / "prepared").is_dir()
