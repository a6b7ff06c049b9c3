"""Full, lora and qlora train with the losses of transformers' Trainer and of TRL's SFTTrainer, step by step.

The goldens (tests/goldens/supervised.json) are 50 steps of each on the same weights, rows, labels and order in fp32,
with clipping, warm-up and a cosine, weight decay under AdamW, and accumulation of passes whose labels are unequal in
number.
Ours come from a whole run: recipe, tree layout, several micro-batches a step, fused passes.

Trainer and SFTTrainer agree with each other within the same tolerances, but for one thing: SFTTrainer turns the
adapters of a quantized model into bfloat16, whatever dtype is asked for. The goldens have them put back into float32;
the losses as they come out in bfloat16 are kept beside them, and a test shows that they are far outside the tolerance.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.goldens import supervised as goldens

from tunesmith.data.batches.layout import micro_batches
from tunesmith.recipe.file import read_recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Silent
from tunesmith.training import step_rows
from tunesmith.training.attach import load_for_training
from tunesmith.training.setup import prepare_training
from tunesmith.training.step_rows import order_of
from tunesmith.workflows import finetune

GOLDENS = json.loads((Path(goldens.__file__).parent / "supervised.json").read_text())
BUDGET = 256  # tokens of a micro-batch
TOLERANCE = {"sgd": [1e-5] * 50, "adamw_torch": [1e-4] * 10 + [1e-3] * 40}  # relative, at each step
CASES = [(method, optim) for method in goldens.METHODS for optim in goldens.OPTIMIZERS]
QUICK = {"full": "sgd", "lora": "adamw_torch", "qlora": "adamw_torch"}  # the others are slow tests
Runs = Callable[[str, str], list[dict[str, Any]]]  # method, optimizer -> the lines of metrics of the run


def of_cases(cases: list[tuple[str, str]]) -> list[Any]:
    return [
        pytest.param(method, optim, marks=[] if QUICK[method] == optim else [pytest.mark.slow])
        for method, optim in cases
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("parity")
    goldens.make(made)
    return made


def recipe(folder: Path, method: str, optim: str, run: str = "run", **training: Any) -> dict[str, Any]:
    size, passes = goldens.PASSES[method]
    adapter = {} if method == "full" else goldens.ADAPTER
    return {
        "model": {"path": str(folder), "device": "cpu", "dtype": "float32"},
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.0},
        "method": {"name": method, **adapter},
        "training": {
            "optim": optim,
            "learning_rate": goldens.RATES[method, optim],
            "weight_decay": goldens.DECAY[optim],
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": passes,
            "max_steps": goldens.STEPS,
            "micro_batch_tokens": BUDGET,
            "layout": "tree",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "threads": 1,
            "seed": goldens.SEED,
            **goldens.SCHEDULE,
            **training,
        },
        "output_dir": str(folder / run),
    }


def trained(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The line of metrics of each step of a whole run."""
    return Run(finetune.train(asked, overwrite=True).run).read_lines("metrics.jsonl")


@pytest.fixture(scope="module")
def ours(folder: Path) -> Runs:
    """Each run is made once."""
    made: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def lines(method: str, optim: str) -> list[dict[str, Any]]:
        if (method, optim) not in made:
            made[method, optim] = trained(recipe(folder, method, optim, f"{method}-{optim}"))
        return made[method, optim]

    return lines


def excess(found: list[float], expected: list[float], optim: str) -> float:
    """The largest relative difference of a step's loss over what is allowed there: at most 1 where they agree."""
    assert len(found) == len(expected) == goldens.STEPS
    differences = np.abs(np.array(found) / np.array(expected) - 1)
    return float((differences / TOLERANCE[optim]).max())


