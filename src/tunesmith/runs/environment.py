"""Records what a run was made with: packages, processor, git state."""

from __future__ import annotations

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
)  # fmt: skip


def environment(threads: int) -> dict[str, Any]:
    """Versions, machine, git state and thread count, which must be the same for the same bytes."""
    versions = {}
    for name in ("tunesmith", *RECORDED_PACKAGES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads": threads,
        "command": without_secret_arguments(sys.argv),
        "git": git_state(Path.cwd()),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()  # platform.processor() would start a program
