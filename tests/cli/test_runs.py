from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.terminal.test_console import on_a_screen, rows_of

from tunesmith.cli.docs import JSON_KEYS, SUMMARY_KEYS
from tunesmith.cli.terminal.console import Terminal
from tunesmith.runs.folder import Run

Command = Callable[..., Any]
METRICS = [
    {"step": 10, "epoch": 0.5, "loss": 4.0},
    {"step": 20, "epoch": 1.0, "loss": 2.0},
    {"step": 20, "epoch": 1.0, "eval_loss": 1.0},
]


@pytest.fixture
def finished(tmp_path: Path, verdict: dict[str, Any]) -> Run:
    """runs/rows, as a finished run leaves it."""
    run = Run(tmp_path / "runs" / "rows")
    run.folder.mkdir(parents=True)
    run.write_text("recipe.yaml", "model: m\ndata: {train: rows.jsonl}\noutput_dir: runs/rows\n")
    for line in METRICS:
        run.append("metrics.jsonl", line)
    run.write_json("verdict.json", verdict)
    run.write_json("ledger.json", {"rows": {"read": 120, "invalid": 2, "too_long": 0, "held_out": 18, "trained": 100}})
    facts = {"step": 20, "total_steps": 20, "seconds": 61.0, "best": {"step": 20, "loss": 1.0}}
    run.set_status("finished", **facts, tokens={"rows": 9000, "computed": 5000, "supervised": 1000})
    (run.folder / "checkpoints" / "step-000020").mkdir(parents=True)
    return run


def test_runs_are_listed_with_status_and_verdict(command: Command, finished: Run) -> None:
    lines = command("runs", "list").out.splitlines()
    updated = finished.status()["updated"]
    assert lines[0].split() == ["run", "status", "step", "verdict", "metric", "base", "->", "tuned", "updated"]
    assert lines[1].split() == [
        "runs/rows",
        "finished",
        "20/20",
        "better",
        "exact_match",
        "0.05",
        "->",
        "0.85",
        updated,
    ]


def test_the_list_under_json_has_every_fact(command: Command, finished: Run) -> None:
    (found,) = command("runs", "list", "--json").json["runs"]
    assert list(found) == list(SUMMARY_KEYS)
    assert found["tuned"] == 0.85 and found["step"] == 20


def test_the_list_shows_the_metric_that_decided_and_its_values(
    command: Command, finished: Run, verdict: dict[str, Any]
) -> None:
    loss = {**verdict["metrics"]["exact_match"], "base": 6.0, "tuned": 5.5}
    metrics = {**verdict["metrics"], "loss": loss}
    finished.write_json("verdict.json", {**verdict, "decided_by": "loss", "metrics": metrics})
    (found,) = command("runs", "list", "--json").json["runs"]
    assert (found["metric"], found["base"], found["tuned"]) == ("loss", 6.0, 5.5)
    assert command("runs", "list").out.splitlines()[1].split()[4:8] == ["loss", "6", "->", "5.5"]


def test_a_run_whose_process_is_gone_is_interrupted_and_one_at_work_is_running(command: Command, finished: Run) -> None:
    finished.set_status("running")
    assert command("runs", "list", "--json").json["runs"][0]["status"] == "interrupted"
    with finished.lock():
        assert command("runs", "list", "--json").json["runs"][0]["status"] == "running"


