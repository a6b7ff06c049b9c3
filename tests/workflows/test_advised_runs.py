"""Runs that go wrong, and the commands that their verdicts advise, which work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.evaluation.advice import advice
from tunesmith.evaluation.wording import advice_lines, sentence
from tunesmith.recipe.file import read_recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.overview import wrong_answers
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"say {n}", "completion": f"word {n} and a few more words {n}"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"learning_rate": 3.0, "lr_scheduler_type": "constant", "max_steps": 40, "batch_size": 4}
    quiet = {"logging_steps": 1, "eval_strategy": "no", "report_to": "none", "threads": 1}
    return {
        "model": str(tiny_model_dir),
        "data": {"train": "rows.jsonl", "eval": 0.5},
        "method": {"name": "full"},
        "training": {**training, **quiet},
        "evaluation": {"metrics": ["exact_match"], "max_new_tokens": 8, "resamples": 200},
        "output_dir": "run",
    }


@pytest.mark.slow
def test_a_run_at_a_rate_that_is_far_too_high_is_worse_and_its_advice_can_be_followed(values: dict[str, Any]) -> None:
    verdict = train(values).verdict
    assert verdict["metrics"]["exact_match"]["bound"] == "floor"
    assert (verdict["verdict"], verdict["decided_by"], verdict["cannot_tell"]) == ("worse", "loss", ["exact_match"])
    assert verdict["damage"][0]["kind"] == "loss" and verdict["damage"][0]["evidence"]
    assert "exact_match cannot tell the models apart: both are at its floor (0 for both)." in sentence(verdict)
    assert len(wrong_answers("run").wrong) == verdict["rows"]
    assert Run("run").read_json("verdict.json") == verdict
    rising = [{"step": n, "loss": 1.0 + max(n - 12, 0), "learning_rate": 3.0} for n in range(30)]
    found = advice(verdict, [], read_recipe("run/recipe.yaml").recipe, lines=rising)
    command = advice_lines({"advice": found}, "run")[1].split("`")[1].split()
    assert command[:3] == ["tunesmith", "train", "run/recipe.yaml"]
    again = train(command[2], [*command[3:], "training.max_steps=2"])
    assert again.run == Path("run-2")
    assert read_recipe("run-2/recipe.yaml").recipe.training.learning_rate == 1.0


@pytest.mark.slow
def test_the_best_checkpoint_that_advice_asks_for_is_trained(values: dict[str, Any]) -> None:
    training = {"learning_rate": 1e-3, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    train({**values, "training": {**values["training"], **training}})
    again = train("run/recipe.yaml", ["training.load_best_model_at_end=true", "output_dir=run-2"])
    assert "selection" in again.verdict


@pytest.mark.slow
def test_a_run_of_no_change_is_no_evidence_and_no_worse_only_within_a_margin(values: dict[str, Any]) -> None:
    training = {"learning_rate": 1e-12, "max_steps": 1}
    verdict = train({**values, "training": {**values["training"], **training}}).verdict
    assert verdict["verdict"] == "no evidence" and verdict["damage"] == []
    later = evaluate("run", settings=["metrics=[exact_match,token_accuracy]", "margin=0.2", "max_new_tokens=4"])
    assert later["decided_by"] == "loss" and later["cannot_tell"] == ["exact_match", "token_accuracy"]
    assert later["metrics"]["loss"]["equivalence"]["margin"] == 0.2
    assert len(wrong_answers("run", of_eval=True).wrong) == later["rows"] == len(later.samples)
