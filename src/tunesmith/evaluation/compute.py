"""``compute_metrics(eval_pred)``: a user's function over logits and labels, as transformers' Trainer calls it.

Only tokens that are labels are given: ``logits`` [labels, vocabulary] and ``labels`` [labels], each line of logits
being what predicted the label at its place. So nothing is padded, shifted or marked with -100, and a function such as
``accuracy_score(labels, np.argmax(logits, axis=-1))`` is right as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction

from tunesmith.data.layout import Batch
from tunesmith.errors import RecipeError
from tunesmith.evaluation.function import import_function
from tunesmith.generate import evaluation_mode, random_state_kept
from tunesmith.model.head import target_logits

WHERE = "evaluation.compute_metrics"
MOST = 2**31  # bytes of logits that are held at a time
FP32 = 4


def compute_function(name: str) -> Callable[[EvalPrediction], Any]:
    """Imports ``my_module:compute_metrics``. Raises RecipeError where there is no such function."""
    return import_function(name, where=WHERE)


def check_size(labels: int, vocabulary: int) -> None:
    """Raises RecipeError where all logits of the held-out rows are too many to hold."""
    size = labels * vocabulary * FP32
    if size > MOST:
        raise RecipeError(
            "The held-out rows have too many logits for compute_metrics",
            where=WHERE,
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
        where=WHERE,
        why="It was called with (logits [labels, vocabulary], labels [labels]).",
        remedy='It must return a dict such as {"accuracy": 0.9}.',
    )
