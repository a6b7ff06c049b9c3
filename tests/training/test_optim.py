"""The learning rate of every step, what decays, and an optimizer that goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, get_scheduler

from tunesmith.methods.base import parameter_groups
from tunesmith.training.optim import (
    Schedule,
    build_optimizer,
    learning_rate_at,
    load_optimizer_state,
    optimizer_state,
    rate_schedule,
)

TOTAL = 13


def reference_rates(schedule: str, warmup_steps: int) -> list[float]:
    """What transformers' scheduler of the same name gives each step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=warmup_steps, num_training_steps=TOTAL)
    rates = []
    for _ in range(TOTAL):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup_steps", [0, 1, 5, TOTAL])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "constant_with_warmup"])
def test_the_rate_of_every_step_is_that_of_transformers(schedule: Schedule, warmup_steps: int) -> None:
    rate = rate_schedule(peak=3e-4, total_steps=TOTAL, warmup_steps=warmup_steps, schedule=schedule)
    found = [rate(step) for step in range(1, TOTAL + 1)]
    assert found == pytest.approx(reference_rates(schedule, warmup_steps), rel=1e-12, abs=0)


def test_rates_worth_knowing_by_heart() -> None:
    def rate(step: int, schedule: Schedule) -> float:
        return learning_rate_at(step, peak=1.0, total_steps=10, warmup_steps=2, schedule=schedule)

    assert [rate(step, "linear") for step in (1, 2, 3, 7)] == [0.0, 0.5, 1.0, 0.5]
    assert [rate(step, "cosine") for step in (1, 2, 3, 7)] == pytest.approx([0.0, 0.5, 1.0, 0.5])
    assert [rate(step, "constant_with_warmup") for step in (1, 2, 3, 10)] == [0.0, 0.5, 1.0, 1.0]
    assert [rate(step, "constant") for step in (1, 10)] == [1.0, 1.0]
    assert rate(10, "cosine") > 0, "the last step still learns"


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
