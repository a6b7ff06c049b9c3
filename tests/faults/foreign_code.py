"""Code that lies in folders of somebody else: how much of it runs. Every payload would leave a mark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.canaries import Canary, fill_with_modules, module_names
from tests.evaluation.metrics.test_function_files import IMPORTED, PYTHONS
from tests.faults.table import Fault, Try
from tests.runs.test_git import PAYLOADS, new_repository, touched

import tunesmith
from tunesmith.errors import RecipeError
from tunesmith.evaluation.metrics.user_functions import functions_allowed, import_function
from tunesmith.runs.git import git_state

PROGRAMS = ("git", "uname", "python", "python3", "pip", "gcc", "ldconfig", "lscpu", "nvidia-smi", "tunesmith")


def _repositories(folder: Path, whole: bool) -> Iterator[Try]:
    """Programs that a repository names, while a run asks for its state."""
    for name, (plant, _) in list(PAYLOADS.items())[: None if whole else 4]:
        repository, canary = new_repository(folder / name / "repository"), Canary(folder / name / "sang")
        plant(repository, canary)
        canary.mark.unlink(missing_ok=True)
        touched(repository)
        found = git_state(repository)
        lost = "it ran" if canary.heard else None
        yield Try(name, lost if lost or found is None or found["commit"] else "no commit")


def _working_folder(folder: Path, whole: bool) -> Iterator[Try]:
    """A file for each module and each program, in the folder in which `check` starts its processes."""
    canary, work = Canary(folder / "sang"), folder / "work"
    (work / "rows").mkdir(parents=True)
    for number in range(8):
        line = json.dumps({"prompt": f"question {number}", "completion": "yes"})
        (work / "rows" / f"{number}.jsonl").write_text(f"{line}\n")
    names = module_names()
    fill_with_modules(work, canary, names)
    for program in PROGRAMS:
        canary.script(work / program)
    source = str(Path(tunesmith.__file__).parents[1])
    variables = {"PYTHONPATH": source, "TUNESMITH_WORKERS": "2", "PATH": f".:{os.environ['PATH']}"}
    for arguments in [["check", "rows", "--no-near"], *([["check", "rows"], ["runs", "list", "."]] if whole else [])]:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "tunesmith", *arguments],
            cwd=work,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        heard = canary.heard
        for name in (*names, *PROGRAMS):
            yield Try(f"{' '.join(arguments)}: {name}", "it ran" if name in heard else None)
        yield Try(" ".join(arguments), None if "Traceback" not in done.stderr else done.stderr)


def _functions(folder: Path, whole: bool) -> Iterator[Try]:
    """Functions of Python as a metric, by their name and by a file that imports them, and functions nobody allowed."""
    canary = Canary(folder / "sang")
    (folder / "own.py").write_text(canary.python(then="def score(answer): return 1.0"))
    for name in ["own.py:score", *PYTHONS]:
        yield Try(f"{name}, not allowed", _refused(name))
        if name in PYTHONS:
            with functions_allowed({name: folder}):
                yield Try(name, _refused(name))
    yield Try("the file of a function that is not allowed", "it ran" if canary.heard else None)
    for number, source in enumerate(IMPORTED):
        name = f"file{number}.py:score"
        (folder / f"file{number}.py").write_text(source)
        with functions_allowed({name: folder}):
            yield Try(source, _refused(name))


def _refused(name: str) -> str | None:
    try:
        import_function(name)
    except RecipeError:
        return None
    return "it is a metric"


FAULTS = [
    Fault("foreign repository", _repositories),
    Fault("foreign working folder", _working_folder),
    Fault("foreign functions", _functions),
]
