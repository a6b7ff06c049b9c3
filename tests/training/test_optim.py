"""Every optimizer by its name: what decays, what it keeps, and that it goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tunesmith.errors import RecipeError
from tunesmith.methods.base import parameter_groups
from tunesmith.recipe.optimizers import OPTIMIZERS, Optimizer, state_bytes
from tunesmith.training import checkpoint
from tunesmith.training.optim import build_optimizer, check_optimizer, load_optimizer_state, optimizer_state


def adamw(groups: list[dict[str, Any]], weight_decay: float = 0.1) -> torch.optim.Optimizer:
    return build_optimizer(groups, learning_rate=0.01, weight_decay=weight_decay, betas=(0.8, 0.9), epsilon=1e-6)


def test_matrices_decay_and_norms_and_biases_do_not(tiny_model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    model.model.layers[0].mlp.up_proj.bias = nn.Parameter(torch.ones(128))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = adamw(parameter_groups(model))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        spared = "norm" in name or name.endswith("bias")
        expected = before[name] if spared else before[name] * (1 - 0.01 * 0.1)
        assert torch.allclose(parameter, expected, rtol=1e-6, atol=0), name
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == [0.1, 0.0]
    spared_names = optimizer.param_groups[1]["param_names"]
    assert len(spared_names) == 2 * 2 + 1 + 1, "two norms a layer, the last norm, and the bias"


def linear_pair() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))


HERE = [name for name in OPTIMIZERS if not name.startswith("paged")]


def wide_pair() -> nn.Sequential:
    """Large enough for 8-bit moments (4,096 elements), with a lookup table and vectors beside."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(80, 64), nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 64))


