"""The log-probability of each of k labels as the answer to each prompt: one tree a row.

Scored one by one, k labels read a prompt k times. Here all labels of a row are one tree behind its prompt. The prompt
is computed once, what labels begin with is computed once, and the last token of a label, which predicts nothing, is not
computed at all. What prompts begin with is computed once for all rows (beginnings_kept.py). Whoever wants no more than
the likeliest label, or probabilities, gets them without the tokens that cannot matter (label_tree.py, label_rounds.py).

The first row is also computed one label at a time. A model for which that differs scores labels one by one.

Shapes: k labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from tunesmith.data.batches.layout import micro_batches
from tunesmith.errors import ModelError
from tunesmith.model.compute.agreement import ROUNDING, TOLERANCE
from tunesmith.model.compute.layers import inner_model
from tunesmith.model.compute.logprobs import target_logprobs
from tunesmith.model.compute.rope import turns_within
from tunesmith.model.continuous import ENTER_AT_ONCE, admits, position_limit
from tunesmith.model.decoding import Job, memory_faults
from tunesmith.model.label_rounds import MOST_SLOTS, LabelLogprobs, LabelRounds
from tunesmith.model.label_tree import Wanted
from tunesmith.model.modes import evaluation_mode, random_state_kept

_COMPARED = 2  # labels of the first row that are computed both ways


@dataclass(frozen=True, slots=True)
class _Row:
    """A prompt and a label, as a layout needs them."""

    ids: np.ndarray
    supervised: np.ndarray


def label_logprobs(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    *,
    wanted: Wanted = "all",
    on_rows: Callable[[int], None] | None = None,
) -> LabelLogprobs:
    """The log-probability of each label behind each prompt.

    A label's is the sum over its tokens. Labels of unequal length are comparable as answers if each ends with the stop
    token. The model's mode and the random state are what they were.

    Args:
        model: a causal model with our attention, or a PEFT model around one.
        prompts: token ids, exactly as the model is to see them.
        labels: token ids of each label, at least one each, with the stop token if the label is a whole answer.
        wanted: what must be right, so that the rest may be left out: the likeliest label of each row and its ties, the
            softmax over the labels (within LEFT_OUT), or all values.
        on_rows: called with the number of rows that were completed.

    Raises:
        ModelError: a prompt is empty or too long for the model, memory ran out, or a value is not finite.
    """
    check_labels(model, prompts, labels)
    longest = max(len(label) for label in labels)
    if not len(prompts):
        return LabelLogprobs.empty(0, len(labels))
    device = inner_model(model).device
    jobs = [Job(tuple(prompt), longest, [(number, 0)]) for number, prompt in enumerate(prompts)]
    told = on_rows or (lambda _: None)
    with memory_faults(jobs, min(len(jobs), MOST_SLOTS)), evaluation_mode(model), random_state_kept(device):
        found = None
        if admits(model, jobs):
            agrees = partial(_agrees, model)
            found = LabelRounds(model, jobs, labels, wanted=wanted, agrees=agrees, told=told).run()
        if found is None:
            values = _one_by_one(model, jobs, labels, told)
            found = LabelLogprobs(values, np.ones(values.shape, bool))
    finite = np.isfinite(found.values).all(1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise ModelError(
            "The model's log-probabilities are not finite",
            where=f"prompt {row + 1}",
            why="Its logits overflowed (float16 has no room above 65504), or its weights are damaged.",
            remedy="Use model.dtype float32 or bfloat16; after training, lower training.learning_rate.",
        )
    return found


def check_labels(model: nn.Module, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> None:
    """Raises ModelError if a prompt is empty, or with the longest label too long for the model. Nothing is computed."""
    assert labels and all(len(label) for label in labels), "labels have tokens"
    longest, limit = max(len(label) for label in labels), position_limit(model)
    for number, prompt in enumerate(prompts, start=1):
        _check_length(number, len(prompt), longest, limit)


def _check_length(number: int, prompt: int, label: int, limit: int | None) -> None:
    if not prompt:
        raise ModelError("The prompt has no tokens", where=f"prompt {number}", remedy="Give at least one token.")
    if limit is not None and prompt + label > limit:
        raise ModelError(
            "A prompt and its longest label are longer than the model can read",
            where=f"prompt {number}",
            why=f"{prompt} tokens and {label} of the label are {prompt + label}; the model has {limit} positions.",
            remedy="Shorten the prompt or the label.",
        )


def _agrees(model: nn.Module, job: Job, labels: Sequence[Sequence[int]], values: np.ndarray) -> bool:
    """Whether some labels of a row, computed one by one, come out as ``values`` [k]; NaN where a label has none."""
    there = np.flatnonzero(np.isfinite(values)).tolist()
    chosen = sorted(there, key=lambda label: -len(labels[label]))[:_COMPARED]  # the longest
    if not chosen:
        return False
    some = [labels[label] for label in chosen]
    expected = _one_by_one(model, [job], some, lambda _: None)[0]
    limit = TOLERANCE * max(ROUNDING, TOLERANCE * torch.finfo(inner_model(model).dtype).eps)
    # Logits are rounded, so the last digits of a log-probability near 0 mean nothing: a nat for each token.
    scale = np.maximum(np.abs(expected), [len(label) for label in some])
    return bool((np.abs(values[chosen] - expected) <= limit * scale).all())


def _one_by_one(
    model: nn.Module, jobs: Sequence[Job], labels: Sequence[Sequence[int]], told: Callable[[int], None]
) -> np.ndarray:
    """Each label behind each prompt as a row of its own."""
    device = inner_model(model).device
    found = np.zeros((len(jobs), len(labels)))
    alone = turns_within(model, [len(job.prompt) + job.new_tokens for job in jobs])
    for number, job in enumerate(jobs):
        rows = [
            _Row(np.array([*job.prompt, *label], np.int32), np.arange(len(job.prompt) + len(label)) >= len(job.prompt))
            for label in labels
        ]
        for batch in micro_batches(rows, budget=1 if alone else ENTER_AT_ONCE, layout="padded"):
            logprobs = target_logprobs(model, batch.to(device)).logprobs.double().cpu().numpy()
            np.add.at(found[number], batch.edges.row.numpy(), logprobs)
        told(1)
    return found
