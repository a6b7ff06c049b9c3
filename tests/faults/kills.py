"""kill -9: at random moments, and at every write, fsync, rename and removal. The same command again loses nothing.

A training run must end with the same bytes in its checkpoints, the same lines and the same verdict as one that was not
killed; other commands must leave the same files. What was not killed runs in a new interpreter, so a fork is also held
to what users get.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.points import Points
from tests.faults.processes import Command, Ended, run
from tests.faults.table import Fault, Try
from tests.faults.world import (
    METHODS,
    SAVE_STEPS,
    TRAIN,
    apart,
    content,
    copy_of,
    hashes,
    last_line,
    make_world,
    steps_repeated,
    write_recipe,
)

from tunesmith.errors import RunError
from tunesmith.runs.folder import Run
from tunesmith.runs.overview import wrong_answers
from tunesmith.runs.run_files import ANSWERS, EVALUATIONS

MOMENTS = 40
FEW = 5  # rows of a second evaluation
NEW = not os.environ.get("FAULTS_FORKS")  # set, what is not killed runs in a fork, too: faster, on a busy machine
KILLED = 128 + signal.SIGKILL


def _points_of(folder: Path, argv: Sequence[str]) -> tuple[list[str], Ended]:
    """What the command does to files, point by point, when nothing kills it."""
    points = Points(folder / "points.log")
    ended = run(argv, folder, points=points)
    return points.lines(), ended


def _of_a_save(points: Sequence[str]) -> list[int]:
    """The numbers of the points of the second save, with all that follows it until the third one begins."""
    begins: dict[str, int] = {}
    for number, line in enumerate(points, 1):
        if line.startswith("mkdir run/checkpoints/.step-"):
            begins.setdefault(line, number)
    _, first, third = list(begins.values())[:3]
    return list(range(first, third))


def _spread(numbers: Sequence[int], count: int) -> list[int]:
    """At most so many of the numbers, spread evenly, with the first and the last one. All are in a drawn order."""
    if len(numbers) <= count:
        return random.Random(0).sample(list(numbers), len(numbers))
    return [numbers[round(at * (len(numbers) - 1) / max(count - 1, 1))] for at in range(count)]


def _killed_at_moment(argv: Sequence[str], folder: Path, moment: float) -> None:
    command = Command(argv, folder)
    time.sleep(moment)
    command.signal(signal.SIGKILL)
    command.wait()


def _killed_at_point(argv: Sequence[str], folder: Path, number: int) -> str:
    """What was about to be done."""
    points = Points(folder / "points.log", kill_at=number)
    run(argv, folder, points=points)
    return (points.lines() or ["nothing"])[-1]


def _continued(folder: Path, wanted: dict[str, Any]) -> str | None:
    """The same command again; what it lost."""
    before = last_line(folder)
    ended = run(TRAIN, folder)
    if ended.code != 0:
        return f"exit {ended.code}: {ended.said[-1500:]}"
    if "is finished already" not in ended.said and (again := steps_repeated(folder, ended.said, before)) > SAVE_STEPS:
        return f"{again} steps were computed again"
    return apart(content(folder), wanted) or (f"left: {ended.left}" if ended.left else None)


def _training(name: str, folder: Path, whole: bool) -> Iterator[Try]:
    world = make_world(folder / "world")

    def new(label: str) -> Path:
        write_recipe(world, folder / label, name)
        return folder / label

    ended = run(TRAIN, new("whole"), anew=whole and NEW)
    if ended.code != 0:
        yield Try("the run that is not killed", ended.said[-1500:])
        return
    wanted = content(folder / "whole")
    points, ended = _points_of(new("counted"), TRAIN)
    yield Try("a run whose points are counted", apart(content(folder / "counted"), wanted))
    draw = random.Random(name)
    moments = [draw.uniform(0, ended.seconds) for _ in range(MOMENTS if whole else 1)]
    for moment in moments:
        at = new(f"moment {moment:.3f}")
        _killed_at_moment(TRAIN, at, moment)
        yield Try(f"killed after {moment:.3f} s", _continued(at, wanted))
        shutil.rmtree(at)
    chosen = range(1, len(points) + 1) if whole and name == "lora with dropout" else _of_a_save(points)
    for number in _spread(chosen, len(chosen) if whole else 3):
        at = new(f"point {number}")
        done = _killed_at_point(TRAIN, at, number)
        yield Try(f"killed at point {number}, {done}", _continued(at, wanted))
        shutil.rmtree(at)


def _resuming(folder: Path, whole: bool) -> Iterator[Try]:
    """Killed after its fourth step, and again while it continues, at every point until its next save is done."""
    world, name = make_world(folder / "world"), "best of all, one kept"
    write_recipe(world, folder / "whole", name)
    run(TRAIN, folder / "whole", anew=whole and NEW)
    wanted = content(folder / "whole")
    write_recipe(world, folder / "killed", name)
    points = Points(folder / "killed" / "points.log")
    write_recipe(world, folder / "counted", name)
    lines, _ = _points_of(folder / "counted", TRAIN)
    saves = _of_a_save(lines)
    points = Points(folder / "killed" / "points.log", kill_at=saves[-1])
    run(TRAIN, folder / "killed", points=points)
    lines, ended = _points_of(copy_of(folder / "killed", folder / "continued"), TRAIN)
    yield Try("a resume whose points are counted", apart(content(folder / "continued"), wanted))
    for number in _spread(range(1, len(lines) + 1), len(lines) if whole else 3):
        at = copy_of(folder / "killed", folder / f"point {number}")
        done = _killed_at_point(TRAIN, at, number)
        yield Try(f"a resume killed at point {number}, {done}", _continued(at, wanted))
        shutil.rmtree(at)
    draw = random.Random(0)
    for number in range(MOMENTS if whole else 1):
        at = copy_of(folder / "killed", folder / f"moment {number}")
        moments = [draw.uniform(0, ended.seconds) for _ in range(3)]
        for moment in moments:
            _killed_at_moment(TRAIN, at, moment)
        said = ", ".join(f"{moment:.3f}" for moment in moments)
        yield Try(f"resumes killed after {said} s", _continued(at, wanted))
        shutil.rmtree(at)


def _overwriting(folder: Path, whole: bool) -> Iterator[Try]:
    """Killed while a finished run is replaced by a new one."""
    argv = ["train", "recipe.yaml", "--overwrite"]
    world = make_world(folder / "world")
    write_recipe(world, folder / "before", "lora with dropout")
    run(TRAIN, folder / "before")
    wanted = content(folder / "before")
    points, ended = _points_of(copy_of(folder / "before", folder / "counted"), argv)
    yield Try("one whose points are counted", ended.said if ended.code else apart(content(folder / "counted"), wanted))
    begins = next(number for number, line in enumerate(points, 1) if line.startswith("mkdir run/checkpoints"))
    for number in _spread(range(1, begins + 1), begins if whole else 3):
        at = copy_of(folder / "before", folder / f"point {number}")
        done = _killed_at_point(argv, at, number)
        ended = run(argv, at)
        lost = f"exit {ended.code}: {ended.said[-1500:]}" if ended.code else apart(content(at), wanted)
        yield Try(f"killed at point {number}, {done}", lost)
        shutil.rmtree(at)


Prepare = Callable[[Path, Path], None]


def _files_of(folder: Path) -> dict[str, Any]:
    """What a command made: ``made`` is a file, a folder or a run's list of evaluations."""
    made = folder / "made"
    found: dict[str, Any] = hashes(made) if made.is_dir() else {"made": made.exists()}
    for name in ("answers.jsonl",):
        if (folder / name).exists():
            found[name] = (folder / name).read_text()
    found["names"] = sorted(path.name for path in folder.iterdir() if path.name not in ("cache", "tmp", "points.log"))
    found["run"] = sorted(path.name for path in (folder / "run").iterdir()) if (folder / "run").exists() else []
    return {name: value for name, value in found.items() if not name.endswith("state.json")}


