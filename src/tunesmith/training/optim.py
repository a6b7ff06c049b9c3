"""Builds the optimizer that a recipe names, and saves and restores its state as plain tensors."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import RecipeError
from tunesmith.methods.quantized_base import install_command
from tunesmith.recipe.optimizers import BITSANDBYTES, Optimizer

SHARED = ("qmap1", "qmap2")  # bitsandbytes' quantization maps: constants that all parameters share
_KEY = "training.optim"


def build_optimizer(
    groups: Sequence[dict[str, Any]],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
    optim: Optimizer = "adamw_torch",
) -> torch.optim.Optimizer:
    """The optimizer of this name over a method's groups, with the arguments that transformers' Trainer passes.

    The loop sets the rate of each group at each step: the step's rate times the group's ``lr_ratio``.

    AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101), the same with 8-bit moments (Dettmers et al. 2021,
    arXiv:2110.02861) and in paged memory, Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) with a given rate, Lion
    (Chen et al. 2023, arXiv:2302.06675), and SGD without momentum.

    Args:
        groups: ``{"params": [...], "names": [...], "decay": bool}``. ``"embeddings": [bool]`` marks parameters with
            fp32 moments in an 8-bit optimizer. ``"lr_ratio"`` is the group's rate over the step's; a group can have
            its own peak ``"learning_rate"`` instead. Weight decay applies to groups with ``decay``.
        learning_rate: the peak rate.
        weight_decay: of the groups that decay.
        betas: of Adam and Lion.
        epsilon: of Adam.
        optim: the name.

    Raises:
        RecipeError: bitsandbytes is needed and missing.
    """
    prepared = [
        {
            "params": group["params"],
            "param_names": group["names"],
            "weight_decay": weight_decay if group["decay"] else 0.0,
            "lr_ratio": _ratio(group, learning_rate),
        }
        for group in groups
    ]
    match optim:
        case "sgd":
            return torch.optim.SGD(prepared, lr=learning_rate)
        case "adafactor":
            from transformers.optimization import Adafactor

            return Adafactor(prepared, lr=learning_rate, scale_parameter=False, relative_step=False)
        case "lion_32bit":
            return _bitsandbytes().optim.Lion(prepared, lr=learning_rate, betas=betas, optim_bits=32)
        case "adamw_8bit" | "paged_adamw_8bit":
            in_fp32 = {
                id(parameter)
                for group in groups
                for parameter, embeds in zip(group["params"], group.get("embeddings", ()), strict=False)
                if embeds
            }
            optimizer = _bitsandbytes().optim.AdamW(
                prepared, lr=learning_rate, betas=betas, eps=epsilon, optim_bits=8, is_paged=optim.startswith("paged")
            )
            optimizer.get_config = _with_fp32_moments(optimizer.get_config, in_fp32)
            return optimizer
        case _:
            return torch.optim.AdamW(prepared, lr=learning_rate, betas=betas, eps=epsilon, fused=True)


def _ratio(group: dict[str, Any], learning_rate: float) -> float:
    return group["learning_rate"] / learning_rate if "learning_rate" in group else group.get("lr_ratio", 1.0)


def _with_fp32_moments(get_config: Callable[..., dict[str, Any]], in_fp32: set[int]) -> Callable[..., dict[str, Any]]:
    """``get_config``, which bitsandbytes calls for the settings of each parameter, with fp32 moments for some (by id).

    transformers does the same for embeddings with a global list. This changes one optimizer only.
    """

    def config(group_index: int, index: int, group: dict[str, Any]) -> dict[str, Any]:
        found = get_config(group_index, index, group)
        return {**found, "optim_bits": 32} if id(group["params"][index]) in in_fp32 else found

    return config


def check_optimizer(optim: Optimizer, device: str) -> None:
    """Raises RecipeError for an optimizer that cannot run on the device. It needs no weights."""
    if optim.startswith("paged") and torch.device(device).type != "cuda":
        raise RecipeError(
            f"{optim} needs a GPU",
            where=_KEY,
            why=f"It keeps its moments in memory that CUDA moves between GPU and CPU. The device here is {device}.",
            remedy=f"Use optim: {optim.removeprefix('paged_')}",
        )
    if optim in BITSANDBYTES:
        _bitsandbytes()


def _bitsandbytes() -> Any:
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, OSError) as error:
        raise RecipeError(
            "This optimizer needs bitsandbytes",
            where=_KEY,
            why=str(error),
            remedy=f"{install_command(error)}, or use optim: adamw_torch",
        ) from error


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every value of the state as ``<parameter name>|<key>``, on the CPU and contiguous; Python numbers as int64.

    bitsandbytes' quantization maps are left out: they are constants, and safetensors refuses shared tensors.
    """
    state: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if key not in SHARED:
                    state[f"{name}|{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return state


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Restores a saved state, each tensor on its parameter's device. A parameter that had no gradient has no state.

    Raises:
        KeyError: a state has no parameter, so the checkpoint belongs to another model or method.
        ValueError: the state belongs to another optimizer.
    """
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, part = key.rpartition("|")
        by_parameter.setdefault(name, {})[part] = value
    for number, group in enumerate(optimizer.param_groups):
        for index, (name, parameter) in enumerate(zip(group["param_names"], group["params"], strict=True)):
            saved = by_parameter.pop(name, {})
            optimizer.state[parameter] = {key: _restored(value, parameter.device) for key, value in saved.items()}
            if saved and _of_bitsandbytes(optimizer):  # it makes its buffers and maps itself
                _fill(optimizer, saved, group, parameter, number, index)
    if by_parameter:
        raise KeyError(next(iter(by_parameter)))


def _of_bitsandbytes(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.partition(".")[0] == "bitsandbytes"


def _restored(value: Tensor, device: torch.device) -> Tensor | int:
    """A tensor on the device. An int64 scalar was a Python number and becomes one again."""
    if value.dtype == torch.int64 and value.ndim == 0:
        return int(value)
    return value.to(device, copy=True)


def _fill(
    optimizer: Any, saved: dict[str, Tensor], group: dict[str, Any], parameter: Tensor, number: int, index: int
) -> None:
    optimizer.state[parameter] = {}
    optimizer.init_state(group, parameter, number, index)
    made = optimizer.state[parameter]
    if made.keys() - set(SHARED) != saved.keys():
        raise ValueError(f"the state has {', '.join(sorted(saved))}, so it belongs to another optimizer")
    for key, value in saved.items():
        if isinstance(made[key], Tensor):
            made[key].copy_(value)
        else:
            made[key] = int(value)
