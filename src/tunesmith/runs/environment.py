"""Records what a run was made with: packages, processor, git state."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith.runs.git import git_state
from tunesmith.safe_text import without_secret_arguments

RECORDED_PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers", "safetensors", "numpy",
    "jinja2", "liger-kernel",
)  # fmt: skip
_NOT_OF_TRAINING = ("cli", "deploy", "workflows/demo", "data/report")  # folders of code that no byte of a run is from


def package_versions() -> dict[str, str | None]:
    """The version of Tunesmith and of each recorded package; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for name in ("tunesmith", *RECORDED_PACKAGES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def source_digest() -> str:
    """A sha256 of the code of Tunesmith that a run goes through: by its contents, whatever the version is called."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(tuple(f"{folder}/" for folder in _NOT_OF_TRAINING)):
            digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def environment(threads: int, gpu: str | None = None) -> dict[str, Any]:
    """Versions, machine, git state and thread count, which must be the same for the same bytes.

    ``gpu``: the name of the GPU that computes, if one does.
    """
    return {
        "python": platform.python_version(),
        "packages": package_versions(),
        "platform": platform.platform(),
        "processor": processor(),
        "gpu": gpu,
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads": threads,
        "command": without_secret_arguments(sys.argv),
        "git": git_state(Path.cwd()),
    }


def processor() -> str:
    """The name of the processor, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()  # platform.processor() would start a program
