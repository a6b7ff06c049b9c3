"""Metrics by a user's Python function: `score.py:score` in the recipe, imported before training starts.

Only a function that was allowed is imported (``functions_allowed``): the recipe's own, or after consent those of a
stored run. It comes from a named file below a folder, and never from Python's own modules. This module does not import
torch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.evaluation.metrics.base import METRICS_KEY, RowMetric
from tunesmith.evaluation.metrics.function_files import FunctionFolder, lacks_file

_ARGUMENTS = ("answer", "truth", "prompt")
_allowed: ContextVar[Mapping[str, FunctionFolder]] = ContextVar("allowed_functions", default={})  # noqa: B039


@contextmanager
def functions_allowed(names: Mapping[str, Path]) -> Iterator[None]:
    """Inside, these functions may be imported, each from its folder. Others are refused."""
    folders = {folder: FunctionFolder(folder) for folder in {*names.values()}}
    token = _allowed.set({name: folders[folder] for name, folder in names.items()})
    try:
        yield
    finally:
        _allowed.reset(token)


def function_files() -> dict[str, Path]:
    """The files that were imported for the allowed functions, by their path below the functions' folder.

    Raises:
        RecipeError: two folders have different files of one name.
    """
    found: dict[str, Path] = {}
    for folder in {id(each): each for each in _allowed.get().values()}.values():
        for name, file in folder.files().items():
            if name in found and found[name].read_bytes() != file.read_bytes():
                raise RecipeError(
                    f"two files of functions are called {name}",
                    where=METRICS_KEY,
                    why=f"They are {found[name]} and {file}.",
                    remedy="Rename one of them, because the run keeps a copy of both.",
                )
            found[name] = file
    return found


@dataclass(frozen=True, slots=True)
class FunctionMetric(RowMetric):
    """A user's function. ``call`` passes it answer, truth and prompt in the way that its parameters ask for."""

    name: str
    call: Callable[[str, str, str], Any]

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """Raises RecipeError if the function raises or returns anything but a finite number."""
        try:
            result = self.call(answer, truth, prompt)
        except (Exception, SystemExit) as error:
            raise self._refuse(
                f"raised {type(error).__name__}: {error}", answer, lacks_file(error, self.name)
            ) from error
        try:
            number = math.nan if isinstance(result, (str, bytes)) else float(result)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self._refuse(f"returned {result!r}, which is not a finite number", answer)
        return number

    def _refuse(self, fault: str, answer: str, remedy: str | None = None) -> RecipeError:
        return RecipeError(
            f"The metric {self.name} {fault}",
            where=METRICS_KEY,
            why=f"The answer was {answer[:200]!r}.",
            remedy=remedy
            or "It must return a finite number, higher for a better answer, for any text that a model may write.",
        )


def function_metric(name: str) -> FunctionMetric:
    """Imports `score.py:score`, which must be allowed.

    The function takes answer, truth and prompt, or fewer of them. Parameters with these names can be in any order.
    Parameters with other names take them by position. It returns a number, higher for a better answer.

    Raises:
        RecipeError: there is no such function, importing it fails, or its parameters do not fit.
    """
    return FunctionMetric(name, _caller(name, import_function(name)))


def import_function(name: str, *, where: str = METRICS_KEY) -> Callable[..., Any]:
    """Imports the function `file.py:function`, which must be allowed.

    Args:
        name: as the recipe gives it.
        where: the setting that names it, for messages.

    Raises:
        RecipeError: it is not allowed, there is no such function, or importing it fails.
    """
    folder = _allowed.get().get(name)
    if folder is None:
        raise RecipeError(
            f"The function {name} is not run, because nobody allowed it",
            where=where,
            why="It is named by the recipe of a stored run, which may be somebody else's.",
            remedy="Read its file; if you trust it, add --allow-functions (in Python: allow_functions=True).",
        )
    return folder.function(name, where=where)


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
