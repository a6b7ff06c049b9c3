"""Other names of settings, from other versions and tools, and the name of each here.

The names of the installed transformers are canonical. A setting with another name is moved to its canonical name before
the recipe is checked, and a note says so. A value that is not supported here is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Keys = tuple[str, ...]  # the path of a setting: ("training", "optim")


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of a setting.

    ``convert`` gives the value for the canonical name, or None if it changes nothing. It raises ValueError for a value
    that is not supported. ``note`` explains the change.
    """

    name: Keys
    canonical: Keys
    note: str
    convert: Callable[[Any], Any] = lambda value: value


def _share(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"training.warmup_ratio is a number, found {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"training.warmup_ratio is a share of the steps, at least 0 and below 1, found {value:g}")
    return float(value)


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is true or false, found {value!r}")
    return value


def _kept_optimizers(value: Any) -> Any:
    return "newest" if _switch("training.save_only_model", value) else "all"


def _bf16(value: Any) -> Any:
    return "bfloat16" if _switch("training.bf16", value) else None


def _fp16(value: Any) -> Any:
    if _switch("training.fp16", value):
        raise ValueError(
            "training.fp16: gradients in float16 underflow without loss scaling, which is not supported; "
            "use bf16: true on a GPU with bfloat16, else leave the weights in float32"
        )
    return None


def _device(value: Any) -> Any:
    """The device of transformers' device_map, if it names exactly one."""
    if isinstance(value, Mapping):
        devices = set(value.values())
        if len(devices) != 1 or (len(value) == 1 and "" not in value):
            raise ValueError(
                f"model.device_map {dict(value)!r} splits a model over devices, but a run uses one device; use auto, "
                "or model.device: cuda:1"
            )
        value = devices.pop()
    if isinstance(value, int) and not isinstance(value, bool):
        return f"cuda:{value}"
    if value in ("balanced", "balanced_low_0", "sequential", "disk") or not isinstance(value, str):
        raise ValueError(f"model.device_map: {value!r} is for a model on several devices, but a run uses one device")
    return value


ALIASES = (
    Alias(("training", "evaluation_strategy"), ("training", "eval_strategy"), "its name in transformers 5"),
    Alias(
        ("training", "warmup_ratio"),
        ("training", "warmup_steps"),
        "its name in transformers 5, where a number below 1 is a share of the steps",
        _share,
    ),
    Alias(
        ("training", "per_device_eval_batch_size"),
        ("evaluation", "batch_size"),
        "answers generated at a time; validation losses are computed in micro-batches of tokens",
    ),
    Alias(
        ("training", "save_only_model"),
        ("training", "save_optimizer"),
        "the newest checkpoint always keeps the optimizer's state, because a run continues from it",
        _kept_optimizers,
    ),
    Alias(("training", "output_dir"), ("output_dir",), "it is a key at the top of the recipe"),
    Alias(
        ("training", "bf16"),
        ("model", "dtype"),
        "weights and products are bfloat16; transformers would keep float32 weights too",
        _bf16,
    ),
    Alias(("training", "fp16"), ("model", "dtype"), "", _fp16),
    Alias(("model", "device_map"), ("model", "device"), "a run uses one device", _device),
    Alias(("model", "torch_dtype"), ("model", "dtype"), "its name in transformers 5"),
)
VALUES: dict[Keys, dict[str, str]] = {  # other names of a value
    ("training", "optim"): {
        "lion": "lion_32bit",
        "adamw_bnb_8bit": "adamw_8bit",
        "adamw_torch_fused": "adamw_torch",  # always fused here
    },
    ("training", "lr_scheduler_type"): {"wsd": "warmup_stable_decay"},
}
DTYPE_KEYS: tuple[Keys, ...] = (("model", "dtype"), ("method", "bnb_4bit_compute_dtype"))


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting under its canonical name, or None if it changes nothing. ``note`` explains another name or value."""

    name: Keys | None
    value: Any
    note: str | None = None


def canonical(name: Keys, value: Any) -> Setting:
    """A setting under its canonical name. Raises ValueError for a value that is not supported."""
    note = None
    for alias in ALIASES:
        if alias.name == name:
            value = alias.convert(value)
            if value is None:
                return Setting(None, None)
            note = f"{'.'.join(alias.name)} is {'.'.join(alias.canonical)} here: {alias.note}"
            name = alias.canonical
            break
    if name in DTYPE_KEYS:
        text = str(value)
        value = text.removeprefix("torch.") if text.startswith("torch.") else value
    other = VALUES.get(name, {}).get(value) if isinstance(value, str) else None
    if other is not None:
        note = f"{'.'.join(name)}: {value} is {other} in transformers"
        value = other
    return Setting(name, value, note)


def renamed(raw: Mapping[str, Any]) -> list[tuple[Keys, Setting]]:
    """The settings of a recipe that have another name or value, each with its canonical form.

    Raises ValueError for a value that is not supported; ``error.args[1]`` is the path of the setting.
    """
    found = []
    for section in ("training", "model", "method"):
        values = raw.get(section)
        for key, value in values.items() if isinstance(values, Mapping) else ():
            name = (section, str(key))
            try:
                setting = canonical(name, value)
            except ValueError as error:
                raise ValueError(str(error), name) from None
            if setting.name != name or setting.value is not value:
                found.append((name, setting))
    return found
