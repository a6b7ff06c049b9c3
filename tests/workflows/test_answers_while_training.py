"""Metrics of answers at validations: what they measure, what they may select, and that nothing else changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import RecipeError, RunError
from tunesmith.evaluation import judge as judging
from tunesmith.evaluation.during import during_judge
from tunesmith.evaluation.judge import Judge
from tunesmith.recipe.file import read_recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Silent
from tunesmith.training.setup import prepare_training
from tunesmith.training.trainer import Trainer
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train
from tunesmith.workflows.plan import plan

WORDS = ["red", "green", "blue"]


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    rows = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"{WORDS[n % 3]} thing {n}", "completion": WORDS[n % 3]} for n in range(60)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(rows), "eval": 0.4},
        "method": {"name": "lora", "r": 4, "lora_dropout": 0.1},
        "training": {
            "learning_rate": 0.02,
            "lr_scheduler_type": "constant",
            "max_steps": 12,
            "batch_size": 8,
            "logging_steps": 2,
            "eval_steps": 2,
            "save_steps": 4,
            "report_to": "none",
            "threads": 1,
        },
        "evaluation": {
            "metrics": ["exact_match"], "during": ["exact_match", "edit_similarity"], "during_rows": 9,
            "resamples": 100, "samples": 0, "max_new_tokens": 6,
        },
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip


def changed(values: dict[str, Any], name: str, *, evaluation: dict[str, Any] | None = None, **training: Any) -> Any:
    own = {**values["evaluation"], **(evaluation or {})}
    return {
        **values,
        "training": {**values["training"], **training},
        "evaluation": {key: value for key, value in own.items() if value is not None},
        "output_dir": str(Path(values["output_dir"]).with_name(name)),
    }


def validations(run: Path) -> list[dict[str, Any]]:
    """The lines of validations without the seconds that they took."""
    lines = [line for line in Run(run).read_lines("metrics.jsonl") if "eval_loss" in line]
    return [{name: value for name, value in line.items() if name != "eval_seconds"} for line in lines]


def weights(run: Path) -> dict[str, bytes]:
    files = (path for folder in Run(run).checkpoints for path in sorted(folder.iterdir()))
    return {
        f"{path.parent.name}/{path.name}": path.read_bytes()
        for path in files
        if path.suffix == ".safetensors" or path.suffix == ".bin"
    }


def test_a_validation_measures_answers_on_the_same_rows_and_changes_no_weight(values: dict[str, Any]) -> None:
    found, plain = (
        train(changed(values, name, evaluation=own))
        for name, own in (("with", {}), ("without", {"during": None, "during_rows": None}))
    )
    lines = validations(found.run)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    for line in lines:
        assert 0 <= line["eval_exact_match"] <= 1 and line["eval_exact_match"] * 9 == pytest.approx(
            round(line["eval_exact_match"] * 9)
        ), "a share of 9 rows"
        assert 0 <= line["eval_edit_similarity"] <= 1
    assert len({line["eval_edit_similarity"] for line in lines}) > 1, "the answers change while it learns"
    names = ("eval_exact_match", "eval_edit_similarity")
    others = [{key: value for key, value in line.items() if key not in names} for line in lines]
    assert others == validations(plain.run)
    assert weights(found.run) == weights(plain.run) and weights(found.run)
    assert found.verdict == plain.verdict


def test_the_last_validation_gives_what_judging_gives_on_all_rows(values: dict[str, Any]) -> None:
    result = train(changed(values, "all", evaluation={"during_rows": 500, "during": ["exact_match", "accuracy"]}))
    last = validations(result.run)[-1]
    assert last["eval_exact_match"] == last["eval_accuracy"] == result.metrics["exact_match"]["tuned"]
    assert evaluate(result.run)["metrics"]["exact_match"]["tuned"] == last["eval_exact_match"]


def test_a_validation_makes_one_loss_pass_and_answers_the_sample_alone(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[str] = []
    asked: list[list[list[int]]] = []
    token_scores, generate = Judge.token_scores, judging.generate

    def counted(self: Judge, model: Any, *, title: str, **given: Any) -> Any:
        passes.append(title)
        return token_scores(self, model, title=title, **given)

    def heard(model: Any, tokenizer: Any, prompts: Any, **given: Any) -> Any:
        asked.append([list(prompt) for prompt in prompts])
        assert given["begun"] is not None, "the choices of the loss pass are used"
        return generate(model, tokenizer, prompts, **given)

    monkeypatch.setattr(Judge, "token_scores", counted)
    monkeypatch.setattr(judging, "generate", heard)
    train(changed(values, "counted", max_steps=4))
    assert passes.count("validation") == 2
    assert [len(prompts) for prompts in asked[:2]] == [9, 9] and asked[0] == asked[1]


KILLED = """
import json, os, signal, sys
from tunesmith.training.trainer import Trainer
from tunesmith.workflows.finetune import train
stop, original = int(sys.argv[2]), Trainer.on_eval
def on_eval(self, step):
    original(self, step)
    if step.number == stop:
        os.kill(os.getpid(), signal.SIGKILL)
