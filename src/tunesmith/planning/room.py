"""Whether a model's weights alone are too large for a device, where only the number of its parameters is known."""

from __future__ import annotations

from tunesmith.planning.budget import MEASURED_SHARE, gigabytes
from tunesmith.planning.devices import Device
from tunesmith.planning.model_size import ModelSize

NF4_BYTES = 0.6  # a parameter in 4 bits, with its share of the scales and of what is not quantized
FULL_COPIES = 4  # weights, gradients and the optimizer's two moments


def least_bytes(parameters: int, method: str, device: Device) -> int:
    """What a method needs at the least: the weights, and for full fine-tuning what trains them."""
    size = 4 if device.dtype == "float32" else 2
    each = {"qlora": NF4_BYTES, "full": size * FULL_COPIES}.get(method, size)
    return int(parameters * each)


def weights_fit(parameters: int | None, device: Device) -> dict[str, bool]:
    """Whether lora and qlora may fit; nothing where the model's size is not known."""
    if parameters is None:
        return {}
    return {
        method: least_bytes(parameters, method, device) <= MEASURED_SHARE * device.memory
        for method in ("lora", "qlora")
    }


def too_large(size: ModelSize, method: str, device: Device) -> str | None:
    """A warning that a method cannot train a model here; None where it may."""
    if size.parameters is None:
        return None
    needed = least_bytes(size.parameters, method, device)
    if needed <= MEASURED_SHARE * device.memory:
        return None
    return (
        f"{method} does not fit on this machine: the model's weights alone need {gigabytes(needed)} (by {size.basis}), "
        f"and there are {gigabytes(device.memory)}; take a smaller model, or a machine with more memory "
        "(`tunesmith plan --device` compares them)"
    )
