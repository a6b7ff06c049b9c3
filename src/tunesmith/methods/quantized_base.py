"""What LoRA over a base in 4 or in 8 bits shares: bitsandbytes where it runs, and plain layers of the same values."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError

REMEDY = "pip install -U bitsandbytes, or use method: lora"
LEVELS = 127  # int8 values on each side of zero


def refuse_whole(layers: Mapping[str, Any], names: Sequence[str] | None, remedy: str) -> None:
    """Raises ModelError where ``modules_to_save`` names a packed layer, which has no gradient."""
    for name in names or ():
        packed = next((layer for layer in layers if layer == name or layer.endswith(f".{name}")), None)
        if packed is not None:
            raise ModelError(
                f"{name} is quantized, so it cannot train whole",
                where="method.modules_to_save",
                why=f"{packed} is a packed layer",
                remedy=remedy,
            )


def bitsandbytes() -> ModuleType:
    """The library, imported when it is needed: that takes seconds."""
    return importlib.import_module("bitsandbytes")


def require_bitsandbytes(what: str, device: torch.device, quantize: Callable[[ModuleType], Any]) -> None:
    """Tries a few weights on the device. Raises ModelError if that cannot be done.

    Args:
        what: needs it.
        quantize: a few weights and back, given the library.
    """
    try:
        quantize(bitsandbytes())
    except ImportError as error:
        raise ModelError(f"{what} needs bitsandbytes", why=str(error), remedy=REMEDY) from error
    except (AttributeError, NotImplementedError, OSError, RuntimeError) as error:
        raise ModelError(f"bitsandbytes does not run on {device}", why=str(error), remedy=REMEDY) from error


def dequantize_8_bits(layer: Any, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] of an 8-bit layer. Its scales are in its state once bitsandbytes' own forward has run."""
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return layer.weight.data.to(dtype).mul_((scales / LEVELS).unsqueeze(1))


def eight_bit_forward(layer: Any, x: Tensor) -> Tensor:
    """``x W^T + b`` of an 8-bit layer with its dequantized weight, which is made again for the backward pass."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return _EightBitLinear.apply(x, bias, layer)  # type: ignore[return-value]


class _EightBitLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: Any) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, dequantize_8_bits(layer, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        of_x, of_bias, _ = ctx.needs_input_grad
        return (
            gradient @ dequantize_8_bits(ctx.layer, gradient.dtype) if of_x else None,
            gradient.flatten(0, -2).sum(0) if of_bias else None,
            None,
        )


def plain_copy(model: nn.Module, dequantized: Callable[[PreTrainedModel], PreTrainedModel]) -> PreTrainedModel:
    """A copy of the base without adapters, its quantized layers made plain by ``dequantized``."""
    assert isinstance(model, PeftModel)
    tuner = copy.deepcopy(model).base_model
    assert isinstance(tuner, BaseTuner)
    base = tuner.unload()
    assert isinstance(base, PreTrainedModel)
    return dequantized(base)


def put_plain_layers(
    model: PreTrainedModel, layers: Mapping[str, Any], weight: Callable[[Any], Tensor]
) -> PreTrainedModel:
    """Puts plain layers of the same values in place of the quantized ones of this very model.

    Args:
        layers: the quantized ones by name.
        weight: [out, in] of such a layer, dequantized.
    """
    for name, layer in layers.items():
        model.set_submodule(name, _plain_layer(layer, weight(layer)))
    marked: Any = model  # transformers sets these marks on the instance
    marked.hf_quantizer.remove_quantization_config(model)
    marked.is_loaded_in_4bit = marked.is_loaded_in_8bit = False
    return model


def _plain_layer(layer: Any, weight: Tensor) -> nn.Module:
    with torch.device("meta"):
        if issubclass(layer.source_cls, Conv1D):  # such as GPT-2's, whose weights are [in, out]
            plain, weight = Conv1D(layer.out_features, layer.in_features), weight.T.contiguous()
        else:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = layer.bias
    return plain