def _command(argv: Sequence[str], prepare: Prepare, refusal: str, folder: Path, whole: bool) -> Iterator[Try]:
    """A command that makes files. ``refusal`` is what it says where they are made already."""
    world = make_world(folder / "world")
    prepare(world, folder / "before")
    run(argv, copy_of(folder / "before", folder / "whole"), anew=whole and NEW)
    wanted = _files_of(folder / "whole")
    points, ended = _points_of(copy_of(folder / "before", folder / "counted"), argv)
    yield Try(
        "one whose points are counted", ended.said if ended.code else apart(_files_of(folder / "counted"), wanted)
    )

    def again(at: Path) -> str | None:
        ended = run(argv, at)
        if ended.code != 0 and not (refusal and refusal in ended.said):
            return f"exit {ended.code}: {ended.said[-1500:]}"
        return apart(_files_of(at), wanted) or (f"left: {ended.left}" if ended.left else None)

    for number in _spread(range(1, len(points) + 1), len(points) if whole else 3):
        at = copy_of(folder / "before", folder / f"point {number}")
        done = _killed_at_point(argv, at, number)
        yield Try(f"killed at point {number}, {done}", again(at))
        shutil.rmtree(at)
    draw = random.Random(argv[0])
    for number in range(MOMENTS if whole else 1):
        at, moment = copy_of(folder / "before", folder / f"moment {number}"), draw.uniform(0, ended.seconds)
        _killed_at_moment(argv, at, moment)
        yield Try(f"killed after {moment:.3f} s", again(at))
        shutil.rmtree(at)


def _rows(world: Path, folder: Path) -> None:
    folder.mkdir()
    shutil.copy(world / "rows.jsonl", folder)


