"""Lines of metrics are means over labels, and a resumed recorder writes what the unstopped one would have written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.runs.folder import Run
from tunesmith.runs.progress import StepResult
from tunesmith.runs.recorder import Recorder
from tunesmith.runs.symptoms import symptoms

LOSSES = [1.0, 4.0, 0.3, 0.1, 0.7]
LABELS = [10, 5, 7, 3, 9]


def make_recorder(folder: Path, *, totals: dict[str, Any] | None = None, step: int = 0, **changes: Any) -> Recorder:
    folder.mkdir(exist_ok=True)
    every = changes.pop("logging_steps", 2)
    values: dict[str, Any] = {"line_due": lambda result: result.step % every == 0 or result.step == 5, "report_to": []}
    return Recorder(Run(folder), totals=totals or {}, step=step, **{"warn": lambda text: None, **values, **changes})


def result(step: int) -> StepResult:
    return StepResult(
        step=step,
        epoch=step / 3,
        loss=LOSSES[step - 1],
        denominator=float(LABELS[step - 1]),
        gradient_norm=0.5 * step,
        learning_rate=0.01 * step,
        tokens=100,
        computed_tokens=80,
        supervised_tokens=LABELS[step - 1],
        micro_batches=1,
        seconds=0.5,
    )


def test_a_line_is_the_mean_over_the_labels_of_its_window(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    for step in (1, 2, 3, 4, 5):
        recorder.on_step(result(step))
    lines = recorder.run.read_lines("metrics.jsonl")
    assert lines[0] == {
        "step": 2,
        "epoch": 0.6667,
        "loss": pytest.approx((1.0 * 10 + 4.0 * 5) / 15),
        "learning_rate": 0.02,
        "grad_norm": 1.0,
        "grad_norms": [0.5, 1.0],
        "tokens": 200,
        "computed_tokens": 160,
        "supervised_tokens": 15,
        "tokens_per_second": 200.0,
    }
    assert lines[1]["loss"] == pytest.approx((0.3 * 7 + 0.1 * 3) / 10)
    assert [line["step"] for line in lines] == [2, 4, 5], "the last step has its line too"
    assert (lines[2]["loss"], lines[2]["tokens"]) == (pytest.approx(0.7), 100)
    assert recorder.tokens == {"rows": 500, "computed": 400, "supervised": 34}


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 4])
def test_a_resumed_recorder_writes_the_same_lines(tmp_path: Path, stopped_after: int) -> None:
    whole = make_recorder(tmp_path / "whole")
    state = "{}"
    for step in (1, 2, 3, 4, 5):
        whole.on_step(result(step))
        if step == 2:
            whole.on_eval(2, 0.6667, 1.5, 0.1)
        if step == stopped_after:
            state = json.dumps(whole.state())
    resumed = make_recorder(tmp_path / "resumed", totals=json.loads(state), step=stopped_after)
    for step in range(stopped_after + 1, 6):
        resumed.on_step(result(step))
        if step == 2:
            resumed.on_eval(2, 0.6667, 1.5, 0.1)
    written = resumed.run.read_lines("metrics.jsonl")
    assert written == [line for line in whole.run.read_lines("metrics.jsonl") if line["step"] > stopped_after]
    assert resumed.state() == whole.state()


def test_a_run_that_ends_before_a_line_is_due_has_the_line_all_the_same(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    for step in (1, 2, 3):
        recorder.on_step(result(step))
    recorder.close()
    lines = recorder.run.read_lines("metrics.jsonl")
    assert [(line["step"], line["supervised_tokens"]) for line in lines] == [(2, 15), (3, 7)]


def test_the_best_step_is_the_first_of_the_lowest_validation_loss(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    for step, loss in ((1, 2.0), (2, 1.5), (3, 1.5), (4, 1.9)):
        recorder.on_eval(step, step / 4, loss, 0.12345)
    totals = recorder.totals
    assert (totals.best_step, totals.best_loss, totals.last_loss) == (2, 1.5, 1.9)
    assert recorder.run.read_lines("metrics.jsonl")[1] == {
        "step": 2,
        "epoch": 0.5,
        "eval_loss": 1.5,
        "eval_seconds": 0.123,
    }
    resumed = make_recorder(tmp_path, totals=recorder.state(), step=4)
    resumed.on_eval(5, 1.0, 1.6, 0.1)
    assert (resumed.totals.best_step, resumed.totals.best_loss) == (2, 1.5)


def test_progress_tells_how_the_run_stands(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    first = recorder.on_step(result(1))
    recorder.on_eval(1, 0.3, 1.23456, 0.1)
    second = recorder.on_step(result(2))
    rest = {"tokens/s": "200", "saved": "20%"}
    assert first == {"loss": "1.0000", "lr": "1.00e-02", "grad norm": "0.5", **rest}
    assert second == {"loss": "4.0000", "eval loss": "1.2346", "lr": "2.00e-02", "grad norm": "1", **rest}
    assert list(second) == ["loss", "eval loss", "lr", "grad norm", "tokens/s", "saved"]


def test_progress_shows_the_metrics_of_answers_and_so_does_a_run_that_goes_on(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    metrics = {"exact_match": 0.25, "reward_margin": 0.5}
    recorder.on_eval(1, 0.3, 1.2, 0.1, None, metrics, shown={"exact_match": 0.25})
    line = recorder.run.read_lines("metrics.jsonl")[0]
    assert (line["eval_exact_match"], line["eval_reward_margin"]) == (0.25, 0.5)
    for each in (recorder, make_recorder(tmp_path, totals=json.loads(json.dumps(recorder.state())), step=1)):
        facts = each.on_step(result(2))
        assert facts["eval exact match"] == "0.25" and "eval reward margin" not in facts


def test_nothing_is_called_saved_where_no_prefix_was_shared(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    assert "saved" not in recorder.on_step(dataclasses.replace(result(1), computed_tokens=100))


def test_what_looks_wrong_is_warned_of_once_also_by_a_continued_run(tmp_path: Path) -> None:
    def spike(step: int) -> StepResult:
        return dataclasses.replace(result(1), step=step, gradient_norm=50.0 if step in (12, 15) else 0.5)

    warned: list[str] = []
    recorder = make_recorder(tmp_path, logging_steps=1, warn=warned.append)
    for step in range(1, 14):
        recorder.on_step(spike(step))
    assert len(warned) == 1 and warned[0].startswith("step 12: the gradient norm of step 12 is 50, 100 times")
    resumed = make_recorder(tmp_path, totals=recorder.state(), step=13, logging_steps=1, warn=warned.append)
    for step in range(14, 21):
        resumed.on_step(spike(step))
    assert len(warned) == 1


def test_a_spike_between_two_lines_is_warned_of_at_its_step_and_not_again_by_a_continued_run(tmp_path: Path) -> None:
    def step_of(step: int) -> StepResult:
        return dataclasses.replace(result(1), step=step, gradient_norm=50.0 if step in (14, 17) else 0.5)

    warned: list[str] = []
    recorder = make_recorder(tmp_path, logging_steps=10, warn=warned.append)
    for step in range(1, 15):
        assert warned == []
        recorder.on_step(step_of(step))
    assert len(warned) == 1 and warned[0].startswith("step 14: the gradient norm of step 14 is 50, 100 times")
    state = json.loads(json.dumps(recorder.state()))
    assert state["norms"] == [0.5, 0.5, 0.5, 50.0], "of the steps since the line"
    resumed = make_recorder(tmp_path, totals=state, step=14, logging_steps=10, warn=warned.append)
    for step in range(15, 21):
        resumed.on_step(step_of(step))
    lines = resumed.run.read_lines("metrics.jsonl")
    assert [line["step"] for line in lines] == [5, 10, 20]
    assert lines[-1]["grad_norms"] == [step_of(step).gradient_norm for step in range(11, 21)]
    assert len(warned) == 1
    assert [(found.kind, found.step) for found in symptoms(lines)] == [("gradient_spike", 14)], "from the folder alone"


def test_what_was_warned_of_behind_the_checkpoint_is_warned_of_again(tmp_path: Path) -> None:
    warned: list[str] = []
    recorder = make_recorder(tmp_path, logging_steps=10)
    state: dict[str, Any] = {}
    for step in range(1, 15):
        recorder.on_step(dataclasses.replace(result(1), step=step, gradient_norm=50.0 if step == 14 else 0.5))
        if step == 12:
            state = json.loads(json.dumps(recorder.state()))
    resumed = make_recorder(tmp_path, totals=state, step=12, logging_steps=10, warn=warned.append)
    for step in (13, 14):
        resumed.on_step(dataclasses.replace(result(1), step=step, gradient_norm=50.0 if step == 14 else 0.5))
    assert [text.split(":")[0] for text in warned] == ["step 14"]


def test_tensorboard_gets_the_same_values_without_those_that_are_computed_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs pip install 'tunesmith[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = make_recorder(tmp_path, report_to=["tensorboard"], logging_steps=1)
    for step in (1, 2, 3):
        recorder.on_step(result(step))
    recorder.on_eval(3, 1.0, 2.5, 0.1)
    recorder.close()
    resumed = make_recorder(tmp_path, report_to=["tensorboard"], logging_steps=1, totals=recorder.state(), step=1)
    resumed.on_step(result(2))
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 4.0)]
    assert "train/learning_rate" in events.Tags()["scalars"]
    assert {"train/epoch", "train/grad_norms"}.isdisjoint(events.Tags()["scalars"])
