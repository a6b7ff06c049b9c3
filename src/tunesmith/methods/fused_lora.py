"""PEFT's LoRA layers with the forward and backward passes of ``model/compute/kernels.py``.

They are used for plain LoRA on linear layers only: one active adapter in the dtype of its input, neither merged nor
disabled. Everything else (DoRA and other variants, several adapters, autocast) runs PEFT's own code. Modules of the
base itself (norms, gated feed-forward) have their fused passes in ``model/compute/fused_modules.py``.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from tunesmith.methods.quantized_base import dequantize_4_bits, dequantize_8_bits, eight_bit_forward
from tunesmith.model.compute.kernels import Frozen, adapted_linears
from tunesmith.model.compute.limits import SAME_INPUT


def fuse_adapters(model: nn.Module) -> int:
    """Installs the fused passes, as methods of the layers themselves; returns how many layers have them.

    Layers with the same input (``SAME_INPUT``, such as query, key and value) share one pass.
    """
    count = 0
    for parent in model.modules():
        children = {name: child for name, child in parent.named_children() if _fusable(child)}
        for names in SAME_INPUT:
            together = [children.pop(name) for name in names if name in children]
            count += _install(together)
        for child in children.values():
            count += _install([child])
    return count


def _fusable(layer: nn.Module) -> bool:
    if "forward" in layer.__dict__:  # a hook of accelerate
        return False
    plain = type(layer) is LoraLinear and type(layer.get_base_layer()) in (nn.Linear, Conv1D)
    return plain or _is_four_bit(layer) or _is_eight_bit(layer)


def _is_four_bit(layer: nn.Module) -> bool:
    """PEFT's layer over bitsandbytes' 4-bit one; by name, because importing bitsandbytes takes seconds."""
    return type(layer).__module__ == "peft.tuners.lora.bnb" and type(layer).__name__ == "Linear4bit"


def _is_eight_bit(layer: Any) -> bool:
    """PEFT's layer over an 8-bit one that multiplies with its dequantized weight (see ``int8.py``)."""
    bits = type(layer).__module__ == "peft.tuners.lora.bnb" and type(layer).__name__ == "Linear8bitLt"
    return bits and getattr(layer.base_layer.__dict__.get("forward"), "func", None) is eight_bit_forward


def _install(layers: Sequence[nn.Module]) -> int:
    siblings = _Siblings(layers)
    for layer in layers:
        layer._siblings = siblings  # type: ignore[assignment]
        layer.forward = partial(_forward, layer)
    return len(layers)


class _Siblings:
    """Layers that their parent calls in turn with the same input. The first to be called computes for all of them.

    The outputs of the others wait here. They are handed out only for the very tensor that they were computed from, in
    the same thread and mode. They are no part of the model, so copies and pickles do not have them.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = tuple(layers)
        self.waiting: tuple[Tensor, tuple[Any, ...], dict[nn.Module, Tensor]] | None = None

    def take(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        waiting = self.waiting
        if waiting is None or waiting[0] is not x or waiting[1] != _moment(layer, x):
            return None
        made = waiting[2].pop(layer, None)
        if not waiting[2]:
            self.waiting = None
        return made

    def keep(self, layer: nn.Module, x: Tensor, outputs: dict[nn.Module, Tensor]) -> None:
        self.waiting = (x, _moment(layer, x), outputs) if outputs else None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Siblings:
        memo[id(self)] = twin = _Siblings(())
        twin.layers = copy.deepcopy(self.layers, memo)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers, "waiting": None}


def _moment(layer: nn.Module, x: Tensor) -> tuple[Any, ...]:
    version = None if x.is_inference() else x._version
    return version, torch.is_grad_enabled(), layer.training, threading.get_ident()


def _forward(self: Any, x: Tensor, *args: Any, **settings: Any) -> Tensor:
    """The forward pass of an adapted layer, x [..., in] -> [..., out], with those of its siblings if it has any."""
    # 1. What is not plain LoRA runs PEFT's own code.
    if args or settings or not _plain(self, x):
        return type(self).forward(self, x, *args, **settings)
    # 2. A sibling that was called before has computed the output already.
    siblings: _Siblings = self._siblings
    made = siblings.take(self, x)
    if made is not None:
        return made
    # 3. Otherwise one pass computes this layer and its siblings, whose outputs wait for their calls.
    together = all(_plain(layer, x) for layer in siblings.layers)
    layers = (self, *(layer for layer in siblings.layers if layer is not self)) if together else (self,)
    parts = [_parts(layer, x) for layer in layers]
    outputs = adapted_linears(
        x,
        [frozen for frozen, *_ in parts],
        [adapter for _, adapter, *_ in parts],
        [scale for _, _, scale, _ in parts],
        [mask for *_, mask in parts],
    )
    siblings.keep(self, x, dict(zip(layers[1:], outputs[1:], strict=True)))
    return outputs[0]


def _plain(layer: Any, x: Tensor) -> bool:
    """Whether PEFT's forward pass would be base(x) + scale * B(A(dropout(x))) and nothing else."""
    if (
        layer.disable_adapters
        or layer.merged
        or len(layer.active_adapters) != 1
        or torch.is_autocast_enabled(x.device.type)
    ):
        return False
    name, base = layer.active_adapters[0], layer.base_layer
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias[name]:
        return False
    down, up = layer.lora_A[name], layer.lora_B[name]
    if type(layer.lora_dropout[name]) not in (nn.Identity, nn.Dropout):
        return False
    if base.bias is not None and (base.bias.requires_grad or base.bias.dtype != x.dtype):
        return False
    if not x.dtype == down.weight.dtype == up.weight.dtype:
        return False
    if _is_four_bit(layer):  # one token at a time is faster by bitsandbytes' own kernels, which have no gradient
        return (
            torch.is_grad_enabled()
            and base.compute_dtype in (None, x.dtype)
            and base.weight.quant_state.dtype == x.dtype
        )
    if _is_eight_bit(layer):
        return True
    return base.weight.dtype == x.dtype and not base.weight.requires_grad


def _parts(layer: Any, x: Tensor) -> tuple[Frozen, tuple[Tensor, Tensor], float, Tensor | None]:
    """The frozen layer, A [rank, in] and B [out, rank], their scale, and the dropout mask [..., in] if there is one."""
    name, base = layer.active_adapters[0], layer.base_layer
    dropout = layer.lora_dropout[name]
    mask = None
    if isinstance(dropout, nn.Dropout) and dropout.training:
        mask = functional.dropout(torch.ones_like(x), dropout.p)  # drawn as PEFT draws it: one mask a layer
    adapter = (layer.lora_A[name].weight, layer.lora_B[name].weight)
    return Frozen(_weight(layer, base), base.bias), adapter, float(layer.scaling[name]), mask


def _weight(layer: Any, base: Any) -> Callable[[], Tensor]:
    """Gives the frozen weight [out, in] when it is called, so that a dequantized one lives for a moment only."""
    if _is_four_bit(layer):
        return partial(dequantize_4_bits, base)
    if _is_eight_bit(layer):
        return partial(dequantize_8_bits, base, layer.lora_A[layer.active_adapters[0]].weight.dtype)
    return partial(_plain_weight, base)


def _plain_weight(base: Any) -> Tensor:
    return base.weight.T if isinstance(base, Conv1D) else base.weight
