"""The passes of a step on plain tensors, with as few trips through memory as their derivatives allow.

Each function computes what the modules of transformers and PEFT compute, to rounding, and has its own backward pass:
products accumulate in place instead of being added up by autograd, and what is cheap is computed again, not kept.
Gradients of gradients are not supported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Frozen:
    """A linear map that does not train: its weight [out, in], made when it is asked for, and its bias [out]."""

    weight: Callable[[], Tensor]
    bias: Tensor | None


def adapted_linears(
    x: Tensor,
    frozen: Sequence[Frozen],
    adapters: Sequence[tuple[Tensor, Tensor]],
    scales: Sequence[float],
    masks: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """``x W_i^T + b_i + scale_i (x mask_i) A_i^T B_i^T`` for linear maps that read the same ``x``.

    Args:
        x: [..., in].
        frozen: the maps W_i, b_i.
        adapters: pairs A_i [r, in], B_i [out, r].
        scales: one number an adapter.
        masks: what dropout multiplies each adapter's input with, of the shape of ``x``, or None.

    Returns:
        [..., out_i] for each map.
    """
    flat = [part for pair in adapters for part in pair]
    # Only where a backward pass may follow: without one, answers are bit for bit what PEFT's own layers give.
    together = torch.is_grad_enabled() and all(mask is None for mask in masks)
    return _AdaptedLinears.apply(x, tuple(frozen), tuple(scales), tuple(masks), together, *flat)  # type: ignore[return-value]


class _AdaptedLinears(torch.autograd.Function):
    """``together``: the adapters read the very same input, so their A_i are stacked and multiplied once."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        frozen: tuple[Frozen, ...],
        scales: tuple[float, ...],
        masks: tuple[Tensor | None, ...],
        together: bool,
        *adapters: Tensor,
    ) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        stacks = _stacks(adapters[0::2], masks, together=together)
        inner = [_masked(flat, mask) @ down.T for down, mask in stacks]
        outputs = []
        for layer, up, scale, hidden in zip(frozen, adapters[1::2], scales, _members(inner, adapters), strict=True):
            output = functional.linear(flat, layer.weight(), layer.bias).addmm_(hidden, up.T, alpha=scale)
            outputs.append(output.view(*x.shape[:-1], output.shape[-1]))
        ctx.frozen, ctx.scales, ctx.together = frozen, scales, together
        ctx.save_for_backward(x, *masks, *adapters, *inner)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = len(ctx.frozen)
        x, *saved = ctx.saved_tensors
        masks, adapters, inner = saved[:count], saved[count : 3 * count], saved[3 * count :]
        flat, ups = x.reshape(-1, x.shape[-1]), adapters[1::2]
        total: Tensor | None = None
        of_outputs = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        of_inner = [torch.empty_like(part) for part in inner]
        of_ups = []
        for gradient, up, scale, hidden, of_hidden in zip(
            of_outputs, ups, ctx.scales, _members(inner, adapters), _members(of_inner, adapters), strict=True
        ):
            torch.mm(gradient, up, out=of_hidden).mul_(scale)
            of_ups.append((gradient.T @ hidden).mul_(scale))
        if ctx.needs_input_grad[0]:
            for layer, gradient in zip(ctx.frozen, of_outputs, strict=True):
                weight = layer.weight()
                total = gradient @ weight if total is None else total.addmm_(gradient, weight)
        of_downs = []
        stacks = _stacks(adapters[0::2], masks, together=ctx.together)
        for (down, mask), part in zip(stacks, of_inner, strict=True):
            of_downs.append(part.T @ _masked(flat, mask))
            if total is not None and mask is None:
                total.addmm_(part, down)
            elif total is not None and mask is not None:
                total.addcmul_(part @ down, mask.reshape(flat.shape))
        of_downs = _members([part.T for part in of_downs], adapters)
        of_adapters = [part for down, up in zip(of_downs, of_ups, strict=True) for part in (down.T, up)]
        return (None if total is None else total.view_as(x), None, None, None, None, *of_adapters)


def _stacks(
    downs: Sequence[Tensor], masks: Sequence[Tensor | None], *, together: bool
) -> list[tuple[Tensor, Tensor | None]]:
    """What is computed as one, with its dropout: all A_i one below the other, or each alone."""
    if len(downs) > 1 and together:
        return [(torch.cat(tuple(downs)), None)]
    return list(zip(downs, masks, strict=True))


def _members(parts: Sequence[Tensor], adapters: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of each adapter its own columns of what was computed for its stack."""
    downs = adapters[0::2]
    return parts if len(parts) == len(downs) else parts[0].split([len(down) for down in downs], 1)


def _masked(flat: Tensor, mask: Tensor | None) -> Tensor:
    return flat if mask is None else flat * mask.reshape(flat.shape)


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` of one shape, keeping nothing but its two inputs."""
    return _SiluProduct.apply(gate, up)  # type: ignore[return-value]


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = ctx.saved_tensors
        of_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return of_gate, functional.silu(gate).mul_(gradient)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``x / sqrt(mean(x^2) + epsilon) * weight`` over the last dimension, for fp32 ``x``."""
    return _RmsNorm.apply(x, weight, epsilon)  # type: ignore[return-value]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        size = x.shape[-1]
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(size).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, scale = ctx.saved_tensors
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (gradient * x).mul_(scale).flatten(0, -2).sum(0)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None
        scaled = gradient * weight
        along = torch.linalg.vecdot(scaled, x).unsqueeze(-1).mul_(scale.pow(3)).div_(-x.shape[-1])
        return scaled.mul_(scale).addcmul_(x, along), of_weight, None
