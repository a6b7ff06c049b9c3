"""The arithmetic of weights that bitsandbytes holds in 4 or in 8 bits, and a test that it runs here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tunesmith.errors import ModelError, pip_install

_OTHERWISE = "or use method: lora"
_LEVELS = 127  # int8 values on each side of zero


def bitsandbytes() -> ModuleType:
    """The library, imported when it is needed: that takes seconds."""
    return importlib.import_module("bitsandbytes")


def install_command(error: BaseException | None) -> str:
    """What installs bitsandbytes, after the error of its import or of its first use."""
    missing = isinstance(error, ModuleNotFoundError)
    return pip_install("8bit") if missing else "pip install -U bitsandbytes"


def require_bitsandbytes(what: str, device: torch.device, quantize: Callable[[ModuleType], Any]) -> None:
    """Quantizes a few weights on the device. Raises ModelError if that cannot be done.

    Args:
        what: the setting that needs it.
        quantize: takes the library, and quantizes.
    """
    try:
        quantize(bitsandbytes())
    except ImportError as error:
        remedy = f"{install_command(error)}, {_OTHERWISE}"
        raise ModelError(f"{what} needs bitsandbytes", why=str(error), remedy=remedy) from error
    except (AttributeError, NotImplementedError, OSError, RuntimeError) as error:
        remedy = f"{install_command(error)}, {_OTHERWISE}"
        raise ModelError(f"bitsandbytes does not run on {device}", why=str(error), remedy=remedy) from error


def packed_layers(model: nn.Module, layer_class: str) -> dict[str, Any]:
    """The layers of a class of bitsandbytes.nn (Linear4bit, Linear8bitLt) by name."""
    kind = getattr(bitsandbytes().nn, layer_class)
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def was_stored_quantized(model: nn.Module) -> bool:
    """Whether the files of the base hold packed weights, so that there are no plain ones to load."""
    found = (getattr(module, "hf_quantizer", None) for module in model.modules())
    return any(quantizer is not None and quantizer.pre_quantized for quantizer in found)


def dequantize_4_bits(layer: Any) -> Tensor:
    """The weight [out, in] of a 4-bit layer, in the dtype that it was quantized from."""
    return bitsandbytes().functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def dequantize_8_bits(layer: Any, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] of an 8-bit layer: integers of -127 to 127, times a scale for each output."""
    # The scales [out] move from the weight to the layer's state once bitsandbytes' own forward has run.
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return layer.weight.data.to(dtype).mul_((scales / _LEVELS).unsqueeze(1))  # [out, in] * [out, 1]


def eight_bit_forward(layer: Any, x: Tensor) -> Tensor:
    """``x W^T + b`` of an 8-bit layer with its dequantized weight, which is made again for the backward pass."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return _EightBitLinear.apply(x, bias, layer)  # type: ignore[return-value]


def multiply_dequantized(layers: Mapping[str, Any]) -> None:
    """Gives 8-bit layers ``eight_bit_forward`` in place of their own."""
    for layer in layers.values():
        layer.forward = partial(eight_bit_forward, layer)


class _EightBitLinear(torch.autograd.Function):
    """A linear layer that keeps its packed weight, and not the dequantized one, until the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: Any) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, dequantize_8_bits(layer, x.dtype), bias)  # [..., in] -> [..., out]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients  # [..., out]
        of_x, of_bias, _ = ctx.needs_input_grad
        return (
            gradient @ dequantize_8_bits(ctx.layer, gradient.dtype) if of_x else None,  # [..., in]
            gradient.flatten(0, -2).sum(0) if of_bias else None,  # [out]
            None,
        )
