"""The passes of a training step on plain tensors, with as few trips through memory as their derivatives allow.

Each function computes what the modules of transformers and PEFT compute, to rounding, with a backward pass of its own:
matrix products accumulate in place instead of being added up by autograd, and what is cheap is computed again, not
kept. Gradients of gradients are not supported.

Shapes: T tokens, I input width, O output width, R rank of an adapter. ``of_x`` is the gradient of the loss by ``x``.
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
    """A linear map that does not train: its weight [O,I], made each time it is called for, and its bias [O]."""

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
        x: [..., I].
        frozen: the maps W_i, b_i.
        adapters: pairs A_i [R,I], B_i [O,R].
        scales: one number for each adapter.
        masks: the dropout mask that each adapter's input is multiplied by, of the shape of ``x``, or None.

    Returns:
        [..., O_i] for each map.
    """
    flat = [part for pair in adapters for part in pair]
    # Stacked only where a backward pass may follow: without one, answers are bit for bit what PEFT's own layers give.
    together = torch.is_grad_enabled() and all(mask is None for mask in masks)
    return _AdaptedLinears.apply(x, tuple(frozen), tuple(scales), tuple(masks), together, *flat)  # type: ignore[return-value]


class _AdaptedLinears(torch.autograd.Function):
    """``together``: no adapter has a dropout mask, so their A_i are stacked and multiplied with ``x`` once."""

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
        flat = x.reshape(-1, x.shape[-1])  # [T,I]
        # 1. Down to the rank: x A^T, [T, sum of R] for a stack of adapters or [T,R] for each.
        stacks = _stacks(adapters[0::2], masks, together=together)
        inner = [_masked(flat, mask) @ down.T for down, mask in stacks]
        # 2. Each map, with its adapter added in place: x W^T + b + scale (x A^T) B^T, [T,O].
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
        flat, ups = x.reshape(-1, x.shape[-1]), adapters[1::2]  # [T,I]
        of_x: Tensor | None = None
        of_outputs = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]  # [T,O] each
        of_inner = [torch.empty_like(part) for part in inner]
        # 1. By B: scale g^T (x A^T), [O,R]; and by x A^T: scale g B, written into its columns of the stack.
        of_ups = []
        for gradient, up, scale, hidden, of_hidden in zip(
            of_outputs, ups, ctx.scales, _members(inner, adapters), _members(of_inner, adapters), strict=True
        ):
            torch.mm(gradient, up, out=of_hidden).mul_(scale)
            of_ups.append((gradient.T @ hidden).mul_(scale))
        # 2. By x, through the frozen maps: the sum of g W, [T,I].
        if ctx.needs_input_grad[0]:
            for layer, gradient in zip(ctx.frozen, of_outputs, strict=True):
                weight = layer.weight()
                of_x = gradient @ weight if of_x is None else of_x.addmm_(gradient, weight)
        # 3. By A: (gradient by x A^T)^T x, [R,I]; and by x, through the adapters, added to the same sum.
        of_downs = []
        stacks = _stacks(adapters[0::2], masks, together=ctx.together)
        for (down, mask), part in zip(stacks, of_inner, strict=True):
            of_downs.append(part.T @ _masked(flat, mask))
            if of_x is not None and mask is None:
                of_x.addmm_(part, down)
            elif of_x is not None and mask is not None:
                of_x.addcmul_(part @ down, mask.reshape(flat.shape))
        of_downs = _members([part.T for part in of_downs], adapters)
        of_adapters = [part for down, up in zip(of_downs, of_ups, strict=True) for part in (down.T, up)]
        return (None if of_x is None else of_x.view_as(x), None, None, None, None, *of_adapters)


def _stacks(
    downs: Sequence[Tensor], masks: Sequence[Tensor | None], *, together: bool
) -> list[tuple[Tensor, Tensor | None]]:
    """The A_i that are multiplied at once, with their dropout mask: all in one stack [sum of R, I], or each alone."""
    if len(downs) > 1 and together:
        return [(torch.cat(tuple(downs)), None)]
    return list(zip(downs, masks, strict=True))


def _members(parts: Sequence[Tensor], adapters: Sequence[Tensor]) -> Sequence[Tensor]:
    """The columns of each adapter: [T, sum of R] of a stack -> [T,R] each."""
    downs = adapters[0::2]
    return parts if len(parts) == len(downs) else parts[0].split([len(down) for down in downs], 1)


def _masked(flat: Tensor, mask: Tensor | None) -> Tensor:
    return flat if mask is None else flat * mask.reshape(flat.shape)


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` of one shape. It keeps nothing for the backward pass but its two inputs."""
    return _SiluProduct.apply(gate, up)  # type: ignore[return-value]


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # silu(gate) is computed again: one pass is cheaper than keeping another tensor.
        gate, up = ctx.saved_tensors
        of_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return of_gate, functional.silu(gate).mul_(gradient)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``x / sqrt(mean(x^2) + epsilon) * weight`` over the last dimension, for fp32 ``x``."""
    return _RmsNorm.apply(x, weight, epsilon)  # type: ignore[return-value]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        # norm(x)^2 / H is the mean of the squares, in one pass over x
        size = x.shape[-1]
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(size).add_(epsilon).rsqrt_()  # [...,1]
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # With s = scale and u = g * weight: by weight the sum over tokens of g x s, by x: s u - x s^3 (u . x) / H
        x, weight, scale = ctx.saved_tensors
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (gradient * x).mul_(scale).flatten(0, -2).sum(0)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None
        scaled = gradient * weight
        along = torch.linalg.vecdot(scaled, x).unsqueeze(-1).mul_(scale.pow(3)).div_(-x.shape[-1])
        return scaled.mul_(scale).addcmul_(x, along), of_weight, None
