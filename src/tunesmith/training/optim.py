"""The optimizer, its state as plain tensors, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]


def build_optimizer(
    groups: Sequence[dict[str, Any]],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101) over a method's parameter groups.

    Args:
        groups: ``{"params": [...], "names": [...], "decay": bool}``; decay is applied where ``decay`` is true.
    """
    prepared = [
        {
            "params": group["params"],
            "param_names": group["names"],
            "weight_decay": weight_decay if group["decay"] else 0.0,
        }
        for group in groups
    ]
    return torch.optim.AdamW(prepared, lr=learning_rate, betas=betas, eps=epsilon, fused=True)


def learning_rate_at(step: int, *, peak: float, total_steps: int, warmup_steps: int, schedule: Schedule) -> float:
    """The rate of a step (from 1), as transformers' schedulers of the same names give it to that step."""
    done = step - 1
    if schedule != "constant" and done < warmup_steps:
        return peak * done / max(1, warmup_steps)
    if schedule in ("constant", "constant_with_warmup"):
        return peak
    progress = (done - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return peak * max(0.0, 1.0 - progress)
    return peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def rate_schedule(*, peak: float, total_steps: int, warmup_steps: int, schedule: Schedule) -> Callable[[int], float]:
    """``learning_rate_at`` with everything but the step filled in."""

    def rate(step: int) -> float:
        return learning_rate_at(step, peak=peak, total_steps=total_steps, warmup_steps=warmup_steps, schedule=schedule)

    return rate


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the state as ``<parameter name>|<key>``, on the CPU and contiguous."""
    state: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                state[f"{name}|{key}"] = value.detach().cpu().contiguous()
    return state


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Puts a saved state back, each tensor on its parameter's device (step counts stay where the optimizer puts them).

    A parameter that never had a gradient has no state. Raises KeyError for a state without a parameter: the
    checkpoint belongs to another model or method.
    """
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, part = key.rpartition("|")
        by_parameter.setdefault(name, {})[part] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            saved = by_parameter.pop(name, {})
            optimizer.state[parameter] = {key: value.to(parameter.device, copy=True) for key, value in saved.items()}
    if by_parameter:
        raise KeyError(next(iter(by_parameter)))
