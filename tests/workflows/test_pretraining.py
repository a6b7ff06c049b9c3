"""Continued pretraining: whole runs on documents that are longer than a row may be, alone and among conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.data.batches.layout import Tree, micro_batches
from tunesmith.data.corpus import encode_corpus
from tunesmith.data.survey import survey_rows
from tunesmith.errors import DataError
from tunesmith.evaluation.metrics.tokens import row_losses
from tunesmith.model.compute import attention
from tunesmith.model.weights.text_side import make_template
from tunesmith.recipe.data import DataSettings
from tunesmith.recipe.file import read_recipe
from tunesmith.runs.folder import Run
from tunesmith.training.loop import Step
from tunesmith.training.trainer import Trainer
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import dry_run, train

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink"]
LENGTH = 48


def document(number: int) -> str:
    """Of 2 to 9 paragraphs; all begin alike."""
    return "\n\n".join(
        ["Notes of the house.", *(f"The {WORDS[(number + n) % 7]} thing {n} is here." for n in range(2 + number % 8))]
    )


@pytest.fixture
def books(tmp_path: Path) -> Path:
    (tmp_path / "books").mkdir()
    for number in range(16):
        (tmp_path / "books" / f"{number:02}.txt").write_text(document(number))
    return tmp_path / "books"


@pytest.fixture
def values(books: Path, tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(books), "sample_by": "document", "eval": 0.25, "max_length": LENGTH},
        "method": {"name": "lora", "r": 4},
        "training": {
            "learning_rate": 1e-2,
            "num_train_epochs": 1.0,
            "batch_size": 8,
            "micro_batch_tokens": 400,
            "eval_steps": 2,
            "save_steps": 2,
            "report_to": "none",
            "threads": 1,
        },
        "evaluation": {"metrics": ["perplexity"], "resamples": 200},
        "output_dir": str(tmp_path / "run"),
    }


def final_bytes(run: Path) -> dict[str, bytes]:
    last = Run(run).checkpoints[-1]
    return {path.name: path.read_bytes() for path in sorted(last.iterdir())}


def test_documents_that_are_packed_together_have_the_losses_that_they_have_alone(
    books: Path, tiny_model_dir: Path
) -> None:
    settings = DataSettings.model_validate(
        {"train": str(books), "sample_by": "document", "eval": 0, "max_length": LENGTH}
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    made = encode_corpus(survey_rows(settings, seed=0), make_template(settings, tokenizer, (2,)))
    rows = list(made.train)
    assert len(rows) > 20 and max(len(row.ids) for row in rows) == LENGTH
    [batch] = micro_batches(rows, budget=10_000, layout="tree")
    assert isinstance(batch.attention, Tree) and batch.computed < batch.tokens, "what they begin with is shared"
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
    alone = []
    for row in rows:
        ids = torch.from_numpy(row.ids.astype("int64"))
        with torch.no_grad():
            logits = plain(input_ids=ids[None]).logits[0]
        alone.append(torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum").item())
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, attn_implementation="sdpa")
    attention.install(model)
    for layout in ("tree", "packed"):
        batches = micro_batches(rows, budget=10_000, layout=layout)  # type: ignore[arg-type]
        packed = row_losses(model, batches, rows=len(rows), device="cpu")
        assert packed.nll_sum == pytest.approx(alone, rel=1e-6)
        assert packed.tokens.sum() == made.ledger.total.supervised.trained


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_epoch_learns_every_token_once_and_the_text_becomes_likelier(values: dict[str, Any], method: str) -> None:
    rate = {"lora": 1e-2, "full": 1e-3}[method]
    section = {"name": method, **({"r": 4} if method == "lora" else {})}
    result = train({**values, "method": section, "training": {**values["training"], "learning_rate": rate}})
    ledger = Run(result.run).read_json("ledger.json")
    assert (ledger["rows"]["read"], ledger["tokens"]["too_long"]) == (16, 0)
    assert ledger["blocks"] > ledger["split"] > 8
    assert ledger["epoch"]["supervised"] == ledger["supervised"]["trained"]
    assert result.tokens["supervised"] == ledger["supervised"]["trained"]
    found = result.metrics["perplexity"]
    assert result.verdict["decided_by"] == "perplexity" and found["tuned"] < 0.8 * found["base"]
    assert read_recipe(result.run / "recipe.yaml").recipe.data.too_long == "split"


def test_a_run_on_blocks_goes_on_to_the_same_bytes(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(values).run
    original = Trainer.on_eval

    def on_eval(self: Trainer, step: Step) -> None:
        if step.number == 4:
            raise KeyboardInterrupt
        original(self, step)

    stopped = {**values, "output_dir": str(tmp_path / "stopped")}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "on_eval", on_eval)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    assert final_bytes(train(stopped, resume=True).run) == final_bytes(whole)


def test_a_run_on_documents_is_judged_on_other_files(values: dict[str, Any], tmp_path: Path) -> None:
    run = train({**values, "training": {**values["training"], "num_train_epochs": 0.5}}).run
    (tmp_path / "other.txt").write_text(document(9))
    texts = [document(number) for number in (9, 10)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = {name: evaluate(run, data=str(tmp_path / name)) for name in ("other.txt", "other.jsonl")}
    assert found["other.txt"]["rows"] > 1, "blocks of one document"
    assert found["other.jsonl"]["rows"] > found["other.txt"]["rows"]
    again = evaluate(run, data=values["data"]["train"])
    assert again["metrics"]["loss"]["tuned"] < again["metrics"]["loss"]["base"]


def test_among_documents_only_conversations_are_asked(values: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"prompt": f"Name the colour {n}: {WORDS[n % 7]}", "completion": WORDS[n % 7]} for n in range(24)]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    books = {"path": values["data"]["train"], "sample_by": "document"}
    data = {"train": [books, {"path": str(tmp_path / "talk.jsonl"), "rows": 8}], "eval": 0.25, "max_length": LENGTH}
    evaluation = {"metrics": ["exact_match"], "samples": 100, "max_new_tokens": 4, "resamples": 100}
    result = train({**values, "data": data, "evaluation": evaluation})
    ledger = Run(result.run).read_json("ledger.json")
    asked = [json.loads(line)["source"] for line in (result.run / "samples.jsonl").read_text().splitlines()]
    held_out = ledger["sources"][str(tmp_path / "talk.jsonl")]["rows"]["held_out"]
    assert len(asked) == held_out > 0 and all(source.startswith(str(tmp_path / "talk.jsonl")) for source in asked)
    assert result.metrics["exact_match"]["rows"] == held_out
    assert set(result.verdict["by_source"]) == {books["path"], str(tmp_path / "talk.jsonl")}
    (tmp_path / "held.txt").write_text(document(3))
    only_text = {**data, "eval": {"path": str(tmp_path / "held.txt"), "sample_by": "document"}}
    with pytest.raises(DataError, match="No held-out row has an answer to compare"):
        train({**values, "data": only_text, "evaluation": evaluation, "output_dir": str(tmp_path / "other")})


def test_a_dry_run_resolves_what_happens_to_long_rows(values: dict[str, Any], tmp_path: Path) -> None:
    lines = {key: (value, origin) for key, value, origin in dry_run(values)}
    assert lines["data.too_long"] == ("split", "auto")
    rows = [{"prompt": f"{n}", "completion": "yes"} for n in range(20)]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    talk = {**values, "data": {"train": str(tmp_path / "talk.jsonl")}, "evaluation": {}}
    assert {key: value for key, value, _ in dry_run(talk)}["data.too_long"] == "error"
