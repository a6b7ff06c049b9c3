"""Replaces the norms and gated feed-forward blocks of a model by the passes of ``kernels.py``.

A module qualifies by its parts, never by its name, and then must give on random input what it gave before. A module
that does not qualify keeps its own code. The feed-forward block of the last layer is computed only for the tokens whose
hidden states are read, where the caller names them (``reading``). On a GPU the passes are those of Liger where it is
installed, also in bf16 and fp16.
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

from tunesmith.model.compute.agreement import agree
from tunesmith.model.compute.kernels import rms_norm, silu_product
from tunesmith.model.compute.layers import decoder_layers
from tunesmith.model.modes import kept_modes, seeded

Norm = Callable[[Tensor, Tensor, float], Tensor]
Product = Callable[[Tensor, Tensor], Tensor]
LIGER_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CHECK_WIDTH, _CHECK_ROWS, _CHECK_EPSILON = (
    320,
    5,
    1e-5,
)  # of what is computed both ways: no power of two, like some models
_ROUNDINGS = 4  # of the dtype, by the largest value: a wrong kernel is off by a hundred times more
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.0025}  # of the largest output: rounding


@cache
def liger_passes(device: torch.device, dtype: torch.dtype) -> tuple[Norm, Product] | None:
    """Liger's RMSNorm (hidden, weight, epsilon) and silu(gate) * up; None where they are missing or not right."""
    if device.type != "cuda" or dtype not in LIGER_DTYPES:
        return None
    try:
        return checked_liger_passes(device, dtype)
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError):  # not installed, no compiler, another API
        return None


def checked_liger_passes(device: torch.device, dtype: torch.dtype) -> tuple[Norm, Product] | None:
    """The two kernels if they give what torch gives. Raises what they raise on a machine that cannot run them."""
    kernels: Any = importlib.import_module("liger_kernel.transformers.functional")

    def norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        # in_place would write into a gradient that other operations may also read
        return kernels.liger_rms_norm(hidden, weight, epsilon, 0.0, "llama", in_place=False)

    def product(gate: Tensor, up: Tensor) -> Tensor:
        return kernels.liger_swiglu(gate, up)

    generator = torch.Generator().manual_seed(0)
    x, gate, up = (torch.randn(_CHECK_ROWS, _CHECK_WIDTH, generator=generator).to(device, dtype) for _ in range(3))
    weight = torch.rand(_CHECK_WIDTH, generator=generator).add(0.5).to(device, dtype)
    epsilon = {"epsilon": _CHECK_EPSILON}
    same = _kernels_agree(partial(norm, **epsilon), partial(_plain_norm, **epsilon), (x, weight))
    same = same and _kernels_agree(product, lambda gate, up: functional.silu(gate) * up, (gate, up))
    return (norm, product) if same else None


def _plain_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight


