"""How far off the plan is: predicted and measured peak memory and step time of full, lora and qlora at three lengths.

``python bench/plan.py --out FILE`` takes under six minutes on two free cores. Each pair is a process of its own that
makes three real steps of one micro-batch on the bundled model, with rows that share nothing; the better of the last two
is the time. The speed of the CPU is measured beside the steps, so a busy machine shows in both, but not always alike.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith.cli.terminal.tables import table
from tunesmith.model.weights.config_file import read_config
from tunesmith.planning import budget
from tunesmith.planning.devices import device_called
from tunesmith.planning.method_table import resolved
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.settings import Recipe
from tunesmith.workflows.trial import Comparison, compare_prediction, run_trial

METHODS, LENGTHS = ("full", "lora", "qlora"), (128, 512, 1024)
MEMORY, TIME = 0.10, 0.20  # the errors that are promised
GIB = 2**30


def recipe_for(arguments: argparse.Namespace, method: str, length: int) -> Recipe:
    """One micro-batch of what suits the device, or of one row where that is longer."""
    training: dict[str, Any] = {
        "micro_batch_tokens": budget.micro_batch_tokens(arguments.device, length),
        "gradient_checkpointing": arguments.checkpointing,
    }
    if arguments.threads:
        training["threads"] = arguments.threads
    return read_recipe(
        {"model": arguments.model, "data": {"train": "rows"}, "method": method, "training": training, "output_dir": "x"}
    ).recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=0, help="0: the processors that this process may use")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    threads = arguments.threads or budget.threads()
    device = device_called(arguments.device, threads=threads)
    config, folder = read_config(arguments.model)
    found: list[tuple[int, Comparison]] = []
    for length in arguments.lengths:
        for method in arguments.methods:
            steps = resolved(recipe_for(arguments, method, length), device)
            trial = run_trial(steps, length=length)
            found.append((length, compare_prediction(config, steps, device, trial, folder=folder)))
            print(f"{method}, {length} tokens: measured", flush=True)
    lines = [[each.method, length, *_figures(each)] for length, each in found]
    header = ["method", "tokens a row", "GB predicted", "measured", "error", "s predicted", "measured", "error"]
    print("\n".join(table(header, lines, right=range(1, len(header)))))
    memory, time = (max(abs(getattr(each, name)) for _, each in found) for name in ("memory_error", "time_error"))
    print(f"largest error: memory {memory:.1%} (promised: {MEMORY:.0%}), time {time:.1%} (promised: {TIME:.0%})")
    if arguments.out:
        report = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": arguments.model,
            "device": device.name,
            "threads": threads,
            "load": os.getloadavg()[0],
            "checkpointing": arguments.checkpointing,
            "largest": {"memory": memory, "time": time},
            "lines": [{"length": length, **asdict(each)} for length, each in found],
        }
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _figures(each: Comparison) -> list[str]:
    return [
        f"{each.predicted_bytes / GIB:.2f}",
        f"{each.measured_bytes / GIB:.2f}",
        f"{each.memory_error:+.1%}",
        f"{each.predicted_seconds:.2f}",
        f"{each.measured_seconds:.2f}",
        f"{each.time_error:+.1%}",
    ]


if __name__ == "__main__":
    main()
