"""One run of ``tunesmith.train`` with its verdict on given rows (see bench/whole.py)."""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import tunesmith  # noqa: E402


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the first line on, of the training alone, and exact match of base and tuned model."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name in ("train", "held"):
            files[name] = Path(folder) / f"{name}.jsonl"
            lines = [json.dumps({"messages": turns}) + "\n" for turns in job[name]]
            files[name].write_text("".join(lines), encoding="utf-8")
        recipe = {
            "model": job["model"],
            "data": {"train": str(files["train"]), "eval": str(files["held"])},
            "method": {"name": "lora", "r": job["r"], "lora_alpha": 2 * job["r"]},
            "training": {
                "learning_rate": job["rate"], "lr_scheduler_type": "constant", "num_train_epochs": 1,
                "batch_size": job["batch"], "eval_strategy": "no",
            },
            "evaluation": {
                "metrics": ["exact_match"], "max_new_tokens": job["new_tokens"], "max_rows": len(job["held"]),
            },
            "output_dir": str(Path(folder) / "run"),
        }  # fmt: skip
        result = tunesmith.train(recipe, progress=False)
        seconds = time.perf_counter() - BEGAN
        found = json.loads((Path(result.run) / "verdict.json").read_text(encoding="utf-8"))
        matched, loss = found["metrics"]["exact_match"], found["metrics"]["loss"]
        return {
            "seconds": seconds, "rows": found["rows"], "base": matched["base"], "tuned": matched["tuned"],
            "loss": loss["tuned"],
        }  # fmt: skip


if __name__ == "__main__":
    measured = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(measured), encoding="utf-8")
