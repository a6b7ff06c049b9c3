"""Whole runs that are judged by metrics of corpora and labels, and by a model behind an endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.judge_server import Server, said

from tunesmith.errors import RunError
from tunesmith.evaluation.below_verdict import lines_below
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Silent
from tunesmith.runs.stored_shapes import verdict_of
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train

WORDS = ["red", "green", "blue", "black"]
SECRET = "quartz-lantern-742"


class Told(Silent):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Keeps one."""
        self.warnings.append(text)


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    rows = [{"prompt": f"{WORDS[n % 4]} thing {n}", "completion": WORDS[n % 4]} for n in range(32)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.3},
        "method": {"name": "lora", "r": 2},
        "training": {
            "max_steps": 6,
            "learning_rate": 0.1,
            "batch_size": 4,
            "report_to": "none",
            "threads": 1,
            "eval_strategy": "no",
        },
        "evaluation": {"max_new_tokens": 4, "resamples": 200, "samples": 1},
        "output_dir": str(tmp_path / "run"),
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_every_metric_of_answers_and_tokens_has_an_interval_in_the_verdict(values: dict[str, Any]) -> None:
    names = [
        "accuracy", "macro_f1", "bits_per_byte", "perplexity", "token_accuracy", "exact_match", "json_valid", "bleu",
        "chrf", "rouge1", "rouge2", "rougeL", "edit_similarity", "answer_length", "regex_match",
    ]  # fmt: skip
    values["evaluation"] |= {"metrics": names, "normalize": ["case"], "answer_pattern": r"\w+"}
    result = train(values)
    run = Path(values["output_dir"])
    verdict = json.loads((run / "verdict.json").read_text())
    assert [*verdict["metrics"]][: len(names) + 1] == [*names, "loss"]
    for name in names:
        low, high = verdict["metrics"][name]["interval"]
        assert low <= verdict["metrics"][name]["difference"] <= high or low == high == 0
    details = verdict["details"]
    assert [each["label"] for each in details["classification"]["tuned"]["labels"]] == sorted(WORDS)
    assert details["bleu"]["base"]["signature"].startswith("nrefs:1|case:mixed|")
    line = json.loads((run / "samples.jsonl").read_text().splitlines()[0])
    assert set(line["scores"]) == {
        name for name in names if name not in ("bits_per_byte", "perplexity", "token_accuracy")
    }
    rows = result.verdict["rows"]
    bits = verdict["metrics"]["bits_per_byte"]["base"]
    assert rows > 4 and bits > 0
    again = evaluate(run, settings=["metrics=[chrf]"], progress=False)
    assert again["metrics"]["chrf"]["tuned"] == pytest.approx(verdict["metrics"]["chrf"]["tuned"])


def test_labels_are_judged_by_their_likelihood_and_training_rows_name_them(
    values: dict[str, Any], tmp_path: Path
) -> None:
    names = ["likelihood_accuracy", "likelihood_macro_f1", "brier_score", "calibration_error"]
    values["evaluation"] |= {"metrics": names, "during": ["likelihood_accuracy"]}
    values["training"] |= {"eval_strategy": "steps", "eval_steps": 3}
    result = train(values)
    run = Path(values["output_dir"])
    details = result.verdict["details"]
    assert [each["label"] for each in details["classification_by_likelihood"]["tuned"]["labels"]] == sorted(WORDS)
    assert result.metrics["brier_score"]["tuned"] >= 0 and "calibration_error" in details["calibration"]["base"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = [line["eval_likelihood_accuracy"] for line in lines if "eval_loss" in line]
    assert len(measured) == 2 and measured[-1] == result.metrics["likelihood_accuracy"]["tuned"]
    shown = lines_below(verdict_of(Run(run)) or {})
    assert sum(line.startswith("Calibration, tuned: calibration error") for line in shown) == 1

    (tmp_path / "new.jsonl").write_text(json.dumps({"prompt": "a new thing", "completion": "red"}) + "\n")
    again = evaluate(run, data=str(tmp_path / "new.jsonl"), settings=["metrics=[likelihood_accuracy, accuracy]"])
    for key in ("classification_by_likelihood", "classification"):
        labels = {each["label"]: each["rows"] for each in again["details"][key]["tuned"]["labels"]}
        assert labels == {"red": 1, "green": 0, "blue": 0, "black": 0}, "those of the training rows, too"
    Path(values["data"]["train"]).unlink()
    told = Told()
    alone = evaluate(run, data=str(tmp_path / "new.jsonl"), settings=["metrics=[accuracy]"], listener=told)
    assert [each["label"] for each in alone["details"]["classification"]["tuned"]["labels"]] == ["red"]
    assert any("the labels are those of the judged rows alone" in line for line in told.warnings)


def test_a_judge_is_asked_after_training_and_what_it_said_is_kept(
    values: dict[str, Any], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge fails at first: the verdict is by the other metrics, and says so. A run that begins anew is judged."""
    monkeypatch.setenv("JUDGE_KEY_OF_MINE", SECRET)
    judge = {"base_url": server.url, "model": "strict-7b", "api_key_env": "JUDGE_KEY_OF_MINE", "retries": 0}
    values["evaluation"] |= {"metrics": ["judge", "exact_match"], "judge": judge}
    server.answer = lambda _: (401, {}, b"no entry")
    refused = train(values).verdict
    assert "code 401: no entry" in refused["left_out"]["judge"] and list(refused["metrics"]) == ["exact_match", "loss"]
    server.seen.clear()
    server.answer = lambda request: said("[[A]]" if request["messages"][0]["content"].index("thing") % 2 else "[[TIE]]")
    train(values, overwrite=True)
    run = Path(values["output_dir"])
    verdict = json.loads((run / "verdict.json").read_text())
    assert verdict["metrics"]["judge"]["base"] == verdict["metrics"]["judge"]["tuned"] == 0.5
    kept = verdict["details"]["judge"]["tuned"]
    assert "[answer A]" in kept["prompt"] and kept["model"] == "strict-7b"
    assert server.seen and {request["key"] for request in server.seen} == {f"Bearer {SECRET}"}
    assert all("thing" in request["messages"][0]["content"] for request in server.seen)
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(lines[0]["judge"]) == 2 and lines[0]["scores"]["judge"] == 0.5
    assert not [file for file in run.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]

    server.seen.clear()
    with pytest.raises(RunError, match=r"asks to send its held-out rows and answers to http://127") as stop:
        evaluate(run, progress=False)
    assert "--allow-functions" in (stop.value.remedy or "") and not server.seen
    assert evaluate(run, settings=["metrics=[exact_match]"], progress=False)["verdict"]
    assert not server.seen
    assert evaluate(run, allow_functions=True, progress=False)["metrics"]["judge"]["tuned"] == 0.5
    assert server.seen
