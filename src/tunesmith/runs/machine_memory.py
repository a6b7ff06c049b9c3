"""The memory of the machine, as far as this process may use it. This module imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc/self"), Path("/sys/fs/cgroup")


def machine_memory() -> int:
    """Bytes of the machine, used or free. A container's limit counts if it is lower (cgroup v1 and v2)."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *group_limits()])


def group_limits(proc: Path = PROC, root: Path = CGROUPS) -> Iterator[int]:
    """The bytes that each control group above this process allows.

    Inside a container the groups have the names that the host sees, but the folders begin at the container's own. So
    every folder from the named one up to the root is read, if it exists.
    """
    for line in lines_of(proc / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        own = folder / path.lstrip("/")
        for group in (own, *(parent for parent in own.parents if parent.is_relative_to(folder))):
            yield from (int(value) for value in lines_of(group / name) if value.isdecimal())  # "max": no limit


def lines_of(file: Path) -> list[str]:
    """The lines of a file of the system; none if there is no such file."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
