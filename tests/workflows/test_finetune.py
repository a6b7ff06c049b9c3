"""Whole runs on a tiny random model: what they leave behind, and that stopping one changes no byte."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from tests.tiny import config_for, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import tunesmith
from tunesmith.data.examples.message import Message
from tunesmith.errors import DataError, ModelError, RecipeError, RunError, TrainError
from tunesmith.evaluation.wording import sentence
from tunesmith.model.generate import generate
from tunesmith.planning import budget, memory
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.generation import GenerationSettings
from tunesmith.runs import symptoms
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Silent
from tunesmith.runs.symptoms import Symptom
from tunesmith.training import attach, rehearsal
from tunesmith.training.loop import Step
from tunesmith.training.rehearsal import Rehearsal
from tunesmith.training.setup import prepare_training
from tunesmith.training.trainer import Trainer
from tunesmith.workflows import finetune
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import dry_run, train

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"instruction": "Name the colour.", "input": f"{WORDS[n % 7]} thing {n}", "output": WORDS[n % 7]}
        for n in range(44)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def values(tmp_path: Path, data: Path, tiny_model_dir: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(data), "eval": 0.25},
        "method": {"name": "lora", "r": 4},
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
        "evaluation": {"metrics": ["exact_match"], "max_new_tokens": 6, "resamples": 200, "samples": 2},
        "output_dir": str(tmp_path / "run"),
    }


def with_values(values: dict[str, Any], **sections: Any) -> dict[str, Any]:
    merged = dict(values)
    for name, section in sections.items():
        merged[name] = {**values[name], **section} if isinstance(section, dict) and name != "method" else section
    return merged


def final_bytes(run: Path) -> dict[str, bytes]:
    last = Run(run).checkpoints[-1]
    return {path.name: path.read_bytes() for path in sorted(last.iterdir())}


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


class Listener:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    warn = say

    def task(self, title: str, total: int | None) -> Any:
        from tunesmith.runs.progress import Silent

        return Silent().task(title, total)


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The process is interrupted right before the validation of a step."""
    original = Trainer.on_eval

    def on_eval(self: Trainer, step: Step) -> None:
        if step.number >= number:
            raise KeyboardInterrupt
        original(self, step)

    monkeypatch.setattr(Trainer, "on_eval", on_eval)