def test_a_damaged_run_does_not_hide_the_others(command: Command, finished: Run, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "other"
    other.mkdir()
    (other / "recipe.yaml").write_text("")
    (other / "status.json").write_text("{")
    found = command("runs", "list", "--json").json["runs"]
    assert [(run["name"], run["status"]) for run in found] == [("other", "damaged"), ("rows", "finished")]


def test_a_folder_without_runs_and_no_folder_at_all(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert command("runs", "list", "empty").out == "There are no runs in empty.\n"
    outcome = command("runs", "list")
    assert outcome.code == 1
    assert outcome.err.startswith("error: runs: There is no such folder")


def test_show_has_facts_verdict_curve_and_checkpoints(command: Command, finished: Run) -> None:
    out = command("runs", "show", "runs/rows").out
    assert "rows      100 trained, 18 held out, 2 invalid\n" in out
    assert "tokens    5,000 computed, 1,000 supervised\n" in out
    assert "training  3 epochs, batch size 16, learning rate 0.0002\n" in out
    assert "Better than the base: exact_match 0.05 -> 0.85 on 40 held-out rows" in out
    assert "\n\ntraining loss: 4 at step 10, 2 at step 20\nvalidation loss: 1 at step 20\n" in out, "three are no curve"
    assert out.endswith("runs/rows/checkpoints/step-000020  best by validation loss\n")


def test_show_says_in_three_lines_what_a_probe_found(command: Command, finished: Run, verdict: dict[str, Any]) -> None:
    compared = {"base": 0.5, "tuned": 0.4, "difference": -0.1, "interval": [-0.2, -0.02]}
    tests = {"margin": 0.02, "not_worse": 0.9, "not_better": 0.01, "outcome": "not shown"}
    probe = {
        **{"name": "own.jsonl", "items": 100, "confidence": 0.95, "p_value": 0.01, "verdict": "worse", "reason": None},
        **{"equivalence": tests, "lost": ["a"] * 12, "gained": ["b"] * 2, **compared},
        "kinds": [{"kind": "facts", "items": 50, **compared}],
    }
    finished.write_json("verdict.json", {**verdict, "probe": probe})
    out = command("runs", "show", "runs/rows").out
    assert "Probe (own.jsonl): The tuned model lost abilities: 50 -> 40 of 100 answers right (difference -10.0" in out
    assert (
        "  right before, wrong now: 12; wrong before, right now: 2 (p = 0.01); no worse than 2 points: not shown" in out
    )
    assert "  worst kinds, with intervals in points: facts 25 -> 20 of 50 (-20.0 to -2.0)\n" in out
    for broken in ({"kinds": 3}, {"equivalence": {}}, {"items": "x"}, {"verdict": "odd"}, {"interval": []}):
        finished.write_json("verdict.json", {**verdict, "probe": {**probe, **broken}})
        assert "probe: It" in command("runs", "show", "runs/rows").err


def test_show_under_json_has_the_documented_keys(command: Command, finished: Run, verdict: dict[str, Any]) -> None:
    found = command("runs", "show", "runs/rows", "--json").json
    assert list(found) == list(JSON_KEYS["runs show"])
    assert found["training"] == [[10, 4.0], [20, 2.0]]
    assert found["validation"] == [[20, 1.0]]
    assert found["result"] == verdict


def test_show_says_why_a_run_failed(command: Command, finished: Run) -> None:
    finished.set_status("failed", error={"what": "The loss of step 3 is not finite"})
    (finished.folder / "verdict.json").unlink()
    assert "error: The loss of step 3 is not finite\n" in command("runs", "show", "runs/rows").out


def test_a_run_that_has_just_begun_can_be_shown(command: Command, tmp_path: Path) -> None:
    run = Run(tmp_path / "new")
    run.folder.mkdir()
    run.write_text("recipe.yaml", "model: m\ndata: {train: rows.jsonl}\noutput_dir: new\n")
    run.set_status("running")
    assert command("runs", "show", "new").code == 0
    assert command("runs", "list", ".").out.splitlines()[1].split()[:3] == ["new", "interrupted", "–"]


BROKEN = {
    "status.json": ["", "[]", "null", '"finished"', '{"status": []}', '{"step": "3"}', "[" * 100_000, "\udcff"],
    "verdict.json": ["[]", "3", '{"metrics": []}', '{"metrics": {"loss": 3}}'],
    "metrics.jsonl": ["3\n", "[]\n", "\udcff\n", '{"a": \n'],
}


@pytest.mark.parametrize(
    ("name", "text"),
    [pytest.param(name, text, id=f"{name} {n}") for name, texts in BROKEN.items() for n, text in enumerate(texts)],
)
def test_a_run_is_listed_as_damaged_whatever_its_files_hold(
    name: str, text: str, command: Command, finished: Run, tmp_path: Path
) -> None:
    shutil.copytree(finished.folder, tmp_path / "runs" / "other")
    (tmp_path / "runs" / "other" / name).write_bytes(text.encode(errors="surrogateescape"))
    found = command("runs", "list", "--json").json["runs"]
    assert [(run["name"], run["status"]) for run in found] == [("other", "damaged"), ("rows", "finished")]
    shown = command("runs", "show", "runs/other")
    assert shown.code == 1 and f"{name} is damaged" in shown.err


def test_what_is_no_run_is_refused(command: Command, tmp_path: Path) -> None:
    outcome = command("runs", "show", "nothing", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)["what"] == "This folder holds no run"


def test_watch_writes_a_line_for_everything_and_ends_with_the_run(command: Command, finished: Run) -> None:
    finished.write_text("metrics.jsonl", "")
    counts = {"tokens": 1000, "computed_tokens": 600, "tokens_per_second": 100.0}
    for step in range(1, 21):
        norm = 80.0 if step == 15 else 0.5
        line = {"step": step, "loss": 4 - step / 10, "learning_rate": 1e-4, "grad_norm": norm, **counts}
        finished.append("metrics.jsonl", line)
    finished.append("metrics.jsonl", {"step": 20, "eval_loss": 1.25, "eval_seconds": 1.0})
    sample = {"step": 20, "source": "rows.jsonl:3", "prompt": "?", "truth": "red", "answer": "blue", "stopped": True}
    finished.append("samples_during.jsonl", sample)
    outcome = command("runs", "watch", "runs/rows")
    lines = outcome.out.splitlines()
    assert outcome.code == 0
    assert lines[0] == "step 1/20  loss 3.9000  lr 1.00e-04  grad norm 0.5  tokens/s 100  saved 40%  3:10 left"
    assert lines[15].startswith("warning: step 15: the gradient norm of step 15 is 80, 160 times the usual 0.5.")
    assert lines[-3:] == [
        "step 20/20  eval loss 1.2500",
        "step 20/20  rows.jsonl:3 is answered 'blue' (expected 'red')",
        "the run is finished: better, exact_match 0.05 -> 0.85",
    ]
    assert "\r" not in outcome.out and "\x1b" not in outcome.out
    found = command("runs", "watch", "runs/rows", "--json").json
    assert list(found) == list(JSON_KEYS["runs watch"])
    assert [symptom["kind"] for symptom in found["symptoms"]] == ["gradient_spike"]


def test_watch_waits_for_a_run_that_a_process_prepares_and_refuses_a_folder_without_one(
    command: Command, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = command("runs", "watch", "runs/tows")
    assert outcome.code == 1 and "runs/tows: This folder holds no run" in outcome.err and "--wait" in outcome.err
    status = finished.status()
    (finished.folder / "status.json").unlink()
    note = Terminal.note

    def begins_when_heard(self: Terminal, text: str) -> None:
        note(self, text)
        finished.write_json("status.json", status)

    monkeypatch.setattr(Terminal, "note", begins_when_heard)
    monkeypatch.setattr("tunesmith.runs.watching.POLL", 0.02)
    outcome = command("runs", "watch", "runs/rows", "--wait")
    assert outcome.code == 0
    assert outcome.err == "waiting for a run in runs/rows\n"
    assert outcome.out.endswith("the run is finished: better, exact_match 0.05 -> 0.85\n")


def test_watch_on_a_screen_keeps_the_bar_and_ends_below_it(finished: Run) -> None:
    counts = {"tokens": 1000, "computed_tokens": 600, "tokens_per_second": 100.0}
    finished.write_text("metrics.jsonl", "")
    for step in range(1, 18):
        line = {"step": step, "loss": 4 - step / 10, "learning_rate": 1e-4, "grad_norm": 0.5, **counts}
        finished.append("metrics.jsonl", line)
    program = f"from tunesmith.cli.app import main; main(['runs', 'watch', {str(finished.folder)!r}])"
    drawn = on_a_screen(program, COLUMNS="60")
    rows = [row.rstrip() for row in rows_of(drawn) if row.strip()]
    bar = max(number for number, row in enumerate(rows) if "17/20" in row)
    assert rows[bar + 1 :] == [
        "  loss 2.3000  lr 1.00e-04  grad norm 0.5  tokens/s 100",
        "  saved 40%  left 0:30",
        "the run is finished: better, exact_match 0.05 -> 0.85",
    ]


def test_curves_are_drawn_into_a_file(command: Command, finished: Run, tmp_path: Path) -> None:
    outcome = command("runs", "curves", "runs/rows", "--out", "curves.svg", "--json")
    assert outcome.code == 0
    assert list(outcome.json) == list(JSON_KEYS["runs curves"])
    assert outcome.json["runs"][0]["validation"] == [[20, 1.0]]
    assert (tmp_path / "curves.svg").read_text().count("<polyline") == 2, "loss and validation loss; no rate, no norm"
    again = command("runs", "curves", "runs/rows", "--out", "curves.svg")
    assert again.code == 1 and "--overwrite" in again.err
    assert command("runs", "curves", "runs/rows", "--out", "curves.svg", "--overwrite").code == 0


def test_the_report_is_written_into_the_run_or_where_the_user_says(
    command: Command, finished: Run, tmp_path: Path
) -> None:
    outcome = command("runs", "report", "runs/rows", "--json")
    assert outcome.code == 0 and list(outcome.json) == list(JSON_KEYS["runs report"])
    assert outcome.json["files"] == ["runs/rows/report.html", "runs/rows/model_card.md"]
    assert command("runs", "report", "runs/rows", "--card", "card.md").out == "Wrote card.md\n"
    assert (tmp_path / "card.md").read_text() == (finished.folder / "model_card.md").read_text()
    (tmp_path / "mine.html").write_text("mine")
    refused = command("runs", "report", "runs/rows", "--html", "mine.html")
    assert refused.code == 1 and "not known to be written by Tunesmith" in refused.err
    assert command("runs", "report", "runs/none").code == 1


def answers_of(finished: Run, name: str = "samples.jsonl") -> None:
    lines = [
        {
            "source": f"rows.jsonl:{number}",
            "prompt": f"ask\n{number}",
            "truth": "yes",
            "base": "perhaps",
            "base_stopped": False,
            "tuned": "yes" if number else "no\nnever",
            "tuned_stopped": True,
            "scores": {"exact_match": float(number > 0)},
            "base_scores": {"exact_match": 0.0},
        }
        for number in range(3)
    ]
    finished.write_lines(name, lines)


def test_every_wrong_row_is_shown_with_both_answers_in_full(command: Command, finished: Run) -> None:
    answers_of(finished)
    out = command("runs", "show", "runs/rows", "--wrong").out
    assert out.splitlines()[:8] == [
        "1 of 3 answers are not right:",
        "  rows.jsonl:0  exact_match 0 -> 0",
        "    prompt ask",
        "           0",
        "    base   perhaps  (cut off)",
        "    tuned  no",
        "           never",
        "    truth  yes",
    ]
    found = command("runs", "show", "runs/rows", "--wrong", "--json").json
    assert list(found) == list(JSON_KEYS["runs show --wrong"])
    assert [each["source"] for each in found["wrong"]] == ["rows.jsonl:0"] and found["metric"] == "exact_match"


def test_wrong_rows_of_the_newest_evaluation_are_shown_too(command: Command, finished: Run) -> None:
    outcome = command("runs", "show", "runs/rows", "--wrong", "--eval")
    assert outcome.code == 1 and "Run `tunesmith eval runs/rows` first" in outcome.err
    assert command("runs", "show", "runs/rows", "--eval").code == 2
    verdict = finished.read_json("verdict.json")
    finished.append("evaluations.jsonl", {"time": "t", "target": "runs/rows", "settings": [], "data": None, **verdict})
    answers_of(finished, "evaluation_samples.jsonl")
    assert command("runs", "show", "runs/rows", "--wrong", "--eval").out.startswith("1 of 3 answers are not right:\n")


def test_the_advice_of_a_verdict_is_shown_with_the_folder_in_its_command(command: Command, finished: Run) -> None:
    advice = [{"reason": "cut off", "text": "3 were cut off.", "command": "tunesmith eval RUN max_new_tokens=64"}]
    finished.write_json("verdict.json", {**finished.read_json("verdict.json"), "advice": advice})
    out = command("runs", "show", "runs/rows").out
    assert "What next:\n  3 were cut off. Try: `tunesmith eval runs/rows max_new_tokens=64`\n" in out


@pytest.mark.parametrize(
    "odd",
    [
        {"advice": [{"text": 3}]},
        {"damage": [{"kind": "loss"}]},
        {"cannot_tell": ["m"]},
        {"cannot_tell": ["exact_match"]},
    ],
)
def test_odd_facts_of_a_verdict_are_one_message(command: Command, finished: Run, odd: dict[str, Any]) -> None:
    finished.write_json("verdict.json", {**finished.read_json("verdict.json"), **odd})
    outcome = command("runs", "show", "runs/rows")
    assert outcome.code == 1 and outcome.err.startswith("error: runs/rows/verdict.json: verdict.json is damaged")


def comparison(verdict: dict[str, Any], **changes: Any) -> dict[str, Any]:
    decides = {**verdict["metrics"]["exact_match"], "adjusted_p_value": 0.0003}
    verdict = {**verdict, "metrics": {"exact_match": decides}, "reason": "Ten rows differ."}
    return {
        "time": "now",
        "data": None,
        "rows": 40,
        "confidence": 0.95,
        "notes": ["Compared on 40 rows that all targets hold out."],
        "models": [{"name": "base"}, {"name": "runs/rows"}],
        "metrics": {"exact_match": {"base": 0.05, "runs/rows": 0.85}},
        "pairs": [{"from": "base", "to": "runs/rows", "verdict": verdict}],
        **changes,
    }


def test_the_last_comparison_is_shown_in_80_columns(command: Command, finished: Run) -> None:
    finished.append("comparisons.jsonl", comparison(finished.read_json("verdict.json")))
    lines = command("runs", "show", "runs/rows").out.splitlines()
    shown = lines[lines.index("compare at now, on held-out rows:") :][:8]
    assert shown == [
        "compare at now, on held-out rows:",
        "Compared on 40 rows that all targets hold out.",
        "   model      exact_match",
        "1  base              0.05",
        "2  runs/rows         0.85",
        "",
        "pair    verdict  decided by   difference  95% interval          p",
        "1 -> 2  better   exact_match        +0.8  +0.65 to +0.925  0.0003",
    ]
    assert "1 -> 2: Ten rows differ." in lines
    pairs = comparison(finished.read_json("verdict.json"))["pairs"] * 2  # one note of two pairs is one line
    finished.append("comparisons.jsonl", comparison(finished.read_json("verdict.json"), pairs=pairs))
    assert "1 -> 2, 1 -> 2: Ten rows differ.\n" in command("runs", "show", "runs/rows").out
    assert max(map(len, shown)) <= 80


@pytest.mark.parametrize(
    "odd",
    [
        {"pairs": [{"from": "base", "to": "runs/rows", "verdict": 3}]},
        {"pairs": [{"from": "base", "to": "another", "verdict": {}}]},
        {"models": [{}]},
        {"notes": "none"},
        {"metrics": {"exact_match": {"base": "high"}}},
        {"confidence": None},
        {"time": None},
    ],
)
def test_an_odd_comparison_is_named_and_the_rest_is_shown(command: Command, finished: Run, odd: dict[str, Any]) -> None:
    finished.append("comparisons.jsonl", comparison(finished.read_json("verdict.json"), **odd))
    outcome = command("runs", "show", "runs/rows")
    assert outcome.code == 0 and "comparisons.jsonl is not shown (" in outcome.out
    assert "validation loss: 1 at step 20" in outcome.out
