"""Context managers that restore what they change: train and eval modes, what trains, and the random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Afterwards every module is in train or eval mode, and every parameter trains or not, as before."""
    modes = [(module, module.training) for module in model.modules()]
    trains = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in trains:
            parameter.requires_grad_(requires_grad)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside, dropout is off and there are no gradients; every module's own mode is restored.

    ``torch.no_grad`` and not ``inference_mode``: a buffer that is written in here (dynamic rotary frequencies) may be
    needed by a later backward pass, which inference tensors refuse.
    """
    with kept_modes(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Afterwards torch's random state, that of the CPU and that of one device, is what it was."""
    device_type = "cuda" if device.type in ("cpu", "meta") else device.type
    devices = [] if device.type in ("cpu", "meta") else [device.index or 0]
    with torch.random.fork_rng(devices, device_type=device_type):
        yield


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Inside, draws on the CPU, and on a GPU that is named, depend on the seed alone; no state outside changes."""
    device = device or torch.device("cpu")
    with random_state_kept(device):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
