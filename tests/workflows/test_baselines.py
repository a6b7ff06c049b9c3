"""Baselines of a whole run: from the rows that it was trained on, the same after a stop and by `eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.data.survey import survey_rows
from tunesmith.evaluation import few_shot
from tunesmith.evaluation.few_shot import shown_rows
from tunesmith.recipe.data import DataSettings
from tunesmith.runs.folder import Run
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train

WORDS = ["red", "green", "blue"]


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"instruction": "Name the colour.", "input": f"{WORDS[n % 3]} thing {n}", "output": WORDS[n % 3]}
        for n in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quiet = {"eval_strategy": "no", "report_to": "none", "threads": 1}
    return {
        "model": str(tiny_model_dir),
        "data": {"train": "rows.jsonl", "eval": 0.4},
        "method": {"name": "lora", "r": 4},
        "training": {"learning_rate": 1e-4, "max_steps": 2, "batch_size": 4, **quiet},
        "evaluation": {
            "metrics": ["exact_match"], "max_new_tokens": 4, "resamples": 200, "samples": 0,
            "baselines": ["majority", "nearest", "linear", "few_shot"], "few_shot_rows": 3,
        },
        "output_dir": "run",
    }  # fmt: skip


def test_a_run_says_that_words_do_better_and_eval_says_the_same(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[list[int]] = []
    whole = few_shot.FewShotPass._ask
    monkeypatch.setattr(
        few_shot.FewShotPass, "_ask", lambda self, model: (prompts.extend(self.prompts), whole(self, model))[1]
    )
    verdict = train(values).verdict
    found = verdict["baselines"]
    rows = len(Run("run").read_lines("samples.jsonl"))
    assert found["training_rows"] == 60 - rows and len(prompts) == rows
    of = {each["name"]: each["metrics"]["exact_match"] for each in found["results"]}
    assert list(of) == ["majority", "nearest", "linear", "few_shot"]
    assert of["linear"]["value"] == 1.0 and of["linear"]["verdict"] == "worse"  # the tuned model is
    assert verdict["baselines"] == Run("run").read_json("verdict.json")["baselines"]
    # The same from `eval`, on the run's own rows; on other rows the training rows are read again.
    again = evaluate("run", progress=False)
    assert again["baselines"] == found
    others = [{"instruction": "Name the colour.", "input": f"blue thing {n}", "output": "blue"} for n in range(9)]
    elsewhere = evaluate("run", data=others, settings=["baselines=[linear]"], progress=False)
    (linear,) = elsewhere["baselines"]["results"]
    assert linear["metrics"]["exact_match"]["value"] == 1.0
    assert elsewhere["baselines"]["training_rows"] == found["training_rows"]
    assert "A linear model over words does better: " in str(elsewhere)
    none = evaluate("run", settings=["baselines=none"], progress=False)
    assert "baselines" not in none
    # A recipe that says nothing has the three that cost no pass.
    automatic = evaluate("run", settings=["baselines=auto"], progress=False)
    assert [each["name"] for each in automatic["baselines"]["results"]] == ["majority", "nearest", "linear"]
    assert automatic["baselines"]["results"] == found["results"][:3]


def test_the_prompt_of_few_shot_is_a_conversation_in_the_template_that_fits(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    asked: list[few_shot.FewShotPass] = []
    monkeypatch.setattr(few_shot.FewShotPass, "_ask", lambda self, model: asked.append(self))
    monkeypatch.setattr(few_shot.FewShotPass, "texts", lambda self: ["red"] * len(self.prompts))
    limits = iter([None, 60])
    monkeypatch.setattr(few_shot, "position_limit", lambda model: next(limits))
    values["evaluation"]["baselines"] = ["few_shot"]
    train(values)
    text = tokenizer.decode(asked[0].prompts[0])
    assert text.count("<|im_start|>user\nName the colour.") == 4  # three rows, then the question
    shown = [part.split("<|im_end|>")[0] for part in text.split("<|im_start|>assistant\n")[1:]]
    assert sorted(shown[:3]) == sorted(WORDS)  # spread over the labels
    assert shown[3] == ""
    held_out = {line["source"] for line in Run("run").read_lines("samples.jsonl")}
    things = {int(part.split()[2].split("<")[0]) for part in text.split("Name the colour.\n\n")[1:4]}
    assert {f"rows.jsonl:{number + 1}" for number in things}.isdisjoint(held_out)
    # With 60 positions, there is room for fewer rows.
    evaluate("run", settings=["resamples=300"], progress=False)  # so it is measured again
    assert max(map(len, asked[1].prompts)) + 4 <= 60
    assert max(asked[1].shown) < 3


def test_shown_rows_are_spread_over_labels_and_drawn_by_seed(tmp_path: Path) -> None:
    rows = [{"prompt": f"thing {n}", "completion": "rare" if n % 15 == 0 else "often"} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scan = survey_rows(DataSettings.model_validate({"train": str(tmp_path / "rows.jsonl"), "eval": 0.0}), seed=0).scan
    trained = np.arange(5, 30)  # 15 is the only rare one
    for seed in range(5):
        shown = shown_rows(scan, trained, 2, seed=seed, are_labels=True)
        assert 15 in shown and len(shown) == 2 and min(shown) >= 5
    drawn = [shown_rows(scan, trained, 4, seed=seed, are_labels=False) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert shown_rows(scan, trained[:2], 4, seed=0, are_labels=False) in ([5, 6], [6, 5])
