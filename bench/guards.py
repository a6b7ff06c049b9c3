"""The share of a run's computing time that its guards take: manifests, fingerprints, checks of the disk and of values.

    python bench/guards.py                              # 20 LoRA steps of the bundled model, a checkpoint each 5
    python bench/guards.py --steps 2 --save-steps 1     # that it works

The named functions are wrapped wherever they were imported to, and the computing time of their thread is summed; one
that calls another is counted once. Their other costs (a disk that waits) are no computing time. The time of the run is
that of all threads of the process, from the first line of ``train`` to the verdict.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

GUARDS = {
    "tunesmith.runs.manifest": (
        "write_manifest", "take_off", "is_listed", "damage", "refuse_damaged", "expect", "seal", "_change", "changes",
        "read_checked", "sha256_of", "listing",
    ),
    "tunesmith.runs.built_folders": ("damage_to",),
    "tunesmith.runs.file_hashes": ("known_sha256",),
    "tunesmith.runs.environment": ("environment", "package_versions", "source_digest"),
    "tunesmith.runs.plain_files": ("refuse_links",),
    "tunesmith.runs.disk": ("no_room", "bytes_in"),
    "tunesmith.planning.disk_space": ("least_checkpoint",),
    "tunesmith.training.disk_room": ("refuse_full_disk",),
    "tunesmith.training.guard": ("refuse_to_save",),
    "tunesmith.model.weights.base_files": ("base_files", "base_changes"),
    "tunesmith.model.weights.finite": ("not_finite", "not_finite_files", "refuse_not_finite"),
    "tunesmith.model.weights.slow_regex": ("refuse_slow_patterns",),
    "tunesmith.model.weights.foreign_files": (
        "refuse_pickles", "refuse_adapter_in", "refuse_code", "refuse_impossible_sizes", "refuse_unfilled_sizes",
        "refuse_foreign_adapter",
    ),
}  # fmt: skip


class Clock:
    """Sums the computing time that wrapped functions take in their thread; ``calls`` and ``seconds`` are by name."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._inside = threading.local()

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts unless it is called by another wrapped one."""

        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            if getattr(self._inside, "of_another", False):
                return function(*arguments, **named)
            self._inside.of_another = True
            began = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self._inside.of_another = False
                self.seconds[name] += time.thread_time() - began
                self.calls[name] += 1

        return timed


def wrap_all(clock: Clock) -> None:
    """Puts wrapped functions into every module of Tunesmith that has them. Raises AttributeError for a lost name."""
    wrapped: dict[int, Callable[..., Any]] = {}
    for module, names in GUARDS.items():
        for name in names:
            function = getattr(importlib.import_module(module), name)
            wrapped[id(function)] = clock.wrapped(f"{module.removeprefix('tunesmith.')}.{name}", function)
    for module in [each for name, each in sys.modules.items() if name.startswith("tunesmith")]:
        for name, value in list(vars(module).items()):
            if id(value) in wrapped:
                setattr(module, name, wrapped[id(value)])


def measure(folder: Path, *, steps: int, save_steps: int, rows: int, model: str) -> dict[str, Any]:
    """Trains a run in a folder. Gives seconds of the run and of its guards, by name."""
    from tunesmith.workflows import finetune

    clock = Clock()
    wrap_all(clock)
    colours = ("red", "green", "blue", "black")
    pairs = ({"prompt": f"What colour is thing {n}?", "completion": colours[n % 4]} for n in range(rows))
    (folder / "rows.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    recipe = {
        "model": model,
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.1},
        "method": "lora",
        "training": {"max_steps": steps, "save_steps": save_steps, "batch_size": 8, "report_to": []},
        "evaluation": {"max_rows": 8, "samples": 0},
        "output_dir": str(folder / "run"),
    }
    began = time.process_time()
    finetune.train(recipe, progress=False)
    whole = time.process_time() - began
    guards = sum(clock.seconds.values())
    parts = {name: [clock.calls[name], round(seconds, 4)] for name, seconds in clock.seconds.most_common()}
    return {"run": round(whole, 2), "guards": round(guards, 4), "share": guards / whole, "by name": parts}


def main() -> None:
    """Prints the share, and the calls and seconds of each function."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--save-steps", type=int, default=5)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a bundled name or a folder")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            Path(folder), steps=asked.steps, save_steps=asked.save_steps, rows=asked.rows, model=asked.model
        )
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    for name, (calls, seconds) in found["by name"].items():
        print(f"{seconds:9.4f} s  {calls:5} calls  {name}")
    print(f"{found['guards']:9.4f} s of {found['run']:.2f} s of computing: {found['share']:.2%} (1% is the limit)")


if __name__ == "__main__":
    main()
