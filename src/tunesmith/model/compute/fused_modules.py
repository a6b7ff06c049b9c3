"""Norms and gated feed-forward blocks of a model, put onto the passes of ``model/kernels.py``.

Nothing is taken over by its name: a module qualifies by its parts, and then must give on random input what it gave
before. What does not qualify keeps its own code. The feed-forward block of the last layer is computed only for the
tokens whose hidden states are read, where the caller says which (``reading``). On a GPU the passes are Liger's where it
is installed (``liger.py``), in bf16 and fp16 too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from tunesmith.model.compute.kernels import rms_norm, silu_product
from tunesmith.model.compute.layers import decoder_layers
from tunesmith.model.modes import kept_modes, seeded

Norm = Callable[[Tensor, Tensor, float], Tensor]
Product = Callable[[Tensor, Tensor], Tensor]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTH, ROWS, EPSILON = 320, 5, 1e-5  # of what is computed both ways: no power of two, as hidden sizes may be
ROUNDINGS = 4  # of the dtype, by the largest value: a wrong kernel is off by a hundred times more


@cache
def liger_passes(device: torch.device, dtype: torch.dtype) -> tuple[Norm, Product] | None:
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
    same = _kernels_agree(partial(norm, epsilon=EPSILON), partial(_plain_norm, epsilon=EPSILON), (x, weight))
    same = same and _kernels_agree(product, lambda gate, up: functional.silu(gate) * up, (gate, up))
    return (norm, product) if same else None


def _plain_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight


def _kernels_agree(kernel: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> bool:
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


AGREE = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.0025}  # of the largest output: rounding


@dataclass(frozen=True, slots=True)
class Passes:
    """What computes a norm and a gated product, in one dtype."""

    norm: Norm
    product: Product
    dtype: torch.dtype


def fuse(model: nn.Module) -> int:
    """Installs the fused passes in modules that allow them; returns how many. The weights are in place by then."""
    passes = _passes(model)
    if passes is None:
        return 0
    count, last = 0, _last_layer(model)
    module: Any
    for module in model.modules():
        if "forward" in module.__dict__:
            continue
        if _is_norm(module, passes.dtype):
            width, fused = module.weight.numel(), _norm_forward
        elif _is_gated(module):
            width, fused = _input_width(module.gate_proj), _gated_forward
        else:
            continue
        if width and _same(module, width, partial(fused, passes), passes.dtype):
            module.forward = partial(fused, passes, module)
            if last is not None and fused is _gated_forward and module in last.children():
                module.forward = partial(_last_gated_forward, passes, module)
            count += 1
    return count


def _passes(model: nn.Module) -> Passes | None:
    """Liger's for this device and dtype, else our own, which are for fp32. None for a model without weights."""
    weight = next((each for each in model.parameters() if each.is_floating_point()), None)
    if weight is None:
        return None
    kernels = liger_passes(weight.device, weight.dtype)
    if kernels is not None:
        return Passes(*kernels, weight.dtype)
    return Passes(rms_norm, silu_product, torch.float32)


_read: ContextVar[Tensor | None] = ContextVar("read", default=None)


@contextmanager
def reading(places: Tensor | None) -> Iterator[None]:
    """Inside, of the last hidden states only those at ``places`` of the flattened batch are read; None: all of them."""
    token = _read.set(places)
    try:
        yield
    finally:
        _read.reset(token)


def _last_layer(model: nn.Module) -> nn.Module | None:
    layers = decoder_layers(model) if isinstance(model, PreTrainedModel) else None
    return layers[-1] if layers else None


def _is_norm(module: Any, dtype: torch.dtype) -> bool:
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, nn.Parameter) and weight.ndim == 1 and weight.dtype == dtype
    return plain and len(list(module.parameters())) == 1 and isinstance(_epsilon(module), float)


def _epsilon(norm: Any) -> Any:
    return next((getattr(norm, name) for name in ("variance_epsilon", "eps") if hasattr(norm, name)), None)


def _is_gated(module: Any) -> bool:
    parts = all(isinstance(getattr(module, name, None), nn.Module) for name in ("gate_proj", "up_proj", "down_proj"))
    return parts and isinstance(getattr(module, "act_fn", None), nn.SiLU | SiLUActivation)


def _input_width(linear: Any) -> int | None:
    return getattr(linear, "in_features", None)


def _norm_forward(passes: Passes, self: Any, hidden_states: Tensor) -> Tensor:
    if hidden_states.dtype != passes.dtype or self.weight.dtype != passes.dtype:
        return type(self).forward(self, hidden_states)
    return passes.norm(hidden_states, self.weight, _epsilon(self))


def _gated_forward(passes: Passes, self: Any, x: Tensor) -> Tensor:
    return self.down_proj(passes.product(self.gate_proj(x), self.up_proj(x)))


def _last_gated_forward(passes: Passes, self: Any, x: Tensor) -> Tensor:
    places = _read.get()
    if places is None:
        return _gated_forward(passes, self, x)
    flat = x.flatten(0, -2)
    made = _gated_forward(passes, self, flat.index_select(0, places))
    return torch.zeros_like(flat).index_copy(0, places, made).view_as(x)


def _same(module: nn.Module, width: int, fused: Any, dtype: torch.dtype) -> bool:
    """Both on the same two random vectors, in training mode (with the same draws, should there be dropout) and without.

    A module that takes other arguments does not qualify.
    """
    if len(signature(type(module).forward).parameters) != 2:
        return False
    parameter = next(module.parameters())
    x = torch.randn(1, 2, width, generator=torch.Generator().manual_seed(0)).to(parameter.device, dtype)
    with kept_modes(module), torch.no_grad():
        try:
            return all(_agree(module.train(mode), x, fused) for mode in (True, False))
        except (TypeError, RuntimeError, ValueError, AttributeError):
            return False


def _agree(module: nn.Module, x: Tensor, fused: Any) -> bool:
    made = []
    for way in (module, partial(fused, module)):
        with seeded(0, x.device):
            made.append(way(x))
    expected, found = made
    if not isinstance(expected, Tensor) or expected.shape != found.shape:
        return False
    bound = AGREE[expected.dtype] * expected.abs().max()
    return expected.dtype == found.dtype and bool((expected - found).abs().max() <= bound)
