"""A run folder of somebody else, whose every text is an attack."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tunesmith.runs.folder import Run

# A title, a colour, a cleared screen, CSI in one byte, a link, a reversed line, an isolate, a new line, markup.
ATTACK = "\x1b]0;OWNED\x07\x1b[35m\x1b[2J\x9b35m\x1b]8;;http://x\x1b\\link\u202efdp\u2066a\r\nerror: x\x7f\b<script>"
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
OURS = re.compile(r"\x1b\[(?:0|1|2|3|[39][0-7]|1;3[0-7])?m")  # styles


def foreign_run(folder: Path, verdict: dict[str, Any], attack: str = ATTACK) -> Run:
    """A run whose every text is the attack."""
    run = Run(folder)
    run.folder.mkdir(parents=True)
    recipe = {"model": f"m{attack}", "data": {"train": f"rows{attack}.jsonl"}, "output_dir": "x"}
    run.write_text("recipe.yaml", json.dumps(recipe))
    facts = {"base": 0.0, "tuned": 1.0, "difference": 1.0, "interval": [0.5, 1.0], "verdict": attack, "reason": attack}
    found = {**verdict, "decided_by": attack, "reason": attack, "metrics": {attack: facts}, "base_model": attack}
    found["probe"] = {
        **{name: facts[name] for name in ("base", "tuned", "difference", "interval")},
        **{"name": attack, "items": 3, "confidence": 0.95, "p_value": 0.5, "verdict": "worse", "equivalence": None},
        **{"lost": [attack], "gained": [], "kinds": [{**facts, "kind": attack, "items": 3}]},
    }
    part: dict[str, Any] = {"texts": 2, "tokens": 3, "kl": 1.0, "interval": [0.5, 1.0], "changed": 0.5}
    groups = [{"by": attack, "name": attack, "tokens": 3, "kl": 1.0}]
    worst = {"id": attack, "before": attack, "token": attack, "base": attack, "tuned": attack, "kl": 1.0}
    part |= {"worst_texts": [worst], "worst_tokens": [worst]}
    general = {**part, "loss": facts, "perplexity": {"base": 1.0, "tuned": 2.0}, "by": groups}
    found["divergence"] = {"general": general, "own_answers": part, "confidence": 0.95}
    returned = {**facts, "rows": 20, "first_tokens": 16, "memorised": True, "held_out": None, "examples": [attack]}
    found["memorisation"] = returned
    run.write_json("verdict.json", found)
    asked = {"time": attack, "target": attack, "data": attack, "settings": [attack]}
    run.write_lines("evaluations.jsonl", [{**found, **asked}])
    entry = {**facts, "task": attack, "metric": attack, "filter": attack, "items": 3}
    benchmarks = {"time": attack, "target": attack, "tasks": [attack], "limit": 3, "benchmarks": [entry]}
    run.write_lines("benchmarks.jsonl", [benchmarks])
    run.write_json("ledger.json", {"rows": {"read": 3, "held_out": 1, "trained": 2, attack: 1}})
    steps = [{"step": step, "loss": 1.0 / step, "learning_rate": 0.1} for step in (1, 2)]
    run.write_lines("metrics.jsonl", [*steps, {"step": 2, "eval_loss": 1.0, "eval_loss_by_source": {attack: 1.0}}])
    sample = {"step": 2, "source": attack, "prompt": attack, "truth": attack, "answer": attack, "stopped": True}
    run.write_lines("samples_during.jsonl", [sample])
    run.set_status("failed", step=2, total_steps=2, seconds=1.0, error={"what": attack})  # and a time of its own
    run.write_json("status.json", {**run.status(), "updated": attack})
    (run.folder / "checkpoints" / f"step-{attack.replace('/', '')}").mkdir(parents=True)
    return run
