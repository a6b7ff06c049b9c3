"""Norms and feed-forward blocks run on our passes, or Liger's, only where that changes nothing."""

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
from transformers import AutoModelForCausalLM

from tunesmith.model.compute import fused_modules
from tunesmith.model.compute.fused_modules import fuse, reading

CPU = torch.device("cpu")


def tiny(name: str, **changes: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config_for(name, **changes), dtype=torch.float32)
    for parameter in model.parameters():  # norms begin at ones, where a forgotten weight would not show
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    return model.eval()


@pytest.mark.parametrize(("name", "count"), [("llama", 7), ("qwen3", 11), ("olmo2", 11), ("mistral", 7), ("qwen2", 7)])
def test_a_fused_model_gives_the_logits_and_gradients_that_it_gave_before(name: str, count: int) -> None:
    model, ids = tiny(name), torch.arange(3, 23)[None]
    results, fused = [], None
    for _ in range(2):
        model.zero_grad()
        logits = model(input_ids=ids).logits
        logits.square().mean().backward()
        results.append((logits.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
        fused = fuse(model)
    assert fused == 0, "the second call finds nothing left to do"
    own = sum("forward" in module.__dict__ for module in model.modules())
    assert own == count, "two layers: each norm and each feed-forward block"
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=2e-6)
    for before, after in zip(results[0][1], results[1][1], strict=True):
        assert functional.cosine_similarity(before.flatten(), after.flatten(), dim=0) > 0.99999
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-5 * float(before.abs().max()))


def test_a_norm_that_adds_one_to_its_weight_and_a_block_with_another_activation_keep_their_own_code() -> None:
    assert fuse(tiny("gemma")) == 0


def test_a_fused_norm_leaves_other_dtypes_to_its_own_code() -> None:
    model = tiny("llama")
    norm = model.model.norm
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = norm(x)
    fuse(model)
    assert torch.equal(norm(x), expected)


class Block(torch.nn.Module):
    """A gated block as Seed-OSS has it: with dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (torch.nn.Linear(8, 8) for _ in range(3))
        self.act_fn = torch.nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return functional.dropout(made, 0.5, training=self.training)


class GatedNorm(torch.nn.Module):
    """A norm as Mamba 2 has it: with a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = torch.nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        normed = hidden_states * torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (normed if gate is None else normed * functional.silu(gate))


@pytest.mark.parametrize("module", [Block(), GatedNorm()], ids=["dropout", "second input"])
def test_a_module_that_does_more_keeps_its_own_code(module: torch.nn.Module) -> None:
    assert fuse(torch.nn.Sequential(module)) == 0


@pytest.mark.parametrize("name", ["llama", "qwen3", "olmo2"])
def test_the_last_block_is_computed_for_the_tokens_that_are_read_and_for_no_others(name: str) -> None:
    model, ids, places = tiny(name), torch.arange(3, 23)[None], torch.tensor([4, 11, 19])
    fuse(model)
    made, lines = [], []
    model.model.layers[-1].mlp.gate_proj.register_forward_hook(lambda _, x, __: lines.append(x[0].shape[-2]))
    for read in (None, places):
        model.zero_grad()
        with reading(read):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0, places]
        hidden.square().sum().backward()
        made.append((hidden.detach(), {name: own.grad.clone() for name, own in model.model.named_parameters()}))
    assert lines == [20, 3]
    torch.testing.assert_close(made[1][0], made[0][0], rtol=1e-5, atol=1e-6)
    for part, gradient in made[0][1].items():
        torch.testing.assert_close(made[1][1][part], gradient, rtol=1e-3, atol=2e-6 * float(1 + gradient.abs().max()))


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


@pytest.mark.parametrize("dtype", fused_modules.LIGER_DTYPES)
def test_kernels_that_give_what_torch_gives_are_used(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    installed(monkeypatch, right_norm, right_product)
    found = fused_modules.checked_liger_passes(CPU, dtype)
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
    assert fused_modules.checked_liger_passes(CPU, torch.bfloat16) is None


def test_without_a_gpu_and_without_the_package_nothing_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)  # an import of it fails
    assert fused_modules.liger_passes(CPU, torch.float32) is None
    assert fused_modules.liger_passes(torch.device("cuda"), torch.bfloat16) is None


def test_a_bf16_model_on_them_gives_the_logits_and_gradients_that_it_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config_for("llama"), dtype=torch.bfloat16).eval()
    ids, results = torch.arange(3, 23)[None], []
    assert fuse(model) == 0, "our own passes are for fp32"
    installed(monkeypatch, right_norm, right_product)
    monkeypatch.setattr(fused_modules, "liger_passes", fused_modules.checked_liger_passes)
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
