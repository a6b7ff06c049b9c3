"""Whole runs whose adapters begin otherwise: resumed to the same bytes, and the same model everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

import tunesmith
from tunesmith.deploy.merge import merge
from tunesmith.errors import ModelError
from tunesmith.methods import init_eva
from tunesmith.runs.folder import Run
from tunesmith.training.loop import Step
from tunesmith.training.trainer import Trainer
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink"]
METHODS: list[dict[str, Any]] = [
    {"name": "lora", "r": 4, "init_lora_weights": "pissa_niter_4", "loraplus_lr_ratio": 4, "lora_dropout": 0.1},
    {"name": "lora", "r": 4, "init_lora_weights": "olora", "use_rslora": True},
    {"name": "lora", "r": 2, "init_lora_weights": "eva", "loraplus_lr_ratio": 4},
    {"name": "qlora", "r": 2, "init_lora_weights": "eva"},
]


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    rows = [
        {"instruction": "Name the colour.", "input": f"{WORDS[n % 7]} thing {n}", "output": WORDS[n % 7]}
        for n in range(44)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.25},
        "training": {
            "learning_rate": 1e-2, "max_steps": 6, "batch_size": 8, "micro_batch_tokens": 160,
            "eval_steps": 3, "save_steps": 3, "report_to": "none", "threads": 1,
        },
        "evaluation": {"metrics": ["exact_match"], "max_new_tokens": 6, "resamples": 200, "samples": 2},
    }  # fmt: skip


def stop_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C during one of the steps."""
    save_due = Trainer.save_due

    def interrupted(self: Trainer, step: Step) -> bool:
        if step.number == number:
            raise KeyboardInterrupt
        return save_due(self, step)

    patch.setattr(Trainer, "save_due", interrupted)


def files_of(run: Path) -> dict[str, bytes]:
    last = Run(run).checkpoints[-1]
    return {str(path.relative_to(last)): path.read_bytes() for path in last.rglob("*") if path.is_file()}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    for layer in model.modules():
        layer.support_avx512bf16_for_cpu = False  # else bitsandbytes computes in bfloat16 on some CPUs
    return model.eval()(torch.tensor([[5, 6, 7, 8, 9]])).logits


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values())))
def test_a_run_is_resumed_to_the_same_bytes_and_is_one_model_everywhere(
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: dict[str, Any],
    tiny_model_dir: Path,
) -> None:
    whole = train({**values, "method": method, "output_dir": str(tmp_path / "whole")})
    stopped = {**values, "method": method, "output_dir": str(tmp_path / "stopped")}
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    with monkeypatch.context() as patch:
        patch.setattr(init_eva, "begin", None)  # no row is looked at again
        resumed = train(stopped, resume=True)
    assert files_of(resumed.run) == files_of(whole.run)
    assert resumed.verdict == whole.verdict
    loss = whole.metrics["loss"]
    assert loss["tuned"] < loss["base"]

    tuned = tunesmith.load(whole.run)
    expected = logits(tuned.model)
    config: Any = tuned.model.config
    options: dict[str, Any] = {} if method["name"] == "lora" else {"quantization_config": config.quantization_config}
    elsewhere = AutoPeftModelForCausalLM.from_pretrained(Run(whole.run).checkpoints[-1], dtype=torch.float32, **options)
    torch.testing.assert_close(logits(elsewhere), expected, rtol=0, atol=2e-5)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    assert (logits(plain) - expected).abs().max() > 1e-2
    if method["name"] == "lora":
        with tuned.base() as base:
            assert torch.equal(logits(base.model), logits(plain))
    assert tuned.generate("red thing", max_new_tokens=4)
    again = evaluate(whole.run)
    for side in ("base", "tuned"):
        assert again["metrics"]["loss"][side] == pytest.approx(loss[side], rel=1e-6)
    merged = merge(whole.run, tmp_path / "merged")
    assert merged.written.relative <= merged.tolerance
    if method["name"] == "lora":
        read = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
        torch.testing.assert_close(logits(read), expected, rtol=0, atol=2e-5)


def test_eva_looks_at_the_first_rows_of_the_run(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    begin = init_eva.begin

    def recorded(adapted: Any, steps: Any) -> None:
        rows = [list(step) for step in steps]
        seen.extend([len(row.ids) for row in step] for step in rows)
        begin(adapted, rows)

    monkeypatch.setattr(init_eva, "begin", recorded)
    method = {"name": "lora", "r": 2, "init_lora_weights": "eva"}
    train({**values, "method": method, "output_dir": str(tmp_path / "run")})
    trained = Run(tmp_path / "run").read_json("ledger.json")["rows"]["trained"]
    assert [len(step) for step in seen] == [8, 8, 8, 8, trained - 32, 8], "steps of training rows, held-out ones aside"


def test_a_run_that_cannot_begin_leaves_no_folder(values: dict[str, Any], tmp_path: Path) -> None:
    method = {"name": "lora", "r": 64, "init_lora_weights": "pissa"}
    with pytest.raises(ModelError, match="has no 64 directions"):
        train({**values, "method": method, "output_dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()