def _kernels_agree(kernel: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> bool:
    """Compares outputs and gradients. The plain way runs in fp32, so that its own rounding does not count."""
    bound = _ROUNDINGS * torch.finfo(inputs[0].dtype).eps
    found = _with_gradients(kernel, inputs)
    expected = _with_gradients(plain, tuple(each.float() for each in inputs))
    return all(agree(one.float(), other, bound) for one, other in zip(found, expected, strict=True))


def _with_gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The output, and the gradients of its sum by each input."""
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
    copies = [each * 1 for each in leaves]  # kernels may overwrite their inputs, but not leaves
    out = function(*copies)
    return [out.detach().clone(), *torch.autograd.grad(out.sum(), leaves)]


@dataclass(frozen=True, slots=True)
class Passes:
    """What computes the norms and gated products of a model, in one dtype."""

    norm: Norm
    product: Product
    dtype: torch.dtype


def fuse(model: nn.Module) -> int:
    """Installs the fused passes in the modules that allow them. Returns their number. Load the weights before."""
    passes = _passes(model)
    if passes is None:
        return 0
    layers = decoder_layers(model) if isinstance(model, PreTrainedModel) else None
    last = list(layers[-1].children()) if layers else []
    count = 0
    module: Any
    for module in model.modules():
        if "forward" in module.__dict__:  # replaced already, by us or by somebody else
            continue
        if _is_norm(module, passes.dtype):
            width, fused = module.weight.numel(), _norm_forward
        elif _is_gated(module):
            width, fused = module.gate_proj.in_features, _gated_forward
        else:
            continue
        if _same(module, width, partial(fused, passes), passes.dtype):
            if fused is _gated_forward and module in last:
                fused = _last_gated_forward
            module.forward = partial(fused, passes, module)
            count += 1
    return count


def _passes(model: nn.Module) -> Passes | None:
    """Liger's passes if they run on this device, else our own, which are for fp32. None for a model without weights."""
    weight = next((each for each in model.parameters() if each.is_floating_point()), None)
    if weight is None:
        return None
    kernels = liger_passes(weight.device, weight.dtype)
    if kernels is not None:
        return Passes(*kernels, weight.dtype)
    return Passes(rms_norm, silu_product, torch.float32)


_read: ContextVar[Tensor | None] = ContextVar("read", default=None)


@contextmanager
def reading(positions: Tensor | None) -> Iterator[None]:
    """Inside, only the last hidden states at ``positions`` [N] of the flattened batch are read; None: all of them."""
    token = _read.set(positions)
    try:
        yield
    finally:
        _read.reset(token)


def _is_norm(module: Any, dtype: torch.dtype) -> bool:
    """Whether a module has one weight vector and an epsilon, as RMSNorm has."""
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, nn.Parameter) and weight.ndim == 1 and weight.dtype == dtype
    return plain and len(list(module.parameters())) == 1 and isinstance(_epsilon(module), float)


def _epsilon(norm: Any) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def _is_gated(module: Any) -> bool:
    """Whether a module has the parts of ``down(silu(gate(x)) * up(x))``."""
    gate, up, down = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    if not all(isinstance(part, nn.Module) for part in (gate, up, down)):
        return False
    activation = getattr(module, "act_fn", None)
    return isinstance(activation, nn.SiLU | SiLUActivation) and isinstance(getattr(gate, "in_features", None), int)


def _norm_forward(passes: Passes, self: Any, hidden_states: Tensor) -> Tensor:
    if hidden_states.dtype != passes.dtype or self.weight.dtype != passes.dtype:
        return type(self).forward(self, hidden_states)
    return passes.norm(hidden_states, self.weight, _epsilon(self))


def _gated_forward(passes: Passes, self: Any, x: Tensor) -> Tensor:
    return self.down_proj(passes.product(self.gate_proj(x), self.up_proj(x)))


def _last_gated_forward(passes: Passes, self: Any, x: Tensor) -> Tensor:
    """The block for the tokens that are read, and zeros elsewhere: [B,L,H] -> [B,L,H]."""
    positions = _read.get()
    if positions is None:
        return _gated_forward(passes, self, x)
    flat = x.flatten(0, -2)  # [B*L,H]
    made = _gated_forward(passes, self, flat.index_select(0, positions))  # [N,H]
    return torch.zeros_like(flat).index_copy(0, positions, made).view_as(x)


def _same(module: nn.Module, width: int, fused: Any, dtype: torch.dtype) -> bool:
    """Whether both ways give the same on two random vectors, in training mode and in evaluation mode.

    A module whose ``forward`` takes other arguments does not qualify.
    """
    if len(signature(type(module).forward).parameters) != 2:
        return False
    parameter = next(module.parameters())
    x = torch.randn(1, 2, width, generator=torch.Generator().manual_seed(0)).to(parameter.device, dtype)  # [1,2,H]
    try:
        with torch.no_grad(), kept_modes(module):
            return all(_gives_the_same(module.train(mode), x, fused) for mode in (True, False))
    except (TypeError, RuntimeError, ValueError, AttributeError):
        return False


def _gives_the_same(module: nn.Module, x: Tensor, fused: Any) -> bool:
    made = []
    for way in (module, partial(fused, module)):
        with seeded(0, x.device):  # the same random draws both ways, should there be dropout
            made.append(way(x))
    expected, found = made
    if not isinstance(expected, Tensor) or expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    return agree(found, expected, _TOLERANCE[expected.dtype])
