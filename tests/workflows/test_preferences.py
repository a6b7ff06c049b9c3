"""Whole runs of dpo, orpo and kto on a tiny random model: what they leave behind, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.file import read_recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Silent
from tunesmith.training import references
from tunesmith.training.loop import Step
from tunesmith.training.references import References
from tunesmith.training.trainer import Trainer
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import dry_run, train

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink"]
GOOD, BAD = ["yes", "aye", "yup"], ["nay", "nah"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    """Of two answers the friendly one is better."""
    pairs = [
        {"prompt": f"May I have the {WORDS[n % 7]} thing {n}?", "chosen": GOOD[n % 3], "rejected": BAD[n % 2]}
        for n in range(44)
    ]
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(write(tmp_path / "pairs.jsonl", pairs)), "eval": 0.25},
        "method": {"name": "lora", "r": 4},
        "objective": "dpo",
        "training": {
            "learning_rate": 1e-2,
            "num_train_epochs": 2.0,
            "batch_size": 8,
            "micro_batch_tokens": 160,
            "logging_steps": 3,
            "eval_steps": 2,
            "save_steps": 3,
            "report_to": "none",
            "threads": 1,
        },
        "evaluation": {"max_new_tokens": 6, "resamples": 200, "samples": 2},
        "output_dir": str(tmp_path / "run"),
    }


@pytest.fixture
def labelled(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    rows = [
        {
            "prompt": f"May I have the {WORDS[n % 7]} thing {n}?",
            "completion": BAD[n % 4 // 2] if n % 2 else GOOD[n % 3],
            "label": not n % 2,
        }
        for n in range(44)
    ]
    data = {"train": str(write(tmp_path / "labelled.jsonl", rows)), "eval": 0.25}
    return {**values, "data": data, "objective": "kto"}


def final_bytes(run: Path) -> dict[str, bytes]:
    last = Run(run).checkpoints[-1]
    return {path.name: path.read_bytes() for path in sorted(last.iterdir())}


def validations(run: Path) -> list[dict[str, Any]]:
    lines = [line for line in Run(run).read_lines("metrics.jsonl") if "eval_loss" in line]
    return [{name: value for name, value in line.items() if name != "eval_seconds"} for line in lines]


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The process is interrupted right before the validation of a step."""
    original = Trainer.on_eval

    def on_eval(self: Trainer, step: Step) -> None:
        if step.number >= number:
            raise KeyboardInterrupt
        original(self, step)

    monkeypatch.setattr(Trainer, "on_eval", on_eval)


@pytest.mark.parametrize("method", [{"name": "lora", "r": 4}, "full"], ids=["lora", "full"])
def test_dpo_makes_the_chosen_answers_likelier_and_says_so(values: dict[str, Any], method: Any) -> None:
    rate = 1e-2 if method != "full" else 1e-3
    result = train({**values, "method": method, "training": {**values["training"], "learning_rate": rate}})
    verdict, found = result.verdict, result.metrics
    assert list(found) == ["preference_accuracy", "loss"]
    assert verdict["decided_by"] == "preference_accuracy"
    assert found["loss"]["base"] == pytest.approx(np.log(2), rel=1e-5)
    assert found["loss"]["tuned"] < np.log(2)
    assert found["preference_accuracy"]["tuned"] > found["preference_accuracy"]["base"]
    lines = validations(result.run)
    assert lines[-1]["eval_reward_margin"] > 0.1 and lines[-1]["eval_reward_accuracy"] > 0.5
    assert lines[-1]["eval_loss"] == found["loss"]["tuned"]
    assert lines[-1]["eval_preference_accuracy"] == found["preference_accuracy"]["tuned"]
    first = Run(result.run).read_lines("metrics.jsonl")[1]
    assert first["step"] == 3 and 0.3 < first["loss"] < 0.8


