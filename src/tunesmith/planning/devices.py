"""The devices to plan for: GPUs with the memory and speed that vendors publish, and this machine's own device.

Peaks are dense (without structured sparsity); vendors' headline figures are often twice that.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import os
import re
import subprocess
from dataclasses import dataclass

from tunesmith.errors import RecipeError, RunError
from tunesmith.model.weights.device import resolve_device
from tunesmith.planning.memory import GIB, total_memory
from tunesmith.runs.child_processes import clean_environment, python_command

GB = 10**9
TERA = 10**12
# A product of two square matrices for a fifth of a second, on a given number of threads, in a process of its own:
# a BLAS takes its threads when it is loaded.
SGEMM = """
import json, sys, time
import numpy
size = 1024
one = numpy.ones((size, size), dtype=numpy.float32)
out = numpy.empty_like(one)
numpy.matmul(one, one, out=out)
seconds, begin = [], time.perf_counter()
while len(seconds) < 3 or time.perf_counter() - begin < 0.2:
    start = time.perf_counter()
    numpy.matmul(one, one, out=out)
    seconds.append(time.perf_counter() - start)
print(json.dumps(2 * size**3 / sorted(seconds)[len(seconds) // 2]))
"""


@dataclass(frozen=True, slots=True)
class Device:
    """A CPU or GPU, with its ``memory`` in bytes.

    ``fp32`` is its speed in FLOP/s, NaN if it was not measured. ``half`` is that in half precision with fp32 sums, None
    on a CPU. ``bandwidth``: bytes/s of its memory. ``bf16``: whether it computes in bfloat16, which `dtype: auto` asks
    for. ``cpus``: processors beside it, 0 for a device of the table.
    """

    name: str
    kind: str
    memory: int
    fp32: float = math.nan
    half: float | None = None
    bandwidth: float | None = None
    bf16: bool = True
    cpus: int = 0

    @property
    def described(self) -> str:
        """The machine in a few words."""
        cpus = f"{self.cpus} CPU{'s' * (self.cpus != 1)}"
        size = f"{self.memory / GIB:.0f} GB"
        return f"{cpus}, {size} of memory, no GPU" if self.kind == "cpu" else f"{cpus}, {self.name} ({size})"

    @property
    def dtype(self) -> str:
        """The dtype that `model.dtype: auto` means there."""
        return "bfloat16" if self.kind == "cuda" and self.bf16 else "float32"

    def speed(self, dtype: str) -> float:
        """FLOP/s of matrix products in a dtype."""
        return self.fp32 if dtype == "float32" or self.half is None else self.half


def _gpu(
    name: str, gigabytes: float, fp32: float, half: float, terabytes: float, *, unit: int = GIB, bf16: bool = True
) -> Device:
    return Device(name, "cuda", int(gigabytes * unit), fp32 * TERA, half * TERA, terabytes * TERA, bf16)


# fp32 (outside tensor cores) and dense tensor-core TFLOP/s, memory bandwidth in TB/s. Each line was compared with the
# vendor's table, read where others quote it: H100 both, H200, L40S, L4 and A100 with resellers and universities that
# reprint the data sheets; B200 with NVIDIA's HGX table (4.5 PFLOPS with sparsity, fp32 75); A10G with the data sheet
# that AWS hosts; V100 and A100 with the Ampere white paper; RTX 3090 with GA102's, RTX 4090 with Ada's; MI250X with
# tables of its data sheet; T4 with its specifications. 209.5 of the RTX 5090 is a quarter of its 838 (sparse, sums in
# fp16), and MI300X's two peaks were found in others' code only. Memory is the vendor's number, in GiB or GB, whichever
# is nearer to what drivers report: 143,771 MiB on an H200, 183,359 MiB on a B200, 191.98 GiB on an MI300X.
DEVICES = {
    device.name: device
    for device in (
        _gpu("b200", 180, 75, 2250, 7.7),  # NVIDIA HGX B200: 180 GB; bf16 dense 2.25 PFLOPS, fp32 75
        _gpu("h200", 141, 67, 989, 4.8),  # NVIDIA H200 SXM data sheet: 141 GB; bf16 1,979 with sparsity
        _gpu("h100", 80, 67, 989, 3.35),  # NVIDIA H100 SXM data sheet: 80 GB; bf16 1,979 with sparsity, fp32 67
        _gpu("h100-pcie", 80, 51, 756, 2.0),  # NVIDIA H100 PCIe data sheet: bf16 1,513 with sparsity, fp32 51
        _gpu("a100-80", 80, 19.5, 312, 2.039),  # NVIDIA A100 SXM data sheet: bf16 312 dense, fp32 19.5; PCIe 1.935 TB/s
        _gpu("a100-40", 40, 19.5, 312, 1.555),  # NVIDIA A100 data sheet, 40 GB
        _gpu("l40s", 48, 91.6, 362, 0.864, unit=GB),  # NVIDIA L40S data sheet: 48 GB; bf16 362 dense, fp32 91.6
        _gpu("l4", 24, 30.3, 121, 0.3, unit=GB),  # NVIDIA L4 data sheet: 24 GB; bf16 242 with sparsity, fp32 30.3
        _gpu("a10g", 24, 35, 70, 0.6, unit=GB),  # NVIDIA A10G data sheet (AWS): 24 GB; fp16 70 dense, fp32 35
        _gpu("t4", 16, 8.1, 65, 0.32, unit=GB, bf16=False),  # NVIDIA T4 data sheet: 16 GB; fp16 65, fp32 8.1
        _gpu("v100-32", 32, 15.7, 125, 0.9, bf16=False),  # NVIDIA V100 SXM2 data sheet: fp16 125, fp32 15.7
        _gpu("rtx3090", 24, 35.6, 71, 0.936),  # NVIDIA GA102 white paper: fp16 with fp32 sums 71 dense, fp32 35.6
        _gpu("rtx4090", 24, 82.6, 165.2, 1.008),  # NVIDIA Ada white paper: bf16 with fp32 sums 165.2 dense, fp32 82.6
        _gpu("rtx5090", 32, 104.8, 209.5, 1.792),  # NVIDIA RTX Blackwell white paper: bf16 209.5 dense, fp32 104.8
        _gpu("mi250x", 128, 47.9, 383, 3.2),  # AMD MI250X data sheet: bf16 383, fp32 47.9, both dies
        _gpu("mi300x", 192, 163.4, 1307.4, 5.3),  # AMD MI300X data sheet: bf16 1,307.4 dense, fp32 163.4
    )
}


def device_called(name: str, *, threads: int) -> Device:
    """A device of the table, or this machine's for ``cpu``, ``cuda`` and ``auto``. The speed of a CPU is measured.

    Raises RecipeError for another name, and for a GPU that this machine does not have.
    """
    if name == "auto":
        name = resolve_device(name)
    kind = name.partition(":")[0]
    if kind == "cpu":
        return Device("cpu", "cpu", total_memory("cpu"), sgemm(threads))
    if kind == "cuda":
        return _own_gpu(name)
    if name.lower() in DEVICES:
        return DEVICES[name.lower()]
    near = difflib.get_close_matches(name.lower(), DEVICES, n=1, cutoff=0.6)
    known = f"cpu, cuda, {', '.join(DEVICES)}"
    raise RecipeError(
        f"there is no device {name!r} to plan for",
        where="--device",
        remedy=f"Did you mean {near[0]}? Known are {known}." if near else f"Known are {known}.",
    )


def this_device() -> Device:
    """The device that this machine trains on: the GPU that torch sees, else the CPU. Its speed is not measured."""
    import torch

    cpus = len(os.sched_getaffinity(0))
    if not torch.cuda.is_available():
        return Device("cpu", "cpu", total_memory("cpu"), cpus=cpus)
    gpu = torch.cuda.get_device_properties(0)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Device(gpu.name, "cuda", gpu.total_memory, bf16=bf16, cpus=cpus)


def device_like(told: str) -> Device | None:
    """The device of the table that a driver calls ``told``, such as ``NVIDIA H100 80GB HBM3``."""
    words = re.split("[^a-z0-9]+", told.lower())
    words += [one + other for one, other in itertools.pairwise(words)]  # RTX 4090

    def agrees(device: Device) -> int:
        """How many parts of the device's name are in ``told``; 0 if it is another GPU."""
        model, *rest = device.name.split("-")
        agreed = [f"{part}gb" in words if part.isdigit() else part in words for part in rest]
        kept = [found for part, found in zip(rest, agreed, strict=True) if not part.isdigit()]
        return 1 + sum(agreed) if model in words and all(kept) else 0

    best = max(DEVICES.values(), key=agrees)
    return best if agrees(best) else None


def sgemm(threads: int) -> float:
    """FLOP/s of a product of two square fp32 matrices: the median over a fifth of a second.

    Raises:
        RunError: the process that measures it failed.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    done = subprocess.run(
        python_command("-c", SGEMM),
        env=clean_environment(**dict.fromkeys(names, str(threads))),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    try:
        if done.returncode == 0:
            return float(json.loads(done.stdout))
    except (ValueError, TypeError):
        pass  # it printed something else
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    raise RunError(
        "The speed of this processor could not be measured",
        why=f"The process that multiplies two matrices with numpy ended with {done.returncode}: "
        f"{lines[-1][:500] if lines else 'it said nothing (out of memory?)'}",
        remedy="Free some memory and try again; `python -c 'import numpy'` shows whether numpy works.",
    )


def _own_gpu(name: str) -> Device:
    """This machine's GPU with its peak from the table. Raises RecipeError if there is none or the table lacks it."""
    import torch

    resolve_device(name)
    found = torch.cuda.get_device_properties(name)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    known = device_like(found.name)
    if known is not None:
        return Device(found.name, "cuda", found.total_memory, known.fp32, known.half, known.bandwidth, bf16=bf16)
    raise RecipeError(
        f"the speed of {found.name} is not known",
        where="--device",
        remedy=f"Name the device that comes nearest: {', '.join(DEVICES)}.",
    )
