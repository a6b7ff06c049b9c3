"""Runs commands of Tunesmith as real processes that can be killed, signalled, or made to die at a point of their work.

Importing torch takes seconds, so most commands run in a fork of a process that has imported everything and computed
nothing. Such a child is a process like any other: it has its own group, folder, output and signal handlers, and ends as
Python ends, with threads joined and exit functions called. ``anew`` starts a new interpreter instead; what both write
is compared.
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.points import Points

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST = 120.0  # seconds that a command may take before it counts as hanging
MODULES = (
    "tunesmith.cli.app", "tunesmith.workflows.finetune", "tunesmith.workflows.evaluate", "tunesmith.deploy.merge",
    "tunesmith.workflows.answer_rows", "tunesmith.workflows.prepare_data", "tunesmith.workflows.check",
    "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "peft.tuners.lora.model",
    "transformers.generation.utils", "datasets.arrow_writer", "bitsandbytes",
    "tunesmith.workflows.compare", "tunesmith.workflows.benchmarks", "lm_eval.evaluator", "lm_eval.tasks",
)  # fmt: skip


def warm() -> None:
    """Imports what commands use. It computes nothing, so a fork has no threads and draws the same random numbers."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", TUNESMITH_WORKERS="1")
    for name in MODULES:
        importlib.import_module(name)


@dataclass(slots=True)
class Ended:
    """How a command ended: its exit code as a shell gives it, what it wrote, the seconds, and what it left behind."""

    code: int
    said: str
    seconds: float
    left: list[str]


class Command:
    """A command that has been started in ``folder``, with its cache in ``folder/cache`` and TMPDIR in ``folder/tmp``.

    Args:
        argv: of ``tunesmith``.
        points: counts what the command does to files, and may kill it; a fork only.
        anew: start a new interpreter.
        environment: on top of this process's own.
    """

    def __init__(
        self,
        argv: Sequence[str],
        folder: Path,
        *,
        points: Points | None = None,
        anew: bool = False,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.began, self.folder = time.monotonic(), folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.output = folder / "output.txt"
        self.output.write_bytes(b"")
        own = {"TUNESMITH_CACHE": str(folder / "cache"), "TMPDIR": str(self.temporary), **(environment or {})}
        if anew:
            with self.output.open("ab") as out:
                self.pid = subprocess.Popen(
                    [sys.executable, "-m", "tunesmith", *argv],
                    cwd=folder, env={**os.environ, **own}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    start_new_session=True,
                ).pid  # fmt: skip
            return
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be_the_command(argv, folder, self.output, own, points)

    def signal(self, number: int) -> None:
        """Sends a signal to the process, which may have ended."""
        os.kill(self.pid, number)  # it is ours and not yet waited for, so the id is still its own

    def wait(self, at_most: float = LONGEST) -> Ended:
        """Waits for the end. A command that hangs is killed, and its code is 0 minus 1."""
        until, hung = time.monotonic() + at_most, False
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > until:
                hung = True
                os.kill(self.pid, signal.SIGKILL)
                until += LONGEST
            time.sleep(0.003)
        code = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - self.began
        said = self.output.read_text(errors="replace")
        left = [f"process {pid}" for pid in self._others()]
        left += [f"tmp/{path.relative_to(self.temporary)}" for path in sorted(self.temporary.rglob("*"))]
        return Ended(-1 if hung else code if code >= 0 else 128 - code, said, seconds, left)

    def _others(self) -> list[int]:
        """Processes of the command's group that are still there two seconds after it; they are ended."""
        found: list[int] = []
        for _ in range(40):
            found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _group(pid) == self.pid]
            if not found:
                return []
            time.sleep(0.05)
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return found


def run(argv: Sequence[str], folder: Path, *, points: Points | None = None, anew: bool = False) -> Ended:
    """Runs a command to its end."""
    return Command(argv, folder, points=points, anew=anew).wait()


def _group(pid: int) -> int | None:
    try:
        state, _, group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else int(group)


def _be_the_command(
    argv: Sequence[str], folder: Path, output: Path, environment: dict[str, str], points: Points | None
) -> None:
    """Turns this fork into the command. It never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ.update(environment)
        nowhere, out = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_APPEND)
        for source, target in ((nowhere, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        if points is not None:
            points.watch(folder)
        from tunesmith.cli.app import main

        code = _code_of(lambda: main(argv))
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue] - as the end of a Python process does
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(code)


def _code_of(call) -> int:
    """The exit code of a call that ends the process. An interrupt that nobody caught ends it as Python does."""
    try:
        call()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType] - there is one
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - printed as Python does
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType] - there is one
    return 1
