"""Context managers that restore what they change: train and eval modes, and the random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off and no gradients inside; every module's own mode is restored, also those that were frozen in eval.

    ``torch.no_grad`` and not ``inference_mode``: a buffer written in here (dynamic rotary frequencies) may be needed by
    a later backward pass, which inference tensors refuse.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """torch's random state, the CPU's and that of one device, is afterwards what it was."""
    devices = [] if device.type == "cpu" else [device.index or 0]
    device_type = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices, device_type=device_type):
        yield


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
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Inside, draws on the CPU, and on a GPU that is named, depend on the seed alone; no state outside moves."""
    cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each module's own mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
