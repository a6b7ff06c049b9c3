"""One run of a trainer as a process of its own: job in, result out, within a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

LAST_LINES = 3


class Failed(Exception):
    """A run ended without a result; says its last error lines."""


def run(python: Path, script: Path, job: dict[str, Any], *, limit: float) -> dict[str, Any]:
    """What ``script`` measured.

    Args:
        job: handed over as a JSON file; ``threads`` also bounds OpenMP.
        limit: seconds, after which the process is ended with all that it started.

    Raises:
        Failed: no result, or not in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered, said = (Path(folder) / name for name in ("job.json", "result.json", "output.txt"))
        asked.write_text(json.dumps(job), encoding="utf-8")
        # What a trainer leaves in its temporary folder goes with ours.
        settings = {"OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1", "TMPDIR": folder}
        with said.open("wb") as output:
            started = subprocess.Popen(
                [python, script, asked, answered], env={**os.environ, **settings}, stdout=output, stderr=output,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                code = started.wait(limit)
            except subprocess.TimeoutExpired:
                raise Failed(f"not finished after {limit:.0f} s") from None
            finally:
                _end(started)
        if code or not answered.is_file():
            lines = [line.strip() for line in said.read_text(encoding="utf-8", errors="replace").splitlines()]
            raise Failed(" | ".join([line for line in lines if line][-LAST_LINES:]) or f"exit code {code}")
        return json.loads(answered.read_text(encoding="utf-8"))


def step_done(job: dict[str, Any], seconds: float) -> None:
    """Adds a step's seconds to the file that the job names for those who watch the run, if it names one."""
    if "progress" in job:
        with Path(job["progress"]).open("a", encoding="utf-8") as file:
            file.write(f"{seconds!r}\n")


def _end(started: subprocess.Popen[bytes]) -> None:
    """The process and what it started, also after Ctrl-C."""
    if started.poll() is None:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
