"""Decides after each backward pass whether a step may change the weights, and stops a run that has broken down.

A skipped step leaves weights and optimizer as they are. What the guard knows is saved in the checkpoint, so a run that
continues skips the same steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tunesmith.errors import NotFiniteError
from tunesmith.model.weights.finite import not_finite, some

Rule = Literal["stop", "skip"]
WINDOW, LEAST = 128, 16  # steps that a spike is compared with, and the fewest; OLMo's SkipStepOptimizer takes 128 too
FLAT = 1e-3  # of the mean: the smallest deviation, so that a flat curve has no spikes
_CALMER = (
    "Lower training.learning_rate or add warm-up (training.warmup_steps: 0.1). With float16, use bfloat16 or float32."
)
_AGAIN = "A changed recipe starts over with --overwrite."


@dataclass(slots=True)
class Seen:
    """Skipped steps in a row and in all, and the last losses and gradient norms of steps that were taken."""

    in_a_row: int = 0
    skipped: int = 0
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)


class Guard:
    """The rule of a recipe for steps that are not finite, and for spikes.

    Args:
        on_nonfinite: what to do with a step whose loss or gradient is not finite.
        spike_sigma_factor: a step is skipped if its loss or gradient norm is so many standard deviations above the mean
            of the last steps; None: never.
        max_skipped_steps: how many steps in a row may be skipped.
        state: what ``state`` returned when the checkpoint was saved.
    """

    def __init__(
        self,
        *,
        on_nonfinite: Rule = "stop",
        spike_sigma_factor: float | None = None,
        max_skipped_steps: int = 0,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.on_nonfinite, self.spike_sigma_factor = on_nonfinite, spike_sigma_factor
        self.max_skipped_steps = max_skipped_steps
        self._seen = Seen(**(state or {}))

    @property
    def skipped(self) -> int:
        """Steps of the run that were skipped."""
        return self._seen.skipped

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return asdict(self._seen)

    def reason_to_skip(
        self, step: int, loss: float, gradient_norm: float, optimizer: torch.optim.Optimizer
    ) -> str | None:
        """Why a step must not change the weights; None if it may. Call it before ``optimizer.step()``.

        Raises:
            NotFiniteError: the run must stop.
        """
        seen, reason = self._seen, None
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            what = "gradient" if math.isfinite(loss) else "loss"
            reason = f"the {what} is not finite (loss {loss:g}, gradient norm {gradient_norm:g})"
            self.check_weights(step - 1, optimizer)
            if self.on_nonfinite == "stop":
                raise self._stopped(step, what, loss, gradient_norm)
        elif self.spike_sigma_factor is not None:
            reason = self._spike("loss", loss, seen.losses) or self._spike("gradient norm", gradient_norm, seen.norms)
            if reason is None:
                seen.losses = [*seen.losses[1 - WINDOW :], loss]
                seen.norms = [*seen.norms[1 - WINDOW :], gradient_norm]
        if reason is None:
            seen.in_a_row = 0
            return None
        seen.in_a_row += 1
        seen.skipped += 1
        if seen.in_a_row > self.max_skipped_steps:
            raise NotFiniteError(
                f"{seen.in_a_row} steps in a row would be skipped",
                where=f"step {step}",
                why=f"In step {step}, {reason}. training.max_skipped_steps allows {self.max_skipped_steps}. "
                f"The weights are as they were after step {step - seen.in_a_row}.",
                remedy=f"{_CALMER} Look at the rows with `tunesmith check`. {_AGAIN} Earlier checkpoints are complete.",
            )
        return reason

    def check_weights(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Raises NotFiniteError if a weight that trains is not finite after a step."""
        names = not_finite(trained_weights(optimizer))
        if names:
            raise NotFiniteError(
                f"The weights are not finite after step {step}",
                where=f"step {step}",
                why=f"Infinite or not a number: {some(names)}. The gradient was finite, so the learning rate or the "
                "optimizer's state is at fault. These weights are not saved.",
                remedy=f"{_CALMER} {_AGAIN} Earlier checkpoints are complete.",
            )

    def _spike(self, name: str, value: float, before: list[float]) -> str | None:
        if len(before) < LEAST:
            return None
        assert self.spike_sigma_factor is not None
        mean = statistics.fmean(before)
        deviation = max(statistics.stdev(before), FLAT * abs(mean))
        if value - mean <= self.spike_sigma_factor * deviation:
            return None
        usual = f"{mean:.4g} ± {deviation:.2g} in the last {len(before)} steps"
        return f"the {name} is {value:.4g}, a spike over {usual}"

    def _stopped(self, step: int, what: str, loss: float, norm: float) -> NotFiniteError:
        return NotFiniteError(
            f"The {what} of step {step} is not finite",
            where=f"step {step}",
            why=f"loss {loss:g}, gradient norm {norm:g}. The weights are as they were after step {step - 1}.",
            remedy=f"{_CALMER} {_AGAIN} Or continue without such steps: --resume training.on_nonfinite=skip. Earlier "
            "checkpoints are complete.",
        )


def trained_weights(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The weights that train, by name, or by number where the optimizer has no names."""
    groups = optimizer.param_groups
    names = [name for group in groups for name in group.get("param_names", [None] * len(group["params"]))]
    weights = [parameter for group in groups for parameter in group["params"]]
    return {name or f"parameter {number}": own for number, (name, own) in enumerate(zip(names, weights, strict=True))}


def refuse_to_save(tensors: Mapping[str, Tensor], *, step: int, what: str) -> None:
    """Raises NotFiniteError if a tensor of a checkpoint is not finite. Call it before the tensor is written."""
    names = not_finite(tensors)
    if names:
        raise NotFiniteError(
            f"The {what} after step {step} {'is' if what.endswith('state') else 'are'} not finite",
            where=f"step {step}",
            why=f"Infinite or not a number: {some(names)}. No checkpoint is written with such values.",
            remedy=f"{_CALMER} {_AGAIN} Earlier checkpoints are complete.",
        )
