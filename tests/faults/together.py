"""Many processes in one place, what dead ones left, wrong clocks, and renames that fail as on a network disk."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.points import Points
from tests.faults.processes import Command, run
from tests.faults.table import Fault, Try
from tests.faults.world import TRAIN, apart, content, copy_of, hashes, hidden_in, make_world, recipe, write_recipe

from tunesmith.runs.folder import Run
from tunesmith.runs.manifest import changes, in_words
from tunesmith.runs.run_files import CARD, EVALUATIONS, REPORT

STARTS, FIRST_USES = 20, 8
LEAVES = 2.0  # seconds of a processor; twenty processes at a time wait for theirs
HOST = os.uname().nodename
DAY = 86_400
NAME = "lora with dropout"


def _starts(folder: Path, whole: bool) -> Iterator[Try]:
    """Twenty processes are to train in one folder: one does, and the others say who."""
    world = make_world(folder / "world")
    write_recipe(world, folder / "alone" / "one", NAME)  # as deep as the others: a base has a relative path
    run(TRAIN, folder / "alone" / "one")
    wanted = content(folder / "alone" / "one")
    for turn in range(3 if whole else 1):
        at = folder / f"turn {turn}"
        at.mkdir()
        write_recipe(world, at / "one", NAME)
        values = json.loads((at / "one" / "recipe.yaml").read_text())
        commands = []
        for number in range(STARTS):
            own = at / str(number)
            own.mkdir()
            (own / "recipe.yaml").write_text(json.dumps({**values, "output_dir": str(at / "one" / "run")}))
            commands.append(Command(["train", "recipe.yaml"], own))
        ended = [command.wait() for command in commands]
        won = [command.pid for command, each in zip(commands, ended, strict=True) if each.code == 0]
        for number, each in enumerate(ended):
            if each.code == 0:
                yield Try(f"start {number}", None if len(won) == 1 else f"{len(won)} of them have trained")
                continue
            named = any(f"It is held by process {pid} on {HOST}." in each.said for pid in won)
            late = "already holds a run" in each.said  # it came when the other had ended
            lost = None if named or late else f"it does not name who works there: {each.said[-400:]}"
            if each.seconds > LEAVES * STARTS / (os.cpu_count() or 1) and not late:
                lost = lost or f"it left after {each.seconds:.1f} s"
            yield Try(f"start {number}", lost)
        yield Try("what was trained", apart(content(at / "one"), wanted))
        with Run(at / "one" / "run").lock():  # held by this process: a new interpreter is refused
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            one = Command(["train", "recipe.yaml", "--resume"], at / "0", anew=True).wait()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        named = one.code == 1 and f"It is held by process {os.getpid()} on {HOST}." in one.said
        yield Try("a new start", None if named and used < LEAVES else f"after {used:.1f} s: {one.said[-500:]}")
        shutil.rmtree(at)


def _first_uses(folder: Path, whole: bool) -> Iterator[Try]:
    """Eight processes need the same rows as tokens, and none has made them yet."""
    world = make_world(folder / "world")
    argv = ["check", str(world / "rows.jsonl"), "--model", str(world / "model"), "--no-near", "--json"]
    for turn in range(4 if whole else 1):
        at = folder / f"turn {turn}"
        commands = []
        for number in range(FIRST_USES):
            (at / str(number)).mkdir(parents=True)
            commands.append(Command(argv, at / str(number), environment={"TUNESMITH_CACHE": str(at / "cache")}))
        ended = [command.wait() for command in commands]
        said = {each.said.splitlines()[-1] for each in ended}
        made = list((at / "cache" / "tokens").glob("*"))
        for number, each in enumerate(ended):
            yield Try(f"use {number}", None if each.code == 0 else each.said[-700:])
        files = sorted(path.suffix for path in made if path.suffix != ".lock")
        yield Try("one file for all", None if files == [".arrow", ".sha256"] else f"there are {files}")
        yield Try("the same result for all", None if len(said) == 1 else f"there are {len(said)} results")


def _left_behind(folder: Path, whole: bool) -> Iterator[Try]:
    """A killed run goes on to the same bytes, whatever lock a dead process left and whatever the clock says."""
    world = make_world(folder / "world")
    write_recipe(world, folder / "whole", NAME)
    run(TRAIN, folder / "whole")
    wanted = content(folder / "whole")
    write_recipe(world, folder / "killed", NAME)
    killed = Points(folder / "killed" / "points.log", kill_at=_third_save(folder))
    Command(TRAIN, folder / "killed", points=killed).wait()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    locks = [f"{ended.pid}\n", f"{ended.pid} on {HOST}\n", "1 on elsewhere\n", "", f"{os.getpid()} on {HOST}\n", "\0\0"]
    now = time.time()
    times = [now - DAY, now + DAY, 0, now, now + DAY, now - DAY]
    for number, (text, when) in enumerate(zip(locks, times, strict=True)):
        at = copy_of(folder / "killed", folder / f"left {number}")
        (at / "run" / ".lock").write_text(text)
        for path in [*(at / "run").rglob("*"), at / "recipe.yaml"]:  # all equal, and a day off
            os.utime(path, (when, when))
        again = run(TRAIN, at)
        lost = again.said[-700:] if again.code else apart(content(at), wanted)
        yield Try(f"a lock {text!r}, and all times {when - now:+.0f} s from now", lost)
        shutil.rmtree(at)


def _third_save(folder: Path) -> int:
    """The number of the point at which the third checkpoint is begun."""
    points = Points(folder / "points.log")
    at = copy_of(folder / "whole", folder / "counted")
    shutil.rmtree(at / "run")
    Command(TRAIN, at, points=points).wait()
    begun: dict[str, int] = {}  # a folder is made by several calls
    for number, line in enumerate(points.lines(), 1):
        if line.startswith("mkdir run/checkpoints/.step-"):
            begun.setdefault(line, number)
    return list(begun.values())[2]


def _renames(folder: Path, whole: bool) -> Iterator[Try]:
    """Renames and removals that fail once, as a network file system lets them."""
    world = make_world(folder / "world")
    changes = {"training": {"save_total_limit": 1}}

    def new(at: Path) -> None:
        at.mkdir()
        (at / "recipe.yaml").write_text(json.dumps(recipe(world, **changes)))

    points = Points(folder / "points.log")
    new(folder / "whole")
    Command(TRAIN, folder / "whole", points=points).wait()
    wanted = content(folder / "whole")
    lines = points.lines()
    verbs = ("rename", "remove", "rmdir")
    numbers = [n for n, line in enumerate(lines, 1) if line.split()[0] in verbs and "run/" in line]
    step = 1 if whole else len(numbers) // 4
    for number in numbers[::step]:
        for code in (errno.ESTALE, errno.EBUSY)[: 2 if whole else 1]:

            def fails(code: int = code) -> None:
                raise OSError(code, os.strerror(code))

            at = folder / f"{number} {code}"
            new(at)
            ended = Command(TRAIN, at, points=Points(folder / "point.log", kill_at=number, act=fails)).wait()
            lost = f"a traceback: {ended.said[-900:]}" if "Traceback" in ended.said else None
            # A page that could not be put in its place leaves the run finished; the same command makes it.
            missing = [name for name in (REPORT, CARD) if not (at / "run" / name).is_file()]
            if not ended.code and missing and "runs report" not in ended.said:
                lost = lost or f"it does not say what makes {missing}: {ended.said[-700:]}"
            if ended.code or missing:
                again = run(TRAIN, at)
                lost = lost or (again.said[-700:] if again.code else None)
            yield Try(f"{lines[number - 1]}: {errno.errorcode[code]}", lost or apart(content(at), wanted))
            shutil.rmtree(at)


def _on_one_run(folder: Path, whole: bool) -> Iterator[Try]:
    """Whole processes read one run and add to it at the same time: each ends well, and nothing of any is lost."""
    world = make_world(folder / "world")
    write_recipe(world, folder / "whole", NAME)
    run(TRAIN, folder / "whole")
    wanted = content(folder / "whole")
    write_recipe(world, folder / "killed", NAME)
    killed = Points(folder / "killed" / "points.log", kill_at=_third_save(folder))
    Command(TRAIN, folder / "killed", points=killed).wait()
    evaluate = ["eval", "../run", "--data", str(world / "rows.jsonl")]
    report = ["runs", "report", "../run", "--html", "../page.html"]
    cases = {
        "two reports": ("whole", [report, report]),
        "two evals": ("whole", [evaluate, evaluate]),
        "evals and reports": ("whole", [evaluate, report, evaluate, report]),
        "a training and an eval": ("killed", [TRAIN, evaluate]),
    }
    for turn in range(5 if whole else 1):
        for name, (before, argvs) in cases.items():
            at = copy_of(folder / before, folder / f"{name} {turn}")
            places = [at if argv is TRAIN else at / f"own {number}" for number, argv in enumerate(argvs)]
            for place in places:
                place.mkdir(exist_ok=True)
            commands = [Command(argv, place) for argv, place in zip(argvs, places, strict=True)]
            ended = [command.wait() for command in commands]
            for argv, each in zip(argvs, ended, strict=True):
                lost = f"exit {each.code}: {each.said[-700:]}" if each.code or "Traceback" in each.said else None
                yield Try(f"{name}: {argv[0]}", lost or (f"left: {each.left}" if each.left else None))
            yield Try(f"{name}: the run", _of_run(at, argvs.count(evaluate), wanted))
            shutil.rmtree(at)


def _of_run(at: Path, evals: int, wanted: dict[str, Any]) -> str | None:
    """What is wrong with a run to which so many evaluations were added."""
    run_of = Run(at / "run")
    lines, digests = run_of.read_lines(EVALUATIONS), hashes(at / "run")
    if len(lines) != evals:
        return f"there are {len(lines)} evaluations and should be {evals}"
    if lines and lines[-1]["files"] != {name: digests.get(name) for name in lines[-1]["files"]}:
        return "the answers are not those of the newest evaluation"
    lost = apart({**content(at), "names": None}, {**wanted, "names": None})  # an eval adds files
    left = [name for name in hidden_in(at) if ".tunesmith-" in name]
    return lost or in_words(changes(at / "run")) or (f"left: {left}" if left else None)


FAULTS = [
    Fault("together: commands on one run", _on_one_run),
    Fault("together: 20 starts", _starts),
    Fault("together: 8 first uses", _first_uses),
    Fault("together: locks, clocks", _left_behind),
    Fault("together: renames", _renames),
]
