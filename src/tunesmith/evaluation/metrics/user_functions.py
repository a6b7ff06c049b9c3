"""Metrics by a user's Python function: `my_module:score` in the recipe, imported before training starts.

This module does not import torch.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.evaluation.metrics.base import METRICS_KEY

_ARGUMENTS = ("answer", "truth", "prompt")
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True, slots=True)
class FunctionMetric:
    """A user's function. ``call`` passes it answer, truth and prompt in the way that its parameters ask for."""

    name: str
    call: Callable[[str, str, str], Any]

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """Raises RecipeError if the function raises or returns anything but a finite number."""
        try:
            result = self.call(answer, truth, prompt)
        except Exception as error:
            raise self._refuse(f"raised {type(error).__name__}: {error}", answer) from error
        try:
            number = math.nan if isinstance(result, (str, bytes)) else float(result)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self._refuse(f"returned {result!r}, which is not a finite number", answer)
        return number

    def fault_of(self, truth: str) -> str | None:
        """None: only the function knows which truths it can score."""
        return None

    def _refuse(self, fault: str, answer: str) -> RecipeError:
        return RecipeError(
            f"The metric {self.name} {fault}",
            where=METRICS_KEY,
            why=f"The answer was {answer[:200]!r}.",
            remedy="It must return a finite number, higher for a better answer, for any text that a model may write.",
        )


def function_metric(name: str) -> FunctionMetric:
    """Imports `my_module:score` from the current folder or Python's module path.

    The function takes answer, truth and prompt, or fewer of them. Parameters with these names can be in any order.
    Parameters with other names take them by position. It returns a number, higher for a better answer.

    Raises:
        RecipeError: there is no such function, importing it fails, or its parameters do not fit.
    """
    return FunctionMetric(name, _caller(name, import_function(name)))


def import_function(name: str, *, where: str = METRICS_KEY) -> Callable[..., Any]:
    """Imports `my_module:function` from the current folder or Python's module path.

    Args:
        name: as the recipe gives it.
        where: the setting that names it, for messages.

    Raises:
        RecipeError: there is no such function, or importing it fails.
    """
    if not _FUNCTION.fullmatch(name):
        raise RecipeError(
            f"{name!r} does not name a Python function", where=where, remedy="Write it as my_module:my_function."
        )
    module_name, _, attribute = name.partition(":")
    try:
        with _current_folder_first():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _import_fault(name, error, where) from error
        raise RecipeError(
            f"There is no Python module {error.name!r} for the metric {name}",
            where=where,
            why=f"Python looked in {Path.cwd()} and in its module path.",
            remedy=f"Run from the folder that holds {module_name.replace('.', '/')}.py, or correct the name.",
        ) from None
    except Exception as error:
        raise _import_fault(name, error, where) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        functions = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        what = f"The module {module_name} has no function {attribute!r}"
        raise RecipeError(
            what if function is None else f"{name} is not a function but {type(function).__name__}",
            where=where,
            why=f"{module_name} has: {', '.join(functions) or 'no function'}.",
            remedy="Correct the name after the colon.",
        )
    return function


def _import_fault(name: str, error: Exception, where: str) -> RecipeError:
    return RecipeError(
        f"The module of the metric {name} cannot be imported",
        where=where,
        why=f"It raised {type(error).__name__}: {error}",
        remedy="Correct the module; `python -c 'import ...'` shows where it fails.",
    )


@contextmanager
def _current_folder_first() -> Iterator[None]:
    folder = str(Path.cwd())
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _caller(name: str, function: Callable[..., Any]) -> Callable[[str, str, str], Any]:
    """Passes by name if the parameters are called answer, truth and prompt, by position if none of them is."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError as error:  # some functions written in C
        raise _signature_fault(name, str(error)) from None
    named = [one.name for one in parameters if one.name in _ARGUMENTS and one.kind != one.POSITIONAL_ONLY]
    variable = [one.kind for one in parameters if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    needed = [one.kind for one in parameters if one.name not in named and one.default is one.empty]
    needed = [kind for kind in needed if kind not in variable]
    if named and not needed:
        return lambda *values: function(**{key: values[_ARGUMENTS.index(key)] for key in named})
    count = len(_ARGUMENTS) if inspect.Parameter.VAR_POSITIONAL in variable else len(needed)
    if not named and inspect.Parameter.KEYWORD_ONLY not in needed and max(1, len(needed)) <= count <= len(_ARGUMENTS):
        return lambda *values: function(*values[:count])
    raise _signature_fault(name, f"It takes ({', '.join(map(str, parameters))})")


def _signature_fault(name: str, why: str) -> RecipeError:
    return RecipeError(
        f"The function of the metric {name} cannot be called with an answer, its truth and its prompt",
        where=METRICS_KEY,
        why=f"{why.rstrip('.')}.",
        remedy="Declare it as score(answer, truth, prompt), or with fewer of these three.",
    )
