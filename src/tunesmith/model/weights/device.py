"""Chooses the device and the dtype of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tunesmith.errors import RecipeError
from tunesmith.runs.cache import Say, to_stderr

if TYPE_CHECKING:
    import torch


def resolve_device(setting: str) -> str:
    """``auto`` is the first CUDA device, or the CPU; a named device must be there.

    Raises:
        RecipeError: the named device is not on this machine.
    """
    import torch

    if setting == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = setting.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(kind)
    if count is None:
        raise RecipeError(
            f"there is no device {setting!r}", where="model.device", remedy="use auto, cpu, cuda, cuda:N or mps."
        )
    if (number and not number.isdecimal()) or int(number or 0) >= count:
        raise RecipeError(
            f"this machine has no device {setting!r}",
            where="model.device",
            why=f"PyTorch {torch.__version__} sees {count} device(s) of kind {kind}.",
            remedy="use auto, or install a PyTorch build for this device.",
        )
    return setting


def gpu_name(device: str) -> str | None:
    """The name of the GPU that a resolved device stands for; None for another device, or one that is not here."""
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    number = int(device.partition(":")[2] or torch.cuda.current_device())
    return torch.cuda.get_device_name(number) if number < torch.cuda.device_count() else None


def check_tf32(setting: bool | None, device: str) -> None:
    """Raises RecipeError for TF32 on a device that does not have it."""
    if not setting:
        return
    import torch

    if not device.startswith("cuda") or torch.cuda.get_device_capability(device) < (8, 0):
        raise RecipeError(
            "TF32 needs an NVIDIA GPU of compute capability 8.0 or later",
            where="training.tf32",
            why=f"The device here is {device}.",
            remedy="Leave training.tf32 out.",
        )


@contextmanager
def tf32(setting: bool | None) -> Iterator[None]:
    """Inside, fp32 matrix products on a GPU use TF32 (True) or do not (False). None keeps torch's own setting."""
    import torch

    if setting is None:
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if setting else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX or, on ARM, the BF16 extension)."""
    import torch

    abilities = torch.cpu.get_capabilities()
    return any(abilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def resolve_dtype(setting: str, device: str, *, say: Say = to_stderr) -> torch.dtype:
    """The dtype that weights are loaded in: a pure function of the setting and the machine.

    ``auto`` is float32 on a CPU, always: exact, and bfloat16 without hardware units takes about 19 times as long
    (measured: 92 s a step against 4.7 s). On a GPU it is bfloat16 where the GPU computes in it, else float32.

    Raises:
        RecipeError: float16 on a CPU, or a name that is no dtype.
    """
    import torch

    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if setting == "auto":
        fast = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if setting not in names:
        raise RecipeError(f"{setting!r} is no dtype", where="model.dtype", remedy=f"use auto, {', '.join(names)}.")
    if setting == "float16" and device == "cpu":
        raise RecipeError(
            "float16 is not used on a CPU",
            where="model.dtype",
            why="It overflows above 65504 and CPUs do not compute in it.",
            remedy="use auto (float32 on a CPU).",
        )
    if setting == "bfloat16" and device == "cpu" and not cpu_has_bf16():
        say("model.dtype: this CPU does not compute in bfloat16; a step takes about 19 times as long as in float32.")
    return names[setting]
