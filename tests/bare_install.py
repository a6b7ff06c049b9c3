"""A folder of links to the installed packages that a default install has, and commands that run with it alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
RUNNER = """
import contextlib, io, json, sys
from tunesmith.cli.app import main
results = []
for argv, typed in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    sys.stdin = io.StringIO(typed)
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(argv)
        except SystemExit as stopped:
            code = stopped.code or 0
    results.append([code, out.getvalue() + err.getvalue()])
print(json.dumps(results))
"""


def missing(extra: str) -> list[str]:
    """The names of an extra's packages that are not installed here, as they are imported."""
    names = [Requirement(each).name for each in EXTRAS[extra] if not each.startswith("tunesmith[")]
    return [name.replace("-", "_") for name in names if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def make_site(folder: Path, *extras: str) -> Path:
    """Links the packages of a default install, and those of some extras, into ``folder``."""
    requirements = [*PROJECT["dependencies"], *(each for extra in extras for each in EXTRAS[extra])]
    folder.mkdir()
    for found in [distribution("tunesmith"), *_closure([Requirement(each) for each in requirements])]:
        for name in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if name.endswith(".pth"):
                continue
            link = folder / name
            if not link.exists():
                link.symlink_to(str(found.locate_file(name)))
    return folder


def _closure(wanted: list[Requirement]) -> list[Distribution]:
    found: dict[str, Distribution] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        each = wanted.pop()
        key = (re.sub(r"[-_.]+", "-", each.name).lower(), frozenset(each.extras))
        if key in done:
            continue
        done.add(key)
        found[key[0]] = distribution(each.name)
        for text in found[key[0]].requires or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *each.extras)):
                wanted.append(needed)
    return list(found.values())


def run_commands(site: Path, folder: Path, cache: str, *commands: list[str], typed: str = "") -> list[tuple[int, str]]:
    """Runs command lines one after the other in a process that imports nothing but ``site`` and Tunesmith's source.

    Returns:
        Exit code and everything that was printed, of each.
    """
    ran = subprocess.run(
        [sys.executable, "-S", "-c", RUNNER],  # -S: the packages beside this interpreter are not there
        input=json.dumps([[argv, typed] for argv in commands]),
        capture_output=True,
        text=True,
        cwd=folder,
        env={
            "PYTHONPATH": f"{site}:{ROOT / 'src'}",
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "TUNESMITH_CACHE": cache,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        },
    )
    assert ran.returncode == 0, ran.stderr
    return [(code, text) for code, text in json.loads(ran.stdout.splitlines()[-1])]
