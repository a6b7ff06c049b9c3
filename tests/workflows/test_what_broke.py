"""Runs and evaluations that measure divergence from the base, and training rows that come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.workflows.test_damaged_runs import Heard

from tunesmith.deploy.report.files import report_run
from tunesmith.errors import RunError
from tunesmith.evaluation import few_shot, memorisation
from tunesmith.evaluation.advice import advice
from tunesmith.evaluation.below_verdict import lines_below
from tunesmith.evaluation.divergence import measuring
from tunesmith.evaluation.divergence.texts import general_texts
from tunesmith.model.compute import divergence
from tunesmith.recipe.file import read_recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.overview import details
from tunesmith.workflows import finetune
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "larch"]


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    random = np.random.default_rng(0)
    rows = [{"prompt": f"say {n}", "completion": " ".join(random.choice(WORDS, 9))} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"max_steps": 2, "batch_size": 8, "learning_rate": 1e-3, "report_to": "none", "threads": 1}
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.4},
        "method": {"name": "lora", "r": 4},
        "training": {**training, "eval_strategy": "no", "logging_steps": 1},
        "evaluation": {"resamples": 200, "samples": 0, "divergence": True, "memorisation": True},
        "output_dir": str(tmp_path / "run"),
    }


def test_a_run_and_an_evaluation_keep_both_and_show_them(values: dict[str, Any], tmp_path: Path) -> None:
    made = train(values, progress=False)
    found = made.verdict["divergence"]
    assert found["general"]["texts"] == 52 and found["own_answers"]["texts"] == 24
    assert 0 < found["general"]["kl"] < 0.1
    low, high = found["general"]["interval"]
    assert low < found["general"]["kl"] < high
    assert {each["name"] for each in found["general"]["by"]} >= {"code", "prose", "de", "en"}
    recalled = made.verdict["memorisation"]
    assert recalled["rows"] >= 20 and recalled["base"] == 0.0 and not recalled["memorised"]
    assert recalled["held_out"]["rows"] >= 20
    assert train(values, resume=True, progress=False).verdict == made.verdict
    again = evaluate(made.run, progress=False)
    assert again["divergence"]["general"]["tokens"] == found["general"]["tokens"]
    assert again["divergence"]["general"]["kl"] == pytest.approx(found["general"]["kl"], rel=1e-3)
    assert again["memorisation"] == recalled
    plain = evaluate(made.run, settings=["divergence=false", "memorisation=false"], progress=False)
    assert "divergence" not in plain and "memorisation" not in plain
    other = evaluate(made.run, data=str(tmp_path / "rows.jsonl"), progress=False)
    assert "divergence" in other and "memorisation" not in other
    kept = details(made.run)
    assert not any(name == "damaged" for name, _ in kept.facts)
    lines = lines_below(made.verdict)
    assert lines[0].startswith("Divergence from the base on general text: ")
    assert "training rows come back word for word from their first 16 tokens (base: 0; of held-out rows: " in lines[-1]


def test_too_few_rows_or_texts_are_said_where_the_result_would_be(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"thing {n}", "completion": f"word {n % 3}"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(measuring, "general_texts", lambda *names: general_texts(*names)[:1])
    made = train(values, progress=False)
    few = "0 training rows have learned texts of 16 tokens or more, and it takes 20"
    one = "1 of the texts could be measured, and it takes 2"
    assert made.verdict["left_out"] == {
        "divergence.general": one,
        "divergence.own_answers": one,
        "memorisation": few,
    }
    assert "memorisation" not in made.verdict and "divergence" not in made.verdict
    kept = details(made.run)
    assert not any(name == "damaged" for name, _ in kept.facts)
    lines = lines_below(made.verdict)
    assert f"Memorisation is not measured: {few}." in lines
    assert sum("is not measured: 1 of the texts" in line for line in lines) == 2
    (page,) = report_run(made.run, html=tmp_path / "report.html")
    assert f"Memorisation is not measured: {few}." in page.read_text()


@pytest.mark.parametrize("method", [{"name": "lora", "r": 4}, {"name": "full"}])
def test_a_training_that_changes_nothing_is_at_no_distance(values: dict[str, Any], method: dict[str, Any]) -> None:
    training = {**values["training"], "learning_rate": 1e-30, "max_steps": 1}
    found = train({**values, "method": method, "training": training}, progress=False).verdict["divergence"]
    for part in ("general", "own_answers"):
        assert abs(found[part]["kl"]) < 1e-9 and found[part]["changed"] == 0.0
    assert found["general"]["loss"]["verdict"] == "no evidence"


def test_it_grows_with_the_learning_rate(values: dict[str, Any], tmp_path: Path) -> None:
    distances = []
    for number, rate in enumerate((1e-4, 1e-3, 1e-2, 1e-1)):
        training = {**values["training"], "learning_rate": rate, "max_steps": 5}
        made = train({**values, "training": training, "output_dir": str(tmp_path / f"run-{number}")}, progress=False)
        distances.append(made.verdict["divergence"]["general"]["kl"])
    assert distances == sorted(distances) and distances[-1] > 100 * distances[0]


def test_a_tuned_model_that_overflows_on_general_text_has_a_verdict_that_says_so(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = divergence._positions

    def overflowing(*given: Any) -> list[np.ndarray]:
        kl, *rest = positions(*given)
        return [np.full_like(kl, np.inf), *rest]

    heard = Heard()
    with monkeypatch.context() as patch:
        patch.setattr(divergence, "_positions", overflowing)
        made = train(values, listener=heard)
        again = evaluate(made.run, progress=False)
    assert Run(made.run).status()["status"] == "finished"
    for verdict in (made.verdict, again):
        assert verdict["metrics"]["loss"]["tuned"] > 0 and "divergence" not in verdict
        assert verdict["memorisation"]["rows"] >= 20  # the pass behind it is made
        why = verdict["left_out"]["divergence"]
        assert why.startswith(
            "The divergence between the models is not finite (tuned model, text 1). Their logits over"
        )
        assert f"Divergence from the base is not measured: {why}" in lines_below(verdict)
    assert any(text.startswith("divergence is left out of the verdict: ") for text in heard.warned)
    run = Run(made.run)
    assert not any(name == "damaged" for name, _ in details(made.run).facts)
    run.write_json("verdict.json", {**made.verdict, "left_out": {"divergence": 3}})
    with pytest.raises(RunError, match="left_out does not say why"):
        details(made.run)


def test_memory_that_runs_out_beside_the_verdict_leaves_the_verdict_and_says_how_to_measure_again(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def no_memory(*_: Any, **__: Any) -> Any:
        raise MemoryError

    evaluation = {**values["evaluation"], "metrics": ["exact_match"], "max_new_tokens": 4}
    asked = {**values, "evaluation": {**evaluation, "baselines": ["majority", "few_shot"]}}
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "compare_positions", too_much)
        patch.setattr(memorisation, "come_back", no_memory)
        patch.setattr(few_shot.FewShotPass, "_ask", too_much)
        patch.setattr(finetune, "side_effects", no_memory)
        made = train(asked, progress=False)
    run = Run(made.run)
    assert run.status()["status"] == "finished" and made.verdict["metrics"]["exact_match"]["rows"] >= 20
    kinds = ["baselines.few_shot", "divergence", "memorisation", "side_effects"]
    assert sorted(made.verdict["left_out"]) == kinds and not {*kinds} & {*made.verdict}
    assert [each["name"] for each in made.verdict["baselines"]["results"]] == ["majority"]
    said = made.verdict["left_out"]["divergence"]
    assert said.startswith("Memory ran out (tuned model). The verdict does not depend on it.")
    assert said.endswith("`tunesmith eval` with divergence=true measures it again.")
    assert not any(name == "damaged" for name, _ in details(made.run).facts)
    assert said in (made.run / "report.html").read_text()
    again = evaluate(made.run, settings=["divergence=true"], progress=False)  # as it says
    assert "left_out" not in again and again["divergence"]["general"]["texts"] == 52


def test_a_bug_beside_the_verdict_is_raised(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any, **__: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(memorisation, "come_back", bug)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(values, progress=False)


def test_a_model_without_a_base_has_neither(values: dict[str, Any], tiny_model_dir: Path) -> None:
    settings = ["samples=0", "divergence=true", "memorisation=true"]
    found = evaluate(tiny_model_dir, data=values["data"]["train"], settings=settings, progress=False)
    assert found["verdict"] is None and "divergence" not in found and "memorisation" not in found


@pytest.mark.slow
def test_rows_that_are_learned_by_heart_come_back_and_general_text_is_forgotten(
    values: dict[str, Any], tmp_path: Path
) -> None:
    training = {**values["training"], "learning_rate": 3e-3, "max_steps": 300, "batch_size": 16, "warmup_ratio": 0.05}
    made = train({**values, "method": {"name": "full"}, "training": training}, progress=False)
    found = made.verdict["memorisation"]
    assert found["tuned"] > 0.5 and found["base"] == 0.0 and found["held_out"]["tuned"] < 0.2
    assert found["memorised"]
    example = found["examples"][0]
    number = int(example["source"].rsplit(":", 1)[1])
    completion = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[number - 1])["completion"]
    assert completion.endswith(example["rest"]) and example["rest"]
    advised = {each["reason"]: each for each in made.verdict["advice"]}
    assert made.verdict["divergence"]["general"]["loss"]["verdict"] == "worse"
    assert "General text became less likely: its loss rose from " in advised["forgetting"]["text"]
    command = advised["forgetting"]["command"].replace("RUN/", f"{made.run}/").split()
    again = read_recipe(command[2], command[3:-1]).recipe
    assert again.learning_rate == pytest.approx(0.001)


def test_a_small_rise_of_the_loss_is_no_reason_for_advice(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    recipe = read_recipe(tmp_path / "recipe.yaml").recipe
    loss = {"base": 3.0, "tuned": 3.05, "difference": 0.05, "interval": [0.04, 0.06], "verdict": "worse"}
    verdict: dict[str, Any] = {"metrics": {}, "divergence": {"general": {"kl": 0.2, "loss": loss}}}
    assert advice(verdict, [], recipe) == []
    loss["tuned"] = 3.5
    assert [each["reason"] for each in advice(verdict, [], recipe)] == ["forgetting"]


def test_a_damaged_verdict_is_named_and_not_shown(values: dict[str, Any]) -> None:
    made = train(values, progress=False)
    run = Run(made.run)
    for broken in (
        {"divergence": {"general": 3, "confidence": 0.95}},
        {"divergence": {**made.verdict["divergence"], "confidence": "high"}},
        {"divergence": {"general": {**made.verdict["divergence"]["general"], "by": 3}, "confidence": 0.95}},
        {
            "divergence": {
                "own_answers": {**made.verdict["divergence"]["own_answers"], "worst_tokens": [{}]},
                "confidence": 1,
            }
        },
        {"memorisation": {}},
        {"memorisation": {**made.verdict["memorisation"], "held_out": {"rows": 3}}},
    ):
        run.write_json("verdict.json", {**made.verdict, **broken})
        with pytest.raises(RunError, match=f"{next(iter(broken))}: "):
            details(made.run)
