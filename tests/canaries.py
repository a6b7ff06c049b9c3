"""Files that leave a mark if their code is run, for tests that nothing of a foreign folder runs."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

ENTRY_POINTS = (
    "torch.backends",
    "fsspec.specs",
    "huggingface_hub",
    "transformers",
    "datasets",
    "opentelemetry_context",
)


class Canary:
    """A file that does not exist until some code writes its name into it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def shell(self, name: str = "sang") -> str:
        """A shell command that leaves the mark."""
        return f"echo {name} >> '{self.mark}'"

    def python(self, name: str = "sang", *, then: str = "") -> str:
        """Python code that leaves the mark. It imports only what is built in, so nothing can stand before it."""
        line = f"{name}\n".encode()
        return f"""import posix as _posix
_file = _posix.open({str(self.mark)!r}, {os.O_CREAT | os.O_APPEND | os.O_WRONLY}, 0o644)
_posix.write(_file, {line!r})
_posix.close(_file)
{then}
"""

    def script(self, file: Path, *, then: str = "exit 1") -> Path:
        """An executable file that leaves the mark."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{self.shell(file.name)}\n{then}\n")
        file.chmod(0o755)
        return file

    @property
    def heard(self) -> list[str]:
        """The names of what ran."""
        return sorted(set(self.mark.read_text().split())) if self.mark.is_file() else []


def module_names() -> list[str]:
    """Every module of Python and every installed package but Tunesmith's own, and some that are often looked for."""
    installed = Path(sysconfig.get_path("purelib"))
    found = {
        entry.name.partition(".")[0] for entry in installed.iterdir() if entry.suffix not in (".dist-info", ".pth")
    }
    names = {*sys.stdlib_module_names, *found, "usercustomize", "sitecustomize", "ujson", "orjson", "simplejson"}
    return sorted(
        name for name in names if name.isidentifier() and name not in ("tunesmith", "__future__", "__pycache__")
    )


def fill_with_modules(folder: Path, canary: Canary, names: list[str]) -> None:
    """A file for each name that leaves its name and fails, so that a program that takes it is noticed at once."""
    listed = folder / "own-1.0.dist-info"  # a package that says what other packages should import
    listed.mkdir()
    (listed / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (listed / "entry_points.txt").write_text("".join(f"[{group}]\nown = entry_point:run\n" for group in ENTRY_POINTS))
    for name in (*names, "entry_point"):
        (folder / f"{name}.py").write_text(canary.python(name, then=f"raise ImportError('the {name} of the folder')"))
