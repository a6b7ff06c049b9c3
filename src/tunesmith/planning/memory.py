"""The total memory of a device, and the most that this process has held of it."""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress

from tunesmith.runs.machine_memory import PROC, lines_of, machine_memory

GIB = 2**30
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGE = 2**20  # bytes
HEAP_MOST = 2**25  # bytes: glibc takes no larger threshold


def total_memory(device: str) -> int:
    """Bytes of the device, used or free. On a CPU a container's limit counts if it is lower (cgroup v1 and v2)."""
    if _is_cuda(device):
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    return machine_memory()


def limits(device: str) -> str:
    """The memory that this process may use, in words: of the device, and what the system allows below that."""
    found = [f"{total_memory(device) / GIB:.1f} GB of {device}"]
    if not _is_cuda(device):
        for name, kind in (("ulimit -v", resource.RLIMIT_AS), ("ulimit -d", resource.RLIMIT_DATA)):
            soft = resource.getrlimit(kind)[0]
            found += [] if soft == resource.RLIM_INFINITY else [f"{soft / GIB:.1f} GB of addresses ({name})"]
    return ", and ".join(found)


def begin_peak(device: str) -> int:
    """Starts counting for ``peak``. Returns the bytes held now: resident on a CPU, reserved by torch on CUDA."""
    if _is_cuda(device):
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_reserved(device)
    with suppress(OSError):  # not permitted: then what was held before counts too
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
    """A size of this process, or the peak of its whole life if the system does not tell it."""
    for line in lines_of(PROC / "status"):
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def give_back_large_blocks() -> None:
    """Makes glibc return every freed block above 1 MiB to the system, for the rest of the process.

    Otherwise long-lived blocks (a layer's input) pin the holes around them, and checkpointing saves a fifth of what it
    could (docs/lab.md). Other C libraries have no such setting and do not need it.
    """
    _mallopt(M_MMAP_THRESHOLD, LARGE)


def keep_freed_blocks() -> None:
    """Makes glibc keep freed memory for the next step, for the rest of the process.

    Otherwise the passes of a step, which take and free the same few sizes, fault the same pages in again and again:
    5% of a step if attention is computed in many small pieces (docs/lab.md).
    """
    _mallopt(M_MMAP_THRESHOLD, HEAP_MOST)
    _mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _mallopt(name: int, value: int) -> None:
    with suppress(AttributeError, OSError):  # no glibc
        ctypes.CDLL(None).mallopt(name, value)