def of_name(name: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(
        parameter_groups(model), learning_rate=0.01, weight_decay=0.1, betas=(0.8, 0.9), epsilon=1e-6, optim=name
    )


def wide_step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    inputs = (torch.arange(24).reshape(2, 12) * number) % 80
    model(inputs).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", HERE)
def test_every_optimizer_goes_on_from_its_checkpoint_bit_for_bit(name: Optimizer, tmp_path: Path) -> None:
    whole = wide_pair()
    optimizer = of_name(name, whole)
    for number in (1, 2, 3):
        wide_step(whole, optimizer, number)
    weights = {key: value.clone() for key, value in whole.state_dict().items()}
    saved = checkpoint.save(tmp_path, 3, write_model=lambda folder: None, optimizer=optimizer, state={})
    for number in (4, 5, 6):
        wide_step(whole, optimizer, number)
    resumed = wide_pair()
    resumed.load_state_dict(weights)
    restored = of_name(name, resumed)
    checkpoint.restore(saved, restored)
    for number in (4, 5, 6):
        wide_step(resumed, restored, number)
    for (key, one), (_, other) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(one, other), key
        assert not torch.equal(one, weights[key]), f"{key} has moved"
    states = optimizer_state(optimizer), optimizer_state(restored)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", HERE)
def test_the_bytes_of_every_optimizers_state_are_known_beforehand(name: Optimizer) -> None:
    model = wide_pair()
    optimizer = of_name(name, model)
    wide_step(model, optimizer, 1)
    state = {key: value for key, value in optimizer_state(optimizer).items() if value.ndim}
    for key, parameter in model.named_parameters():
        kept = sum(value.nbytes for part, value in state.items() if part.startswith(f"{key}|"))
        assert kept == state_bytes(name, parameter.shape, embedding=key == "0.weight"), key


def test_eight_bits_are_for_large_weights_that_are_no_lookup_table() -> None:
    model = wide_pair()
    optimizer = of_name("adamw_8bit", model)
    wide_step(model, optimizer, 1)
    kinds = {key: value.dtype for key, value in optimizer_state(optimizer).items() if key.endswith("|state1")}
    assert {key for key, kind in kinds.items() if kind == torch.uint8} == {"1.weight|state1", "3.weight|state1"}
    assert kinds["0.weight|state1"] == torch.float32


@pytest.mark.parametrize("name", HERE)
def test_a_first_step_is_that_of_the_paper(name: Optimizer) -> None:
    """One step on a matrix without decay, from what the moments are after their first gradient."""
    weight = nn.Parameter(torch.zeros(64, 128))
    group = {"params": [weight], "names": ["weight"], "decay": False, "embeddings": [False]}
    optimizer = build_optimizer(
        [group], learning_rate=0.01, weight_decay=0.1, betas=(0.8, 0.9), epsilon=1e-8, optim=name
    )
    gradient = torch.linspace(-1, 1, 64 * 128).reshape(64, 128)
    weight.grad = gradient.clone()
    optimizer.step()
    if name == "sgd":
        expected = -0.01 * gradient
    elif name == "adafactor":
        squares = gradient.square() + 1e-30
        row, column = squares.mean(-1), squares.mean(-2)
        update = gradient * (row / row.mean())[:, None].rsqrt() * column.rsqrt()
        expected = -0.01 * update / max(1.0, float(update.square().mean().sqrt()))
    else:
        expected = -0.01 * gradient.sign()
    assert torch.allclose(weight.detach(), expected, rtol=1e-3, atol=1e-9)


def test_a_paged_optimizer_is_refused_without_a_gpu_and_the_others_are_not() -> None:
    with pytest.raises(RecipeError, match="paged_adamw_8bit needs a GPU") as error:
        check_optimizer("paged_adamw_8bit", "cpu")
    assert error.value.remedy == "Use optim: adamw_8bit"
    for name in HERE:
        check_optimizer(cast("Any", name), "cpu")


def test_the_state_of_another_optimizer_is_refused() -> None:
    model = wide_pair()
    adamw_state = of_name("adamw_torch", model)
    wide_step(model, adamw_state, 1)
    with pytest.raises(ValueError, match="belongs to another optimizer"):
        load_optimizer_state(of_name("adamw_8bit", model), optimizer_state(adamw_state))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    inputs = torch.arange(6.0).reshape(2, 3).sin() * number
    model(inputs).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_restored_optimizer_goes_on_as_the_one_that_was_never_stopped() -> None:
    whole = linear_pair()
    optimizer = adamw(parameter_groups(whole))
    for number in (1, 2, 3):
        step(whole, optimizer, number)
    weights = {name: value.clone() for name, value in whole.state_dict().items()}
    saved = {name: value.clone() for name, value in optimizer_state(optimizer).items()}
    for number in (4, 5):
        step(whole, optimizer, number)

    resumed = linear_pair()
    resumed.load_state_dict(weights)
    restored = adamw(parameter_groups(resumed))
    load_optimizer_state(restored, saved)
    for number in (4, 5):
        step(resumed, restored, number)
    for (name, one), (_, other) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    states = optimizer_state(optimizer), optimizer_state(restored)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_state_is_plain_tensors_named_by_parameter_and_key() -> None:
    model = linear_pair()
    optimizer = adamw(parameter_groups(model))
    assert optimizer_state(optimizer) == {}, "nothing before the first step"
    step(model, optimizer, 1)
    state = optimizer_state(optimizer)
    names = [name for name, _ in model.named_parameters()]
    assert sorted(state) == sorted(f"{name}|{key}" for name in names for key in ("step", "exp_avg", "exp_avg_sq"))
    assert state["0.weight|step"].item() == 1
    assert state["0.weight|exp_avg"].shape == (4, 3)


def test_loading_copies_so_that_what_was_loaded_does_not_change() -> None:
    model = linear_pair()
    optimizer = adamw(parameter_groups(model))
    step(model, optimizer, 1)
    saved = {name: value.clone() for name, value in optimizer_state(optimizer).items()}
    kept = {name: value.clone() for name, value in saved.items()}
    load_optimizer_state(optimizer, saved)
    step(model, optimizer, 2)
    assert all(torch.equal(saved[name], kept[name]) for name in saved)


def test_a_parameter_that_never_had_a_gradient_begins_anew() -> None:
    model = linear_pair()
    optimizer = adamw(parameter_groups(model))
    step(model, optimizer, 1)
    saved = {key: value for key, value in optimizer_state(optimizer).items() if not key.startswith("2.weight|")}
    load_optimizer_state(optimizer, saved)
    step(model, optimizer, 2)
    state = optimizer_state(optimizer)
    assert (state["0.weight|step"].item(), state["2.weight|step"].item()) == (2, 1)


def test_a_state_of_another_model_is_refused() -> None:
    model = linear_pair()
    optimizer = adamw(parameter_groups(model))
    step(model, optimizer, 1)
    state = optimizer_state(optimizer) | {"9.weight|exp_avg": torch.zeros(1)}
    with pytest.raises(KeyError, match=r"9\.weight"):
        load_optimizer_state(optimizer, state)
