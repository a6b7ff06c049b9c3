"""What the scripts of trainers that build on transformers' Trainer share: clock, counts, loss before the first step."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
from memory import peak_bytes
from process import step_done
from transformers import TrainerCallback, trainer_pt_utils


def group_few_rows() -> None:
    """Lets ``group_by_length`` sort the few rows of a benchmark as it sorts a whole data set: 50 batches at a time.

    On fewer than 200 batches it takes fewer at a time, and on these next to none, so that a peer would pad for nothing.
    """
    trainer_pt_utils.get_length_grouped_indices = functools.partial(
        trainer_pt_utils.get_length_grouped_indices, mega_batch_mult=50
    )


class Clock(TrainerCallback):
    """Seconds of each optimizer step, from its first forward pass to its end."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.seconds: list[float] = []
        self.begin = 0.0

    def on_step_begin(self, *given: Any, **named: Any) -> None:
        self.begin = _now()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        self.seconds.append(_now() - self.begin)
        step_done(self.job, self.seconds[-1])


class Counting:
    """The trainer's collator, which notes what is in each batch that it makes: its sampler decides which rows meet."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.tokens: list[int] = []
        self.supervised: list[int] = []

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        self.tokens.append(sum(len(row["input_ids"]) for row in rows))
        batch = self.collator(rows)
        self.supervised.append(int((batch["labels"][:, 1:] != -100).sum()))
        return batch


@torch.no_grad()
def step_zero_loss(model: Any, collator: Any, job: dict[str, Any]) -> dict[str, float]:
    """Mean loss of the first step's rows, the logits normalised in fp32 and in fp64 (bench/README.md says why).

    In training mode, as nothing drops out: evaluation repacks 4-bit layers.
    """
    device, totals, labels_seen = next(model.parameters()).device, [0.0, 0.0], 0
    for begin in range(0, job["batch"], job["peer_rows"]):
        rows = [dict(row) for row in job["rows"][begin : begin + job["peer_rows"]]]
        batch = {name: part.to(device) for name, part in collator(rows).items()}
        labels = batch.pop("labels")[:, 1:]
        kept = labels != -100
        logits = model(**batch).logits[:, : labels.shape[1]][kept]
        for number, exact in enumerate((logits.float(), logits.double())):
            totals[number] += torch.nn.functional.cross_entropy(exact, labels[kept], reduction="sum").item()
        labels_seen += int(kept.sum())
    return {"step_zero_loss": totals[0] / labels_seen, "step_zero_loss_fp64": totals[1] / labels_seen}


def measured(job: dict[str, Any], *, loss: dict[str, float], clock: Clock, counting: Counting) -> dict[str, Any]:
    """The result of a run. The first step is not timed; a collator that works ahead is cut to the steps."""
    passes = job["batch"] // job["peer_rows"]
    tokens, supervised = (
        _by_step(counts, passes, len(clock.seconds)) for counts in (counting.tokens, counting.supervised)
    )
    return {
        **loss,
        "supervised": sum(supervised),
        "seconds": clock.seconds[1:],
        "tokens": tokens[1:],
        "supervised_tokens": supervised[1:],
        "peak_bytes": peak_bytes(job["device"]),
    }


def _by_step(counts: list[int], passes: int, steps: int) -> list[int]:
    return [sum(counts[step * passes : (step + 1) * passes]) for step in range(steps)]


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
