"""`eval` measures nothing that its run has measured: the same rows, weights and decoding give the same answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.workflows.test_compare import passes
from tests.workflows.test_damaged_runs import Heard

from tunesmith.evaluation.memorisation import MemorisationPass
from tunesmith.evaluation.probe.asking import ProbePass
from tunesmith.runs.folder import Run
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train

TURN = {"role": "user", "content": "Name a colour."}
ITEM = {"kind": "facts", "messages": [TURN], "check": {"contains": "red"}}
BESIDE = ("probe", "divergence", "memorisation")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    rows = [{"prompt": f"say the number {n}", "completion": f"word {n % 3} is what I say {n}"} for n in range(60)]
    return {
        "model": str(tiny_model_dir),
        "data": {"train": write(tmp_path / "rows.jsonl", rows), "eval": 0.4},
        "method": {"name": "lora", "r": 4},
        "training": {
            "learning_rate": 0.01, "max_steps": 2, "batch_size": 8, "eval_strategy": "no", "report_to": "none",
            "threads": 1,
        },
        "evaluation": {"metrics": ["exact_match"], "max_new_tokens": 6, "resamples": 200, "memorisation": True},
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip


def test_a_part_that_was_not_asked_for_is_measured_alone(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = train(values, progress=False)
    expected = evaluate(made.run, settings=["seed=1"], progress=False)  # another seed: measured again
    probe = write(tmp_path / "probe.jsonl", [{**ITEM, "id": f"item {n}"} for n in range(4)])
    asked, heard = passes(monkeypatch), Heard()
    remembered: list[str] = []
    whole = MemorisationPass.tuned_pass
    monkeypatch.setattr(MemorisationPass, "tuned_pass", lambda self, model: (remembered.append(""), whole(self, model)))
    found = evaluate(made.run, probe=probe, listener=heard)
    assert asked == {"answers": [], "token_scores": []} and remembered == []
    assert found["probe"]["items"] == 4
    for key in ("metrics", "rows", "verdict", "memorisation", "side_effects", "baselines"):
        assert found[key] == made.verdict[key]
    assert found.samples == Run(made.run).read_lines("samples.jsonl")
    assert set(found) == {*expected, "probe"}
    said = f"the held-out rows are not measured again: these are the answers of {made.run / 'samples.jsonl'}, of step 2"
    assert said in heard.said
    record = Run(made.run).read_lines("evaluations.jsonl")[-1]
    assert record["probe"] == found["probe"] and record["metrics"] == found["metrics"]
    assert len(Run(made.run).read_lines("probe.jsonl")) == 4
    assert evaluate(made.run, progress=False)["metrics"] == made.verdict["metrics"]  # nothing new is asked
    assert asked == {"answers": [], "token_scores": []}


def test_the_probe_of_the_run_is_not_asked_again(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = write(tmp_path / "probe.jsonl", [{**ITEM, "id": f"item {n}"} for n in range(4)])
    made = train({**values, "evaluation": {**values["evaluation"], "probe": probe}}, progress=False)
    asked: list[str] = []
    monkeypatch.setattr(ProbePass, "tuned_pass", lambda self, model: asked.append("tuned"))
    found = evaluate(made.run, settings=["divergence=true"], progress=False)
    assert asked == [] and found["probe"] == made.verdict["probe"] and found["divergence"]["general"]["texts"] == 52


def test_other_metrics_take_the_answers_that_are_there(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = train(values, progress=False)
    whole = evaluate(made.run, settings=["metrics=[exact_match,edit_similarity]", "seed=0"], progress=False)
    asked = passes(monkeypatch)
    found = evaluate(made.run, settings=["metrics=[exact_match,edit_similarity]"], progress=False)
    assert asked == {"answers": [], "token_scores": ["tuned: loss", "base: loss"]}
    assert found["metrics"] == whole["metrics"] and "edit_similarity" in found["metrics"]
    evaluate(made.run, settings=["max_new_tokens=5"], progress=False)  # another decoding
    assert asked["answers"] == ["tuned: answers", "base: answers"]


@pytest.mark.parametrize("change", ["data", "weights", "answers", "other rows"])
def test_what_has_changed_is_measured_again(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    made = train(values, progress=False)
    how: dict[str, Any] = {}
    rows = Path(values["data"]["train"])
    if change == "data":
        rows.write_text(rows.read_text().replace("number 7", "number seven"))
        how = {"allow_changes": ["data"]}
    elif change == "weights":
        how = {"allow_changes": ["weights"]}
        config = Path(values["model"])
        other = tmp_path / "other"
        other.mkdir()
        for file in config.iterdir():
            (other / file.name).write_bytes(file.read_bytes())
        _shift(other / "model.safetensors")
        how["model"] = str(other)
    elif change == "answers":
        (made.run / "samples.jsonl").write_text("")
    else:
        how = {"data": write(tmp_path / "more.jsonl", [{"prompt": f"say {n}", "completion": "word"} for n in range(8)])}
    asked = passes(monkeypatch)
    evaluate(made.run, progress=False, **how)
    assert asked == {
        "answers": ["tuned: answers", "base: answers"],
        "token_scores": ["tuned: loss", "base: loss"],
    }


def _shift(weights: Path) -> None:
    from safetensors.torch import load_file, save_file

    found = load_file(weights)
    save_file({name: tensor + 0.01 for name, tensor in found.items()}, weights, metadata={"format": "pt"})


def test_the_untuned_model_of_preferences_is_not_measured_again(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [{"prompt": f"May I, {n}?", "chosen": "yes", "rejected": "nay"} for n in range(40)]
    data = {"train": write(tmp_path / "pairs.jsonl", pairs), "eval": 0.25}
    evaluation = {"max_new_tokens": 4, "resamples": 200, "samples": 2}
    made = train({**values, "data": data, "objective": "dpo", "evaluation": evaluation}, progress=False)
    asked = passes(monkeypatch)
    found = evaluate(made.run, settings=["divergence=true"], progress=False)
    assert asked == {"answers": [], "token_scores": []} and found["metrics"] == made.verdict["metrics"]
    assert all(key not in found for key in BESIDE if key != "divergence")
