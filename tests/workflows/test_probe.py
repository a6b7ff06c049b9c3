"""A run and an evaluation that ask a probe: what they keep, and what they refuse before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import DataError, ModelError, RunError
from tunesmith.runs.folder import Run
from tunesmith.runs.overview import details
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train

# The answers of a random model are noise, so these are right for any answer, for none, and for some.
CHECKS: dict[str, dict[str, Any]] = {
    "any": {"regex": r"\S"},
    "none": {"exact": "the answer of nobody"},
    "letters": {"regex": "^[a-zA-Z]"},
    "json": {"json": {}},
}


@pytest.fixture
def probe(tmp_path: Path) -> str:
    lines = [
        {"id": name, "kind": "odd", "messages": [{"role": "user", "content": f"Say {name}."}], "check": check}
        for name, check in CHECKS.items()
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path, probe: str) -> dict[str, Any]:
    rows = [{"prompt": f"thing {n}?", "completion": "red" if n % 2 else "blue"} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"max_steps": 2, "batch_size": 4, "learning_rate": 0.01, "report_to": "none", "threads": 1}
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.3},
        "method": {"name": "lora", "r": 4},
        "training": training,
        "evaluation": {"resamples": 100, "samples": 0, "probe": probe},
        "output_dir": str(tmp_path / "run"),
    }


def test_a_run_and_an_evaluation_keep_what_both_models_answered(values: dict[str, Any], probe: str) -> None:
    made = train(values, progress=False)
    found = made.verdict["probe"]
    assert (found["name"], found["items"], found["kinds"][0]["kind"]) == (probe, 4, "odd")
    assert found["verdict"] == "no evidence"
    run = Run(made.run)
    lines = run.read_lines("probe.jsonl")
    assert [line["id"] for line in lines] == list(CHECKS)
    assert lines[0]["messages"] == [{"role": "user", "content": "Say any."}]
    right = {name: sum(line[f"{name}_right"] for line in lines) / 4 for name in ("base", "tuned")}
    assert right == {name: found[name] for name in ("base", "tuned")}
    assert [line["tuned_right"] for line in lines if line["id"] == "none"] == [False]
    assert [each["id"] for each in lines if each["base_right"] and not each["tuned_right"]] == found["lost"]

    before = (run.folder / "probe.jsonl").read_bytes()
    assert train(values, resume=True, progress=False).verdict["probe"] == found
    again = evaluate(made.run, progress=False)  # as the run's recipe says
    assert again["probe"] == found
    assert (run.folder / "probe.jsonl").read_bytes() == before
    assert "probe" not in evaluate(made.run, probe=False, progress=False)
    assert run.read_lines("probe.jsonl") == lines
    kept = details(made.run)
    assert not any(name == "damaged" for name, _ in kept.facts)
    assert [each.get("probe") for each in kept.evaluations] == [found, None]


def test_a_run_without_held_out_rows_still_asks_both_models(values: dict[str, Any]) -> None:
    values["data"]["eval"] = 0
    made = train(values, progress=False)
    assert made.verdict["metrics"] == {}
    assert made.verdict["probe"]["items"] == 4
    assert {"base", "tuned"} <= Run(made.run).read_lines("probe.jsonl")[0].keys()


def test_a_model_alone_has_the_values_of_its_own_answers(
    values: dict[str, Any], probe: str, tiny_model_dir: Path
) -> None:
    found = evaluate(tiny_model_dir, data=values["data"]["train"], settings=["samples=0"], probe=probe, progress=False)
    assert found["verdict"] is None
    assert 0 <= found["probe"]["value"] <= 0.75
    assert found["probe"]["kinds"] == [{"kind": "odd", "items": 4, "value": found["probe"]["value"]}]


def _edited(probe: str) -> None:
    file = Path(probe)
    file.write_text(file.read_text().replace("Say any.", "Say it again."))


def test_changed_questions_are_no_silent_change_of_a_run(
    values: dict[str, Any], probe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed before the end")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("tunesmith.workflows.finetune._verdict", killed)
        train(values, progress=False)
    _edited(probe)
    with pytest.raises(RunError, match="The data has changed since this run was started") as caught:
        train(values, resume=True, progress=False)
    assert f"evaluation.probe: {probe}: was sha256 " in str(caught.value.why)
    assert 'allow_changes=["data"]' in str(caught.value.remedy)
    made = train(values, resume=True, allow_changes="data", progress=False)
    assert Run(made.run).read_lines("probe.jsonl")[0]["messages"] == [{"role": "user", "content": "Say it again."}]
    (change,) = json.loads((made.run / "fingerprint.json").read_text())["changes"][0]["changes"]
    assert (change["kind"], change["key"]) == ("data", f"evaluation.probe: {probe}")
    assert evaluate(made.run, progress=False)["changes"] == []  # they are the run's own from then on
    Path(probe).write_text(Path(probe).read_text().replace("Say none.", "Say nothing."))
    with pytest.raises(RunError, match="The data has changed"):
        evaluate(made.run, progress=False)
    assert evaluate(made.run, allow_changes="data", progress=False)["changes"][0]["kind"] == "data"
    assert evaluate(made.run, probe=probe, progress=False)["changes"] == []


def test_another_file_of_questions_is_a_setting_that_an_unfinished_run_takes(
    values: dict[str, Any], probe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed before the end")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("tunesmith.workflows.finetune._verdict", killed)
        train(values, progress=False)
    other = Path(probe).with_name("other.jsonl")
    other.write_text(Path(probe).read_text())
    _edited(str(other))
    made = train(values, [f"evaluation.probe={other}"], resume=True, progress=False)
    assert made.verdict["probe"]["name"] == str(other)
    assert list(json.loads((made.run / "fingerprint.json").read_text())["questions"]) == [f"evaluation.probe: {other}"]


def test_a_bad_line_is_refused_before_a_run_begins(values: dict[str, Any], probe: str) -> None:
    with open(probe, "a") as file:
        file.write('{"id": "x"}\n')
    with pytest.raises(DataError, match=r"own\.jsonl:5: One line is no item of a probe"):
        train(values, progress=False)
    assert not Path(values["output_dir"], "recipe.yaml").exists()


def test_an_item_that_is_too_long_for_the_model_is_named_before_training(values: dict[str, Any], probe: str) -> None:
    long = {
        "id": "long",
        "kind": "odd",
        "messages": [{"role": "user", "content": "x y " * 4000}],
        "check": {"words": 1},
    }
    Path(probe).write_text(json.dumps(long) + "\n")
    with pytest.raises(ModelError, match=r"own\.jsonl:1: An item of the probe"):
        train(values, progress=False)
    assert not Path(values["output_dir"], "recipe.yaml").exists()
