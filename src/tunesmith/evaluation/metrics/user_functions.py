"""A user's Python function as a metric: `my_module:score` in the recipe, imported before training starts."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction

from tunesmith.data.batches.layout import Batch
from tunesmith.errors import RecipeError
from tunesmith.evaluation.metrics.base import WHERE
from tunesmith.model.compute.logprobs import target_logits
from tunesmith.model.modes import evaluation_mode, random_state_kept

COMPUTE_METRICS_KEY = "evaluation.compute_metrics"
MOST = 2**31  # bytes of logits that are held at a time
FP32 = 4


def compute_function(name: str) -> Callable[[EvalPrediction], Any]:
    """Imports ``my_module:compute_metrics``. Raises RecipeError where there is no such function."""
    return import_function(name, where=COMPUTE_METRICS_KEY)


def check_size(labels: int, vocabulary: int) -> None:
    """Raises RecipeError where all logits of the held-out rows are too many to hold."""
    size = labels * vocabulary * FP32
    if size > MOST:
        raise RecipeError(
            "The held-out rows have too many logits for compute_metrics",
            where=COMPUTE_METRICS_KEY,
            why=f"{labels:,} labels x {vocabulary:,} tokens of the vocabulary are {size / 2**30:.1f} GB, and "
            f"{MOST / 2**30:.0f} GB may be held.",
            remedy="Set evaluation.max_rows, or name a metric that scores one row at a time in evaluation.metrics.",
        )


def computed_metrics(
    name: str, model: nn.Module, batches: Sequence[Batch], *, device: torch.device | str
) -> dict[str, float]:
    """What the function gives for a model on rows that are laid out, by name.

    Raises:
        RecipeError: the logits are too many, or the function fails or gives anything but numbers by name.
    """
    prediction = predictions(model, batches, device=device)
    try:
        found = compute_function(name)(prediction)
    except RecipeError:
        raise
    except Exception as error:
        raise _refusal(name, f"raised {type(error).__name__}: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise _refusal(name, f"returned {found!r}, which is not a dict of numbers by name")
    try:
        numbers = {key.removeprefix("eval_"): float(value) for key, value in found.items()}
    except (TypeError, ValueError):
        raise _refusal(name, f"returned {found!r}, which is not a dict of numbers by name") from None
    broken = [key for key, value in numbers.items() if not math.isfinite(value)]
    if broken:
        raise _refusal(name, f"returned {found!r}: {broken[0]} is not finite")
    return numbers


@torch.no_grad()
def predictions(model: nn.Module, batches: Sequence[Batch], *, device: torch.device | str) -> EvalPrediction:
    """Logits fp32 [labels, vocabulary] and labels int64 [labels] of all rows, without dropout.

    Raises RecipeError where they are too many to hold.
    """
    count, start = sum(len(batch.edges.target) for batch in batches), 0
    logits: np.ndarray | None = None
    labels = np.empty(count, np.int64)
    with evaluation_mode(model), random_state_kept(torch.device(device)):
        for batch in batches:
            here = batch.to(device)
            made = target_logits(model, here)
            if logits is None:
                check_size(count, made.shape[-1])
                logits = np.empty((count, made.shape[-1]), np.float32)
            end = start + len(made)
            logits[start:end] = made.cpu().numpy()
            labels[start:end] = here.edges.target.cpu().numpy()
            start = end
    assert logits is not None, "there are rows"
    return EvalPrediction(predictions=logits, label_ids=labels)


def _refusal(name: str, fault: str) -> RecipeError:
    return RecipeError(
        f"The function {name} {fault}",
        where=COMPUTE_METRICS_KEY,
        why="It was called with (logits [labels, vocabulary], labels [labels]).",
        remedy='It must return a dict such as {"accuracy": 0.9}.',
    )


FIELDS = ("answer", "truth", "prompt")
FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True, slots=True)
class FunctionMetric:
    """A user's function; ``call`` hands it answer, truth and prompt in the way that it takes them."""

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
        """What truths it can take is the function's own business."""
        return None

    def _refuse(self, fault: str, answer: str) -> RecipeError:
        return RecipeError(
            f"The metric {self.name} {fault}",
            where=WHERE,
            why=f"The answer was {answer[:200]!r}.",
            remedy="It must return a finite number, higher for a better answer, for any text a model may write.",
        )


def function_metric(name: str) -> FunctionMetric:
    """Imports `my_module:score` from the current folder or where Python finds modules.

    The function takes answer, truth and prompt by these names in any order, or fewer of them; parameters of other names
    take them by position. It returns a number, higher for a better answer.

    Raises:
        RecipeError: there is no such function, importing it fails, or its parameters do not fit.
    """
    return FunctionMetric(name, _caller(name, import_function(name)))


def import_function(name: str, *, where: str = WHERE) -> Callable[..., Any]:
    """`my_module:function` from the current folder or where Python finds modules.

    Args:
        where: the setting that names it, for messages.

    Raises:
        RecipeError: there is no such function, or importing it fails.
    """
    if not FUNCTION.fullmatch(name):
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
            why=f"It was looked for in {Path.cwd()} and where Python finds modules.",
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
            remedy="Correct the name behind the colon.",
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
    """By name where the parameters are called answer, truth and prompt; by position, in that order, where none is."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError as error:  # some functions written in C
        raise _signature_fault(name, str(error)) from None
    named = [one.name for one in parameters if one.name in FIELDS and one.kind != one.POSITIONAL_ONLY]
    variable = [one.kind for one in parameters if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    needed = [one.kind for one in parameters if one.name not in named and one.default is one.empty]
    needed = [kind for kind in needed if kind not in variable]
    if named and not needed:
        return lambda *values: function(**{key: values[FIELDS.index(key)] for key in named})
    count = len(FIELDS) if inspect.Parameter.VAR_POSITIONAL in variable else len(needed)
    if not named and inspect.Parameter.KEYWORD_ONLY not in needed and max(1, len(needed)) <= count <= len(FIELDS):
        return lambda *values: function(*values[:count])
    raise _signature_fault(name, f"It takes ({', '.join(map(str, parameters))})")


def _signature_fault(name: str, why: str) -> RecipeError:
    return RecipeError(
        f"The function of the metric {name} cannot be called with an answer, its truth and its prompt",
        where=WHERE,
        why=f"{why.rstrip('.')}.",
        remedy="Declare it as score(answer, truth, prompt), or with fewer of these three.",
    )
