"""The training loop. It knows batches, a model, an optimizer and hooks, but no recipe, method, tokenizer or path."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from tunesmith.data.batches.layout import Batch
from tunesmith.errors import ran_out
from tunesmith.model.compute.waits import waiting_as_others_allow
from tunesmith.runs.progress import StepResult
from tunesmith.training.guard import Guard
from tunesmith.training.objectives.supervised import Objective


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: its number from 1, the epoch it reaches, and its micro-batches."""

    number: int
    epoch: float
    batches: list[Batch]


@dataclass(frozen=True, slots=True)
class Hooks:
    """What happens after a step, in this order: ``on_step``, ``on_eval`` if it is due, ``save`` if it is due.

    ``smaller`` is called if memory runs out in a step. It returns the same rows in smaller micro-batches, or None if
    there are none.
    """

    on_step: Callable[[StepResult], None]
    on_eval: Callable[[Step], None] = lambda step: None
    eval_due: Callable[[Step], bool] = lambda step: False
    save: Callable[[Step], None] = lambda step: None
    save_due: Callable[[Step], bool] = lambda step: False
    smaller: Callable[[Step, BaseException], list[Batch] | None] = lambda step, error: None


@waiting_as_others_allow()
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
    guard: Guard | None = None,
) -> None:
    """Takes the steps. No loss or gradient that is not finite reaches the weights.

    The gradient of a step is that of its summed loss over its summed denominator, whatever its micro-batches are.

    Args:
        guard: decides which steps are skipped; by default none is, and the first bad value stops the run.

    Raises:
        NotFiniteError: the run must stop, by the guard's rule.
    """
    guard = guard or Guard()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in steps:
        begin = time.perf_counter()
        step, loss, denominator = _backward(model, step, objective, optimizer, seed, hooks)
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf")).item()
        skipped = guard.reason_to_skip(step.number, loss, norm, optimizer)
        learning_rate = rate(step.number)
        if skipped is None:
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
                skipped=skipped,
            )
        )
        # Weights that are not finite show in the next loss. Before they are used elsewhere, all of them are looked at.
        evaluates = hooks.eval_due(step)
        if evaluates:
            guard.check_weights(step.number, optimizer)
            hooks.on_eval(step)
        if hooks.save_due(step):
            if not evaluates:
                guard.check_weights(step.number, optimizer)
            hooks.save(step)


def _backward(
    model: nn.Module, step: Step, objective: Objective, optimizer: torch.optim.Optimizer, seed: int, hooks: Hooks
) -> tuple[Step, float, float]:
    """Leaves the step's gradient. Returns the step with the micro-batches that fitted, its loss and denominator."""
    while True:
        try:
            return step, *_gradient(model, step.number, step.batches, objective, seed)
        except (MemoryError, RuntimeError) as error:
            smaller = hooks.smaller(step, error) if ran_out(error) else None
            if smaller is None:
                raise
        # Only here, after the error is gone, nothing holds the activations any more.
        optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        step = replace(step, batches=smaller)


def _gradient(
    model: nn.Module, number: int, batches: Sequence[Batch], objective: Objective, seed: int
) -> tuple[float, float]:
    """Adds up the gradient of a step. Returns its loss and denominator."""
    device = next(model.parameters()).device
    model.train()
    denominator = sum(objective.denominator(batch) for batch in batches)
    loss = 0.0
    for index, batch in enumerate(batches):
        seed_dropout(seed, number, index)
        total = objective.sum(model, batch.to(device))
        (total / denominator).backward()
        loss += total.item() / denominator
    return loss, denominator


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Dropout depends only on (seed, step, micro-batch), so a resumed run draws the same as an unstopped one."""
    digest = hashlib.sha256(f"{seed}|{step}|{micro_batch}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big"))
