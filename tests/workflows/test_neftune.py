"""Runs with neftune_noise_alpha: resumed to the same bytes, judged without noise, and what they say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import RecipeError
from tunesmith.recipe.file import read_recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Silent
from tunesmith.training.loop import Step
from tunesmith.training.trainer import Trainer
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.exact_workload import by_tokens
from tunesmith.workflows.finetune import dry_run, train

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink"]


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    rows = [
        {
            "prompt": f"Name the colour of the {WORDS[n % 7]} thing {n}." + " Well?" * (n % 5),
            "chosen": WORDS[n % 7],
            "rejected": WORDS[(n + 1) % 7],
        }
        for n in range(30)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.25},
        "method": {"name": "lora", "r": 4},
        "training": {
            "learning_rate": 1e-2,
            "max_steps": 4,
            "batch_size": 8,
            "micro_batch_tokens": 160,
            "logging_steps": 1,
            "eval_steps": 2,
            "save_steps": 2,
            "report_to": "none",
            "threads": 1,
            "neftune_noise_alpha": 5,
        },
        "evaluation": {"resamples": 100, "samples": 0},
        "output_dir": str(tmp_path / "run"),
    }


def with_training(values: dict[str, Any], name: str, **training: Any) -> dict[str, Any]:
    made = {**values["training"], **training}
    made = {key: value for key, value in made.items() if value is not None}
    return {**values, "training": made, "output_dir": str(Path(values["output_dir"]).with_name(name))}


def final_bytes(run: Path) -> dict[str, bytes]:
    last = Run(run).checkpoints[-1]
    return {path.name: path.read_bytes() for path in sorted(last.iterdir())}


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in Run(run).read_lines("metrics.jsonl") if "loss" in line]


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_run_that_goes_on_draws_what_it_would_have_drawn(
    values: dict[str, Any], objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if objective == "dpo":
        values = {**values, "objective": "dpo", "data": {"train": str(tmp_path / "pairs.jsonl"), "eval": 0.25}}
    whole = train(values).run
    assert read_recipe(whole / "recipe.yaml").recipe.training.layout == "packed"
    original = Trainer.on_eval

    def on_eval(self: Trainer, step: Step) -> None:
        if step.number == 4:
            raise KeyboardInterrupt
        original(self, step)

    stopped = with_training(values, "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "on_eval", on_eval)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    assert final_bytes(train(stopped, resume=True).run) == final_bytes(whole)


def test_only_training_has_noise_and_only_where_it_is_asked_for(values: dict[str, Any]) -> None:
    with_noise = train(values)
    plain = train(with_training(values, "plain", neftune_noise_alpha=None))
    packed = train(with_training(values, "packed", neftune_noise_alpha=None, layout="packed"))
    often = train(with_training(values, "often", eval_steps=1))
    assert read_recipe(plain.run / "recipe.yaml").recipe.training.layout == "tree"
    assert losses(packed.run)[0] == pytest.approx(losses(plain.run)[0], rel=1e-6)
    assert losses(with_noise.run)[0] != pytest.approx(losses(plain.run)[0], rel=5e-5)
    assert with_noise.metrics["loss"]["base"] == pytest.approx(plain.metrics["loss"]["base"], rel=1e-6)
    weights = [final_bytes(result.run)["adapter_model.safetensors"] for result in (often, with_noise)]
    assert weights[0] == weights[1], "an evaluation more changes nothing"
    again = evaluate(with_noise.run)
    assert again["metrics"]["loss"]["tuned"] == pytest.approx(with_noise.metrics["loss"]["tuned"], rel=1e-6)
    for run, shares in ((plain.run, True), (packed.run, False), (with_noise.run, False)):
        epoch = json.loads((run / "ledger.json").read_text())["epoch"]
        assert (epoch["computed"] < epoch["total"]) == shares


def test_a_plan_says_that_nothing_is_shared(values: dict[str, Any]) -> None:
    heard = Heard()
    dry_run(values, listener=heard)
    assert any("rows share no prefix then, so no repeated token is saved" in line for line in heard.said)
    plain = read_recipe(with_training(values, "plain", neftune_noise_alpha=None)).recipe
    noisy = read_recipe(values).recipe
    on_cpu = {"model": {"device": "cpu"}}
    found = [by_tokens(each.with_values(**on_cpu)) for each in (plain, noisy)]
    assert found[0].computed < found[0].tokens == found[1].tokens == found[1].computed
    heard = Heard()
    train(values, listener=heard)
    assert any("(0% saved)" in line for line in heard.said)


def test_a_layout_that_shares_contradicts_it(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"rows in layout: tree share tokens; use layout: packed"):
        read_recipe(with_training(values, "x", layout="tree"))
    for layout in ("packed", "padded"):
        assert read_recipe(with_training(values, "x", layout=layout)).recipe.training.wanted_layout == layout
    with pytest.raises(RecipeError, match="neftune_noise_alpha"):
        read_recipe(with_training(values, "x", neftune_noise_alpha=0))
