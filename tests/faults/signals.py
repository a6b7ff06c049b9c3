"""SIGINT, SIGTERM and SIGHUP: the process is gone within one step and a save, leaves nothing, and loses nothing.

A third of the tries send the signal a second time, as `timeout` and an impatient user do. The moments are drawn from
the time that the command takes, and each row begins with its own stages: a training run loads, tokenizes, rehearses,
steps, evaluates, saves and judges.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.faults.kills import COMMANDS, NEW, Prepare, _files_of, _spread
from tests.faults.points import Points
from tests.faults.processes import Command, Ended, run
from tests.faults.table import Fault, Try
from tests.faults.world import METHODS, TRAIN, apart, content, copy_of, hidden_in, make_world, write_recipe

MOMENTS = 20  # of each signal
GONE_WITHIN = 15.0  # seconds, on a machine that does other work; a step and a save here take 0.1
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECOND_AFTER = (0.0, 0.01, 0.1, 0.5)  # seconds after the first

Again = Callable[[Path, Ended], str | None]


def _signalled(
    argv: Sequence[str], at: Path, number: int, moment: float, *, twice: float | None, anew: bool = False
) -> tuple[Ended, float]:
    """How the command ended, and how long after the signal."""
    command = Command(argv, at, anew=anew)
    time.sleep(moment)
    command.signal(number)
    sent = time.monotonic()
    if twice is not None:
        time.sleep(twice)
        command.signal(number)
    ended = command.wait()
    return ended, time.monotonic() - sent


def _ill_ended(ended: Ended, number: int, seconds: float, at: Path) -> str | None:
    """What is wrong with the way a command ended; one that was done before the signal ends with 0."""
    if ended.code not in (0, 128 + number):
        return f"exit {ended.code}: {ended.said[-1500:]}"
    if "Traceback" in ended.said:
        return f"a traceback: {ended.said[-1500:]}"
    if seconds > GONE_WITHIN:
        return f"gone after {seconds:.1f} s"
    left = ended.left or hidden_in(at)
    return f"left: {left}" if left else None


def _tries(
    argv: Sequence[str], new: Callable[[str], Path], seconds: float, again: Again, moments: int, *, seed: str
) -> Iterator[Try]:
    draw = random.Random(seed)
    for count in range(moments):
        for number in NUMBERS:
            moment = draw.uniform(0, seconds)
            twice = draw.choice(SECOND_AFTER) if count % 3 == 1 else None
            name = signal.Signals(number).name
            at = new(f"{name} {count}")
            ended, took = _signalled(argv, at, number, moment, twice=twice)
            more = "" if twice is None else f" and {twice} s later"
            lost = _ill_ended(ended, number, took, at)
            yield Try(f"{name} after {moment:.3f} s{more}", lost or again(at, ended))
            shutil.rmtree(at)


def _training(folder: Path, whole: bool) -> Iterator[Try]:
    world, name = make_world(folder / "world"), "best of all, one kept"

    def new(label: str) -> Path:
        write_recipe(world, folder / label, name)
        return folder / label

    ended = run(TRAIN, new("whole"), anew=whole and NEW)
    wanted = content(folder / "whole")
    ended = run(TRAIN, new("warm"))

    def again(at: Path, before: Ended) -> str | None:
        ended = run(TRAIN, at)
        return f"exit {ended.code}: {ended.said[-1500:]}" if ended.code else apart(content(at), wanted)

    yield from _tries(TRAIN, new, ended.seconds, again, MOMENTS if whole else 1, seed="train")


def _at_points(name: str, folder: Path, whole: bool) -> Iterator[Try]:
    """A signal at each write, fsync and rename of a run: the moments at which a handler could do the most harm."""
    world = make_world(folder / "world")

    def new(label: str) -> Path:
        write_recipe(world, folder / label, name)
        return folder / label

    counted = Points(folder / "points.log")
    run(TRAIN, new("whole"), points=counted)
    wanted, lines = content(folder / "whole"), counted.lines()
    for number in _spread(range(1, len(lines) + 1), len(lines) if whole else 4):
        kind = NUMBERS[number % 3]
        points = Points(folder / "points.log", kill_at=number, act=partial(signal.raise_signal, kind))
        at = new(f"point {number}")
        ended = run(TRAIN, at, points=points)
        lost = _ill_ended(ended, kind, 0.0, at)
        if lost is None and (ended := run(TRAIN, at)).code:
            lost = f"exit {ended.code}: {ended.said[-1500:]}"
        what = f"{signal.Signals(kind).name} at point {number}, {lines[number - 1]}"
        limited = "save_total_limit" in METHODS[name].get("training", {})  # then no checkpoint of the stop is left
        yield Try(what, lost or apart(content(at), wanted, stopped=not limited))
        shutil.rmtree(at)


def _command(argv: Sequence[str], prepare: Prepare, refusal: str, folder: Path, whole: bool) -> Iterator[Try]:
    world = make_world(folder / "world")
    prepare(world, folder / "before")
    whole_run = run(argv, copy_of(folder / "before", folder / "whole"))
    wanted = _files_of(folder / "whole")

    def again(at: Path, before: Ended) -> str | None:
        ended = run(argv, at)
        if ended.code and not (refusal and refusal in ended.said):
            return f"exit {ended.code}: {ended.said[-1500:]}"
        return apart(_files_of(at), wanted)

    moments = MOMENTS if whole else 1
    yield from _tries(
        argv,
        lambda label: copy_of(folder / "before", folder / label),
        whole_run.seconds,
        again,
        moments,
        seed=argv[0],
    )


def _new_interpreters(folder: Path, whole: bool) -> Iterator[Try]:
    """Processes that are not forks: most of their time they import torch."""
    world = make_world(folder / "world")

    def new(label: str) -> Path:
        write_recipe(world, folder / label, "full")
        return folder / label

    took = run(TRAIN, new("whole"), anew=True).seconds
    wanted, draw = content(folder / "whole"), random.Random("new")
    for count in range(MOMENTS // 2 if whole else 1):
        for number in NUMBERS if whole else NUMBERS[:1]:
            moment, at = draw.uniform(0.5, took), new(f"{number} {count}")
            ended, seconds = _signalled(TRAIN, at, number, moment, twice=None, anew=True)
            lost = _ill_ended(ended, number, seconds, at)
            if lost is None and (ended := run(TRAIN, at)).code:
                lost = f"exit {ended.code}: {ended.said[-1500:]}"
            yield Try(
                f"{signal.Signals(number).name} after {moment:.2f} s", lost or apart(content(at), wanted, stopped=True)
            )
            shutil.rmtree(at)


FAULTS = [
    Fault("signals, train", _training),
    *(
        Fault(f"signals, train, at every write, {name}", partial(_at_points, name), short=False)
        for name in ("lora with dropout", "best of all, one kept", "early stopping")
    ),
    Fault("signals, train, in a new interpreter", _new_interpreters, short=False),
    *(
        Fault(f"signals, {name}", partial(_command, *COMMANDS[name]), name == "prepare")
        for name in ("prepare", "merge", "generate --data", "eval", "compare", "eval --tasks")
    ),
]
