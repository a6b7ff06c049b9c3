"""`train --overwrite`: it works wherever a message sends there, and removes only what a run has written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tunesmith.cli.app import main
from tunesmith.errors import RunError
from tunesmith.runs.folder import Run

ROWS = [{"prompt": f"Say {word}.", "completion": word} for word in ["one", "two", "three", "four", "five", "six"]]
STRANGERS = "The folder to overwrite holds files that Tunesmith did not write"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A folder with a recipe, the file of its function, its rows and its finished run."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "score.py").write_text("def score(answer): return len(answer)")
    recipe: dict[str, Any] = {
        "model": {"path": str(tiny_model_dir), "device": "cpu"},
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.5},
        "training": {"max_steps": 1, "batch_size": 2, "report_to": [], "check_disk": False},
        "evaluation": {"metrics": ["score.py:score"], "max_new_tokens": 2, "samples": 0},
        "output_dir": "run",
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tunesmith.train("recipe.yaml", progress=False)
    return folder


@pytest.fixture
def own(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test is."""
    shutil.copytree(trained, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    return tmp_path / "own"


def test_a_run_with_a_function_of_the_user_starts_over(own: Path) -> None:
    (own / "score.py").write_text("def score(answer): return 1.0")
    tunesmith.train("recipe.yaml", overwrite=True, progress=False)
    assert (own / "run" / "functions" / "score.py").read_text() == "def score(answer): return 1.0"


@pytest.mark.parametrize(
    "name", [".git/HEAD", ".env", ".gitignore", "checkpoints/.notes", "functions/labels.json", "start.txt"]
)
def test_hidden_files_and_folders_of_the_user_are_never_removed(own: Path, name: str) -> None:
    mine = own / "run" / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(RunError) as caught:
        tunesmith.train("recipe.yaml", overwrite=True, progress=False)
    assert caught.value.what == STRANGERS and name.removesuffix("/HEAD") in str(caught.value.why)
    assert mine.read_text() == "mine" and (own / "run" / "verdict.json").is_file()


def test_what_a_killed_run_left_is_no_file_of_the_user(own: Path) -> None:
    of_earlier = (".verdict.json.tmp", ".reference.npz.tmp", "checkpoints/.step-000001.del/x", ".start.old/x")
    new = (".verdict.json.tunesmith-0123abcd", "checkpoints/.step-000001.tunesmith-del/x", ".start.tunesmith-old/x")
    for name in (*of_earlier, *new):
        left = own / "run" / name
        left.parent.mkdir(exist_ok=True)
        left.write_text("half")
    tunesmith.train("recipe.yaml", overwrite=True, progress=False)
    assert sorted(path.name for path in (own / "run").rglob(".*")) == [".lock"]


@pytest.mark.parametrize("named", ["run", "run/recipe.yaml"])
def test_with_nothing_but_its_folder_a_run_starts_over(own: Path, named: str) -> None:
    (own / "recipe.yaml").unlink()
    (own / "score.py").unlink()
    (own / "run" / "status.json").write_text(json.dumps({**Run("run").status(), "seconds": -1}))
    with pytest.raises(RunError, match="allow_functions=True"):
        tunesmith.train(named, overwrite=True, progress=False)
    tunesmith.train(named, overwrite=True, allow_functions=True, progress=False)
    assert Run("run").status()["seconds"] > 0 and Run("run").notes() == []
    assert (own / "run" / "functions" / "score.py").is_file()


def test_a_run_that_was_moved_starts_over_where_it_is(own: Path) -> None:
    (own / "run").rename(own / "other place")
    command = Run("other place").way_to_start_over()
    assert command == "`tunesmith train 'other place' --overwrite`"
    tunesmith.train("other place", overwrite=True, allow_functions=True, progress=False)
    assert Run("other place").status()["status"] == "finished" and not (own / "run").exists()


def test_a_recipe_of_the_run_s_folder_under_another_name_is_an_input(own: Path) -> None:
    shutil.copyfile("recipe.yaml", "run/mine.yaml")
    with pytest.raises(RunError, match="The output would replace an input"):
        tunesmith.train("run/mine.yaml", overwrite=True, allow_functions=True, progress=False)


def test_the_way_that_a_damaged_file_names_works(own: Path) -> None:
    (own / "run" / "verdict.json").write_text("{")
    with pytest.raises(RunError) as caught:
        Run("run").read_json("verdict.json")
    assert "start over with `tunesmith train run --overwrite`" in str(caught.value.remedy)
    tunesmith.train("run", overwrite=True, allow_functions=True, progress=False)
    assert Run("run").read_json("verdict.json")["decided_by"] == "score.py:score"


def test_what_the_command_line_says_of_a_run_that_is_there_works_there(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*argv: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(argv))
        shown = capsys.readouterr()
        return "" if not ended.value.code else " ".join((shown.out + shown.err).split())

    refused = said("train", "recipe.yaml")
    assert "Add --resume to continue or finish it, --overwrite to replace it" in refused and "=True" not in refused
    Path("run/verdict.json").unlink()  # the run is not whole any more
    Run("run").set_status("stopped")
    refused = said("train", "run", "--resume", "--allow-functions", "training.batch_size=4")
    assert "add `--allow-changes recipe`" in refused and "=True" not in refused
    (start_over,) = re.findall(r"`(tunesmith train [^`]*--overwrite)`", refused)
    assert said(*start_over.split()[1:], "--allow-functions") == ""
    assert said("train", "run", "--resume") == ""


def test_what_python_is_told_of_a_run_that_is_there_works_in_python(own: Path) -> None:
    Path("run/verdict.json").unlink()
    Run("run").set_status("stopped")
    with pytest.raises(RunError) as caught:
        tunesmith.train("run", ["training.batch_size=4"], resume=True, allow_functions=True, progress=False)
    remedy = str(caught.value.remedy)
    assert 'add allow_changes=["recipe"] to go on with it' in remedy
    assert '`tunesmith.train("run", overwrite=True)` starts over' in remedy and "--" not in remedy
    tunesmith.train("run", overwrite=True, allow_functions=True, progress=False)
    assert Run("run").read_json("verdict.json")["decided_by"] == "score.py:score"
