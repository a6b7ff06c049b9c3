"""The peers' own environments, .venv-bench-NAME beside .venv, each made whole from bench/requirements-NAME.txt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LISTING = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"


class Unavailable(Exception):
    """An environment could not be made; says what failed."""


def python(name: str) -> Path:
    """The interpreter of a peer's environment, made first unless it was finished from this very list.

    If torch is in it, it comes first and with its dependencies, so that a machine takes the build that suits it.

    Raises:
        Unavailable: a command failed; with its last lines.
    """
    folder = HERE.parent / f".venv-bench-{name}"
    interpreter, marker = folder / "bin" / "python", folder / ".made"
    list_of_all = HERE / f"requirements-{name}.txt"
    wanted = list_of_all.read_text(encoding="utf-8")
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return interpreter
    print(f"making {folder.name}, which takes some minutes", flush=True)
    install = [interpreter, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    torch = [line for line in wanted.splitlines() if line.startswith("torch==")]
    _call([sys.executable, "-m", "venv", "--clear", folder])
    if torch:
        _call([*install, *torch])
    _call([*install, "--no-deps", "-r", list_of_all])
    marker.write_text(wanted, encoding="utf-8")
    return interpreter


def versions(interpreter: Path) -> dict[str, str]:
    """What is installed beside an interpreter."""
    done = subprocess.run([interpreter, "-c", LISTING], capture_output=True, text=True, check=True)
    return dict(sorted(json.loads(done.stdout).items()))


def _call(command: list[str | Path]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Unavailable(" | ".join(done.stdout.strip().splitlines()[-3:]) or f"exit code {done.returncode}")
