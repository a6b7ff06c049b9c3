"""One measured run of Tunesmith on given rows: python bench/ours.py JOB.json RESULT.json (see bench/peers.py)."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from memory import peak_bytes

from tunesmith import plan
from tunesmith.data.layout import micro_batches
from tunesmith.methods import build
from tunesmith.model import attention
from tunesmith.model.fused import fuse
from tunesmith.model.load import load_model, resolve_dtype
from tunesmith.recipe import FullSettings, LoraSettings, QloraSettings
from tunesmith.training.loop import Hooks, Step, StepResult, train
from tunesmith.training.objective import CrossEntropy
from tunesmith.training.optim import build_optimizer

SETTINGS: dict[str, Any] = {"lora": LoraSettings, "qlora": QloraSettings, "full": FullSettings}


def main(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    device = job["device"]
    adapter = {} if job["method"] == "full" else {"r": job["r"], "lora_alpha": 2 * job["r"]}
    method = build(SETTINGS[job["method"]](**adapter), base=job["model"], device=device)
    dtype = resolve_dtype("auto", device)
    base = load_model(Path(job["model"]), dtype=dtype, device=device, **method.load_options())
    attention.install(base)
    model = method.attach(base)
    fuse(base)
    rows = [_row(row) for row in job["rows"]]
    probe = attention.probe(model, rows, device=device)
    layout = "tree" if probe.shares else "padded"
    budget = job["budget"] or plan.micro_batch_tokens(device, max(len(row.ids) for row in rows))
    steps, layout_seconds = [], 0.0
    for number in range(len(rows) // job["batch"]):
        begin = time.perf_counter()
        part = rows[number * job["batch"] : (number + 1) * job["batch"]]
        batches = micro_batches(part, budget=budget, layout=layout)
        layout_seconds += time.perf_counter() - begin
        steps.append(Step(number + 1, 0.0, batches))
    objective = CrossEntropy()
    with torch.no_grad():
        first = steps[0].batches
        sums = [objective.sum(model.eval(), batch.to(device)).item() for batch in first]
        loss = sum(sums) / sum(objective.denominator(batch) for batch in first)
    optimizer = build_optimizer(
        method.parameter_groups(model), learning_rate=job["rate"], weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8
    )
    results: list[StepResult] = []
    nothing: Any = lambda *_: False  # noqa: E731
    train(
        model, steps, objective=objective, optimizer=optimizer, rate=lambda _: job["rate"], max_grad_norm=1.0, seed=0,
        hooks=Hooks(results.append, nothing, nothing, nothing, nothing),
    )  # fmt: skip
    timed = results[1:]
    return {
        "step_zero_loss": loss,
        "supervised": sum(batch.supervised for step in steps for batch in step.batches),
        "seconds": [step.seconds for step in timed],
        "tokens": [step.tokens for step in timed],
        "computed": [step.computed_tokens for step in timed],
        "supervised_tokens": [step.supervised_tokens for step in timed],
        "layout_share": layout_seconds / len(steps) / (sum(step.seconds for step in timed) / len(timed)),
        "layout": layout,
        "peak_bytes": peak_bytes(device),
        "versions": {"torch": torch.__version__},
    }


def _row(row: dict[str, list[int]]) -> Any:
    return SimpleNamespace(ids=np.array(row["input_ids"], dtype=np.int32), supervised=np.array(row["labels"]) != -100)


if __name__ == "__main__":
    result = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
