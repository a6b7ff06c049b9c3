"""The memory of a device in all, and what this process has held of it at most."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GIB = 2**30
PROC, CGROUPS = Path("/proc/self"), Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGE = 2**20  # bytes
HEAP_MOST = 2**25  # bytes: glibc takes no larger threshold


def total_memory(device: str) -> int:
    """Bytes of the device, used or free. On a CPU also a container's limit, where that is lower (cgroup v1 and v2)."""
    if _is_cuda(device):
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *group_limits()])


def group_limits(proc: Path = PROC, root: Path = CGROUPS) -> Iterator[int]:
    """Bytes that each control group above this process allows.

    Inside a container the groups are named as the host sees them while the folders begin at the container's own, so
    every folder from the named one up to the root is asked, where it is there.
    """
    for line in _lines(proc / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        own = folder / path.lstrip("/")
        for place in (own, *(parent for parent in own.parents if parent.is_relative_to(folder))):
            yield from (int(value) for value in _lines(place / name) if value.isdecimal())  # "max": no limit


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def begin_peak(device: str) -> int:
    """From here on ``peak`` counts. Returns the bytes held now: on a CPU resident, on CUDA reserved by torch."""
    if _is_cuda(device):
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_reserved(device)
    with suppress(OSError):  # not permitted: what was held before counts too
        (PROC / "clear_refs").write_text("5", encoding="utf-8")
    return _status("VmRSS")


def peak(device: str) -> int:
    """The most bytes held since ``begin_peak``."""
    if _is_cuda(device):
        import torch

        return torch.cuda.max_memory_reserved(device)
    return _status("VmHWM")


def _is_cuda(device: str) -> bool:
    return device.partition(":")[0] == "cuda"


def _status(key: str) -> int:
    """A size of this process; the peak of its whole life where the system does not tell it."""
    for line in _lines(PROC / "status"):
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def give_back_large_blocks() -> None:
    """Makes glibc give every freed block above 1 MiB back to the system, for the rest of the process.

    Else what lives long (a layer's input) pins the holes around it, and checkpointing saves a fifth of what it could
    (docs/lab.md). Other C libraries have no such setting and no such need.
    """
    _mallopt(M_MMAP_THRESHOLD, LARGE)


def keep_freed_blocks() -> None:
    """Makes glibc keep what is freed for the next step, for the rest of the process.

    Else the passes of a step, which take and free the same few sizes, fault the same pages in again and again: 5% of
    a step where attention is made of many small pieces (docs/lab.md).
    """
    _mallopt(M_MMAP_THRESHOLD, HEAP_MOST)
    _mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _mallopt(name: int, value: int) -> None:
    with suppress(AttributeError, OSError):  # no glibc
        ctypes.CDLL(None).mallopt(name, value)
