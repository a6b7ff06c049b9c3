"""Which keys of a recipe an override replaces: those that say the same thing, or have no meaning beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.recipe.complaints import VARIANTS, Path_

PARTS_OF_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


def replaced(path: Path_, value: Any, raw: Mapping[str, Any]) -> Iterator[Path_]:
    """The paths of the recipe's keys that an override of ``path`` replaces, by its canonical name."""
    if len(path) != 2 or value is None:
        return
    section, key = path
    if section in VARIANTS and key == "name":
        variants, _ = VARIANTS[str(section)]
        if value in variants:
            names = variants[value].model_fields
            yield from ((section, other) for other in _section(raw, str(section)) if other not in names)
    elif path == ("data", "eval") and value == 0 and not isinstance(value, bool):
        yield from _given(raw, "training", "eval_steps")
        yield from _given(raw, "evaluation", "metrics")
    elif section == "training":
        yield from _given(raw, "training", *_same_thing(str(key), value, _section(raw, "training")))


def _same_thing(key: str, value: Any, training: Mapping[str, Any]) -> tuple[str, ...]:
    same = {
        "max_steps": ("num_train_epochs",),
        "num_train_epochs": ("max_steps",),
        "batch_size": PARTS_OF_BATCH,
        "per_device_train_batch_size": ("batch_size",),
    }
    if key in same:
        return same[key]
    kind, _, what = key.partition("_")
    if kind in ("logging", "eval", "save"):
        if what == "strategy" and value != "steps":
            return (f"{kind}_steps",)
        if what == "steps" and training.get(f"{kind}_strategy", "steps") != "steps":
            return (f"{kind}_strategy",)
    return ()


def _given(raw: Mapping[str, Any], section: str, *keys: str) -> Iterator[Path_]:
    yield from ((section, key) for key in keys if key in _section(raw, section))


def _section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    values = raw.get(name)
    return values if isinstance(values, Mapping) else {}
