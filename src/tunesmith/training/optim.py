"""The optimizer by its name in transformers, and its state as plain tensors."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import RecipeError
from tunesmith.recipe.optimizers import BITSANDBYTES, Optimizer

WHERE = "training.optim"
SHARED = ("qmap1", "qmap2")  # bitsandbytes' quantization maps: the same tensors for every parameter, always the same
REMEDY = "pip install -U bitsandbytes, or use optim: adamw_torch"


def build_optimizer(
    groups: Sequence[dict[str, Any]],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
    optim: Optimizer = "adamw_torch",
) -> torch.optim.Optimizer:
    """The optimizer of this name, with the arguments that transformers' Trainer gives it, over a method's groups.

    AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101), the same with 8-bit moments (Dettmers et al. 2021,
    arXiv:2110.02861) and in paged memory, Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) with the rate that it is
    given, Lion (Chen et al. 2023, arXiv:2302.06675), and SGD without momentum.

    Args:
        groups: ``{"params": [...], "names": [...], "decay": bool}``, ``"embeddings": [bool]`` where 8-bit moments
            are to be fp32, and ``"lr_ratio"``, the group's learning rate over that of the step, or the group's own peak
            ``"learning_rate"``; decay is applied where ``decay`` is true.

    Raises:
        RecipeError: bitsandbytes is needed and missing.
    """
    prepared = [
        {
            "params": group["params"],
            "param_names": group["names"],
            "weight_decay": weight_decay if group["decay"] else 0.0,
            **_rate(group, learning_rate),
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
            return bitsandbytes().optim.Lion(prepared, lr=learning_rate, betas=betas, optim_bits=32)
        case "adamw_8bit" | "paged_adamw_8bit":
            spared = {
                id(parameter)
                for group in groups
                for parameter, embeds in zip(group["params"], group.get("embeddings", ()), strict=False)
                if embeds
            }
            optimizer = bitsandbytes().optim.AdamW(
                prepared, lr=learning_rate, betas=betas, eps=epsilon, optim_bits=8, is_paged=optim.startswith("paged")
            )
            optimizer.get_config = _with_wide_embeddings(optimizer.get_config, spared)
            return optimizer
        case _:
            return torch.optim.AdamW(prepared, lr=learning_rate, betas=betas, eps=epsilon, fused=True)


def _rate(group: dict[str, Any], learning_rate: float) -> dict[str, float]:
    """The group's peak rate, and its ratio to the step's, which the loop keeps."""
    ratio = group["learning_rate"] / learning_rate if "learning_rate" in group else group.get("lr_ratio", 1.0)
    return {"lr": learning_rate * ratio, "lr_ratio": ratio}


def _with_wide_embeddings(get_config: Callable[..., dict[str, Any]], spared: set[int]) -> Callable[..., dict[str, Any]]:
    """``get_config``, which bitsandbytes asks for the settings of each parameter, with fp32 moments of embeddings.

    transformers asks for them too, by a list that is global; this is for one optimizer.
    """

    def config(group_index: int, index: int, group: dict[str, Any]) -> dict[str, Any]:
        found = get_config(group_index, index, group)
        return {**found, "optim_bits": 32} if id(group["params"][index]) in spared else found

    return config


def check_optimizer(optim: Optimizer, device: str) -> None:
    """Raises RecipeError for an optimizer that cannot run here. Cheap: call it before weights are loaded."""
    if optim.startswith("paged") and torch.device(device).type != "cuda":
        raise RecipeError(
            f"{optim} needs a GPU",
            where=WHERE,
            why=f"It keeps its moments in memory that CUDA moves between GPU and CPU; the device here is {device}.",
            remedy=f"use optim: {optim.removeprefix('paged_')}",
        )
    if optim in BITSANDBYTES:
        bitsandbytes()


def bitsandbytes() -> Any:
    """The module. Raises RecipeError where it is missing or does not load."""
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, OSError) as error:
        raise RecipeError("This optimizer needs bitsandbytes", where=WHERE, why=str(error), remedy=REMEDY) from error


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every value of the state as ``<parameter name>|<key>``, on the CPU and contiguous; whole numbers as int64.

    bitsandbytes' quantization maps are left out: they are always the same, and safetensors refuses shared tensors.
    """
    state: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if key not in SHARED:
                    state[f"{name}|{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return state


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Puts a saved state back, each tensor on its parameter's device (step counts stay where the optimizer puts them).

    A parameter that never had a gradient has no state. Raises KeyError for a state without a parameter: the
    checkpoint belongs to another model or method. Raises ValueError for the state of another optimizer.
    """
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, part = key.rpartition("|")
        by_parameter.setdefault(name, {})[part] = value
    for number, group in enumerate(optimizer.param_groups):
        for index, (name, parameter) in enumerate(zip(group["param_names"], group["params"], strict=True)):
            saved = by_parameter.pop(name, {})
            optimizer.state[parameter] = {key: _restored(value, parameter.device) for key, value in saved.items()}
            if saved and _of_bitsandbytes(optimizer):  # it places its buffers and maps itself
                _fill(optimizer, saved, group, parameter, number, index)
    if by_parameter:
        raise KeyError(next(iter(by_parameter)))


def _of_bitsandbytes(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.partition(".")[0] == "bitsandbytes"


def _restored(value: Tensor, device: torch.device) -> Tensor | int:
    """A number that was a Python number is one again."""
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
        raise ValueError(f"the state has {', '.join(sorted(saved))}: it is another optimizer's")
    for key, value in saved.items():
        if isinstance(made[key], Tensor):
            made[key].copy_(value)
        else:
            made[key] = int(value)
