"""Liger's kernels for norms and gated products (arXiv:2410.10989), on a GPU where liger-kernel is installed.

Before they are used, the machine computes both ways, forward and backward; where that fails or differs by more than
rounding, the model keeps its own code.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Norm = Callable[[Tensor, Tensor, float], Tensor]
Product = Callable[[Tensor, Tensor], Tensor]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTH, ROWS, EPSILON = 320, 5, 1e-5  # of what is computed both ways: no power of two, as hidden sizes may be
ROUNDINGS = 4  # of the dtype, by the largest value: a wrong kernel is off by a hundred times more


@cache
def passes(device: torch.device, dtype: torch.dtype) -> tuple[Norm, Product] | None:
    """RMSNorm (hidden, weight, epsilon) and silu(gate) * up, or None where they are not to be had or not right."""
    if device.type != "cuda" or dtype not in DTYPES:
        return None
    try:
        return checked(device, dtype)
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError):  # not installed, no compiler, another API
        return None


def checked(device: torch.device, dtype: torch.dtype) -> tuple[Norm, Product] | None:
    """The two kernels, after they gave what torch gives. Raises what they raise on a machine that cannot run them."""
    kernels: Any = importlib.import_module("liger_kernel.transformers.functional")

    def norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        # in_place would write into a gradient that others may read too
        return kernels.liger_rms_norm(hidden, weight, epsilon, 0.0, "llama", in_place=False)

    def product(gate: Tensor, up: Tensor) -> Tensor:
        return kernels.liger_swiglu(gate, up)

    generator = torch.Generator().manual_seed(0)
    x, gate, up = (torch.randn(ROWS, WIDTH, generator=generator).to(device, dtype) for _ in range(3))
    weight = torch.rand(WIDTH, generator=generator).add(0.5).to(device, dtype)
    same = _agree(partial(norm, epsilon=EPSILON), partial(_plain_norm, epsilon=EPSILON), (x, weight))
    same = same and _agree(product, lambda gate, up: functional.silu(gate) * up, (gate, up))
    return (norm, product) if same else None


def _plain_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight


def _agree(kernel: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> bool:
    """Output and gradients; the plain way in fp32, whose rounding does not count."""
    bound = ROUNDINGS * torch.finfo(inputs[0].dtype).eps
    found = _with_gradients(kernel, inputs)
    expected = _with_gradients(plain, tuple(each.float() for each in inputs))
    return all(
        bool((one.float() - other).abs().max() <= bound * other.abs().max())
        for one, other in zip(found, expected, strict=True)
    )


def _with_gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
    copies = [each * 1 for each in leaves]  # kernels may write over what they were given, not over leaves
    out = function(*copies)
    return [out.detach().clone(), *torch.autograd.grad(out.sum(), leaves)]