def test_a_run_leaves_everything_that_explains_it(values: dict[str, Any]) -> None:
    listener = Listener()
    result = train(values, listener=listener)
    folder = result.run
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "recipe.yaml", "environment.json", "data.json", "template.json", "ledger.json", "metrics.jsonl",
        "samples.jsonl", "verdict.json", "status.json", "memory.json", "checkpoints",
    }  # fmt: skip
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["verdict"] in ("better", "no evidence", "worse")
    assert list(verdict["metrics"]) == ["exact_match", "loss"]
    assert set(verdict["metrics"]["loss"]) >= {"base", "tuned", "difference", "interval"}
    assert verdict["metrics"]["loss"]["tuned"] < verdict["metrics"]["loss"]["base"]
    ledger = json.loads((folder / "ledger.json").read_text())
    rows = ledger["rows"]
    assert rows["read"] == 44 == rows["held_out"] + rows["trained"]
    assert verdict["rows"] == rows["held_out"]
    assert ledger["epoch"]["computed"] < ledger["epoch"]["total"]
    assert result.tokens["supervised"] == 2 * ledger["epoch"]["supervised"]
    assert result.tokens["rows"] == 2 * ledger["epoch"]["total"]
    assert ledger["epoch"]["total"] == ledger["tokens"]["trained"]
    assert ledger["epoch"]["supervised"] == ledger["supervised"]["trained"]
    assert [path.name for path in Run(folder).checkpoints][-1] == f"step-{verdict['step']:06d}"
    status = Run(folder).status()
    assert status["status"] == "finished"
    losses = {
        line["step"]: line["eval_loss"] for line in Run(folder).read_lines("metrics.jsonl") if "eval_loss" in line
    }
    assert status["best"] == {"step": min(losses, key=lambda step: losses[step]), "eval_loss": min(losses.values())}
    assert any("supervised" in line for line in listener.lines)
    assert any(line.startswith("trainable params: ") for line in listener.lines)
    sample = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])
    assert set(sample) >= {"prompt", "truth", "base", "tuned", "source", "scores"}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_same_seed_gives_the_same_bytes_and_so_does_a_run_stopped_in_the_middle(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    method = {"name": "lora", "r": 4, "lora_dropout": dropout}
    whole = with_values(values, method=method, output_dir=str(tmp_path / "whole"))
    again = with_values(values, method=method, output_dir=str(tmp_path / "again"))
    stopped = with_values(values, method=method, output_dir=str(tmp_path / "stopped"))
    expected = train(whole)
    assert final_bytes(train(again).run) == final_bytes(expected.run)
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    run = Run(tmp_path / "stopped")
    assert run.status()["status"] == "stopped"
    assert [path.name for path in run.checkpoints] == ["step-000003"]
    resumed = train(stopped, resume=True)
    assert final_bytes(resumed.run) == final_bytes(expected.run)
    assert without_times(run.read_lines("metrics.jsonl")) == without_times(
        Run(expected.run).read_lines("metrics.jsonl")
    )
    assert resumed.verdict == expected.verdict
    assert resumed.tokens == expected.tokens


def test_a_run_stopped_before_its_first_checkpoint_begins_again(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(with_values(values, output_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train(values)
    assert Run(values["output_dir"]).checkpoints == []
    assert final_bytes(train(values, resume=True).run) == final_bytes(expected.run)


def test_resume_starts_continues_or_returns_what_is_stored(values: dict[str, Any]) -> None:
    first = train(values, resume=True)
    assert not first.already_finished
    second = train(values, resume=True)
    assert second.already_finished
    assert second.to_json() == first.to_json()
    third = train(first.run, resume=True)
    assert third.to_json() == first.to_json()


@pytest.mark.parametrize(
    ("training", "held_out"),
    [
        ({"max_steps": 4, "warmup_steps": 1}, 0.25),
        ({"num_train_epochs": 1.0, "save_strategy": "epoch", "eval_strategy": "epoch"}, 0.25),
        ({"num_train_epochs": 1.0}, 0.0),
    ],
)
def test_a_run_folder_can_be_resumed_whatever_its_settings(
    values: dict[str, Any], training: dict[str, Any], held_out: float
) -> None:
    steps = {"eval_steps", "save_steps", "num_train_epochs"}
    kept = {name: value for name, value in values["training"].items() if name not in steps}
    recipe = {**values, "training": {**kept, **training}, "evaluation": {"samples": 0}}
    first = train(with_values(recipe, data={"eval": held_out}))
    assert train(first.run, resume=True).to_json() == first.to_json()


def test_the_ledger_counts_the_tokens_of_one_epoch_by_weight(values: dict[str, Any], data: Path) -> None:
    source = {"path": str(data), "weight": 0.5}
    result = train(with_values(values, data={"train": [source]}))
    ledger = json.loads((result.run / "ledger.json").read_text())
    counts = ledger["epoch"]
    assert 0 < counts["computed"] < counts["total"] < ledger["tokens"]["trained"]
    assert counts["supervised"] < counts["total"] / 4


def test_losses_of_a_mixture_are_told_source_by_source(values: dict[str, Any], data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    lines = [{"instruction": "Count.", "input": f"item {n}", "output": f"{n} and {n + 1}"} for n in range(30)]
    other.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = [{"path": str(data)}, {"path": str(other), "rows": 12}]
    listener = Listener()
    result = train(with_values(values, data={"train": sources, "eval": 0.25}), listener=listener)
    ledger = json.loads((result.run / "ledger.json").read_text())
    verdict = json.loads((result.run / "verdict.json").read_text())
    assert set(verdict["by_source"]) == {str(data), str(other)}
    loss = verdict["metrics"]["loss"]
    held_out = ledger["supervised"]["held_out"]
    for name, found in verdict["by_source"].items():
        assert found["rows"] == ledger["sources"][name]["rows"]["held_out"] > 0
        assert found["tokens"] == ledger["sources"][name]["supervised"]["held_out"]
        assert found["tuned"] != found["base"]
    for side in ("base", "tuned"):
        mean = sum(found[side] * found["tokens"] for found in verdict["by_source"].values()) / held_out
        assert mean == pytest.approx(loss[side], rel=1e-6)
    validations = [line for line in Run(result.run).read_lines("metrics.jsonl") if "eval_loss" in line]
    for line in validations:
        apart = line["eval_loss_by_source"]
        assert set(apart) == set(verdict["by_source"])
        mean = sum(apart[name] * verdict["by_source"][name]["tokens"] for name in apart) / held_out
        assert mean == pytest.approx(line["eval_loss"], rel=1e-6)
    at_end = validations[-1]["eval_loss_by_source"]
    assert at_end == pytest.approx({name: found["tuned"] for name, found in verdict["by_source"].items()}, rel=1e-6)
    assert any(line.startswith(f"{other}: 12 rows of an epoch") for line in listener.lines)


def test_one_source_has_no_losses_apart(values: dict[str, Any]) -> None:
    run = train(with_values(values, training={"num_train_epochs": 1.0})).run
    assert "by_source" not in json.loads((run / "verdict.json").read_text())
    assert all("eval_loss_by_source" not in line for line in Run(run).read_lines("metrics.jsonl"))


def test_rows_beyond_the_positions_of_the_model_are_refused(values: dict[str, Any], data: Path) -> None:
    row = {"instruction": "Name the colour.", "input": "very " * 600, "output": "red"}
    data.write_text(data.read_text() + json.dumps(row) + "\n")
    with pytest.raises(DataError, match="512 tokens"):
        train(values)


def test_a_judge_that_cannot_be_asked_costs_no_training(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    judge = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "retries": 0}
    values["evaluation"] |= {"metrics": ["judge"], "judge": judge, "max_new_tokens": 2}
    result = train(values, progress=False)
    assert Run(result.run).status()["status"] == "finished"
    assert (result.verdict["decided_by"], list(result.metrics)) == ("loss", ["loss"])
    assert "The judge cannot be asked" in result.verdict["left_out"]["judge"]
    with pytest.raises(ModelError, match=r"(?s)The judge cannot be asked.*eval RUN` asks the judge again"):
        evaluate(result.run, allow_functions=True)


def test_an_answer_that_cannot_be_judged_is_refused_before_a_run_begins(values: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="cannot be judged by json_fields"):
        train(with_values(values, evaluation={"metrics": ["json_fields"]}))
    assert not Path(values["output_dir"]).exists()


def test_other_rows_are_read_as_the_training_rows_were(
    values: dict[str, Any], tmp_path: Path, tiny_model_dir: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,colour\n" + "".join(f"{WORDS[n % 7]} thing {n},{WORDS[n % 7]}\n" for n in range(40)))
    source = {"path": str(path), "columns": {"input": "text", "output": "colour"}, "instruction": "Name the colour."}
    run = train(with_values(values, data={"train": [source], "eval": 0.25})).run
    found = evaluate(run, data=str(path))
    alone = {"path": str(path), "columns": source["columns"], "instruction": "Something else."}
    other = train(with_values(values, data={"train": [alone]}, output_dir=str(tmp_path / "other"))).run
    assert found["rows"] == 40
    assert found["metrics"]["loss"]["base"] != evaluate(other, data=str(path))["metrics"]["loss"]["base"]


def test_a_validation_loss_that_is_not_finite_is_a_failed_training(values: dict[str, Any]) -> None:
    with pytest.raises(TrainError, match="step 1"):
        train(with_values(values, training={"learning_rate": 1e30, "eval_steps": 1}))


def test_evaluation_between_steps_changes_no_weight(values: dict[str, Any], tmp_path: Path) -> None:
    method = {"name": "lora", "r": 4, "lora_dropout": 0.2}
    often = train(with_values(values, method=method, training={"eval_steps": 1}))
    settings = {name: value for name, value in values["training"].items() if name != "eval_steps"}
    never = with_values(values, method=method, output_dir=str(tmp_path / "never"))
    never["training"] = {**settings, "eval_strategy": "no"}
    seldom = train(never)
    name = "adapter_model.safetensors"
    assert final_bytes(often.run)[name] == final_bytes(seldom.run)[name]


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_both_layouts_train_to_the_same_weights(values: dict[str, Any], tmp_path: Path, layout: str) -> None:
    from safetensors.torch import load_file

    reference = train(with_values(values, training={"layout": "padded", "micro_batch_tokens": 10_000}))
    other = train(with_values(values, training={"layout": layout}, output_dir=str(tmp_path / layout)))
    one = load_file(Run(reference.run).checkpoints[-1] / "adapter_model.safetensors")
    two = load_file(Run(other.run).checkpoints[-1] / "adapter_model.safetensors")
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], rtol=1e-3, atol=2e-4), name


def test_a_qlora_run_is_judged_again_against_the_same_base(values: dict[str, Any]) -> None:
    result = train(with_values(values, method="qlora"))
    again = evaluate(result.run)
    assert again["base_model"] == result.verdict["base_model"] == "untuned, unquantized"
    assert again["metrics"]["loss"]["base"] == pytest.approx(result.metrics["loss"]["base"], rel=1e-6)


@pytest.mark.parametrize("method", ["full", "qlora", {"name": "freeze", "trainable_layers": 1}], ids=str)
def test_other_methods_run_and_resume_exactly(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    settings = {"learning_rate": 1e-3}
    expected = train(with_values(values, method=method, training=settings, output_dir=str(tmp_path / "whole")))
    stopped = with_values(values, method=method, training=settings)
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    assert final_bytes(train(stopped, resume=True).run) == final_bytes(expected.run)
    loss = expected.metrics["loss"]
    assert loss["tuned"] < loss["base"]
    assert expected.verdict["base_model"] == ("untuned, unquantized" if method == "qlora" else "untuned")


def test_checkpoints_load_elsewhere_with_the_same_logits(values: dict[str, Any], tmp_path: Path) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    for method in ("lora", "full", "freeze", "qlora"):
        run = train(with_values(values, method=method, output_dir=str(tmp_path / method))).run
        checkpoint = Run(run).checkpoints[-1]
        if method in ("full", "freeze"):
            elsewhere = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        elif method == "lora":
            elsewhere = AutoPeftModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        else:
            config = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float32,
            )  # fmt: skip
            elsewhere = AutoPeftModelForCausalLM.from_pretrained(
                checkpoint, dtype=torch.float32, quantization_config=config
            )
            for layer in elsewhere.modules():
                if type(layer).__name__ == "Linear4bit":
                    layer.support_avx512bf16_for_cpu = False  # else bitsandbytes computes in bfloat16 on some CPUs
        tuned = tunesmith.load(run)
        with torch.no_grad():
            difference = (elsewhere.eval()(ids).logits - tuned.model(ids).logits).abs().max().item()
        assert difference < 1e-5, method
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)
        found = prompt["input_ids"] if not isinstance(prompt, list) else prompt
        assert list(found) == tuned.template.prompt_ids([Message("user", "a")])


def test_evaluating_a_run_again_gives_its_verdict(values: dict[str, Any]) -> None:
    result = train(values)
    again = evaluate(result.run)
    for name, found in again["metrics"].items():
        assert found["tuned"] == pytest.approx(result.metrics[name]["tuned"], rel=1e-6)
        assert found["base"] == pytest.approx(result.metrics[name]["base"], rel=1e-6)
    assert again["verdict"] == result.verdict["verdict"]


def test_other_rows_and_metrics_can_be_judged(values: dict[str, Any], data: Path, tiny_model_dir: Path) -> None:
    run = train(values).run
    found = evaluate(run, data=str(data), settings=["metrics=[token_accuracy]", "max_rows=7"])
    assert found["rows"] == 7
    assert list(found["metrics"]) == ["token_accuracy", "loss"]
    alone = evaluate(tiny_model_dir, data=str(data), settings=["max_rows=7"])
    assert alone["verdict"] is None
    assert alone["metrics"]["loss"]["value"] == pytest.approx(found["metrics"]["loss"]["base"], rel=1e-5)
    with pytest.raises(RunError, match="no rows to judge"):
        evaluate(tiny_model_dir)


def test_a_run_that_is_to_get_another_length_is_told_the_one_difference(values: dict[str, Any]) -> None:
    run = train(values).run
    with pytest.raises(RunError) as caught:
        train(run, ["training.max_steps=26"], resume=True)
    assert caught.value.why == "training.max_steps: was not set (training.num_train_epochs was 2.0), is 26"


def test_rows_that_were_trained_on_are_not_passed_off_as_held_out(
    values: dict[str, Any], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(values).run
    trained = Run(run).read_json("ledger.json")["rows"]["trained"]
    assert 0 < trained < 44
    again = evaluate(run, data=str(data))
    assert (again["data"], again["trained_on"]) == (str(data), trained)
    assert f"{trained} of 44 rows of {data} were trained on" in capsys.readouterr().err
    assert f"The run was trained on {trained} rows of them." in sentence(cast(Any, again))
    new = tmp_path / "new.jsonl"
    new.write_text(data.read_text().replace("thing", "other thing"))
    assert evaluate(run, data=str(new))["trained_on"] == 0
    assert "trained on" not in capsys.readouterr().err
    own = evaluate(run)
    assert (own["data"], own["trained_on"]) == (None, None)
    data.write_text(data.read_text() + data.read_text().splitlines()[0] + "\n")
    assert evaluate(run, data=str(new))["trained_on"] is None
    data.unlink()
    assert evaluate(run, data=str(new))["trained_on"] is None
    said = capsys.readouterr().err
    assert said.count(f"whether the run was trained on rows of {new} is not known: ") == 2


def test_other_rows_are_judged_whole_whatever_the_run_set_aside(values: dict[str, Any], data: Path) -> None:
    section = {"eval": 0.2, "test": 0.2, "clean": {"dedupe": True, "balance": 2}, "max_lost": 0.9}
    run = train(with_values(values, data=section, training={"num_train_epochs": 1.0})).run
    assert evaluate(run, data=str(data))["rows"] == 44


def test_a_file_with_other_columns_is_judged_as_the_remedy_says(values: dict[str, Any], tmp_path: Path) -> None:
    run = train(values).run
    new = tmp_path / "new.csv"
    new.write_text("Frage,Antwort\n" + "".join(f"Name it: {word} thing,{word}\n" for word in WORDS[:7]))
    with pytest.raises(DataError) as caught:
        evaluate(run, data=str(new))
    asked = re.findall(r'settings=(\["data\.columns=[^\]]*"\])', str(caught.value.remedy))[0]
    (key,) = json.loads(asked)
    key = re.sub(r"\{.*\}", "{prompt: Frage, completion: Antwort}", key)
    assert evaluate(run, data=str(new), settings=[key, "data.format=prompt_completion"])["rows"] == 7
    with pytest.raises(DataError) as caught:
        tunesmith.compare(run, data=str(new))
    assert 'settings=["data.columns={' in str(caught.value.remedy)


def test_other_rows_that_are_left_out_are_named(
    values: dict[str, Any], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(values).run
    rows = [json.loads(line) for line in data.read_text().splitlines()[:8]]
    answer = [*rows[0]][-1]
    rows[3][answer] = rows[5][answer] = ""
    new = tmp_path / "new.jsonl"
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert evaluate(run, data=str(new), settings=["data.on_error=skip"])["rows"] == 6
    said = capsys.readouterr().err
    assert f"{new}: 2 of 8 rows cannot be used and are left out: {answer} is empty ({new}:4, 6)" in said


def test_a_run_without_held_out_rows_has_nothing_to_judge_again(values: dict[str, Any]) -> None:
    kept = {name: value for name, value in values["training"].items() if name != "eval_steps"}
    recipe = {**values, "training": kept, "data": {**values["data"], "eval": 0.0}, "evaluation": {}}
    run = train(recipe).run
    with pytest.raises(RunError, match="no rows to judge"):
        evaluate(run)


def test_an_adapter_made_elsewhere_answers_and_is_judged(tmp_path: Path, data: Path, tiny_model_dir: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(
        str(tmp_path / "adapter")
    )
    tuned = tunesmith.load(tmp_path / "adapter")
    assert tuned.generate("hello", max_new_tokens=4)[0].tokens
    assert "".join(tuned.stream("hello", max_new_tokens=4)) == tuned.generate("hello", max_new_tokens=4)[0].text
    found = evaluate(tmp_path / "adapter", data=str(data))
    assert found["metrics"]["loss"]["difference"] != 0


def test_raw_text_trains_and_is_judged_by_its_loss(values: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"The {WORDS[n % 7]} house number {n} stands there.\n" for n in range(40)))
    recipe = with_values(values, data={"train": str(path)}, evaluation={"metrics": ["perplexity"]})
    result = train(recipe)
    assert list(result.metrics) == ["perplexity", "loss"]
    assert result.metrics["perplexity"]["tuned"] < result.metrics["perplexity"]["base"]
    refused = with_values(recipe, evaluation={"metrics": ["exact_match"]}, output_dir=str(tmp_path / "other"))
    with pytest.raises(RecipeError, match="raw text has none"):
        train(refused)
    assert not (tmp_path / "other").exists()


def test_without_held_out_rows_there_is_no_evidence(values: dict[str, Any]) -> None:
    recipe = with_values(values, data={"eval": 0.0}, evaluation={"metrics": []})
    recipe["training"] = {name: value for name, value in values["training"].items() if name != "eval_steps"}
    result = train(recipe)
    assert result.verdict["verdict"] == "no evidence"
    assert "no held-out rows" in result.verdict["reason"]


def test_an_existing_run_is_refused_then_continued_or_replaced(values: dict[str, Any]) -> None:
    first = train(values)
    with pytest.raises(RunError, match="already holds a run") as caught:
        train(values)
    assert "Add resume=True" in str(caught.value)
    with pytest.raises(RunError, match="another recipe") as caught:
        train(with_values(values, training={"learning_rate": 3e-3}), resume=True)
    assert "training.learning_rate: was 0.01, is 0.003" in str(caught.value)
    before = final_bytes(first.run)
    replaced = train(with_values(values, training={"seed": 5}), overwrite=True)
    assert final_bytes(replaced.run) != before


def test_data_that_changed_is_refused_on_resume(
    values: dict[str, Any], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train(values)
    data.write_text(data.read_text().replace("thing 3", "thing three"))
    with pytest.raises(RunError, match="data has changed"):
        train(values, resume=True)


def test_a_run_that_was_moved_is_continued_where_it_is_from_any_folder(
    values: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)  # an adapter names its base from here
    expected = train(with_values(values, output_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train(with_values(values, data={"train": [{"path": data.name}]}, output_dir="runs/first"))
    Path("runs/first").rename("runs/second")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    moved = Path(os.path.relpath(data.parent / "runs" / "second"))
    assert train(moved, resume=True).run == moved
    assert final_bytes(moved) == final_bytes(expected.run)
    assert list(elsewhere.iterdir()) == [], "nothing is made anew at the old name"
    assert evaluate(moved)["rows"] == expected.verdict["rows"], "its held-out rows are found again"
    data.unlink()
    with pytest.raises(RunError, match=rf"data.train: the rows {data.name} of this run cannot be found"):
        evaluate(moved)


def test_a_refused_run_leaves_no_folder_and_an_old_run_alone(values: dict[str, Any], data: Path) -> None:
    data.write_text(data.read_text() + "not json\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:45"):
        train(values)
    assert not Path(values["output_dir"]).exists()
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:-1]))
    first = train(values)
    before = final_bytes(first.run)
    data.write_text(data.read_text() + "not json\n")
    with pytest.raises(DataError):
        train(values, overwrite=True)
    assert final_bytes(first.run) == before


def test_bad_rows_can_be_set_aside_and_are_counted(values: dict[str, Any], data: Path) -> None:
    data.write_text("not json\n" + data.read_text())
    result = train(with_values(values, data={"on_error": "skip"}))
    rejected = [json.loads(line) for line in (result.run / "rejected.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rejected] == [f"{data}:1"]
    rows = json.loads((result.run / "ledger.json").read_text())["rows"]
    assert (rows["read"], rows["invalid"]) == (45, 1)


def test_a_dry_run_names_the_line_of_a_model_beside_the_recipe(
    values: dict[str, Any], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(f"data: {json.dumps(values['data'])}\nmodel: base\noutput_dir: run\n")
    lines = {key: (value, origin) for key, value, origin in dry_run("recipe.yaml")}
    assert lines["model.path"] == (str(tmp_path / "base"), "recipe.yaml:2")


def test_a_dry_run_resolves_everything_and_writes_nothing(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    recipe = with_values(values, training={"threads": "auto", "micro_batch_tokens": "auto"})
    lines = {key: (value, origin) for key, value, origin in dry_run(recipe, ["training.seed=3"])}
    assert lines["training.seed"] == (3, "flag")
    assert lines["training.threads"] == (len(os.sched_getaffinity(0)), "auto")
    assert lines["model.dtype"] == ("float32", "auto")
    assert lines["training.weight_decay"] == (0.0, "default")
    assert lines["training.micro_batch_tokens"] == (budget.CPU_TOKENS, "auto")
    assert lines["training.gradient_checkpointing"] == (False, "auto")
    assert lines["training.layout"] == ("auto", "default")
    assert not Path(values["output_dir"]).exists()


def test_a_dry_run_says_how_much_memory_is_predicted(values: dict[str, Any]) -> None:
    listener = Listener()
    dry_run(values, listener=listener)
    said = next(line for line in listener.lines if line.startswith("memory: "))
    assert re.fullmatch(
        r"memory: 0\.5 GB predicted, of [\d.]+ GB, at 160 tokens in a micro-batch, without gradient checkpointing", said
    )


def test_predicted_and_measured_peak_are_told_before_training_and_kept(values: dict[str, Any]) -> None:
    listener = Listener()
    run = train(values, listener=listener).run
    stored = json.loads((run / "memory.json").read_text())
    assert set(stored) == {"tokens", "predicted", "measured", "needed", "total", "parts"}
    assert set(stored["parts"]) == {
        "libraries",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "judging",
    }
    assert 100 < stored["tokens"] <= 160
    assert stored["total"] == memory.total_memory("cpu")
    assert stored["measured"] <= stored["needed"] < stored["total"]
    line = f"micro-batch ({stored['tokens']} tokens), of {stored['total'] / 2**30:.1f} GB"
    assert any(said.startswith("memory: ") and said.endswith(line) for said in listener.lines)


@pytest.mark.parametrize("method", [{"name": "lora", "r": 4, "lora_dropout": 0.1}, {"name": "lora", "r": 4}, "full"])
def test_the_measured_step_changes_no_byte_of_a_run(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    short = {"num_train_epochs": 1.0, "learning_rate": 1e-3}
    measured = train(with_values(values, method=method, training=short, output_dir=str(tmp_path / "measured")))
    monkeypatch.setattr(finetune, "rehearse", lambda *_, **__: Rehearsal(0, 0, 0, 0, 0))
    unmeasured = train(with_values(values, method=method, training=short, output_dir=str(tmp_path / "unmeasured")))
    assert final_bytes(measured.run) == final_bytes(unmeasured.run)
    one, two = (Run(result.run).read_lines("metrics.jsonl") for result in (measured, unmeasured))
    assert without_times(one) == without_times(two)


def test_what_cannot_fit_is_refused_before_weights_are_loaded(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(memory, "total_memory", lambda device: 2**28)
    monkeypatch.setattr(attach, "load_base", loads)
    recipe = with_values(values, training={"micro_batch_tokens": "auto"})
    with pytest.raises(ModelError, match=r"with gradient checkpointing needs 0\.5 GB") as caught:
        train(recipe)
    assert "0.2 GB of the 0.2 GB of cpu may be used" in str(caught.value)
    assert not Path(values["output_dir"]).exists()


def test_a_measured_step_refuses_before_anything_is_written(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "measured_peak", lambda *_, **__: (2**30, 2**60))
        with pytest.raises(ModelError, match="by a measured step of"):
            train(values)
        assert not Path(values["output_dir"]).exists()
    first = train(values)
    before = final_bytes(first.run)
    monkeypatch.setattr(rehearsal, "measured_peak", lambda *_, **__: (2**30, 2**60))
    with pytest.raises(ModelError):
        train(values, overwrite=True)
    assert final_bytes(first.run) == before


def test_the_plan_is_stored_and_used_again_on_resume_whatever_the_memory_then(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    automatic = {"micro_batch_tokens": "auto", "gradient_checkpointing": "auto"}
    recipe = with_values(values, training=automatic)
    roomy = prepare_training(read_recipe(recipe).recipe, Silent()).plan
    assert not roomy.checkpointing
    least = budget.predict(roomy.shape, tokens=1, checkpointing=False, memory=roomy.memory).training
    monkeypatch.setattr(rehearsal, "measured_peak", lambda *_, **__: (0, 0))
    monkeypatch.setattr(memory, "give_back_large_blocks", lambda: None)
    monkeypatch.setattr(budget, "HOLES", 1e4)  # so that only checkpointing fits
    with monkeypatch.context() as patch:
        patch.setattr(memory, "total_memory", lambda device: 2 * least)
        expected = train({**recipe, "output_dir": str(tmp_path / "whole")})
        stop_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    stored = read_recipe(Path(values["output_dir"]) / "recipe.yaml").recipe.training
    assert (stored.micro_batch_tokens, stored.gradient_checkpointing) == (budget.CPU_TOKENS, True)
    assert final_bytes(train(recipe, resume=True).run) == final_bytes(expected.run)


def test_a_router_that_asks_for_an_auxiliary_loss_is_told_that_there_is_none(
    values: dict[str, Any], tmp_path: Path, tiny_model_dir: Path
) -> None:
    folder = tmp_path / "mixture"
    shutil.copytree(tiny_model_dir, folder)
    sizes = {"vocab_size": 400, "max_position_embeddings": 512, "num_local_experts": 4, "num_experts_per_tok": 2}
    for asks in (True, False):
        tiny(config_for("mixtral", **sizes, output_router_logits=asks)).save_pretrained(folder)
        listener = Listener()
        recipe = with_values(values, model=str(folder), training={"num_train_epochs": 1.0})
        result = train({**recipe, "output_dir": str(tmp_path / f"asks-{asks}")}, listener=listener)
        said = [line for line in listener.lines if line.startswith("router: trained without its auxiliary loss")]
        assert len(said) == asks
        assert result.verdict["metrics"]["loss"]["tuned"] < result.verdict["metrics"]["loss"]["base"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_of_a_real_model_stays_near_what_was_predicted(
    tmp_path: Path, smollm2_dir: Path, checkpointing: bool
) -> None:
    path = tmp_path / "rows.jsonl"
    text = " ".join(f"{word} house {n}" for n, word in enumerate(WORDS * 4))
    rows = [{"instruction": f"Repeat {n}.", "input": f"{n} {text}", "output": text} for n in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": str(smollm2_dir), "data": {"train": str(path), "eval": 0.0}, "output_dir": str(tmp_path / "run"),
        "training": {"max_steps": 2, "batch_size": 8, "threads": 1, "gradient_checkpointing": checkpointing},
    }  # fmt: skip
    script = (
        "import json, sys\n"
        "from tunesmith.planning.memory import peak\n"
        "from tunesmith.workflows.finetune import train\n"
        "train(json.loads(sys.argv[1]))\n"
        "print(peak('cpu'))\n"  # the process's own; ru_maxrss begins with the peak of the process that started it
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(recipe)], capture_output=True, text=True, check=True
    )
    stored = json.loads((tmp_path / "run" / "memory.json").read_text())
    peak = int(done.stdout.splitlines()[-1])
    assert stored["tokens"] > 800
    assert 0.75 * peak < stored["predicted"] < 1.3 * peak
    assert 0.7 * peak < stored["measured"] < 1.1 * peak
    assert stored["needed"] > 0.9 * peak


def test_the_limit_on_checkpoints_keeps_the_last_and_the_best(values: dict[str, Any]) -> None:
    result = train(with_values(values, training={"save_steps": 1, "save_total_limit": 2}))
    run = Run(result.run)
    kept = [int(path.name.removeprefix("step-")) for path in run.checkpoints]
    assert kept[-1] == result.verdict["step"]
    assert run.status()["best"]["step"] in kept
    assert len(kept) <= 3


@pytest.mark.slow
def test_a_killed_process_continues_to_the_same_bytes(values: dict[str, Any], tmp_path: Path) -> None:
    expected = train(with_values(values, output_dir=str(tmp_path / "whole"), training={"threads": 2}))
    killed = with_values(values, training={"threads": 2})
    script = tmp_path / "kill.py"
    script.write_text(
        "import json, os, signal, sys\n"
        "from tunesmith.training.trainer import Trainer\n"
        "from tunesmith.workflows.finetune import train\n"
        "original = Trainer.save\n"
        "def save(self, step):\n"
        "    original(self, step)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Trainer.save = save\n"
        "train(json.loads(sys.argv[1]), resume=True)\n"
    )
    steps = []
    for _ in range(3):
        done = subprocess.run([sys.executable, str(script), json.dumps(killed)], capture_output=True, text=True)
        assert done.returncode == -9, done.stderr
        steps.append(Run(killed["output_dir"]).checkpoints[-1].name)
    assert steps == ["step-000003", "step-000006", "step-000009"]
    assert final_bytes(train(killed, resume=True).run) == final_bytes(expected.run)


def test_sample_answers_and_warnings_change_no_byte(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = with_values(
        values,
        method={"name": "lora", "r": 4, "lora_dropout": 0.1},
        training={"logging_steps": 1},
        evaluation={"metrics": ["loss"]},
    )
    quiet = train(with_values(values, evaluation={"samples": 0}, output_dir=str(tmp_path / "quiet"))).run
    assert not (quiet / "samples_during.jsonl").exists()
    monkeypatch.setitem(symptoms._RULES, "flat", lambda seen: Symptom("flat", seen.loss.steps[-1], "it is flat"))
    listener = Listener()
    talking = train(with_values(values, output_dir=str(tmp_path / "talking")), listener=listener).run
    assert listener.lines.count("step 1: it is flat") == 1
    assert final_bytes(talking) == final_bytes(quiet)
    lines = [without_times(Run(run).read_lines("metrics.jsonl")) for run in (talking, quiet)]
    assert lines[0] == lines[1]


def test_an_answer_at_each_evaluation_is_the_answer_of_that_moment(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    run = Run(train(with_values(values, training={"save_steps": 2}), listener=listener).run)
    samples = run.read_lines("samples_during.jsonl")
    evaluated = [line["step"] for line in run.read_lines("metrics.jsonl") if "eval_loss" in line]
    assert [line["step"] for line in samples] == evaluated and len(evaluated) >= 3
    assert len({(line["source"], line["prompt"], line["truth"]) for line in samples}) == 1
    for checkpoint, line in zip(run.checkpoints[:2], samples, strict=False):
        assert checkpoint.name == f"step-{line['step']:06d}"
        task_prompt = line["prompt"]
        model = tunesmith.load(checkpoint)
        ids = model.tokenizer(task_prompt, add_special_tokens=False)["input_ids"]
        settings = GenerationSettings(max_new_tokens=6)
        ((answer,),) = generate(model.model, model.tokenizer, [ids], settings=settings, stop_ids=model.stop_ids)
        assert (line["answer"], line["stopped"]) == (answer.text, answer.stopped)
    assert sum(f"is answered {samples[-1]['answer']!r:.20}" in said for said in listener.lines) >= 1


def test_a_resumed_run_has_each_sample_answer_once(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(train(with_values(values, output_dir=str(tmp_path / "whole"))).run)
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train(values)
    stopped = Run(train(values, resume=True).run)
    assert stopped.read_lines("samples_during.jsonl") == whole.read_lines("samples_during.jsonl")