Trainer.on_eval = on_eval
train(json.loads(sys.argv[1]), progress=False)
"""


@pytest.mark.slow  # three runs and two processes
def test_a_run_that_is_killed_has_the_same_bytes_and_the_same_metrics_when_it_goes_on(values: dict[str, Any]) -> None:
    selecting = {"load_best_model_at_end": True, "metric_for_best_model": "edit_similarity"}
    whole = train(changed(values, "whole", **selecting))
    for stop in (6, 8):
        given = changed(values, f"killed-{stop}", **selecting)
        done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(given), str(stop)], env=os.environ, check=False)
        assert done.returncode == -signal.SIGKILL
        resumed = train(given, resume=True)
        assert validations(resumed.run) == validations(whole.run)
        assert weights(resumed.run) == weights(whole.run) and weights(whole.run)
        assert resumed.verdict == whole.verdict


def test_a_metric_of_answers_selects_the_step_on_rows_that_do_not_judge(values: dict[str, Any]) -> None:
    given = changed(values, "best", load_best_model_at_end=True, metric_for_best_model="edit_similarity", eval_steps=1)
    prepared = prepare_training(read_recipe(given).recipe, Silent())
    assert prepared.task is not None and prepared.selecting is not None
    judges, selects = ({question.source for question in each.questions} for each in (prepared.task, prepared.selecting))
    sampled = during_judge(
        Judge(prepared.selecting, [], prepared.text.tokenizer, prepared.text.stop_ids, prepared.recipe.evaluation)
    )
    assert sampled is not None
    sources = {question.source for question in sampled.task.questions}
    assert len(sources) == 9 and sources < selects and not sources & judges
    result = train(given)
    seen = {line["step"]: line["eval_edit_similarity"] for line in validations(result.run)}
    best = max(seen, key=lambda step: (seen[step], -step))
    assert result.verdict["step"] == best
    selection = result.verdict["selection"]
    assert (selection["metric"], selection["best_step"], selection["best"]) == ("edit_similarity", best, seen[best])
    again = evaluate(result.run)
    assert again["rows"] == result.verdict["rows"] == len(prepared.task.questions)
    assert again["metrics"]["exact_match"]["tuned"] == result.metrics["exact_match"]["tuned"]


def test_a_metric_of_answers_stops_a_run_early(values: dict[str, Any]) -> None:
    early = {"early_stopping_patience": 1, "metric_for_best_model": "exact_match", "learning_rate": 1e-12}
    result = train(changed(values, "early", **early))
    lines = validations(result.run)
    assert [line["step"] for line in lines] == [2, 4], "nothing changes at this rate"
    assert result.verdict["selection"]["stopped_early"] and result.verdict["step"] == 4


def test_a_resumed_run_takes_no_other_metric_to_select_by(values: dict[str, Any]) -> None:
    given = changed(values, "other", load_best_model_at_end=True, metric_for_best_model="exact_match")

    def stopped(self: Trainer, step: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "on_eval", stopped)
        train(given)
    for own in ({"during_rows": 8}, {"max_new_tokens": 5}, {"normalize": ["case"]}, {"during": ["exact_match"]}):
        with pytest.raises(RunError, match=f"evaluation.{next(iter(own))}"):
            train({**given, "evaluation": {**given["evaluation"], **own}}, resume=True)


@pytest.mark.parametrize(
    ("evaluation", "training", "said"),
    [
        ({"during": ["exact_mach"]}, {}, "did you mean 'exact_match'"),
        ({"during": ["loss"]}, {}, "during: loss needs no answers"),
        ({"during": ["judge"], "judge": {"base_url": "http://localhost:1", "model": "m"}}, {}, "compares the answers"),
        ({"during": ["exact_match", "exact_match"]}, {}, "named twice"),
        ({"during": ["json_schema"]}, {}, "json_schema needs evaluation.json_schema"),
        ({"during": None}, {}, "during_rows has no meaning without during"),
        ({}, {"eval_strategy": "no"}, "evaluation.during needs validations, and training.eval_strategy is no"),
        (
            {},
            {
                "load_best_model_at_end": True,
                "metric_for_best_model": "exact_match",
                "greater_is_better": False,
            },
            "greater_is_better: false contradicts metric_for_best_model: exact_match",
        ),
        (
            {"during": ["edit_similarity"]},
            {"load_best_model_at_end": True, "metric_for_best_model": "exact_match"},
            "exact_match is not known at a validation.*Use loss.*a metric of answers that evaluation.during names",
        ),
    ],
)
def test_what_cannot_be_measured_while_training_is_refused_before_it(
    values: dict[str, Any], evaluation: Any, training: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = changed(values, "refused", evaluation=evaluation, **training)
    if "eval_strategy" in training:
        del given["training"]["eval_steps"]
    with pytest.raises(RecipeError, match=f"(?s){said}"):
        train(given)
    assert not Path(given["output_dir"]).exists()


def test_plan_refuses_a_name_that_training_would_refuse(values: dict[str, Any]) -> None:
    for own in ({"during": ["exact_mach"]}, {"metrics": ["exact_mach"]}):
        with pytest.raises(RecipeError, match="did you mean 'exact_match'"):
            plan(changed(values, "planned", evaluation=own), progress=False)
    plan(changed(values, "planned", evaluation={"during": ["own.py:score"]}), progress=False)


def test_preferences_are_answered_while_training_too(values: dict[str, Any], tmp_path: Path) -> None:
    rows = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"thing {n}", "chosen": WORDS[n % 3], "rejected": WORDS[(n + 1) % 3]} for n in range(30)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = {"metrics": ["exact_match"], "during": ["exact_match", "likelihood_accuracy"], "during_rows": 99}
    given = changed(values, "pairs", evaluation=own, max_steps=2, eval_steps=1, learning_rate=0.001)
    given |= {"data": {"train": str(rows), "eval": 0.4}, "objective": "dpo"}
    result = train(given)
    lines = validations(result.run)
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[-1]["eval_exact_match"] == result.metrics["exact_match"]["tuned"]
    assert 0 <= lines[-1]["eval_likelihood_accuracy"] <= 1 and "eval_reward_accuracy" in lines[-1]


def test_eval_takes_no_setting_of_validations(values: dict[str, Any]) -> None:
    result = train(changed(values, "judged", max_steps=2))
    with pytest.raises(RecipeError, match="during is about validations while a model trains"):
        evaluate(result.run, settings=["during=[exact_match]"])


def test_a_function_may_not_give_a_metric_that_validations_measure(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("def found(prediction):\n    return {'exact_match': 1.0}\n")
    with pytest.raises(RecipeError, match="two metrics called exact_match"):
        train(changed(values, "both", evaluation={"compute_metrics": "own.py:found"}))
