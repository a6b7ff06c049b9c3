"""Stops a run before a bad step reaches the weights."""

from __future__ import annotations

import math

from tunesmith.errors import TrainError


def check_finite(loss: float, gradient_norm: float, *, step: int) -> None:
    """Raises TrainError unless loss and gradient norm are finite. Call it before ``optimizer.step()``."""
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return
    raise TrainError(
        f"The {'gradient' if math.isfinite(loss) else 'loss'} of step {step} is not finite",
        where=f"step {step}",
        why=f"loss {loss:g}, gradient norm {gradient_norm:g}. The weights are as they were after step {step - 1}.",
        remedy="Lower training.learning_rate or add warm-up (training.warmup_steps: 0.1); with float16, use bfloat16 "
        "or float32. Checkpoints that were written before are whole.",
    )
