"""Tunesmith: fine-tune an open language model on your data and find out whether it got better."""

from __future__ import annotations

import os
import sys

# Python puts the working folder on its path for `python -m`, and where PYTHONPATH has an empty entry. The command line
# imports nothing from there: the folder may be somebody else's. A program that imports Tunesmith keeps its own path.
_AS_MODULE = sys.argv[:1] == ["-m"] and any(
    argument.removeprefix("-m").partition(".")[0] == "tunesmith" for argument in sys.orig_argv
)
_FROM_HERE = os.path.samefile(
    os.path.join(os.path.dirname(__file__), os.pardir), "."
)  # the folder is Tunesmith's source
if (_AS_MODULE or os.path.basename((sys.argv or [""])[0]) == "tunesmith") and not _FROM_HERE:
    sys.path[:] = [entry for entry in sys.path if entry and not (os.path.isdir(entry) and os.path.samefile(entry, "."))]

from importlib import import_module  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from tunesmith.deploy.merge import merge
    from tunesmith.deploy.tuned import load
    from tunesmith.errors import (
        DataError,
        ExportError,
        ModelError,
        RecipeError,
        RunError,
        TrainError,
        TunesmithError,
    )
    from tunesmith.recipe.settings import Recipe
    from tunesmith.workflows.compare import compare
    from tunesmith.workflows.evaluate import evaluate
    from tunesmith.workflows.finetune import train
    from tunesmith.workflows.interactive import check, init, list_runs, prepare, report_run, show_run
    from tunesmith.workflows.lr_range import lr_range
    from tunesmith.workflows.plan import plan

__version__ = "0.1.0"

_PUBLIC = {
    "train": "tunesmith.workflows.finetune",
    "evaluate": "tunesmith.workflows.evaluate",
    "compare": "tunesmith.workflows.compare",
    "load": "tunesmith.deploy.tuned",
    "merge": "tunesmith.deploy.merge",
    "lr_range": "tunesmith.workflows.lr_range",
    "init": "tunesmith.workflows.interactive",
    "check": "tunesmith.workflows.interactive",
    "prepare": "tunesmith.workflows.interactive",
    "plan": "tunesmith.workflows.plan",
    "list_runs": "tunesmith.workflows.interactive",
    "report_run": "tunesmith.workflows.interactive",
    "show_run": "tunesmith.workflows.interactive",
    "Recipe": "tunesmith.recipe.settings",
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
    "check",
    "compare",
    "evaluate",
    "init",
    "list_runs",
    "load",
    "lr_range",
    "merge",
    "plan",
    "prepare",
    "report_run",
    "show_run",
    "train",
]


def __getattr__(name: str) -> Any:  # PEP 562: torch is imported only for a name that needs it
    if name in _PUBLIC:
        from tunesmith.runs.from_python import quiet_libraries

        with quiet_libraries():
            return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
