"""Finds weights that are not finite: infinite, or not a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tunesmith.errors import ModelError

_KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # others are codes of quantized weights
SHOWN = 5
ANOTHER = "name another checkpoint or folder, or write this one again."  # what to do about a folder of weights


@torch.no_grad()
def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with a value that is not finite. It reads every value once, and makes no copy."""
    floats = {
        name: own.detach()
        for name, own in tensors.items()
        if own.dtype in _KINDS and own.numel() and own.device.type != "meta"
    }
    if not floats or torch.nn.utils.get_total_norm(floats.values()).isfinite():
        return []
    # The norm of large finite values may overflow, so each tensor is looked at: the extremes are exact.
    extremes = {name: torch.stack(torch.aminmax(own)) for name, own in floats.items()}
    return [name for name, ends in extremes.items() if not ends.isfinite().all()]


def not_finite_files(files: Iterable[Path]) -> dict[str, str]:
    """The files of tensors that are not finite, by name, and which tensors of them.

    A file that cannot be read is left to whoever reads it.
    """
    found: dict[str, str] = {}
    for file in files:
        with suppress(OSError, SafetensorError), safe_open(file, framework="pt") as stored:
            keys = stored.keys()
            names = [name for key in keys for name in not_finite({key: stored.get_tensor(key)})]
            if names:
                found[file.name] = f"is not finite ({some(names)})"
    return found


def some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")


def refuse_not_finite(tensors: Mapping[str, Tensor], *, where: str | Path, remedy: str) -> None:
    """Raises ModelError that names the tensors of a folder or file with a value that is not finite."""
    names = not_finite(tensors)
    if names:
        raise ModelError(
            "the weights are not finite",
            where=str(where),
            why=f"Infinite or not a number in {len(names):,} of {len(tensors):,} tensors: {some(names)}.",
            remedy=remedy,
        )
