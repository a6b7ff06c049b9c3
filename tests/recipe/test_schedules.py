"""The learning rate of every step, by every name, is transformers' own."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments, get_scheduler

from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.schedules import (
    Schedule,
    check_arguments,
    learning_rate_at,
    rate_text,
    steps_of_warmup,
)

TOTAL = 13
NAMES: list[tuple[Schedule, dict[str, Any]]] = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.5}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("cosine_with_min_lr", {"min_lr": 1e-5}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1, "num_cycles": 1}),
    ("warmup_stable_decay", {"num_decay_steps": 4}),
    ("warmup_stable_decay", {"num_decay_steps": 3, "num_stable_steps": 2, "min_lr_ratio": 0.2}),
    ("warmup_stable_decay", {"num_decay_steps": 5, "decay_type": "1-sqrt", "warmup_type": "cosine"}),
    ("warmup_stable_decay", {"num_decay_steps": 5, "decay_type": "linear", "warmup_type": "1-sqrt"}),
]


def reference_rates(schedule: str, warmup_steps: int, arguments: dict[str, Any]) -> list[float]:
    """What transformers' scheduler of the same name gives each step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = get_scheduler(
        schedule,
        optimizer,
        num_warmup_steps=warmup_steps,
        num_training_steps=TOTAL,
        scheduler_specific_kwargs=arguments,
    )
    rates = []
    for _ in range(TOTAL):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup_steps", [0, 1, 5, TOTAL])
@pytest.mark.parametrize(("schedule", "arguments"), NAMES)
def test_the_rate_of_every_step_is_that_of_transformers(
    schedule: Schedule, arguments: dict[str, Any], warmup_steps: int
) -> None:
    check_arguments(schedule, arguments)
    schedule_of = {"total_steps": TOTAL, "warmup_steps": warmup_steps, "schedule": schedule, "arguments": arguments}
    rate = partial(learning_rate_at, peak=3e-4, **schedule_of)
    found = [rate(step) for step in range(1, TOTAL + 1)]
    assert found == pytest.approx(reference_rates(schedule, warmup_steps, arguments), rel=1e-9, abs=1e-18)


def test_rates_worth_knowing_by_heart() -> None:
    def rate(step: int, schedule: Schedule, **arguments: Any) -> float:
        return learning_rate_at(step, peak=1.0, total_steps=10, warmup_steps=2, schedule=schedule, arguments=arguments)

    assert [rate(step, "linear") for step in (1, 2, 3, 7)] == [0.0, 0.5, 1.0, 0.5]
    assert [rate(step, "cosine") for step in (1, 2, 3, 7)] == pytest.approx([0.0, 0.5, 1.0, 0.5])
    assert [rate(step, "constant_with_warmup") for step in (1, 2, 3, 10)] == [0.0, 0.5, 1.0, 1.0]
    assert [rate(step, "constant") for step in (1, 10)] == [1.0, 1.0]
    assert rate(10, "cosine") > 0, "the last step still learns"
    decays = [rate(step, "warmup_stable_decay", num_decay_steps=4, decay_type="linear") for step in (3, 6, 7, 8, 10)]
    assert decays == [1.0, 1.0, 1.0, 0.75, 0.25]


@pytest.mark.parametrize(("warmup_steps", "steps"), [(0, 0), (0.1, 2), (0.5, 7), (1, 1), (5, 5), (3.0, 3)])
def test_a_number_of_warmup_steps_below_one_is_a_share_as_in_transformers(warmup_steps: float, steps: int) -> None:
    assert steps_of_warmup(warmup_steps, TOTAL) == steps
    assert TrainingArguments(output_dir="x", warmup_steps=warmup_steps).get_warmup_steps(TOTAL) == steps


@pytest.mark.parametrize(
    ("schedule", "arguments", "message"),
    [
        ("linear", {"min_lr": 0.1}, "min_lr is not an argument of lr_scheduler_type linear, which takes no arguments"),
        ("cosine", {"min_lr": 0.1}, "which takes num_cycles"),
        ("cosine_with_min_lr", {}, "needs lr_scheduler_kwargs"),
        ("cosine_with_min_lr", {"min_lr": 1e-5, "min_lr_rate": 0.1}, "needs lr_scheduler_kwargs"),
        ("cosine_with_min_lr", {"min_lr_rate": 1.5}, "a share of the learning rate"),
        ("warmup_stable_decay", {}, "num_decay_steps: STEPS"),
        ("warmup_stable_decay", {"num_decay_steps": 0.5}, "whole number of steps"),
        ("warmup_stable_decay", {"num_decay_steps": 5, "decay_type": "sqrt"}, "one of linear, cosine, 1-sqrt"),
        ("warmup_stable_decay", {"num_decay_steps": -5}, "at least 0"),
    ],
)
def test_arguments_that_a_schedule_cannot_take_are_refused(
    schedule: Schedule, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_arguments(schedule, arguments)


@pytest.mark.parametrize(
    ("rate", "text"), [(2e-4, "2.0e-4"), (0.00046, "4.6e-4"), (0.1, "1.0e-1"), (2.0, "2.0e0"), (1e-10, "1.0e-10")]
)
def test_a_rate_in_short_reads_back_as_a_number(rate: float, text: str) -> None:
    assert rate_text(rate) == text
    values = {"model": "m", "data": {"train": "rows"}, "output_dir": "run"}
    assert read_recipe(values, [f"training.learning_rate={text}"]).recipe.learning_rate == rate
