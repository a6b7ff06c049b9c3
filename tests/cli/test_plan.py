"""`plan`: its table, its JSON, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.docs import JSON_KEYS
from tunesmith.workflows import trial
from tunesmith.workflows.trial import Trial

Command = Callable[..., Any]
CONFIG = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
MADE = ("--rows", "5000", "--length", "1024", "--device", "h100")


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return "config.json"


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_dir: Path) -> str:
    """Forty rows of 45 characters or so, and a recipe for the tiny model."""
    lines = [{"prompt": f"question {n} " + "why " * 5, "completion": "because it is so"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "model": {"path": str(tiny_model_dir), "device": "cpu"},
        "data": {"train": "rows.jsonl", "eval": 0.25},
        "method": {"name": "lora", "r": 4},
        "training": {"threads": 1},
        "output_dir": "run",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    return "recipe.yaml"


def test_a_config_alone_makes_a_table_and_a_recommendation(command: Command, config: str) -> None:
    outcome = command("plan", "--model", config, *MADE)
    assert outcome.code == 0
    first, basis, header, full, lora, qlora, compared, advice = outcome.out.splitlines()
    assert first == "8.03B parameters (built on torch's meta device); h100: 80.0 GB"
    assert basis == "an epoch: 5,000 rows of 1,024 tokens, as given; half of them learned, nothing shared"
    assert header.split()[:6] == ["method", "trains", "of", "all", "weights", "gradients"]
    assert full.split()[:4] == ["full", "8.03B", "100.00%", "15.0"]
    assert lora.split()[:3] == ["lora", "41.9M", "0.52%"]
    assert qlora.split()[0] == "qlora"
    assert compared.startswith("peak GB at the same micro-batch, ")
    assert advice.startswith("Begin with lora")


def test_json_has_the_keys_that_are_described(command: Command, config: str) -> None:
    found = command("plan", "--model", config, *MADE, "method.r=4", "--json").json
    assert list(found) == list(JSON_KEYS["plan"])
    lora = next(line for line in found["methods"] if line["method"] == "lora")
    assert lora["trainable"] == 41_943_040 // 4
    described = JSON_KEYS["plan"]["methods"]
    assert all(key in described for key in (*lora, *lora["memory"]))
    assert lora["memory"]["total"] == sum(size for name, size in lora["memory"].items() if name != "total")


def test_a_recipe_brings_its_rows_and_its_own_settings(command: Command, recipe: str) -> None:
    found = command("plan", recipe, "--json").json
    workload = found["workload"]
    assert workload["rows"] + 10 == pytest.approx(40, abs=6)
    assert workload["longest"] == 12 and workload["logits"] == 4 * workload["rows"]
    assert [line["method"] for line in found["methods"] if line["recipe"]] == ["lora"]
    outcome = command("plan", recipe)
    assert "lora (recipe)" in outcome.out
    assert "peak MB" in outcome.out and " ms" in outcome.out, "a tiny model is shown in units of its size"
    [lora] = [line.split()[2:10] for line in outcome.out.splitlines() if line.startswith("lora (recipe)")]
    assert sum(size == "0.0" for size in lora) <= 2, lora


def test_exact_counts_with_the_models_own_tokenizer(command: Command, recipe: str) -> None:
    found = command("plan", recipe, "--exact", "--json").json
    workload = found["workload"]
    assert workload["longest"] > 12
    assert workload["computed"] <= workload["tokens"]
    assert "counted on" in workload["basis"]


def test_measure_shows_prediction_and_measurement(
    command: Command, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fake(steps: Any, **settings: Any) -> Trial:
        asked.append(steps)
        return Trial(peak=2**30, seconds=0.5, tokens=100, rows_tokens=100, logits=50, pairs=500, flops=1e11)

    monkeypatch.setattr(trial, "run_trial", fake)
    found = command("plan", recipe, "--measure", "--json").json
    assert [each["method"] for each in found["measured"]] == ["full", "lora", "qlora"]
    assert [steps.method.name for steps in asked] == ["full", "lora", "qlora"]
    assert asked[1].method.r == asked[2].method.r == 4
    for each in found["measured"]:
        assert each["measured_bytes"] == 2**30 and each["tokens"] == 100
        assert each["memory_error"] == pytest.approx(each["predicted_bytes"] / 2**30 - 1)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--model", "config.json"), 1, "There is nothing to plan"),
        (("--model", "config.json", "--rows", "5"), 2, "go together"),
        (("--model", "config.json", "--device", "abacus", "--rows", "5", "--length", "9"), 1, "no device 'abacus'"),
        (("--model", "config.json", *MADE, "--measure"), 1, "on this machine only"),
        (("--model", "config.json", *MADE, "--exact"), 2, "which --rows replaces"),
        (("--model", "config.json", *MADE, "method.rr=4"), 1, "rr"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    command: Command, config: str, flags: tuple[str, ...], code: int, said: str
) -> None:
    outcome = command("plan", *flags)
    assert outcome.code == code
    assert said in outcome.err


@pytest.mark.parametrize("name", ["plan", "train", "check"])
def test_an_argument_longer_than_a_file_name_may_be_is_one_message(command: Command, name: str) -> None:
    outcome = command(name, f"data.columns={{prompt: {'x' * 300}}}")
    assert outcome.code == 1 and outcome.err.startswith("error: ")