def all_but_first(labels: np.ndarray) -> np.ndarray:
    return labels & (np.cumsum(labels) > 1)


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("method", goldens.METHODS)
def test_rows_order_and_initial_weights_are_those_of_the_goldens(folder: Path, method: str) -> None:
    from transformers import AutoTokenizer

    prepared = prepare_training(read_recipe(recipe(folder, method, "sgd")).recipe, Silent())
    examples = goldens.encoded(AutoTokenizer.from_pretrained(folder))
    assert len(prepared.corpus.train) == len(examples)
    for row, example in zip(prepared.corpus.train, examples, strict=True):
        assert row.ids.tolist() == example["input_ids"]
        assert np.where(row.supervised, row.ids, -100).tolist() == example["labels"]
    windows = order_of(prepared.recipe, prepared.corpus).windows()
    seen = [row for window in windows for row in window.rows]
    assert seen == [row for rows in GOLDENS["epochs"][method] for row in rows][: len(seen)]
    again = "another torch or peft draws other adapters: make the goldens anew (tests/goldens/supervised.py)"
    assert goldens.digest(load_for_training(prepared, None, Silent()).model) == GOLDENS["digests"][method], again


@pytest.mark.parametrize("kind", goldens.KINDS)
@pytest.mark.parametrize(("method", "optim"), of_cases(CASES))
def test_fifty_steps_have_the_losses_of_the_trainer(ours: Runs, method: str, optim: str, kind: str) -> None:
    lines, golden = ours(method, optim), GOLDENS[f"{kind} {method} {optim}"]
    assert excess(losses(lines), golden["loss"], optim) <= 1
    norms = [line["grad_norm"] for line in lines]
    assert norms == pytest.approx(golden["grad_norm"], rel=100 * TOLERANCE[optim][-1])
    assert min(norms) < goldens.SCHEDULE["max_grad_norm"] < max(norms), "some steps are clipped"
    assert golden["loss"][-1] < 0.8 * golden["loss"][0], "it trains"


def test_the_layout_is_a_tree_in_several_micro_batches(ours: Runs) -> None:
    for method, optim in QUICK.items():
        lines = ours(method, optim)
        assert all(line["computed_tokens"] < 0.9 * line["tokens"] for line in lines[:3])
        assert all(line["computed_tokens"] > BUDGET for line in lines[:3])
        assert len({line["supervised_tokens"] for line in lines}) > 10


@pytest.mark.parametrize(("method", "optim"), CASES)
def test_trainer_and_sft_trainer_agree(method: str, optim: str) -> None:
    one, other = (GOLDENS[f"{kind} {method} {optim}"]["loss"] for kind in goldens.KINDS)
    assert excess(one, other, optim) <= 1


def test_adapters_in_bfloat16_are_another_training() -> None:
    half, whole = GOLDENS["sft qlora adamw_torch bfloat16"]["loss"], GOLDENS["sft qlora adamw_torch"]["loss"]
    assert excess(half, whole, "adamw_torch") > 2


@pytest.mark.parametrize(("method", "optim"), of_cases([("lora", "sgd"), ("lora", "adamw_torch")]))
def test_the_comparison_sees_one_percent_of_the_learning_rate(folder: Path, method: str, optim: str) -> None:
    rate = 1.01 * goldens.RATES[method, optim]
    found = losses(trained(recipe(folder, method, optim, learning_rate=rate)))
    assert excess(found, GOLDENS[f"trainer {method} {optim}"]["loss"], optim) > 2


def test_the_comparison_sees_one_label_of_one_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_one_label(rows: Any, **how: Any) -> Any:
        changed = [replace(row, supervised=all_but_first(row.supervised)) if row.example == 7 else row for row in rows]
        return micro_batches(changed, **how)

    monkeypatch.setattr(step_rows, "micro_batches", without_one_label)
    found = losses(trained(recipe(folder, "full", "sgd")))
    assert excess(found, GOLDENS["trainer full sgd"]["loss"], "sgd") > 2


@pytest.mark.parametrize(
    ("kind", "method", "optim"),
    [
        pytest.param(kind, *case, marks=[] if (kind, *case) == ("trainer", "lora", "adamw_torch") else pytest.mark.slow)
        for kind in goldens.KINDS
        for case in CASES
    ],
)
def test_the_installed_trainer_gives_the_goldens(folder: Path, kind: Any, method: str, optim: str) -> None:
    pytest.importorskip("accelerate")
    found = goldens.run(kind, folder, method, optim)
    assert excess(found["loss"], GOLDENS[f"{kind} {method} {optim}"]["loss"], optim) <= 1
