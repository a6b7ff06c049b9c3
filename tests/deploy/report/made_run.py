"""A run folder with everything that a report shows, and a text of the test wherever a text comes from outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.runs.folder import Run


def compared(base: float, tuned: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {
        "base": base,
        "tuned": tuned,
        "difference": tuned - base,
        "interval": [low, high],
        "verdict": "better",
        "reason": None,
        "rows": 40,
        "p_value": 0.001,
        **more,
    }


def verdict(text: str = "harmless") -> dict[str, Any]:
    """verdict.json of a run that got better, with every part."""
    labels = [
        {"label": f"{text}{n}", "precision": 0.5, "recall": 0.5, "f1": 0.5 + n / 10, "rows": 20} for n in range(3)
    ]
    confusion = [
        {"truth": f"{text}0", "answer": f"{text}0", "rows": 15},
        {"truth": f"{text}0", "answer": f"{text}1", "rows": 5},
        {"truth": f"{text}1", "answer": None, "rows": 4},
        {"truth": f"{text}2", "answer": f"{text}2", "rows": 16},
    ]
    classification = {"labels": labels, "confusion": confusion}
    share = {**compared(0.0, 0.1, 0.02, 0.2), "changed": True}
    copy = {"source": f"{text}:1", "training_row": f"{text}:2", "words": 12, "share": 0.75, "text": text}
    kind = {"kind": text, "items": 3, **compared(1.0, 0.5, -0.9, -0.1), "adjusted_p_value": 0.5}
    reliability = {
        "bins": [{"confidence": 0.9, "right": 0.625, "rows": 40}],
        "brier_score": {"value": 0.25, "interval": [0.125, 0.375]},
    }
    divergence = {"texts": 4, "tokens": 4_000, "kl": 0.375, "interval": [0.25, 0.5], "changed": 0.125}
    baseline = {
        "value": 0.8,
        "interval": [0.7, 0.9],
        "difference": 0.05,
        "difference_interval": [-0.1, 0.2],
        "verdict": text,
    }
    part = {**compared(0, 0.5, 0.1, 0.8), "tuned_interval": [0.2, 0.9], "adjusted_p_value": 0.2}
    return {
        "verdict": "better",
        "decided_by": "accuracy",
        "reason": text,
        "rows": 40,
        "confidence": 0.95,
        "resamples": 10_000,
        "seed": 0,
        "metrics": {
            "accuracy": compared(0.05, 0.85, 0.65, 0.925),
            "macro_f1": compared(0.04, 0.8, 0.6, 0.9),
            "loss": compared(2.0, 0.5, -1.6, -1.4),
            f"{text}.py:score": compared(1.0, 1.1, -0.1, 0.3, verdict="no evidence", p_value=0.4),
        },
        "cannot_tell": [],
        "damage": [{"kind": "repetition", "base": 0.0, "tuned": 0.25, "rows": 40, "p_value": 0.01, "evidence": True}],
        "advice": [{"reason": text, "text": text, "command": f"tunesmith eval RUN --data {text}"}],
        "details": {
            "classification": {"base": classification, "tuned": classification},
            "calibration": {"base": reliability, "tuned": reliability},
        },
        "divergence": {"confidence": 0.95, "own_answers": divergence},
        "memorisation": {
            **compared(0.0, 0.5, 0.2, 0.7), "rows": 30, "first_tokens": 16, "memorised": True, "held_out": None
        },
        "sliced_by": "accuracy",
        "slices": [
            {**part, "by": by, "name": f"{text}{n}"}
            for n, by in enumerate(("label", "source"))
        ],
        "side_effects": {
            "rows": 40,
            "refusals": share,
            "length": {**share, "truth": 12.0},
            "copied": {**share, "examples": [copy]},
        },
        "probe": {
            "name": text,
            **compared(1.0, 0.5, -0.6, -0.4, verdict="worse"),
            "items": 3,
            "confidence": 0.95,
            "equivalence": None,
            "lost": [text],
            "gained": [f"{text}2"],
            "kinds": [kind],
        },
        "baselines": {
            "metric": "accuracy",
            "training_rows": 10,
            "margin": 0.02,
            "results": [
                {"name": name, "metrics": {"accuracy": baseline}, "outcome": "as well"} for name in ("linear", text)
            ],
            "left_out": {"few_shot": text},
        },
        "base_model": "untuned",
        "step": 20,
    }  # fmt: skip


def sample(text: str, number: int, base: float, tuned: float) -> dict[str, Any]:
    """A line of samples.jsonl, right where a score is 1."""
    return {
        "source": f"{text}.jsonl:{number}",
        "prompt": f"user\n{text}\nassistant\n",
        "asked": text,
        "truth": text,
        "base": f"the base {text}",
        "base_stopped": False,
        "tuned": f"the tuned {text}",
        "tuned_stopped": True,
        "scores": {"accuracy": tuned},
        "base_scores": {"accuracy": base},
    }


def samples(text: str = "harmless") -> list[dict[str, Any]]:
    """A better, a worse, a wrong and a changed answer."""
    scores = [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1.0)]
    return [sample(text, number, *each) for number, each in enumerate(scores, 1)]


def made_run(folder: Path, text: str = "harmless", **changed: Any) -> Run:
    """A finished run. ``changed`` replaces the content of a file by its stem; None leaves it out."""
    run = Run(folder)
    run.folder.mkdir(parents=True)
    counts = {"read": 60, "invalid": 3, "left_out": 1, "duplicate": 2, "leaked": 1, "unbalanced": 0, "too_long": 3}
    rows = {**counts, "held_out": 40, "test": 0, "trained": 10}
    account = {"rows": rows, "tokens": {**rows, "read": 61, "trained": 11}, "supervised": rows}
    lines = [{"step": step, "loss": 4.0 / step, "learning_rate": 1e-4, "grad_norm": 1.0} for step in range(1, 21)]
    evaluation = {**verdict(text), "time": text, "target": text, "data": text, "settings": [text]}
    files: dict[str, Any] = {
        "verdict": verdict(text),
        "samples": samples(text),
        "metrics": [*lines, {"step": 20, "eval_loss": 0.5}],
        "evaluations": [evaluation],
        "benchmarks": [
            {
                "time": text, "target": text, "tasks": [text], "limit": None,
                "benchmarks": [
                    {"task": text, "metric": "acc", "filter": "none", "items": 9, **compared(0.25, 0.625, 0.1, 0.6)}
                ],
            }
        ],
        "ledger": {**account, "sources": {f"{text}.jsonl": account}},
        "data": [
            {
                "path": f"{text}.jsonl", "side": "train", "format": text, "rows": 10, "invalid": 3, "split": text,
                "files": [{"path": f"{text}.jsonl", "sha256": "ab" * 32}],
            }
        ],
        "environment": {
            "python": "3.11.7", "packages": {"tunesmith": "0.1.0", "torch": text, "peft": None}, "platform": text,
            "processor": text, "cpus": 2, "memory_bytes": 2**34, "threads": 2, "command": ["tunesmith", text],
            "git": {"commit": "c" * 40, "dirty": True},
        },
        **changed,
    }  # fmt: skip
    recipe = {
        "model": f"m {text}",
        "data": {"train": f"{text}.jsonl"},
        "training": {"max_steps": 20},
        "output_dir": f"runs/{text}",
    }
    run.write_text("recipe.yaml", json.dumps(recipe))
    for name, content in files.items():
        if isinstance(content, list) and name != "data":
            run.write_lines(f"{name}.jsonl", content)
        elif content is not None:
            run.write_json(f"{name}.json", content)
    facts = {"step": 20, "total_steps": 20, "seconds": 61.0, "judged_step": 20}
    run.set_status("finished", **facts, tokens={"rows": 9, "computed": 9, "supervised": 9}, started_in=f"/{text}")
    return run
