"""The training loop. It knows batches, a model, an optimizer and hooks, but no recipe, method, tokenizer or path."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from tunesmith.data.batches.layout import Batch
from tunesmith.errors import TrainError
from tunesmith.runs.progress import StepResult
from tunesmith.training.objectives.supervised import Objective


def check_finite(loss: float, gradient_norm: float, *, step: int) -> None:
    """Raises TrainError unless loss and gradient norm are finite. Call it before ``optimizer.step()``."""
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return
    raise TrainError(
        f"The {'gradient' if math.isfinite(loss) else 'loss'} of step {step} is not finite",
        where=f"step {step}",
        why=f"loss {loss:g}, gradient norm {gradient_norm:g}. The weights are as they were after step {step - 1}.",
        remedy="Lower training.learning_rate or add warm-up (training.warmup_steps: 0.1). With float16, use bfloat16 "
        "or float32. Earlier checkpoints are complete.",
    )


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: its number from 1, the epoch it reaches, and its micro-batches."""

    number: int
    epoch: float
    batches: list[Batch]


@dataclass(frozen=True, slots=True)
class Hooks:
    """What happens after a step, in this order: ``on_step``, ``on_eval`` if it is due, ``save`` if it is due."""

    on_step: Callable[[StepResult], None]
    on_eval: Callable[[Step], None] = lambda step: None
    eval_due: Callable[[Step], bool] = lambda step: False
    save: Callable[[Step], None] = lambda step: None
    save_due: Callable[[Step], bool] = lambda step: False


def train_steps(
    model: nn.Module,
    steps: Iterable[Step],
    *,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int], float],
    max_grad_norm: float,
    seed: int,
    hooks: Hooks,
) -> None:
    """Takes the steps. Raises TrainError before a loss or gradient that is not finite reaches the weights.

    The gradient of a step is that of its summed loss over its summed denominator, whatever its micro-batches are.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device = parameters[0].device
    for step in steps:
        begin = time.perf_counter()
        model.train()
        denominator = sum(objective.denominator(batch) for batch in step.batches)
        loss = 0.0
        for index, batch in enumerate(step.batches):
            seed_dropout(seed, step.number, index)
            total = objective.sum(model, batch.to(device))
            (total / denominator).backward()
            loss += total.item() / denominator
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf")).item()
        check_finite(loss, norm, step=step.number)
        learning_rate = rate(step.number)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_ratio", 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        hooks.on_step(
            StepResult(
                step=step.number,
                epoch=step.epoch,
                loss=loss,
                denominator=denominator,
                gradient_norm=norm,
                learning_rate=learning_rate,
                tokens=sum(batch.tokens for batch in step.batches),
                computed_tokens=sum(batch.computed for batch in step.batches),
                supervised_tokens=sum(batch.supervised for batch in step.batches),
                micro_batches=len(step.batches),
                seconds=time.perf_counter() - begin,
            )
        )
        if hooks.eval_due(step):
            hooks.on_eval(step)
        if hooks.save_due(step):
            hooks.save(step)


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Dropout depends only on (seed, step, micro-batch), so a resumed run draws the same as an unstopped one."""
    digest = hashlib.sha256(f"{seed}|{step}|{micro_batch}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big"))
