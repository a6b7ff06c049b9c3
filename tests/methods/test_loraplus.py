"""LoRA+: each parameter has the rate that PEFT's own optimizer gives it, at each step and for each optimizer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from tests.tiny import Row
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM

from tunesmith.data.batches.layout import micro_batches
from tunesmith.methods.table import build
from tunesmith.model.compute import attention
from tunesmith.recipe.methods import LoraSettings
from tunesmith.recipe.optimizers import OPTIMIZERS, Optimizer
from tunesmith.recipe.schedules import learning_rate_at
from tunesmith.runs.progress import StepResult
from tunesmith.training.loop import Hooks, Step, train_steps
from tunesmith.training.objectives.supervised import CrossEntropy
from tunesmith.training.optim import build_optimizer, load_optimizer_state, optimizer_state

RATE, TOTAL = 1e-3, 10
VARIANTS: list[dict[str, Any]] = [
    {},
    {"use_dora": True, "use_rslora": True},
    {"bias": "all", "modules_to_save": ["lm_head", "norm"]},
    {"target_modules": ["q_proj", "embed_tokens"], "loraplus_lr_embedding": 5e-5},
]


def schedule() -> Any:
    return partial(learning_rate_at, peak=RATE, total_steps=TOTAL, warmup_steps=2, schedule="cosine", arguments={})


def attached(folder: Path, **settings: Any) -> tuple[Any, Any]:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    attention.install(base)
    if settings.get("bias"):
        base.model.layers[0].mlp.up_proj.bias = nn.Parameter(torch.ones(128))
    method = build(LoraSettings(r=4, loraplus_lr_ratio=16.0, **settings), base=folder)
    return method, method.attach(base)


def ours(method: Any, model: nn.Module, optim: Optimizer = "adamw_torch") -> torch.optim.Optimizer:
    return build_optimizer(
        method.parameter_groups(model),
        learning_rate=RATE,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        epsilon=1e-8,
        optim=optim,
    )


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, *, first: int = 1, last: int = 3) -> list[StepResult]:
    random = np.random.default_rng(0)
    made = [[Row(random.integers(3, 400, 20)) for _ in range(4)] for _ in range(last)]
    batches = [micro_batches(rows, budget=10_000, layout="padded") for rows in made]
    results: list[StepResult] = []
    train_steps(
        model,
        [Step(number, 0.0, batches[number - 1]) for number in range(first, last + 1)],
        objective=CrossEntropy(),
        optimizer=optimizer,
        rate=schedule(),
        max_grad_norm=0.0,
        seed=0,
        hooks=Hooks(results.append),
    )
    return results


def rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    return {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_every_parameter_has_pefts_rate_after_each_step(tiny_model_dir: Path, settings: dict[str, Any]) -> None:
    method, model = attached(tiny_model_dir, **settings)
    more = {name: value for name, value in settings.items() if name == "loraplus_lr_embedding"}
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=16.0, **more)
    rate = schedule()
    scheduler = LambdaLR(theirs, lambda done: rate(done + 1) / RATE)
    optimizer = ours(method, model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, float] = {}
    for last in range(1, 5):
        expected = {names[key]: value for key, value in rates(theirs).items()}
        (result,) = fit(model, optimizer, first=last, last=last)
        found = {names[key]: value for key, value in rates(optimizer).items()}
        assert found == pytest.approx(expected, rel=1e-12)
        assert result.learning_rate == rate(last), "what is shown is the step's own rate"
        theirs.step()
        scheduler.step()
    assert len({round(value / rate(4), 9) for value in found.values()}) == (3 if more else 2)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_three_steps_give_the_weights_that_pefts_optimizer_gives(
    tiny_model_dir: Path, settings: dict[str, Any]
) -> None:
    more = {name: value for name, value in settings.items() if name == "loraplus_lr_embedding"}
    method, model = attached(tiny_model_dir, **settings)
    _, other = attached(tiny_model_dir, **settings)
    before = {name: own.detach().clone() for name, own in model.named_parameters()}
    fit(model, ours(method, model))
    theirs = create_loraplus_optimizer(
        other, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=16.0, betas=(0.9, 0.999), eps=1e-8, fused=True, **more
    )
    rate = schedule()
    scheduler = LambdaLR(theirs, lambda done: rate(done + 1) / RATE)

    class Scheduled:
        """PEFT's optimizer under PyTorch's scheduler; what the loop says about rates does not reach it."""

        def __init__(self) -> None:
            self.param_groups = [{"params": [own for own in other.parameters() if own.requires_grad]}]

        def step(self) -> None:
            theirs.step()
            scheduler.step()

        def zero_grad(self, set_to_none: bool) -> None:
            theirs.zero_grad(set_to_none=set_to_none)

    fit(other, Scheduled())  # type: ignore[arg-type]
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6, msg=name)
        assert torch.equal(one, before[name]) != one.requires_grad, name


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not name.startswith("paged")])
def test_every_optimizer_moves_b_in_proportion_and_goes_on_from_its_state(
    tiny_model_dir: Path, name: Optimizer
) -> None:
    method, whole = attached(tiny_model_dir)
    optimizer = ours(method, whole, name)
    fit(whole, optimizer, last=2)
    by_name = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["param_names"]}
    assert {rate / schedule()(2) for key, rate in by_name.items() if "lora_A" in key} == {1.0}
    assert {rate / schedule()(2) for key, rate in by_name.items() if "lora_B" in key} == {16.0}
    weights = {key: own.detach().clone() for key, own in whole.state_dict().items()}
    state = {key: value.clone() for key, value in optimizer_state(optimizer).items()}
    fit(whole, optimizer, first=3, last=4)
    _, resumed = attached(tiny_model_dir)
    resumed.load_state_dict(weights)
    restored = ours(method, resumed, name)
    load_optimizer_state(restored, state)
    fit(resumed, restored, first=3, last=4)
    for (key, one), (_, other) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(one, other), key
        assert torch.equal(one, weights[key]) != one.requires_grad, key


def test_with_sgd_a_step_of_b_is_sixteen_times_as_long(tiny_model_dir: Path) -> None:
    moved = []
    for ratio in (None, 16.0):
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        attention.install(base)
        method: Any = build(LoraSettings(r=4, loraplus_lr_ratio=ratio), base=tiny_model_dir)
        model = method.attach(base)
        before = {key: own.detach().clone() for key, own in model.named_parameters() if own.requires_grad}
        fit(model, ours(method, model, "sgd"), last=2)
        moved.append({key: own.detach() - before[key] for key, own in model.named_parameters() if key in before})
    for key, plain in moved[0].items():
        if "lora_B" in key:
            torch.testing.assert_close(moved[1][key], 16 * plain, rtol=1e-5, atol=1e-12)
            assert plain.abs().max() > 0
        else:
            assert torch.equal(moved[1][key], plain), (
                "B is zero up to step 2 (the rate of step 1 is), so A has no gradient"
            )
