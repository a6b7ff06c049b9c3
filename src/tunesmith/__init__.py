"""Tunesmith: adapt an open language model to your own data, and know whether it got better."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.errors import (
        DataError,
        ExportError,
        ModelError,
        RecipeError,
        RunError,
        TrainError,
        TunesmithError,
    )
    from tunesmith.finetune import evaluate, train
    from tunesmith.merging import merge
    from tunesmith.range_test import lr_range
    from tunesmith.recipe import Recipe
    from tunesmith.tuned import load

__version__ = "0.1.0"

_PUBLIC = {
    "train": "tunesmith.finetune",
    "evaluate": "tunesmith.finetune",
    "load": "tunesmith.tuned",
    "merge": "tunesmith.merging",
    "lr_range": "tunesmith.range_test",
    "Recipe": "tunesmith.recipe",
    "TunesmithError": "tunesmith.errors",
    "RecipeError": "tunesmith.errors",
    "DataError": "tunesmith.errors",
    "ModelError": "tunesmith.errors",
    "RunError": "tunesmith.errors",
    "TrainError": "tunesmith.errors",
    "ExportError": "tunesmith.errors",
}

__all__ = [
    "DataError",
    "ExportError",
    "ModelError",
    "Recipe",
    "RecipeError",
    "RunError",
    "TrainError",
    "TunesmithError",
    "__version__",
    "evaluate",
    "load",
    "lr_range",
    "merge",
    "train",
]


def __getattr__(name: str) -> Any:  # PEP 562: torch is imported only when a name that needs it is asked for
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
