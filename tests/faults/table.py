"""The table of `make faults`: what was tried, how often it survived, and how often something was lost.

To add a row, put a ``Fault`` into the list ``FAULTS`` of a module of this folder, new or old; nothing is registered
anywhere else:

    def _full_disks(folder: Path, whole: bool) -> Iterator[Try]:
        for name in FILES if whole else FILES[:2]:
            ...                                   # real processes that work in ``folder``
            yield Try(f"no room for {name}", None if kept else "the previous checkpoint does not load")

    FAULTS = [Fault("disk full", _full_disks)]

``make faults`` runs the whole form of every row, several rows at a time, and prints the table; it exits with 1 if
anything was lost. ``make faults FAULTS_ARGS="kill --short"`` chooses rows by a part of their name, and the short form.
``make test`` runs the short forms of some modules, through test_faults.py: keep yours to a few seconds, and the whole
one to minutes. A row with ``short=False`` is in the whole form only.
A row starts in a process of its own whose torch, transformers and tunesmith are imported already, and nothing is
computed yet. ``tests.faults.processes`` runs commands in forks of it.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path

SHOWN = 5  # losses that are named below the table, for each row


@dataclass(frozen=True, slots=True)
class Try:
    """One try. ``lost`` says what did not survive; None if all did."""

    what: str
    lost: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of the table. ``tries`` gets an empty folder, and whether to try everything or a few things.

    Without ``short``, it is tried in the whole form only.
    """

    name: str
    tries: Callable[[Path, bool], Iterator[Try]]
    short: bool = True


@dataclass(slots=True)
class Row:
    """What came of a fault."""

    name: str
    tries: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0


def faults_by_module() -> dict[str, list[Fault]]:
    """The faults of every module of this folder that has some."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith(("_", "test_")))
    modules = {name: importlib.import_module(f"tests.faults.{name}") for name in names if name != "table"}
    return {name: module.FAULTS for name, module in modules.items() if hasattr(module, "FAULTS")}


def run_row(fault: Fault, *, whole: bool, at_most: float = inf) -> Row:
    """Tries everything of one row, or what can be begun in so many seconds. An exception is a loss, too."""
    row, began = Row(fault.name), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        for each in fault.tries(folder, whole):
            row.tries += 1
            if each.lost is not None:
                row.lost.append(f"{each.what}: {each.lost}")
                print(f"lost in {row.name}: {row.lost[-1]}", file=sys.stderr, flush=True)
            if time.monotonic() - began > at_most:
                break
    except Exception:  # noqa: BLE001 - the other rows still run, and the table says it
        row.tries += 1
        row.lost.append(f"the row itself failed: {traceback.format_exc()}")
    if row.lost and os.environ.get("FAULTS_KEEP"):
        print(f"{fault.name}: {folder} is kept", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    row.seconds = round(time.monotonic() - began, 1)
    return row


def run_rows(
    faults: Sequence[Fault], *, whole: bool, jobs: int, done: Callable[[Row], None], at_most: float = inf
) -> list[Row]:
    """Runs rows, each in a fork of this process, ``jobs`` at a time. The result has their order."""
    waiting, running, rows = list(enumerate(faults)), {}, {}
    # Not a TemporaryDirectory, which would be removed by each fork that ends as a Python process ends.
    results = Path(tempfile.mkdtemp(prefix="faults-"))
    while waiting or running:
        while waiting and len(running) < jobs:
            number, fault = waiting.pop(0)
            running[_fork(fault, results / str(number), whole=whole, at_most=at_most)] = number
        pid = next((pid for pid in running if os.waitpid(pid, os.WNOHANG)[0]), None)
        if pid is None:
            time.sleep(0.02)
            continue
        number = running.pop(pid)
        file = results / str(number)
        ended = {"name": faults[number].name, "tries": 1, "lost": ["the process of the row was ended"]}
        rows[number] = Row(**(json.loads(file.read_text()) if file.exists() else ended))
        done(rows[number])
    shutil.rmtree(results)
    return [rows[number] for number in sorted(rows)]


def _fork(fault: Fault, result: Path, *, whole: bool, at_most: float) -> int:
    """Starts a row in a fork, which leaves its result in a file. Returns the id of its process."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            text = json.dumps(asdict(run_row(fault, whole=whole, at_most=at_most)))
            result.with_suffix(".tmp").write_text(text)
            result.with_suffix(".tmp").rename(result)
        except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    return pid


def as_text(rows: Sequence[Row], seconds: float) -> str:
    """The table, what was lost below it, and one line for all."""
    total = Row("all", sum(row.tries for row in rows), [each for row in rows for each in row.lost], round(seconds, 1))
    width = max(len(row.name) for row in [*rows, total])
    lines = [f"{'fault':<{width}}  {'tries':>6}  {'survived':>8}  {'lost':>5}  {'seconds':>8}"]
    for row in [*rows, total]:
        survived = max(row.tries - len(row.lost), 0)
        lines.append(f"{row.name:<{width}}  {row.tries:>6}  {survived:>8}  {len(row.lost):>5}  {row.seconds:>8.1f}")
    for row in rows:
        lines += [f"\nlost in {row.name}: {each}" for each in row.lost[:SHOWN]]
    return "\n".join(lines)
