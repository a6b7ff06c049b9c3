"""The whole way beside a script with TRL: the same rows are trained on and judged, base and tuned, each as one process.

    python bench/whole.py                         # 20 steps of Banking77 and 100 held-out rows, under 8 minutes
    python bench/whole.py --steps 60 --held 300

Ours is ``tunesmith.train`` with exact match, from its first import to the verdict. Theirs is TRL's SFTTrainer, tuned
(bench/trl_sft.py), and a loop that one would write behind it: rows sorted by length and padded in batches of 16, the
loss by one pass and the answers by ``generate``, for the tuned model and, without its adapter, for the base. Both run
in the order A B B A. The ratio is their seconds over ours.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import environments
import process
import workloads
from transformers import AutoTokenizer

from tunesmith.model.weights.resolve import resolve

HERE = Path(__file__).resolve().parent
BATCH, NEW_TOKENS = 16, 32


def main() -> None:
    """Prints each turn, and the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of 16 rows")
    parser.add_argument("--held", type=int, default=100, help="rows to judge")
    parser.add_argument("--rounds", type=int, default=1, help="of four turns")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    data = os.environ.get("TUNESMITH_BENCH_DATA", str(HERE.parent.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(data), help="folder of Banking77")
    parser.add_argument("--limit", type=float, default=3600, help="seconds of a turn")
    parser.add_argument("--json", type=Path, help="the file to write")
    asked = parser.parse_args()
    model = str(resolve("smollm2-135m-instruct"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    source, items = workloads.BUILDERS["a"](asked.data, random.Random("bench/whole"))
    train, held = items[: asked.steps * BATCH], items[-asked.held :]
    job: dict[str, Any] = {
        "model": model, "threads": asked.threads, "device": "cpu", "batch": BATCH, "peer_rows": BATCH, "rate": 1e-3,
        "r": 16, "method": "lora", "tuned": True, "new_tokens": NEW_TOKENS, "train": train, "held": held,
        "rows": [workloads.encode_chat(tokenizer, turns) for turns in train],
        "held_rows": [workloads.encode_chat(tokenizer, turns) for turns in held],
    }  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {"tunesmith": [], "trl and a loop": []}
    for name in ("tunesmith", "trl and a loop", "trl and a loop", "tunesmith") * asked.rounds:
        ours = name == "tunesmith"
        python = Path(sys.executable) if ours else environments.python("trl")
        script = HERE / ("whole_ours.py" if ours else "whole_trl.py")
        found[name].append(process.run(python, script, job, limit=asked.limit))
        print(f"{name}: {found[name][-1]}", flush=True)
    own, theirs = (statistics.mean(turn["seconds"] for turn in turns) for turns in found.values())
    print(f"{source}, {len(train)} rows to train on and {len(held)} to judge: {own:.0f} s beside {theirs:.0f} s")
    print(f"whole_speedup={theirs / own:.1f}")
    if asked.json is not None:
        about = {"steps": asked.steps, "held": asked.held, "threads": asked.threads, "source": source}
        asked.json.write_text(json.dumps({**about, "turns": found, "ratio": theirs / own}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
