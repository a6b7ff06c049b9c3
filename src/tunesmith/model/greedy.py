"""Greedy answers to jobs, over a cache of slots where the model is admitted to that, else in batches.

Either way a choice that rounding could turn is made again for its row alone (compute/choices.py). Rows are decoded one
by one where some may become so long that the model changes its rotary frequencies (compute/rope.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from tunesmith.model.alone import token_alone
from tunesmith.model.compute.choices import choose
from tunesmith.model.compute.kept_keys import bytes_of_keys, bytes_of_token
from tunesmith.model.compute.layers import inner_model
from tunesmith.model.compute.rope import turns_within
from tunesmith.model.continuous import Decoded, Settled, admits, decode_continuously, up_to_stop
from tunesmith.model.decoding import Job, batches, decode

_SLOTS = 64  # texts: a pass over more of them takes longer


def decode_greedily(
    model: nn.Module,
    jobs: Sequence[Job],
    *,
    stop_ids: Sequence[int],
    batch_size: int,
    limit: int | None,
    settled: Settled | None,
    on_done: Callable[[Sequence[Job]], None],
) -> list[Decoded]:
    """The answer of each job, in their order.

    Args:
        batch_size: sequences decoded at a time, and on a CPU at least so many.
        limit: positions that the model was made for.
        settled: whether the rest of an answer does not count any more. Batches do not ask.
        on_done: called with jobs that have their answers.

    Raises:
        ModelError: memory ran out, or the logits are not finite.
    """
    if admits(model, jobs):
        return decode_continuously(
            model,
            jobs,
            stop_ids=stop_ids,
            slots=_slots(model, jobs, batch_size),
            settled=settled,
            on_done=lambda job: on_done([job]),
        )
    made: dict[int, Decoded] = {}  # by the identity of the job
    alone = turns_within(model, [len(job.prompt) + job.new_tokens for job in jobs])
    for batch in batches(jobs, 1 if alone else batch_size, limit):
        for job, ids in zip(batch, _batch(model, batch, stop_ids), strict=True):
            made[id(job)] = Decoded(up_to_stop(ids, stop_ids))
        on_done(batch)
    return [made[id(job)] for job in jobs]


def _slots(model: nn.Module, jobs: Sequence[Job], batch_size: int) -> int:
    """How many texts are decoded at a time: on a CPU more than were asked for, where there is room for their keys.

    A pass over a few tokens takes as long as reading the weights, so one over more texts takes little longer. Slots are
    independent of each other, so no answer depends on it.
    """
    size = bytes_of_token(model)
    if inner_model(model).device.type != "cpu" or size is None:
        return batch_size
    columns = max(len(job.prompt) + job.new_tokens for job in jobs)
    return max(batch_size, min(_SLOTS, bytes_of_keys() // (size * columns)))


def _batch(model: nn.Module, jobs: Sequence[Job], stop_ids: Sequence[int]) -> list[list[int]]:
    """A batch, in which rows with a choice that rounding turned are decoded again alone."""
    watch = _Watch(inner_model(model).dtype)
    rows = decode(model, jobs, stop_ids=stop_ids, processors=[watch])
    if len(jobs) == 1 and not jobs[0].known:
        return rows
    for number, job in enumerate(jobs):
        answer = up_to_stop(rows[number], stop_ids)
        doubtful = [len(job.known) + step for step, certain in enumerate(watch.certain) if not certain[number]]
        turned = (
            token_alone(model, [*job.prompt, *answer[:place]]) != answer[place]
            for place in doubtful
            if place < len(answer)
        )
        if any(turned):
            (rows[number],) = decode(model, [replace(job, known=())], stop_ids=stop_ids, plain=True)
    return rows


class _Watch(LogitsProcessor):
    """Notes at each step which rows' choices are certain, bool [B] each; it changes nothing."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.certain: list[list[bool]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.certain.append(choose(scores, self.dtype)[1].tolist())
        return scores
