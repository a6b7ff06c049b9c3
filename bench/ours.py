"""One measured run of Tunesmith on given rows: python bench/ours.py JOB.json RESULT.json (see bench/peers.py)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tunesmith  # noqa: F401  it says how OpenMP waits, which torch reads at its import

# isort: split
import numpy as np
import torch
from memory import peak_bytes
from process import step_done

from tunesmith.data.batches.layout import micro_batches
from tunesmith.data.batches.order import Order
from tunesmith.methods.table import build
from tunesmith.model.compute import attention
from tunesmith.model.compute.fused_modules import fuse
from tunesmith.model.compute.probe import probe_model
from tunesmith.model.weights.device import resolve_dtype
from tunesmith.model.weights.load import load_model
from tunesmith.planning import budget as plan
from tunesmith.planning import memory
from tunesmith.recipe.methods import FullSettings, LoraSettings, QloraSettings
from tunesmith.training.loop import Hooks, Step, StepResult, train_steps
from tunesmith.training.objectives.supervised import CrossEntropy
from tunesmith.training.optim import build_optimizer
from tunesmith.training.step_rows import PLANNED_STEPS

SETTINGS: dict[str, Any] = {"lora": LoraSettings, "qlora": QloraSettings, "full": FullSettings}


def main(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    device = job["device"]
    model, method = _model(job)
    rows = [_row(row) for row in job["rows"]]
    layout = "tree" if probe_model(model, rows, device=device).shares else "padded"
    parts = [rows[at : at + job["batch"]] for at in range(0, len(rows) - job["batch"] + 1, job["batch"])]
    shared = parts[:PLANNED_STEPS] if layout == "tree" else []
    budget = job["budget"] or plan.micro_batch_tokens(device, max(len(row.ids) for row in rows), shared)
    steps, layout_seconds = [], []
    for number, part in enumerate(parts):
        begin = time.perf_counter()
        batches = micro_batches(part, budget=budget, layout=layout)
        layout_seconds.append(time.perf_counter() - begin)
        steps.append(Step(number + 1, 0.0, batches))
    loss = _loss(model, steps[0], device)
    optimizer = build_optimizer(
        method.parameter_groups(model), learning_rate=job["rate"], weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8
    )
    timed = _train(model, steps, optimizer, job["rate"], lambda result: step_done(job, result.seconds))[1:]
    peak = peak_bytes(device)
    outside = _outside_operators(model, steps[-1], optimizer, job["rate"]) if device == "cpu" else None
    mean = sum(step.seconds for step in timed) / len(timed)
    return {
        "step_zero_loss": loss,
        "supervised": sum(batch.supervised for step in steps for batch in step.batches),
        "seconds": [step.seconds + laid for step, laid in zip(timed, layout_seconds[1:], strict=True)],
        "tokens": [step.tokens for step in timed],
        "computed": [step.computed_tokens for step in timed],
        "supervised_tokens": [step.supervised_tokens for step in timed],
        "layout_share": sum(layout_seconds) / len(steps) / mean,
        "order_share": _order_seconds(job["epoch_rows"], job["batch"]) / mean,
        "outside_share": outside,
        "layout": layout,
        "peak_bytes": peak,
    }


def _model(job: dict[str, Any]) -> tuple[Any, Any]:
    """The model with its method attached, as a run makes it."""
    device = job["device"]
    adapter = {} if job["method"] == "full" else {"r": job["r"], "lora_alpha": 2 * job["r"]}
    method = build(SETTINGS[job["method"]](**adapter), base=job["model"], device=device)
    dtype = resolve_dtype("auto", device)
    if device == "cpu":
        memory.keep_freed_blocks()
    base = load_model(Path(job["model"]), dtype=dtype, device=device, load_options=method.load_options())
    attention.install(base)
    model = method.attach(base)
    fuse(base)
    return model, method


def _row(row: dict[str, list[int]]) -> Any:
    return SimpleNamespace(ids=np.array(row["input_ids"], dtype=np.int32), supervised=np.array(row["labels"]) != -100)


@torch.no_grad()
def _loss(model: Any, step: Step, device: str) -> float:
    objective = CrossEntropy()
    sums = [objective.sum(model.eval(), batch.to(device)).item() for batch in step.batches]
    return sum(sums) / sum(objective.denominator(batch) for batch in step.batches)


def _train(
    model: Any, steps: list[Step], optimizer: Any, rate: float, told: Callable[[StepResult], None] = lambda _: None
) -> list[StepResult]:
    results: list[StepResult] = []
    nothing: Any = lambda *_: False  # noqa: E731

    def step_ended(result: StepResult) -> None:
        results.append(result)
        told(result)

    train_steps(
        model, steps, objective=CrossEntropy(), optimizer=optimizer, rate=lambda _: rate, max_grad_norm=1.0, seed=0,
        hooks=Hooks(step_ended, nothing, nothing, nothing, nothing),
    )  # fmt: skip
    return results


def _outside_operators(model: Any, step: Step, optimizer: Any, rate: float) -> float:
    """Share of one more step that torch's profiler sees in no operator: Python, autograd, and the profiler itself."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        [result] = _train(model, [step], optimizer, rate)
    inside = sum(
        event.self_cpu_time_total
        for event in profile.key_averages()
        if "::" in event.key and not event.key.startswith("autograd::")
    )
    return 1 - inside / 1e6 / result.seconds


def _order_seconds(rows: int, batch: int) -> float:
    """What deciding the rows of a step takes, over an epoch."""
    begin = time.perf_counter()
    steps = sum(1 for _ in Order(np.ones(rows), batch_size=batch, epochs=1, max_steps=None, seed=0).windows())
    return (time.perf_counter() - begin) / steps


if __name__ == "__main__":
    result = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
