"""Runs whose step held-out rows select: others judge it, it is the run's result, and stopping changes no byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.deploy.tuned import find_target
from tunesmith.errors import DataError
from tunesmith.recipe.file import read_recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Silent
from tunesmith.runs.progress_lines import Lines
from tunesmith.training.loop import Step
from tunesmith.training.setup import prepare_training
from tunesmith.training.tasks import make_tasks
from tunesmith.training.trainer import Trainer
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink"]


def write_rows(path: Path, numbers: range) -> Path:
    lines = [
        {"instruction": "Name the colour.", "input": f"{WORDS[n % 7]} thing {n}", "output": WORDS[n % 7]}
        for n in numbers
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(write_rows(tmp_path / "rows.jsonl", range(60))), "eval": 0.4},
        "method": {"name": "lora", "r": 4},
        "training": {
            "learning_rate": 0.3,  # so large that a later step is worse than an earlier one
            "lr_scheduler_type": "constant",
            "max_steps": 12,
            "batch_size": 8,
            "logging_steps": 5,
            "eval_steps": 1,
            "save_steps": 5,
            "report_to": "none",
            "threads": 1,
            "load_best_model_at_end": True,
        },
        "evaluation": {"resamples": 100, "samples": 0},
        "output_dir": str(tmp_path / "run"),
    }


def changed(values: dict[str, Any], name: str, **training: Any) -> dict[str, Any]:
    merged = {**values["training"], **training}
    kept = {key: value for key, value in merged.items() if value is not None}
    return {**values, "training": kept, "output_dir": str(Path(values["output_dir"]).with_name(name))}


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["eval_loss"] for line in Run(run).read_lines("metrics.jsonl") if "eval_loss" in line}


def folders(run: Path) -> list[str]:
    return [path.name for path in Run(run).checkpoints]


def bytes_of(run: Path) -> dict[str, bytes]:
    return {
        f"{folder.name}/{path.name}": path.read_bytes()
        for folder in Run(run).checkpoints
        for path in sorted(folder.iterdir())
    }


@pytest.mark.slow
def test_the_best_step_is_judged_on_rows_that_did_not_select_it(values: dict[str, Any]) -> None:
    recipe = read_recipe(values).recipe
    prepared = prepare_training(recipe, Silent())
    assert prepared.task is not None
    assert prepared.selecting is not None
    prompts = [{question.prompt_text for question in each.questions} for each in (prepared.task, prepared.selecting)]
    assert not prompts[0] & prompts[1]
    held_out = prepared.survey.ledger().total.rows.held_out
    assert len(prepared.task.rows) + len(prepared.selecting.rows) == held_out

    result = train(values)
    seen = losses(result.run)
    best = min(seen, key=lambda step: seen[step])
    assert list(seen) == list(range(1, 13))
    assert best != 12, "the last step is not the best in this run, so there is something to select"
    verdict, status = result.verdict, Run(result.run).status()
    assert verdict["step"] == status["judged_step"] == best
    assert verdict["rows"] == len(prepared.task.rows)
    assert verdict["selection"] == {
        "metric": "loss", "best_step": best, "best": seen[best], "rows": len(prepared.selecting.rows), "steps": 12,
        "stopped_early": False,
    }  # fmt: skip
    assert find_target(str(result.run)).checkpoint == result.run / "checkpoints" / f"step-{best:06d}"
    expected = sorted({best, 5, 10, 12})
    assert folders(result.run) == [f"step-{step:06d}" for step in expected], "no other step was worth keeping"
    again = evaluate(result.run)
    for side in ("base", "tuned"):  # the same rows, and the best step's weights
        assert again["metrics"]["loss"][side] == pytest.approx(verdict["metrics"]["loss"][side], rel=1e-6)


@pytest.mark.slow
def test_the_best_step_outlives_every_limit_and_is_the_same_when_stopped_and_resumed(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"save_total_limit": 1, "save_steps": 2}
    whole = train(changed(values, "whole", **limits))
    best = whole.verdict["step"]
    assert folders(whole.run) == [f"step-{best:06d}", "step-000012"]
    original = Trainer.on_eval
    for stop in (best + 1, 12):
        with monkeypatch.context() as patch:

            def on_eval(self: Trainer, step: Step, stop: int = stop) -> None:
                if step.number == stop:
                    raise KeyboardInterrupt
                original(self, step)

            patch.setattr(Trainer, "on_eval", on_eval)
            with pytest.raises(KeyboardInterrupt):
                train(changed(values, f"stopped-{stop}", **limits))
        resumed = train(changed(values, f"stopped-{stop}", **limits), resume=True)
        assert resumed.verdict == whole.verdict
        assert bytes_of(resumed.run) == bytes_of(whole.run)
        assert losses(resumed.run) == losses(whole.run)


@pytest.mark.slow
def test_a_run_without_progress_stops_early_and_says_so(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Lines, "say", lambda self, text: said.append(text))
    given = changed(values, "early", early_stopping_patience=2, max_steps=40, logging_steps=7)
    result = train(given)
    seen = losses(result.run)
    best, last = min(seen, key=lambda step: seen[step]), max(seen)
    assert last < 40
    assert [seen[step] >= seen[best] for step in (last - 1, last)] == [True, True]
    assert result.verdict["step"] == best
    assert result.verdict["selection"]["stopped_early"]
    assert result.verdict["selection"]["steps"] == last
    assert any(line.startswith(f"stopped early at step {last} of 40: loss was no better in 2") for line in said)
    assert folders(result.run)[-1] == f"step-{last:06d}", "the step that it stopped at is written"
    lines = [line["step"] for line in Run(result.run).read_lines("metrics.jsonl") if "loss" in line]
    assert lines[-1] == last, "no step is without its line of metrics"

    status = Run(result.run).status()
    Run(result.run).write_json("status.json", {**status, "status": "stopped"})
    (result.run / "verdict.json").unlink()
    again = train(given, resume=True)
    assert again.verdict == result.verdict
    assert losses(again.run) == seen


def test_a_metric_that_never_differed_is_said_to_select_nothing(values: dict[str, Any]) -> None:
    heard: list[str] = []

    class Heard(Silent):
        def warn(self, text: str) -> None:
            heard.append(text)

    given = changed(values, "run", metric_for_best_model="exact_match", max_steps=3, learning_rate=1e-5)
    given["evaluation"] = {**values["evaluation"], "during": ["exact_match"], "metrics": ["exact_match"]}
    result = train({**given, "evaluation": {**given["evaluation"], "max_new_tokens": 2}}, listener=Heard())
    assert result.verdict["step"] == 1  # a tie keeps the earlier step, as transformers does
    (said,) = [line for line in heard if "validations" in line]
    assert said == (
        "exact_match was 0 at all 3 validations, so no step was better than another, and the first one counts as the "
        "best. Set training.metric_for_best_model=loss to select by the loss."
    )
    heard.clear()
    train(changed(values, "by loss", metric_for_best_model="loss", max_steps=3), listener=Heard())
    assert [line for line in heard if "validations" in line] == []


def test_early_stopping_alone_ends_with_the_last_step_and_says_that_it_does(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Lines, "say", lambda self, text: said.append(text))
    result = train(changed(values, "alone", load_best_model_at_end=None, early_stopping_patience=1, max_steps=40))
    last = max(losses(result.run))
    assert result.verdict["step"] == last < 40
    assert result.verdict["selection"]["best_step"] < last
    assert any(line.startswith("early stopping without load_best_model_at_end") for line in said)


def test_test_rows_judge_where_there_are_some(values: dict[str, Any], tmp_path: Path) -> None:
    test = write_rows(tmp_path / "test.jsonl", range(100, 109))
    recipe = read_recipe({**values, "data": {**values["data"], "test": str(test)}}).recipe
    prepared = prepare_training(recipe, Silent())
    assert prepared.task is not None
    assert prepared.selecting is not None
    assert len(prepared.task.rows) == 9
    assert all(row.source.startswith(str(test)) for row in prepared.task.rows)
    assert len(prepared.selecting.rows) == prepared.survey.ledger().total.rows.held_out


def test_without_selection_every_held_out_row_judges_and_test_rows_stay_apart(
    values: dict[str, Any], tmp_path: Path
) -> None:
    test = write_rows(tmp_path / "test.jsonl", range(100, 109))
    plain = changed(values, "plain", load_best_model_at_end=None)
    recipe = read_recipe({**plain, "data": {**values["data"], "test": str(test)}}).recipe
    prepared = prepare_training(recipe, Silent())
    assert prepared.selecting is None
    assert prepared.task is not None
    assert len(prepared.task.rows) == prepared.survey.ledger().total.rows.held_out


def test_too_few_held_out_rows_to_select_and_judge_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one.jsonl", range(200, 201))
    recipe = read_recipe({**values, "data": {**values["data"], "eval": str(one)}}).recipe
    with pytest.raises(DataError, match="too few to select a step and to judge it") as error:
        prepare_training(recipe, Silent())
    assert error.value.where == "data.eval"


@pytest.mark.slow
def test_a_step_may_be_selected_by_accuracy_or_by_a_function_of_ones_own(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "def compute_metrics(eval_pred):\n    logits, labels = eval_pred\n    return {'spread': float(logits.std())}\n"
    )
    (tmp_path / "spread_metric.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    for name, function in (("token_accuracy", None), ("spread", "spread_metric:compute_metrics")):
        given = changed(values, name, metric_for_best_model=name, max_steps=5)
        given["evaluation"] = {**values["evaluation"], "compute_metrics": function}
        result = train(given)
        lines = Run(result.run).read_lines("metrics.jsonl")
        seen = {line["step"]: line[f"eval_{name}"] for line in lines if "eval_loss" in line}
        assert result.verdict["step"] == max(seen, key=lambda step: (seen[step], -step))


def test_other_rows_judge_a_selected_run_whole(values: dict[str, Any], tmp_path: Path) -> None:
    result = train(changed(values, "other", max_steps=2))
    found = evaluate(result.run, data=str(write_rows(tmp_path / "new.jsonl", range(300, 307))))
    assert found["rows"] == 7


def test_rows_select_or_judge_by_their_prompt_alone(values: dict[str, Any], tmp_path: Path) -> None:
    """More rows move none to the other half."""
    sides = []
    for count in (60, 90):
        path = write_rows(tmp_path / f"rows-{count}.jsonl", range(count))
        recipe = read_recipe({**values, "data": {"train": str(path), "eval": 0.4}}).recipe
        prepared = prepare_training(recipe, Silent())
        task, selecting = make_tasks(
            prepared.survey, prepared.corpus, recipe, tokenizer=prepared.text.tokenizer, stops=prepared.text.stop_ids
        )
        assert task is not None
        assert selecting is not None
        sides.append([{question.prompt_text for question in each.questions} for each in (task, selecting)])
    assert sides[0][0] < sides[1][0]
    assert sides[0][1] < sides[1][1]
