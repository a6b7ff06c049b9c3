"""The fused passes give PEFT's outputs and gradients, and step aside for all that is not plain LoRA."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import Row, config_for, tiny
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from tunesmith.methods import fused_lora
from tunesmith.methods.table import build
from tunesmith.model.compute.kernels import adapted_linears
from tunesmith.recipe.methods import LoraSettings


def adapted(model: Any = None, **settings: Any) -> Any:
    """A tuned model, so that no update is zero."""
    method = build(LoraSettings(r=4, **settings), base="nowhere")
    made = method.attach(model or tiny(config_for("llama", attention_bias=True)))
    generator = torch.Generator().manual_seed(7)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def unfused(model: Any) -> Any:
    plain = copy.deepcopy(model)
    for module in plain.modules():
        module.__dict__.pop("forward", None)
    return plain


def run(model: nn.Module, *, train: bool) -> tuple[Tensor, dict[str, Tensor]]:
    model.train(train)
    torch.manual_seed(5)
    logits = model(input_ids=torch.arange(3, 23)[None]).logits
    logits.square().mean().backward()
    return logits.detach(), {name: own.grad for name, own in model.named_parameters() if own.grad is not None}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many linear maps each call of the kernel computed."""
    counted: list[int] = []
    kernel: Callable[..., Any] = adapted_linears

    def counting(x: Tensor, frozen: Any, *rest: Any) -> Any:
        counted.append(len(frozen))
        return kernel(x, frozen, *rest)

    monkeypatch.setattr(fused_lora, "adapted_linears", counting)
    return counted


def compare(model: Any, *, train: bool = False) -> None:
    """In fp64, where nothing but rounding is far smaller than any fault."""
    model.double()
    expected, found = run(unfused(model), train=train), run(model, train=train)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-11, atol=1e-11)
    assert found[1].keys() == expected[1].keys() and expected[1]
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-10, atol=1e-12 * float(gradient.abs().max()))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"use_rslora": True},
        {"lora_alpha": 3.0},
        {"target_modules": ["v_proj"]},
    ],
)
def test_outputs_and_gradients_are_those_of_peft(settings: dict[str, Any], calls: list[int]) -> None:
    compare(adapted(**settings))
    assert calls, "the kernel ran"


def test_what_eva_leaves_without_an_adapter_is_computed_without_it(calls: list[int]) -> None:
    random = np.random.default_rng(0)
    rows = [[Row(2 + random.geometric(0.2, 40)) for _ in range(30)]]
    method = build(LoraSettings(r=2, init_lora_weights="eva"), base="nowhere")
    model: Any = method.attach(tiny(config_for("llama")), rows)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
    compare(model)
    adapted_maps = sum(hasattr(module, "lora_A") for module in model.modules())
    assert sum(calls) == adapted_maps, "each once"


def test_layers_that_read_the_same_input_are_computed_together(calls: list[int]) -> None:
    run(adapted(), train=True)
    assert calls == [3, 1, 2, 1] * 2  # q k v, o, gate up, down; in two layers


def test_dropout_is_drawn_as_peft_draws_it(calls: list[int]) -> None:
    compare(adapted(lora_dropout=0.3), train=True)
    assert calls


def test_layers_whose_weights_stand_the_other_way_round(calls: list[int]) -> None:
    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    compare(adapted(GPT2LMHeadModel(config).eval()))
    assert calls == [1, 1, 1, 1] * 2


def test_dora_and_dropout_of_another_kind_run_pefts_own_code(calls: list[int]) -> None:
    compare(adapted(use_dora=True))
    model = adapted(lora_dropout=0.5)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            model.set_submodule(name, nn.AlphaDropout(0.5))
    compare(model, train=True)
    assert not calls


def test_a_layer_whose_bias_trains_runs_pefts_own_code(calls: list[int]) -> None:
    compare(adapted(bias="all"))
    assert calls == [2, 1] * 2, "gate and up together, and down; q, k, v and o have a bias"


def test_a_switched_off_merged_or_second_adapter_runs_pefts_own_code(calls: list[int]) -> None:
    model, ids = adapted(), torch.arange(3, 23)[None]
    tuned = model(input_ids=ids).logits
    assert calls
    calls.clear()
    with model.disable_adapter():
        base = model(input_ids=ids).logits
    assert not calls and (tuned - base).abs().max() > 1e-3
    model.merge_adapter()
    torch.testing.assert_close(model(input_ids=ids).logits, tuned, rtol=1e-4, atol=1e-5)
    assert not calls
    model.unmerge_adapter()
    model(input_ids=ids)
    assert calls


def test_another_dtype_than_the_adapters_runs_pefts_own_code(calls: list[int]) -> None:
    model = adapted(tiny(config_for("llama")).bfloat16())
    assert model(input_ids=torch.arange(3, 23)[None]).logits.dtype == torch.bfloat16
    assert not calls


def test_an_output_that_waits_is_given_out_only_for_the_input_it_was_made_from(calls: list[int]) -> None:
    model = adapted()
    block = model.get_base_model().model.layers[0].self_attn
    plain = unfused(model).get_base_model().model.layers[0].self_attn
    one, other = torch.randn(2, 1, 5, 32, generator=torch.Generator().manual_seed(1))
    block.q_proj(one)
    torch.testing.assert_close(block.k_proj(other), plain.k_proj(other))
    assert calls == [3, 3]
    block.q_proj(one)
    one.mul_(2)  # the same tensor with other contents
    torch.testing.assert_close(block.v_proj(one), plain.v_proj(one))


def test_a_copy_of_the_model_computes_with_its_own_weights() -> None:
    model, ids = adapted(), torch.arange(3, 23)[None]
    before = model(input_ids=ids).logits
    twin = copy.deepcopy(model)
    for name, parameter in twin.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    assert torch.equal(model(input_ids=ids).logits, before)
    assert (twin(input_ids=ids).logits - before).abs().max() > 1e-3


def test_layers_called_in_another_order_or_not_at_all_leave_nothing_wrong(calls: list[int]) -> None:
    model = adapted()
    block, x = model.get_base_model().model.layers[0].self_attn, torch.randn(1, 5, 32)
    plain = unfused(model).get_base_model().model.layers[0].self_attn
    for name in ("k_proj", "q_proj", "v_proj"):
        torch.testing.assert_close(getattr(block, name)(x), getattr(plain, name)(x))
    assert calls == [3]
    block.q_proj(x)  # two wait, and their graph with them
    twin = copy.deepcopy(block)
    torch.testing.assert_close(twin.k_proj(x), plain.k_proj(x))
    twin.load_state_dict(pickle.loads(pickle.dumps(block)).state_dict())  # noqa: S301


def test_it_runs_in_inference_mode() -> None:
    model, ids = adapted(), torch.arange(3, 23)[None]
    expected = model(input_ids=ids).logits.detach()
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=ids).logits, expected)


def test_the_input_of_a_dropout_may_be_laid_out_in_any_way() -> None:
    layer = adapted(lora_dropout=0.3).get_base_model().model.layers[0].self_attn.o_proj.train()
    x = torch.randn(2, 32, 5).transpose(1, 2)
    torch.manual_seed(0)
    found = layer(x)
    torch.manual_seed(0)
    torch.testing.assert_close(found, type(layer).forward(layer, x))
