"""Metrics by a user's function over all logits: `evaluation.compute_metrics`, as transformers' Trainer calls it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction

from tunesmith.data.batches.layout import Batch
from tunesmith.errors import RecipeError
from tunesmith.evaluation.metrics.base import COMPUTE_METRICS_KEY
from tunesmith.evaluation.metrics.function_files import lacks_file
from tunesmith.evaluation.metrics.user_functions import import_function
from tunesmith.model.compute.logprobs import target_logits
from tunesmith.model.compute.waits import waiting_as_others_allow
from tunesmith.model.modes import evaluation_mode, random_state_kept

MOST_LOGIT_BYTES = 2**31  # held at a time, in fp32


def check_size(labels: int, vocabulary: int) -> None:
    """Raises RecipeError if the logits of all held-out rows are too many to hold."""
    size = labels * vocabulary * torch.float32.itemsize
    if size > MOST_LOGIT_BYTES:
        raise RecipeError(
            "The held-out rows have too many logits for compute_metrics",
            where=COMPUTE_METRICS_KEY,
            why=f"{labels:,} labels x {vocabulary:,} tokens of the vocabulary are {size / 2**30:.1f} GB. The limit is "
            f"{MOST_LOGIT_BYTES / 2**30:.0f} GB.",
            remedy="Set evaluation.max_rows, or name a metric that scores one row at a time in evaluation.metrics.",
        )


def computed_metrics(
    name: str, model: nn.Module, batches: Sequence[Batch], *, device: torch.device | str
) -> dict[str, float]:
    """The numbers that the function returns for a model on some batches, by name.

    Raises:
        RecipeError: the logits are too many, or the function fails or returns anything but numbers by name.
    """
    prediction = predictions(model, batches, device=device)
    function = import_function(name, where=COMPUTE_METRICS_KEY)
    try:
        found = function(prediction)
    except (Exception, SystemExit) as error:
        raise _refusal(name, f"raised {type(error).__name__}: {error}", lacks_file(error, name)) from error
    try:
        numbers = {key.removeprefix("eval_"): float(value) for key, value in found.items()}
    except (AttributeError, TypeError, ValueError):
        raise _refusal(name, f"returned {found!r}, which is not a dict of numbers by name") from None
    broken = [key for key, value in numbers.items() if not math.isfinite(value)]
    if broken:
        raise _refusal(name, f"returned {found!r}: {broken[0]} is not finite")
    return numbers


@torch.no_grad()
@waiting_as_others_allow()
def predictions(model: nn.Module, batches: Sequence[Batch], *, device: torch.device | str) -> EvalPrediction:
    """Logits fp32 [labels, vocabulary] and labels int64 [labels] of all rows, without dropout.

    Raises RecipeError if they are too many to hold.
    """
    count, start = sum(len(batch.edges.target) for batch in batches), 0
    logits: np.ndarray | None = None
    labels = np.empty(count, np.int64)
    with evaluation_mode(model), random_state_kept(torch.device(device)):
        for batch in batches:
            here = batch.to(device)
            made = target_logits(model, here)  # [labels of the batch, vocabulary]
            if logits is None:
                check_size(count, made.shape[-1])
                logits = np.empty((count, made.shape[-1]), np.float32)
            end = start + len(made)
            logits[start:end] = made.cpu().numpy()
            labels[start:end] = here.edges.target.cpu().numpy()
            start = end
    assert logits is not None, "there are rows"
    return EvalPrediction(predictions=logits, label_ids=labels)


def _refusal(name: str, fault: str, remedy: str | None = None) -> RecipeError:
    return RecipeError(
        f"The function {name} {fault}",
        where=COMPUTE_METRICS_KEY,
        why="Its argument was (logits [labels, vocabulary], labels [labels]).",
        remedy=remedy or 'It must return a dict such as {"accuracy": 0.9}.',
    )
