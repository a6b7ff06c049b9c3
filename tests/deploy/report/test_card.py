"""The model card of a run has the hub's format, and names no folder of this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index
from tests.cli.foreign import ACTS, ATTACK, foreign_run
from tests.deploy.report.made_run import made_run, verdict

from tunesmith.deploy.model_card import PUBLISHED, run_card
from tunesmith.deploy.report.run_facts import run_facts
from tunesmith.model.weights.bundled import BUNDLED
from tunesmith.runs.folder import Run


def metadata(card: str) -> Any:
    """What a hub reads of a card."""
    return ModelCard(card).data


def with_recipe(run: Run, **changed: Any) -> Run:
    recipe = json.loads((run.folder / "recipe.yaml").read_text())
    run.write_text("recipe.yaml", json.dumps({**recipe, **changed}))
    return run


def test_a_hub_reads_the_metadata_of_the_card(tmp_path: Path) -> None:
    run = with_recipe(
        made_run(tmp_path / "tickets"),
        model="smollm2-135m-instruct",
        data={"train": "someone/tickets", "eval": "someone/held-out"},
    )
    data = metadata(run_card(run_facts(run)))
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and data.license == "apache-2.0"
    assert data.library_name == "peft" and data.pipeline_tag == "text-generation"
    assert data.to_dict()["base_model_relation"] == "adapter"
    assert data.datasets == ["someone/tickets"] and data.tags == ["tunesmith", "lora"]
    results = {each.metric_type: each for each in data.eval_results}
    assert {name: each.metric_value for name, each in results.items()} == {
        "accuracy": 0.85, "f1": 0.8, "loss": 0.5, "harmless.py:score": 1.1,
    }  # fmt: skip
    assert results["accuracy"].dataset_type == "someone/held-out"
    index = eval_results_to_model_index(data.model_name, data.eval_results)
    assert index == data.to_dict()["model-index"] and index[0]["name"] == "tickets"
    assert index[0]["results"][0]["task"] == {"type": "text-generation"}


def test_the_card_says_the_verdict_and_what_it_broke(tmp_path: Path) -> None:
    text = run_card(run_facts(made_run(tmp_path / "tickets")))
    assert "**The tuned model is better than the base model: on 40 rows that it was not trained on" in text
    assert "| accuracy | 0.05 | 0.85 | +0.8 | +0.65 to +0.925 | better |" in text
    assert "| loss (lower is better) | 2 | 0.5 | -1.5 | -1.6 to -1.4 | better |" in text
    assert "- answers that end in repetition: 0.0% -\\> 25.0%" in text
    assert "Also changed from base to tuned" in text and "Worst slices by accuracy" in text
    assert "AutoPeftModelForCausalLM" in text and "| seed | 0 |" in text and "Rows: 60 read" in text
    assert "with lora and sft by Tunesmith" in text and "| objective | sft |" in text


def test_what_is_private_or_not_known_is_left_out(tmp_path: Path) -> None:
    rows = tmp_path / "data" / "rows.jsonl"
    run = with_recipe(
        made_run(tmp_path / "run"), model=str(tmp_path / "models" / "base"), data={"train": [{"path": str(rows)}]}
    )
    found = verdict()
    found["metrics"][f"{tmp_path}/score.py:score"] = found["metrics"].pop("harmless.py:score")
    found["slices"][1]["name"] = str(rows)
    found["probe"]["name"] = str(tmp_path / "probe.jsonl")
    run.write_json("verdict.json", found)
    text = run_card(run_facts(run))
    assert str(tmp_path) not in text
    assert "score.py:score" in text and "rows.jsonl" in text and "probe.jsonl" in text
    data = metadata(text)
    assert data.base_model is None and data.license is None and data.datasets is None
    assert data.eval_results[0].dataset_type == "private"


def test_a_full_run_is_a_finetune_of_transformers(tmp_path: Path) -> None:
    run = with_recipe(made_run(tmp_path / "run"), model="someone/base@main", method="full")
    data = metadata(run_card(run_facts(run)))
    assert data.library_name == "transformers" and data.base_model == "someone/base"
    assert data.to_dict()["base_model_relation"] == "finetune"


def test_a_run_without_a_verdict_has_no_figures(tmp_path: Path) -> None:
    text = run_card(run_facts(made_run(tmp_path / "run", verdict=None)))
    data = metadata(text)
    assert data.eval_results is None and "model_name" not in data.to_dict()
    assert "were not judged" in text


def test_the_licences_are_those_of_the_bundled_models() -> None:
    assert {name: licence for name, (_, licence) in PUBLISHED.items()} == {
        name: bundled.licence.lower() for name, bundled in BUNDLED.items()
    }


@pytest.mark.parametrize("text", [ATTACK, "</script><script>x", "---\nlicense: mit\n", "*** | `a` [x](javascript:y)"])
def test_no_text_of_a_run_is_markup_or_metadata(tmp_path: Path, text: str) -> None:
    plain = metadata(run_card(run_facts(made_run(tmp_path / "plain")))).to_dict()
    card = run_card(run_facts(made_run(tmp_path / "hostile", text)))
    assert ACTS.findall(card) == []
    data = metadata(card).to_dict()
    assert data.keys() == plain.keys()
    body = card.partition("\n---\n")[2]
    outside = re.sub(r"(?s)(`+).+?\1", "", body)  # without code, which is shown as it stands
    assert "<script>" not in outside.replace("\\<script\\>", "") and "[x](javascript" not in outside


def test_the_card_of_a_foreign_run_holds_nothing_that_acts(tmp_path: Path) -> None:
    run = foreign_run(tmp_path / "run", {**verdict(), "slices": []})
    card = run_card(run_facts(run))
    assert ACTS.findall(card) == [] and metadata(card).library_name == "peft"


def test_no_secret_is_in_the_card(tmp_path: Path) -> None:
    key = "hf_aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA"
    card = run_card(run_facts(made_run(tmp_path / "run", f"use {key}")))
    assert key not in card and metadata(card).eval_results


def with_languages(run: Run, sampled: int, **counts: int) -> Run:
    ledger = json.loads((run.folder / "ledger.json").read_text())
    listed = [{"name": name, "rows": rows} for name, rows in counts.items()]
    run.write_json("ledger.json", {**ledger, "languages": {"sampled": sampled, "counts": listed}})
    return run


def test_the_card_names_the_languages_of_the_rows_where_enough_rows_say_so(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    assert metadata(run_card(run_facts(run))).language is None  # as of a run of an earlier version
    for sampled, counts, named in (
        (20, {"de": 9, "no": 6, "unknown": 4, "la": 1}, ["de", "no"]),
        (9, {"de": 9}, None),  # too few rows
        (20, {"unknown": 18, "de": 2}, None),
    ):
        assert metadata(run_card(run_facts(with_languages(run, sampled, **counts)))).language == named
