"""One whole fine-tuning run, measured: python bench/finetuned.py JOB.json RESULT.json (see bench/methods.py)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from memory import peak_bytes

from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Silent
from tunesmith.workflows.finetune import train


class Told(Silent):
    """Keeps what the run says of what trains."""

    trainable = ""

    def say(self, text: str) -> None:
        if text.startswith("trainable params"):
            self.trainable = text


def main(job: dict[str, Any]) -> dict[str, Any]:
    told = Told()
    result = train(job["recipe"], overwrite=True, listener=told)
    run = Run(result.run)
    lines = [line for line in run.read_lines("metrics.jsonl") if "tokens_per_second" in line]
    return {
        "trainable": int(told.trainable.split()[2].replace(",", "")),
        "tokens": sum(line["tokens"] for line in lines),
        "training_seconds": sum(line["tokens"] / line["tokens_per_second"] for line in lines),
        "seconds": result.seconds,
        "peak_bytes": peak_bytes("cpu"),
        "step_bytes": run.read_json("memory.json")["measured"],
        "metrics": result.metrics,
        "verdict": result.verdict["verdict"],
    }


if __name__ == "__main__":
    asked, answered = Path(sys.argv[1]), Path(sys.argv[2])
    answered.write_text(json.dumps(main(json.loads(asked.read_text(encoding="utf-8")))), encoding="utf-8")