def test_batches_and_ledger_count_pairs(values: dict[str, Any]) -> None:
    result = train(values)
    rows = json.loads((result.run / "ledger.json").read_text())["rows"]
    steps = 2 * -(-rows["trained"] // 8)
    assert rows["read"] == 44 == rows["held_out"] + rows["trained"]
    assert result.verdict["step"] == steps and result.verdict["rows"] == rows["held_out"]
    tokens = json.loads((result.run / "ledger.json").read_text())["epoch"]
    assert result.tokens["rows"] == 2 * tokens["total"]
    assert tokens["computed"] < 0.7 * tokens["total"]  # of two rows the prompt is computed once


def test_the_answers_shown_are_compared_with_the_chosen_one(values: dict[str, Any]) -> None:
    result = train(values)
    samples = [json.loads(line) for line in (result.run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2
    for line in samples:
        assert line["truth"] in GOOD


@pytest.mark.parametrize("objective", ["dpo", "orpo", {"name": "orpo", "nll_tokens": "all"}, "kto"], ids=str)
def test_a_run_that_was_stopped_ends_with_the_same_bytes(
    values: dict[str, Any], labelled: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: Any
) -> None:
    asked = labelled if objective == "kto" else {**values, "objective": objective}
    whole = train(asked).run
    other = {**asked, "output_dir": str(tmp_path / "stopped")}
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(other)
    stopped = tmp_path / "stopped"
    refers = objective in ("dpo", "kto")
    assert (stopped / references.FILE).is_file() == refers

    def refuse(*_: Any, **__: Any) -> References:
        raise AssertionError("the untuned model is measured once")

    with monkeypatch.context() as patch:
        patch.setattr(references, "measured", refuse)
        train(other, resume=True)
    assert final_bytes(stopped) == final_bytes(whole)
    assert validations(stopped) == validations(whole)
    verdicts = [json.loads((run / "verdict.json").read_text()) for run in (whole, stopped)]
    assert verdicts[0] == verdicts[1]


def test_a_damaged_reference_is_measured_again(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(values).run
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train({**values, "output_dir": str(tmp_path / "stopped")})
    stored = tmp_path / "stopped" / references.FILE
    stored.write_bytes(stored.read_bytes()[:100])
    train({**values, "output_dir": str(tmp_path / "stopped")}, resume=True)
    assert final_bytes(tmp_path / "stopped") == final_bytes(whole)
    assert np.array_equal(References.load(stored).train, References.load(whole / references.FILE).train)


def test_one_micro_batch_or_several_train_the_same(values: dict[str, Any], tmp_path: Path) -> None:
    runs = []
    for budget in (64, 4096):
        training = {**values["training"], "micro_batch_tokens": budget, "max_grad_norm": 0.0}
        runs.append(train({**values, "training": training, "output_dir": str(tmp_path / f"{budget}")}).run)
    losses = [[line["eval_loss"] for line in validations(run)] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_run_judged_again_has_the_same_scores(values: dict[str, Any]) -> None:
    result = train(values)
    again = evaluate(result.run)
    for name in ("preference_accuracy", "loss"):
        for side in ("base", "tuned"):
            assert again["metrics"][name][side] == pytest.approx(result.metrics[name][side], rel=1e-5)


def test_a_run_is_judged_on_other_pairs(values: dict[str, Any], tmp_path: Path) -> None:
    metrics = {**values["evaluation"], "metrics": ["reward_margin", "preference_accuracy"]}
    result = train({**values, "evaluation": metrics})
    rows = [{"prompt": f"May I go {n}?", "chosen": GOOD[n % 3], "rejected": BAD[n % 2]} for n in range(9)]
    found = evaluate(result.run, data=str(write(tmp_path / "others.jsonl", rows)))
    assert list(found["metrics"]) == ["reward_margin", "preference_accuracy", "loss"] and found["rows"] == 9
    assert found["metrics"]["reward_margin"]["base"] == pytest.approx(0.0, abs=1e-5)
    assert found["metrics"]["reward_margin"]["tuned"] > 0.1


def test_orpo_is_judged_by_what_is_likelier_by_token(values: dict[str, Any]) -> None:
    result = train({**values, "objective": "orpo"})
    assert list(result.metrics) == ["preference_accuracy", "loss"]
    assert result.metrics["loss"]["tuned"] < result.metrics["loss"]["base"]


def test_kto_is_judged_by_its_loss(labelled: dict[str, Any]) -> None:
    result = train(labelled)
    assert list(result.metrics) == ["loss"]
    assert result.metrics["loss"]["base"] == pytest.approx(0.5, rel=1e-5)
    assert result.metrics["loss"]["tuned"] < 0.5


def test_kto_says_that_its_rows_are_not_regrouped(labelled: dict[str, Any]) -> None:
    said: list[str] = []
    training = {name: value for name, value in labelled["training"].items() if name != "batch_size"}
    training |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    listener = Silent()
    listener.say = said.append  # type: ignore[method-assign]
    dry_run({**labelled, "training": training}, listener=listener)
    assert any(line.startswith("kto: a micro-batch is 4 examples, whatever") for line in said)


def test_weights_may_favour_desirable_answers(labelled: dict[str, Any]) -> None:
    objective = {"name": "kto", "desirable_weight": 3.0, "undesirable_weight": 1.0}
    result = train({**labelled, "objective": objective})
    assert 0.5 < result.metrics["loss"]["base"] < 1.5


@pytest.mark.parametrize(
    ("objective", "method", "rate"), [("sft", "lora", 2e-4), ("dpo", "lora", 1e-5), ("kto", "full", 1e-6)]
)
def test_the_learning_rate_of_auto_is_lower_for_preferences(
    values: dict[str, Any], objective: str, method: str, rate: float
) -> None:
    training = {name: value for name, value in values["training"].items() if name != "learning_rate"}
    asked = {**values, "objective": objective, "method": method, "training": training}
    assert read_recipe(asked).recipe.learning_rate == rate


def test_rows_to_imitate_are_refused_under_dpo(values: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "completion": "yes"} for n in range(20)]
    with pytest.raises(DataError) as caught:
        dry_run({**values, "data": {"train": str(write(tmp_path / "plain.jsonl", rows))}})
    assert caught.value.what == "the objective dpo does not learn from rows of the shape prompt_completion"
    assert "{prompt, chosen, rejected}" in str(caught.value.remedy) and "objective: sft" in str(caught.value.remedy)


def test_preferences_are_refused_under_sft(values: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        dry_run({**values, "objective": "sft"})
    assert caught.value.what == "the objective sft does not learn from rows of the shape preference"
    assert caught.value.remedy == "set objective: dpo or orpo"


@pytest.mark.parametrize(
    ("objective", "metric"),
    [("dpo", "perplexity"), ("orpo", "token_accuracy"), ("kto", "preference_accuracy"), ("sft", "reward_margin")],
)
def test_a_metric_of_another_objective_is_refused(values: dict[str, Any], objective: str, metric: str) -> None:
    evaluation = {**values["evaluation"], "metrics": [metric]}
    with pytest.raises(RecipeError, match=f"{metric} has no meaning under objective: {objective}; use loss"):
        read_recipe({**values, "objective": objective, "evaluation": evaluation})


def test_a_setting_of_another_objective_is_refused_with_its_owner(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe({**values, "objective": {"name": "orpo", "label_smoothing": 0.1}})
    assert "`objective.label_smoothing` is a setting of dpo; the objective here is orpo" in str(caught.value)
    with pytest.raises(RecipeError, match="there is no objective `dop`"):
        read_recipe({**values, "objective": "dop"})
    with pytest.raises(RecipeError, match="label_smoothing has no effect under loss_type: ipo"):
        read_recipe({**values, "objective": {"name": "dpo", "loss_type": "ipo", "label_smoothing": 0.1}})


def test_of_a_pair_that_is_too_long_neither_answer_is_trained(values: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no " * (40 if n % 4 == 0 else 1)} for n in range(40)]
    data = {"train": str(write(tmp_path / "long.jsonl", rows)), "eval": 0.0, "max_length": 40, "too_long": "drop"}
    result = train(
        {**values, "data": data, "training": {"max_steps": 1, "threads": 1}, "evaluation": {}}, listener=Silent()
    )
    rows_of = json.loads((result.run / "ledger.json").read_text())["rows"]
    assert (rows_of["trained"], rows_of["too_long"]) == (30, 10)


def selecting(values: dict[str, Any], name: str, **training: Any) -> dict[str, Any]:
    """A run whose step held-out rows select; the rate is so large that a later step is worse than an earlier one."""
    training = {"learning_rate": 0.3, "lr_scheduler_type": "constant", "eval_steps": 1, **training}
    merged = {**values["training"], "load_best_model_at_end": True, **training}
    if "max_steps" in training:
        del merged["num_train_epochs"]
    output_dir = str(Path(values["output_dir"]).with_name(name))
    return {**values, "data": {**values["data"], "eval": 0.4}, "training": merged, "output_dir": output_dir}


@pytest.mark.parametrize("name", ["dpo", "orpo", "kto"])
def test_the_best_step_of_a_preference_run_is_judged_by_other_rows_also_when_resumed(
    values: dict[str, Any], labelled: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = labelled if name == "kto" else {**values, "objective": name}
    whole = train(selecting(asked, "whole", max_steps=3))
    seen = {line["step"]: line["eval_loss"] for line in validations(whole.run)}
    best = min(seen, key=lambda step: seen[step])
    assert best < max(seen), "the last step is not the best in this run, so there is something to select"
    verdict = whole.verdict
    chosen = verdict["selection"]
    assert (verdict["step"], chosen["metric"], chosen["best"]) == (best, "loss", seen[best])
    held_out = json.loads((whole.run / "ledger.json").read_text())["rows"]["held_out"]
    assert chosen["rows"] > 0 and verdict["rows"] > 0 and chosen["rows"] + verdict["rows"] == held_out
    if name != "orpo":
        stored = References.load(whole.run / references.FILE)
        assert (len(stored.held_out), len(stored.judging)) == (2 * chosen["rows"], 2 * verdict["rows"])
        assert verdict["metrics"]["loss"]["base"] == pytest.approx({"dpo": np.log(2), "kto": 0.5}[name], rel=1e-5)
    again = evaluate(whole.run)
    for side in ("base", "tuned"):  # the same rows and the best step's weights
        assert again["metrics"]["loss"][side] == pytest.approx(verdict["metrics"]["loss"][side], rel=1e-5)

    with monkeypatch.context() as patch:
        stop_at(patch, best + 1)
        with pytest.raises(KeyboardInterrupt):
            train(selecting(asked, "stopped", max_steps=3))
    resumed = train(selecting(asked, "stopped", max_steps=3), resume=True)
    assert resumed.verdict == verdict
    assert validations(resumed.run) == validations(whole.run)
    assert final_bytes(resumed.run) == final_bytes(whole.run)


def test_pairs_may_select_by_a_metric_of_pairs_and_stop_early(values: dict[str, Any]) -> None:
    early = {"metric_for_best_model": "reward_accuracy", "early_stopping_patience": 2, "max_steps": 30}
    result = train(selecting(values, "early", **early))
    seen = {line["step"]: line["eval_reward_accuracy"] for line in validations(result.run)}
    best = max(seen, key=lambda step: (seen[step], -step))
    assert result.verdict["step"] == best
    assert result.verdict["selection"]["best"] == seen[best] and result.verdict["selection"]["stopped_early"]
    assert max(seen) == best + 2 < 30


def test_test_pairs_judge_where_there_are_some(values: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"prompt": f"May I go {n}?", "chosen": GOOD[n % 3], "rejected": BAD[n % 2]} for n in range(9)]
    asked = selecting(values, "tested", num_train_epochs=1.0)
    asked["data"] |= {"test": str(write(tmp_path / "test.jsonl", rows))}
    result = train(asked)
    assert result.verdict["rows"] == 9
    held_out = json.loads((result.run / "ledger.json").read_text())["rows"]["held_out"]
    assert result.verdict["selection"]["rows"] == held_out
    assert result.metrics["loss"]["base"] == pytest.approx(np.log(2), rel=1e-5)


def test_a_function_of_ones_own_may_select_pairs_and_is_there_when_the_run_is_judged_again(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def compute_metrics(eval_pred):\n    logits, _ = eval_pred\n    return {'reach': float(logits.max())}\n"
    (tmp_path / "reach_metric.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    asked = selecting(values, "own", metric_for_best_model="reach", num_train_epochs=1.0)
    result = train({**asked, "evaluation": {**values["evaluation"], "compute_metrics": "reach_metric:compute_metrics"}})
    lines = validations(result.run)
    seen = {line["step"]: line["eval_reach"] for line in lines}
    assert result.verdict["step"] == max(seen, key=lambda step: (seen[step], -step))
    assert all("eval_reward_margin" in line for line in lines)
    both = evaluate(result.run, allow_functions=True)["compute_metrics"]["reach"]
    assert both["tuned"] == pytest.approx(result.verdict["compute_metrics"]["reach"]["tuned"], rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "metric"), [("dpo", "perplexity"), ("orpo", "token_accuracy"), ("kto", "reward_margin")]
)
def test_a_step_is_not_selected_by_a_metric_of_another_objective(
    values: dict[str, Any], objective: str, metric: str
) -> None:
    asked = selecting({**values, "objective": objective}, "foreign", metric_for_best_model=metric)
    with pytest.raises(RecipeError, match=f"best_model: {metric} has no meaning under objective: {objective}; use"):
        read_recipe(asked)


def test_lower_is_not_better_of_a_metric_of_pairs(values: dict[str, Any]) -> None:
    given = {"metric_for_best_model": "reward_margin", "greater_is_better": False}
    with pytest.raises(RecipeError, match="greater_is_better: false contradicts metric_for_best_model: reward_margin"):
        read_recipe(selecting(values, "lower", **given))
