"""Damaged files: each file of a checkpoint, of a run and of the cache is cut off, loses a bit, or is gone.

Commands are real processes. One that only reads must say which file is damaged, and refuse it where it would be used.
A run that continues must end with the same bytes as without the damage.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.damage import damages
from tests.faults.processes import Ended, run
from tests.faults.table import Fault, Try
from tests.faults.world import TRAIN, apart, content, copy_of, hashes, make_world, write_recipe

from tunesmith.runs.folder import Run
from tunesmith.runs.manifest import MANIFEST
from tunesmith.runs.run_files import CARD, RECIPE, REPORT

GENERATE = ["generate", "run", "--prompt", "Name it.", "max_new_tokens=1"]
SHOW = ["runs", "show", "run"]
BY_TRAINING = ("optimizer.safetensors", "training_state.json")
TRACEBACK = "Traceback (most recent call last)"


def _spoil(path: Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def _said(ended: Ended, name: str, *, codes: tuple[int, ...]) -> str | None:
    """What is wrong with what a command said about a damaged file."""
    if ended.code not in codes:
        return f"exit {ended.code}: {ended.said[-800:]}"
    if TRACEBACK in ended.said:
        return ended.said[-1500:]
    return None if name in ended.said else f"{name} is not named: {ended.said[-800:]}"


def _made(world: Path, folder: Path, method: str) -> Path:
    write_recipe(world, folder, method)
    ended = run(TRAIN, folder)
    assert ended.code == 0, ended.said
    (folder / "output.txt").unlink()
    return folder


def _result(folder: Path) -> Path:
    found = Run(folder / "run").result
    assert found is not None
    return found


def _few(tried: list[tuple[str, bytes | None]], whole: bool, number: int = 0) -> list[tuple[str, bytes | None]]:
    """All, or one that differs with the number of the file: cut off, a bit flipped, deleted, ..."""
    return tried if whole else [(tried[-1], tried[len(tried) // 2], tried[min(1, len(tried) - 1)])[number % 3]]


def _reading_a_checkpoint(method: str, folder: Path, whole: bool) -> Iterator[Try]:
    """A damaged newest checkpoint of a finished run is refused by commands that only read."""
    world = make_world(folder / "world")
    at = _made(world, folder / "made", method)
    newest = _result(at)
    for number, path in enumerate(sorted(newest.iterdir())):
        before = path.read_bytes()
        for what, damaged in _few(list(damages(before, seed=len(path.name))), whole, number):
            _spoil(path, damaged)
            ended = run(GENERATE, at)
            lost = _said(ended, path.name, codes=(0,) if path.name == BY_TRAINING[0] or damaged is None else (1, 2))
            if path.name == BY_TRAINING[0] and damaged is not None and len(damaged) == len(before):
                lost = None if ended.code == 0 else ended.said  # its content is verified by what reads it
            elif damaged is None and path.name not in (BY_TRAINING[0], MANIFEST):
                lost = _said(ended, path.name, codes=(1, 2))
            if ended.code and lost is None and "which is whole" not in ended.said:
                lost = f"no other checkpoint is named: {ended.said}"
            yield Try(f"{path.name}, {what}", lost)
            path.write_bytes(before)


def _continuing(method: str, folder: Path, whole: bool) -> Iterator[Try]:
    """A run whose newest checkpoint is damaged ends with the same bytes, and the damaged one is kept aside."""
    world = make_world(folder / "world")
    made = _made(world, folder / "made", method)
    wanted = content(made)
    names = sorted(path.name for path in _result(made).iterdir())
    for number, name in enumerate(names if whole else _weights(names), start=1):
        tried = list(damages((_result(made) / name).read_bytes(), seed=len(name)))
        for what, damaged in tried if whole and name in _weights(names) else _few(tried, False, number):
            at = copy_of(made, folder / "at")
            newest = _result(at)
            _spoil(newest / name, damaged)
            ended = run(TRAIN, at)
            lost = _said(ended, name, codes=(0,))
            if lost is None and (name, damaged) != (MANIFEST, None):
                aside = at / "run" / "set_aside" / newest.name
                lost = None if aside.is_dir() else "the damaged checkpoint is not kept"
                shutil.rmtree(at / "run" / "set_aside", ignore_errors=True)
            yield Try(f"{name}, {what}", lost or apart(content(at), wanted))
            shutil.rmtree(at)


def _weights(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".safetensors")]


def _run_files(method: str, folder: Path, whole: bool) -> Iterator[Try]:
    """Each of a run's own files, damaged: a command that reads the run names it."""
    world = make_world(folder / "world")
    at = _made(world, folder / "made", method)
    run(["eval", "run"], at)
    besides = (
        ".lock",
        ".keeping",
        REPORT,
        CARD,
    )  # pages that nothing reads, that the user may edit, and that are made again
    files = [path for path in sorted((at / "run").iterdir()) if path.is_file() and path.name not in besides]
    for number, path in enumerate(files):
        before = path.read_bytes()
        for what, damaged in _few(list(damages(before, seed=len(path.name))), whole, number):
            _spoil(path, damaged)
            ended = run(SHOW, at)
            if path.name == RECIPE and damaged is not None and damaged.split() == before.split():
                yield Try(f"{path.name}, {what}", None if ended.code == 0 else ended.said)  # it says the same
                path.write_bytes(before)
                continue
            named = path.name if (path.name, damaged) != ("status.json", None) else "run"
            yield Try(f"{path.name}, {what}", _said(ended, named, codes=(0, 1, 2)))
            path.write_bytes(before)


def _cache(folder: Path, whole: bool) -> Iterator[Try]:
    """Damaged tokens in the shared cache are made again: the same bytes, and that is said."""
    world = make_world(folder / "world")
    write_recipe(world, folder / "at", "lora with dropout")
    check = ["train", "recipe.yaml", "--dry-run"]
    ended = run(check, folder / "at")
    kept = folder / "at" / "cache" / "tokens"
    wanted = {name: digest for name, digest in hashes(kept).items() if not name.endswith(".lock")}
    if ended.code or len(wanted) != 2:
        yield Try("the cache that is not damaged", f"{wanted} {ended.said[-500:]}")
        return
    for number, path in enumerate(sorted(kept / name for name in wanted), start=1):
        before = path.read_bytes()
        for what, damaged in _few(list(damages(before)), whole, number):
            _spoil(path, damaged)
            ended = run(check, folder / "at")
            gone = damaged is None and path.suffix == ".arrow"  # a cache may be cleared at any time
            lost = None if gone else _said(ended, path.stem, codes=(0,))
            if damaged is None and path.suffix == ".sha256":
                path.write_bytes(before)
            found = {name: digest for name, digest in hashes(kept).items() if not name.endswith(".lock")}
            yield Try(f"{path.suffix}, {what}", lost or apart(found, wanted))


METHODS = ("lora with dropout", "full", "dpo", "best of all, one kept")

FAULTS = [
    *(Fault(f"corrupt checkpoint, read: {name}", partial(_reading_a_checkpoint, name)) for name in METHODS[:2]),
    *(Fault(f"corrupt checkpoint, resume: {name}", partial(_continuing, name)) for name in METHODS),
    *(Fault(f"corrupt run file: {name}", partial(_run_files, name)) for name in (METHODS[0], METHODS[2])),
    Fault("corrupt cache", _cache),
]
