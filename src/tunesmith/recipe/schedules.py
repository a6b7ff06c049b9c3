"""The learning rate as a pure function of the step, with the names and arguments of transformers' schedulers.

It needs no torch: the schedule of a recipe is checked before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup", "cosine_with_min_lr", "warmup_stable_decay"]
Curve = Literal["linear", "cosine", "1-sqrt"]
ARGUMENTS: dict[str, tuple[str, ...]] = {  # of lr_scheduler_kwargs
    "linear": (),
    "cosine": ("num_cycles",),
    "constant": (),
    "constant_with_warmup": (),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate", "num_cycles"),
    "warmup_stable_decay": (
        "num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles",
    ),
}  # fmt: skip


def check_arguments(schedule: Schedule, arguments: Mapping[str, Any]) -> None:
    """Raises ValueError for an argument that is unknown, missing, or has a wrong value."""
    where, known = "lr_scheduler_kwargs", ARGUMENTS[schedule]
    for name, value in arguments.items():
        if name not in known:
            takes = ", ".join(known) or "no arguments"
            raise ValueError(f"{where}: {name} is not an argument of lr_scheduler_type {schedule}, which takes {takes}")
        if name in ("warmup_type", "decay_type"):
            if value not in get_args(Curve):
                raise ValueError(f"{where}: {name} is one of {', '.join(get_args(Curve))}, found {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError(f"{where}: {name} is a number of at least 0, found {value!r}")
        elif name.endswith("_steps") and not isinstance(value, int):
            raise ValueError(f"{where}: {name} is a whole number of steps, found {value!r}")
        elif name in ("min_lr_rate", "min_lr_ratio") and value > 1:
            raise ValueError(f"{where}: {name} is a share of the learning rate, at most 1, found {value!r}")
    if schedule == "cosine_with_min_lr" and ("min_lr" in arguments) == ("min_lr_rate" in arguments):
        raise ValueError(f"lr_scheduler_type: {schedule} needs {where}: {{min_lr: RATE}} or {{min_lr_rate: SHARE}}")
    if schedule == "warmup_stable_decay" and "num_decay_steps" not in arguments:
        raise ValueError(f"lr_scheduler_type: {schedule} needs {where}: {{num_decay_steps: STEPS}}")


def steps_of_warmup(warmup_steps: float, total_steps: int) -> int:
    """The number of steps in which the rate rises. A number below 1 is a share of all steps, rounded up."""
    return int(warmup_steps) if warmup_steps >= 1 else math.ceil(total_steps * warmup_steps)


def learning_rate_at(
    step: int,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int,
    schedule: Schedule,
    arguments: Mapping[str, Any] | None = None,
) -> float:
    """The rate of a step (counted from 1), the same as that of transformers' scheduler of this name.

    Args:
        arguments: ``lr_scheduler_kwargs``.
    """
    done, given = step - 1, arguments or {}
    if schedule == "warmup_stable_decay":
        return peak * _stable_decay(done, total_steps, warmup_steps, given)
    if schedule != "constant" and done < warmup_steps:
        return peak * done / max(1, warmup_steps)
    if schedule in ("constant", "constant_with_warmup"):
        return peak
    progress = (done - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return peak * max(0.0, 1.0 - progress)
    least = given["min_lr"] / peak if "min_lr" in given else given.get("min_lr_rate", 0.0)
    return peak * max(0.0, _cosine(progress, given) * (1 - least) + least)


def _cosine(progress: float, given: Mapping[str, Any]) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * float(given.get("num_cycles", 0.5)) * 2.0 * progress))


def _stable_decay(done: int, total_steps: int, warmup_steps: int, given: Mapping[str, Any]) -> float:
    """The share of the peak rate: it rises, stays and falls (arXiv:2404.06395), and keeps its last value."""
    least, decay = float(given.get("min_lr_ratio", 0.0)), int(given["num_decay_steps"])
    stable = given.get("num_stable_steps", total_steps - warmup_steps - decay)
    if done < warmup_steps:
        rise = done / max(1, warmup_steps)
        curve = given.get("warmup_type", "linear")
        factor = {"linear": rise, "cosine": 0.5 * (1 - math.cos(math.pi * rise)), "1-sqrt": 1 - math.sqrt(1 - rise)}
        return max(0.0, factor[curve] * (1 - least) + least)
    if done < warmup_steps + stable:
        return 1.0
    fall = (done - warmup_steps - stable) / max(1, decay)
    if done >= warmup_steps + stable + decay:
        return least
    curve = given.get("decay_type", "cosine")
    factor = {"linear": 1 - fall, "cosine": _cosine(fall, given), "1-sqrt": 1 - math.sqrt(fall)}
    return max(0.0, factor[curve] * (1 - least) + least)


def rate_text(rate: float) -> str:
    """``2.0e-4``: a rate with two digits, in a form that YAML reads as a number."""
    mantissa, _, exponent = f"{rate:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
