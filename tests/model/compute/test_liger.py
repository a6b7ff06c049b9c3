"""Liger's kernels are used only where they are there and give, forward and backward, what torch gives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.tiny import config_for
from torch import Tensor
from torch.nn import functional

from tunesmith.model.compute import fused_modules
from tunesmith.model.compute.fused_modules import fuse

CPU = torch.device("cpu")


def right_norm(x: Tensor, weight: Tensor, epsilon: float, offset: float, casting: str, in_place: bool) -> Tensor:
    assert (offset, casting, in_place) == (0.0, "llama", False)
    wide = x.float()
    return (wide * (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt()).to(x.dtype) * weight


def right_product(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate.float()).to(gate.dtype) * up


class DoubledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * gradient


def installed(monkeypatch: pytest.MonkeyPatch, norm: Callable[..., Tensor], product: Callable[..., Tensor]) -> None:
    """A package of Liger's name and signatures; the real one needs a GPU."""
    package, inner, functions = (ModuleType(name) for name in ("liger_kernel", "transformers", "functional"))
    functions.liger_rms_norm, functions.liger_swiglu = norm, product  # type: ignore[attr-defined]
    for name, module in (("", package), (".transformers", inner), (".transformers.functional", functions)):
        monkeypatch.setitem(sys.modules, f"liger_kernel{name}", module)


@pytest.mark.parametrize("dtype", fused_modules.DTYPES)
def test_kernels_that_give_what_torch_gives_are_used(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    installed(monkeypatch, right_norm, right_product)
    found = fused_modules.checked(CPU, dtype)
    assert found is not None
    x, weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).to(dtype), torch.ones(8, dtype=dtype)
    assert torch.equal(found[0](x, weight, 1e-6), right_norm(x, weight, 1e-6, 0.0, "llama", False))
    assert torch.equal(found[1](x, x), right_product(x, x))


@pytest.mark.parametrize(
    ("norm", "product"),
    [
        (lambda x, weight, epsilon, *_, **__: right_norm(x, weight + 1, epsilon, 0.0, "llama", False), right_product),
        (lambda *of, **named: DoubledGradient.apply(right_norm(*of, **named)), right_product),
        (right_norm, lambda gate, up: functional.gelu(gate) * up),
        (right_norm, lambda gate, up: DoubledGradient.apply(right_product(gate, up))),
        (right_norm, lambda gate, up: right_product(gate, up) * float("nan")),
    ],
    ids=["norm", "gradient of the norm", "product", "gradient of the product", "not a number"],
)
def test_kernels_that_do_not_are_left(monkeypatch: pytest.MonkeyPatch, norm: Any, product: Any) -> None:
    installed(monkeypatch, norm, product)
    assert fused_modules.checked(CPU, torch.bfloat16) is None


def test_without_a_gpu_and_without_the_package_nothing_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)  # an import of it fails
    assert fused_modules.liger_passes(CPU, torch.float32) is None
    assert fused_modules.liger_passes(torch.device("cuda"), torch.bfloat16) is None


def test_a_bf16_model_on_them_gives_the_logits_and_gradients_that_it_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config_for("llama"), dtype=torch.bfloat16).eval()
    ids, results = torch.arange(3, 23)[None], []
    assert fuse(model) == 0, "our own passes are for fp32"
    installed(monkeypatch, right_norm, right_product)
    monkeypatch.setattr(fused_modules, "passes", fused_modules.checked)
    for _ in range(2):
        model.zero_grad()
        logits = model(input_ids=ids).logits.float()
        logits.square().mean().backward()
        results.append((logits.detach(), [parameter.grad.float() for parameter in model.parameters()]))
        fuse(model)
    assert fuse(model) == 0, "another call finds nothing left to do"
    assert sum("forward" in module.__dict__ for module in model.modules()) == 7
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0.02, atol=0.02 * float(results[0][0].abs().max()))
    for before, after in zip(results[0][1], results[1][1], strict=True):
        assert functional.cosine_similarity(before.flatten(), after.flatten(), dim=0) > 0.999