def _rows_and_empty_folder(world: Path, folder: Path) -> None:
    _rows(world, folder)
    (folder / "made").mkdir()


def _rows_and_dataset(world: Path, folder: Path) -> None:
    _rows(world, folder)
    run(["prepare", "rows.jsonl", "--out", "made", "data.test=0.2"], folder)
    shutil.rmtree(folder / "tmp")


def _finished_run(world: Path, folder: Path) -> None:
    write_recipe(world, folder, "lora with dropout")
    shutil.copy(world / "rows.jsonl", folder)
    run(TRAIN, folder)


def _two_runs(world: Path, folder: Path) -> None:
    _finished_run(world, folder)
    shutil.copytree(folder / "run", folder / "other")


TASK = """task: echo
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Well?"
doc_to_choice: ["yes", "no"]
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def _run_and_task(world: Path, folder: Path) -> None:
    _finished_run(world, folder)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "echo.yaml").write_text(TASK.format(rows=world / "rows.jsonl"))


def _finished_and_merged(world: Path, folder: Path) -> None:
    _finished_run(world, folder)
    run(["merge", "run", "--out", "made", "--dtype", "bfloat16"], folder)


PREPARE = ["prepare", "rows.jsonl", "--out", "made", "data.eval=0.25"]
TASKS = ["eval", "run", "--tasks", "echo", "--include-path", "tasks", "--allow-functions"]
COMMANDS: dict[str, tuple[list[str], Prepare, str]] = {
    "prepare": (PREPARE, _rows, "dataset that `tunesmith prepare` wrote"),
    "prepare, into an empty folder": (PREPARE, _rows_and_empty_folder, "dataset that `tunesmith prepare` wrote"),
    "prepare --overwrite": ([*PREPARE, "--overwrite"], _rows_and_dataset, ""),
    "merge": (["merge", "run", "--out", "made"], _finished_run, "there is a merged model already"),
    "merge --overwrite": (["merge", "run", "--out", "made", "--overwrite"], _finished_and_merged, ""),
    "generate --data": (
        ["generate", "run", "--data", "rows.jsonl", "--out", "answers.jsonl", "max_new_tokens=3"],
        _finished_run,
        "The file exists already",
    ),
    "eval": (["eval", "run", "--data", "rows.jsonl"], _finished_run, ""),
    "compare": (["compare", "run", "other"], _two_runs, ""),
    "eval --tasks": (TASKS, _run_and_task, ""),
}


def _evaluating_again(folder: Path, whole: bool) -> Iterator[Try]:
    """Killed while a run that has an evaluation gets another one, of fewer rows: no line takes the other's answers."""
    world = make_world(folder / "world")
    _finished_run(world, folder / "before")
    lines = (world / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "before" / "few.jsonl").write_text("".join(lines[:FEW]))
    run(["eval", "run", "--data", "rows.jsonl"], folder / "before")
    argv = ["eval", "run", "--data", "few.jsonl"]
    points, _ = _points_of(copy_of(folder / "before", folder / "counted"), argv)
    adding = [number for number, line in enumerate(points, 1) if " run/" in line and ".answers" not in line]
    for number in _spread(adding, len(adding) if whole else 6):
        at = copy_of(folder / "before", folder / f"point {number}")
        done = _killed_at_point(argv, at, number)
        yield Try(f"killed at point {number}, {done}", _answers_of_another(at / "run"))
        ended = run(argv, at)
        lost = (
            f"exit {ended.code}: {ended.said[-1500:]}" if ended.code else _answers_of_another(at / "run", needed=True)
        )
        yield Try(f"again after point {number}", lost)
        shutil.rmtree(at)


def _answers_of_another(folder: Path, *, needed: bool = False) -> str | None:
    """Whether the newest evaluation is shown with answers of the other one. ``needed``: it must be shown."""
    few = Run(folder).read_lines(EVALUATIONS)[-1]["rows"] == FEW
    if needed and not few:
        return "the second evaluation is not there"
    try:
        wrong_answers(folder, of_eval=True)
    except RunError as error:
        return error.render() if needed or "answers of the newest evaluation" not in error.what else None
    sources = [line["source"] for line in Run(folder).read_lines(ANSWERS)]
    of_it = sources and all(("few.jsonl" in source) is few for source in sources)
    return None if of_it else f"the evaluation of {'few' if few else 'all'} rows has the answers to {sources[:3]}"


SHORT = ("best of all, one kept", "prepare, into an empty folder", "merge")
FAULTS = [
    *(Fault(f"kill -9, {name}", partial(_training, name), name in SHORT) for name in METHODS),
    Fault("kill -9, a resume", _resuming, short=False),
    Fault("kill -9, train --overwrite", _overwriting, short=False),
    Fault("kill -9, a second eval", _evaluating_again),
    *(Fault(f"kill -9, {name}", partial(_command, *given), name in SHORT) for name, given in COMMANDS.items()),
]
