"""A run keeps slices and side effects beside its verdict, and shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.runs.folder import Run
from tunesmith.runs.stored_shapes import verdict_of
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train


def _parts(slices: list[dict[str, Any]]) -> tuple[list[Any], list[float]]:
    """What is no number, and the numbers."""
    values = [each for one in slices for each in one.values()]
    flat = [part for each in values for part in (each if isinstance(each, list) else [each])]
    return [each for each in flat if not isinstance(each, float)], [each for each in flat if isinstance(each, float)]


def test_a_run_with_answers_has_slices_by_label_and_side_effects(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = [{"prompt": f"thing {n}?", "completion": "red" if n % 2 else "blue"} for n in range(80)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"max_steps": 2, "batch_size": 4, "learning_rate": 0.01, "report_to": "none", "threads": 1}
    values = {
        "model": str(tiny_model_dir),
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.6},
        "method": {"name": "lora", "r": 4},
        "training": training,
        "evaluation": {"resamples": 100, "metrics": ["exact_match"], "max_new_tokens": 4},
        "output_dir": str(tmp_path / "run"),
    }
    verdict = train(values, progress=False).verdict
    effects = verdict["side_effects"]
    samples = Run(tmp_path / "run").read_lines("samples.jsonl")
    assert effects["rows"] == len(samples) >= 30
    assert effects["copied"]["training_answers"] == 80 - len(samples)
    assert (effects["copied"]["tuned"], effects["copied"]["changed"]) == (0.0, False)
    assert effects["length"]["truth"] in (3.0, 3.5, 4.0)
    by = {each["by"] for each in verdict["slices"]}
    assert by <= {"label", "length", "language", "script"}
    assert by >= {"length"} if verdict["sliced_by"] == "loss" else {"label", "length"}
    scores = [each["tuned"] for each in verdict["slices"]]
    assert scores == sorted(scores, reverse=verdict["sliced_by"] == "loss")
    assert verdict_of(Run(tmp_path / "run")) == verdict
    again = evaluate(tmp_path / "run", progress=False)
    # Other micro-batches round the losses otherwise.
    (names, numbers), (other_names, other_numbers) = _parts(verdict["slices"]), _parts(again["slices"])
    assert (names, numbers) == (other_names, pytest.approx(other_numbers, rel=1e-3))
    assert again["side_effects"] == effects
    elsewhere = evaluate(tmp_path / "run", data=str(tmp_path / "rows.jsonl"), progress=False)
    assert "copied" not in elsewhere["side_effects"]
