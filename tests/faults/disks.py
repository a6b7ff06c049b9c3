"""A disk that is full from one moment on: at every kind of file that a command writes.

The disk is a small tmpfs of its own where this may be mounted, which then holds not one more page; elsewhere one call
fails as it would on such a disk.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.faults.points import Points
from tests.faults.processes import Command, Ended
from tests.faults.table import Fault, Try
from tests.faults.world import METHODS, TRAIN, apart, content, hashes, hidden_in, make_world, write_recipe

from tunesmith.runs.folder import Run
from tunesmith.runs.manifest import changes, in_words
from tunesmith.runs.run_files import COMPARISONS, EVALUATIONS

SIZE = "24m"
FILLER = "filler"
NO_REPORT = "The run is complete without them."


@contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """A disk of its own at this place. Gives whether there is one; without it, calls are made to fail."""
    place.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(place)], check=True)


def _fill(place: Path) -> None:
    descriptor = os.open(place / FILLER, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(descriptor, bytes(2**16)):
            pass
    except OSError:
        os.close(descriptor)


def _fail() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _kinds(lines: Sequence[str]) -> list[int]:
    """The numbers of the points that make something grow: the first two for each kind of call and file."""
    seen: dict[str, int] = {}
    found = []
    for number, line in enumerate(lines, 1):
        verb, _, path = line.partition(" ")
        if verb in ("open", "write", "mkdir"):
            key = f"{verb} {path.rpartition('/')[2]}"
            seen[key] = seen.get(key, 0) + 1
            if seen[key] <= 2:
                found.append(number)
    return found


def _spread(numbers: Sequence[int], count: int) -> list[int]:
    if len(numbers) <= count:
        return list(numbers)
    return [numbers[round(at * (len(numbers) - 1) / (count - 1))] for at in range(count)]


def _said_wrong(ended: Ended) -> str | None:
    """What is wrong with the end of a command that met a full disk."""
    said = ended.said
    if ended.code not in (1, 3) or "Traceback" in said:
        return f"exit {ended.code}: {said[-700:]}"
    full = os.strerror(errno.ENOSPC) in said and "bytes are free on the disk of" in said
    return None if full else f"it does not say what is free: {said[-700:]}"


def _tries(
    folder: Path,
    argv: Sequence[str],
    new: Callable[[Path], None],
    result: Callable[[Path], dict],
    after: Callable[[Path, dict], str | None],
    *,
    count: int | None,
    environment: dict[str, str] | None = None,
) -> Iterator[Try]:
    """Fills the disk at the points of one command, in a new folder each time, and gives the same command again.

    Args:
        new: makes what the command needs, in an empty folder; ``run`` in it is the small disk.
        result: what the command made.
        after: what is wrong with what a failed command left, given the result of one that did not fail.
        count: of the points; None for all kinds.
    """

    def attempt(at: Path, points: Points | None = None) -> Ended:
        return Command(argv, at, points=points, environment=environment).wait()

    whole = folder / "whole"
    new(whole)
    points = Points(folder / "points.log")
    ended = attempt(whole, points)
    if ended.code != 0:
        yield Try("a disk that is not full", ended.said[-1500:])
        return
    wanted = result(whole)
    numbers = [number for number in _kinds(points.lines()) if " run/" in points.lines()[number - 1]]
    for number in numbers if count is None else _spread(numbers, count):
        at = folder / f"point {number}"
        at.mkdir()
        with small_disk(at / "run") as real:
            new(at)
            act = (lambda at=at: _fill(at / "run")) if real else _fail
            done = Points(folder / "point.log", kill_at=number, act=act)
            ended = attempt(at, done)
            (at / "run" / FILLER).unlink(missing_ok=True)
            what = f"full at point {number}, {(done.lines() or ['nothing'])[number - 1 if real else -1]}"
            if ended.code == 0 and NO_REPORT in ended.said:  # the run is whole, and the same command makes its report
                attempt(at)
            wrong = None if ended.code == 0 and apart(result(at), wanted) is None else _said_wrong(ended)
            wrong = wrong or (after(at, wanted) if ended.code else None)
            if wrong is None and ended.code:
                again = attempt(at)
                wrong = again.said[-900:] if again.code else apart(result(at), wanted)
            yield Try(what, wrong)
        shutil.rmtree(at)


def _checkpoints(at: Path, wanted: dict) -> str | None:
    """What is wrong with the checkpoints that a run left."""
    saved = at / "run" / "checkpoints"
    half = sorted(path.name for path in saved.glob(".*"))
    if half:
        return f"left: {half}"
    for path in sorted(saved.glob("step-*")):
        weights = [(f"{path.name}/{name}", digest) for name, digest in hashes(path).items() if name.startswith("adapt")]
        if len(weights) != 2 or any(wanted[name] != digest for name, digest in weights):
            return f"{path.name} is offered and not whole: {sorted(hashes(path))}"
    return None


def _training(folder: Path, whole: bool) -> Iterator[Try]:
    world = make_world(folder / "world")

    def new(at: Path) -> None:
        made = at.with_name(f"{at.name} recipe")
        write_recipe(world, made, "lora with dropout")
        at.mkdir(exist_ok=True)
        (made / "recipe.yaml").rename(at / "recipe.yaml")
        made.rmdir()

    yield from _tries(folder, TRAIN, new, content, _checkpoints, count=None if whole else 4)


def _of_command(argv: Sequence[str], out: str, environment: dict[str, str] | None = None) -> Callable:
    """The tries of a command that writes ``out``. ROWS, MODEL and TUNED in ``argv`` stand for what the world has."""

    def tries(folder: Path, whole: bool) -> Iterator[Try]:
        world = make_world(folder / "world")
        tuned = folder / "tuned"
        if "TUNED" in argv:
            write_recipe(world, tuned, next(iter(METHODS)))
            Command(TRAIN, tuned).wait()
        places = {"ROWS": world / "rows.jsonl", "MODEL": world / "model", "TUNED": tuned / "run"}

        def new(at: Path) -> None:
            (at / "run").mkdir(parents=True, exist_ok=True)

        def result(at: Path) -> dict:
            made = at / "run" / out
            found = hashes(made) if made.is_dir() else {"": made.read_bytes()} if made.exists() else {}
            own = ("state.json", "tunesmith_merge.json", "README.md", ".lock", "provenance.json", ".arrow")
            return {name: value for name, value in found.items() if not name.endswith(own)}

        def after(at: Path, wanted: dict) -> str | None:
            left = [
                path for path in (at / "run").iterdir() if path.name != ".answers.answers" and out not in ("cache",)
            ]
            return f"left: {left}" if left else None

        named = [str(places.get(word, word)) for word in argv]
        yield from _tries(
            folder, named, new, result, after, count=None if whole else 2, environment=environment
        )  # fmt: skip

    return tries


def _of_result(argv: Sequence[str], name: str) -> Callable:
    """The tries of a command that adds a line to the file ``name`` of a run."""

    def tries(folder: Path, whole: bool) -> Iterator[Try]:
        world, tuned = make_world(folder / "world"), folder / "tuned"
        write_recipe(world, tuned, "lora with dropout")
        Command(TRAIN, tuned).wait()
        trained = content(tuned)

        def new(at: Path) -> None:
            shutil.copytree(tuned / "run", at / "run", dirs_exist_ok=True)

        def result(at: Path) -> dict:
            line, digests = Run(at / "run").read_lines(name)[-1], hashes(at / "run")
            answers = {each: digests.get(each) == digest for each, digest in line.get("files", {}).items()}
            found = {key: line.get(key) for key in ("verdict", "rows", "metrics")}
            return {**found, "answers": answers, "damaged": changes(at / "run")}

        def after(at: Path, wanted: dict) -> str | None:
            lost = apart({**content(at), "names": None}, {**trained, "names": None})
            left = [path for path in hidden_in(at) if ".tunesmith-" in path]
            return lost or in_words(changes(at / "run")) or (f"left: {left}" if left else None)

        places = {"ROWS": world / "rows.jsonl", "TUNED": tuned / "run"}
        named = [str(places.get(word, word)) for word in argv]
        yield from _tries(folder, named, new, result, after, count=None if whole else 3)

    return tries


_COMMANDS = {
    "prepare": (["prepare", "ROWS", "--out", "run/made"], "made"),
    "merge": (["merge", "TUNED", "--out", "run/merged"], "merged"),
    "check --html": (["check", "ROWS", "--no-near", "--html", "run/page.html"], "page.html"),
    "init": (["init", "ROWS", "--model", "MODEL", "--out", "run/r.yaml"], "r.yaml"),
    "generate": (
        ["generate", "MODEL", "max_new_tokens=2", "--data", "ROWS", "--out", "run/answers.csv"],
        "answers.csv",
    ),
    "cache": (["check", "ROWS", "--no-near", "--model", "MODEL"], "cache", {"TUNESMITH_CACHE": "run/cache"}),
}
FAULTS = [
    Fault("disk full: train", _training),
    Fault("disk full: eval", _of_result(["eval", "run", "--data", "ROWS"], EVALUATIONS)),
    Fault("disk full: compare", _of_result(["compare", "run", "TUNED"], COMPARISONS)),
    *(Fault(f"disk full: {name}", _of_command(*command)) for name, command in _COMMANDS.items()),
]
