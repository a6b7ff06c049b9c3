"""A run is followed by its files: what is new, once, in order, until the run ends."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from tunesmith.errors import RunError
from tunesmith.runs import watching
from tunesmith.runs.folder import Run
from tunesmith.runs.watching import Event, Watcher, begun, follow, seconds_left


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.write_text("recipe.yaml", "model: m\ndata: {train: rows.jsonl}\noutput_dir: run\n")
    run.set_status("running", step=0, total_steps=40)
    return run


def trained(step: int, loss: float = 2.0, **changes: Any) -> dict[str, Any]:
    counts = {"tokens": 500, "computed_tokens": 400, "supervised_tokens": 100, "tokens_per_second": 50.0}
    return {
        "step": step,
        "epoch": step / 40,
        "loss": loss,
        "learning_rate": 1e-4,
        "grad_norm": 0.5,
        **counts,
        **changes,
    }


def evaluated(step: int, loss: float = 1.5) -> dict[str, Any]:
    return {"step": step, "epoch": step / 40, "eval_loss": loss, "eval_seconds": 5.0}


def test_each_line_is_told_once_with_all_that_matters(run: Run) -> None:
    with run.lock():
        watcher = Watcher(run.folder)
        assert list(watcher.look()) == []
        run.append("metrics.jsonl", trained(10))
        facts = {"loss": "2.0000", "lr": "1.00e-04", "grad norm": "0.5", "tokens/s": "50", "saved": "20%"}
        assert list(watcher.look()) == [Event("step", 10, 40, facts, seconds_left=30.0)]
        run.append("metrics.jsonl", evaluated(10))
        run.append("metrics.jsonl", trained(20))
        evaluation, step = watcher.look()
        assert evaluation == Event("evaluation", 10, 40, {"eval loss": "1.5000"})
        assert step.facts["eval loss"] == "1.5000"
        assert step.seconds_left == pytest.approx((10 + 5 + 10) / 20 * 20), "evaluations take their time too"
        assert list(watcher.look()) == [] and not watcher.ended


def test_sample_answers_are_told_as_they_come(run: Run) -> None:
    sample = {
        "step": 10,
        "source": "rows.jsonl:3",
        "prompt": "?",
        "truth": "red",
        "answer": "blue\nor",
        "stopped": True,
    }
    with run.lock():
        watcher = Watcher(run.folder)
        run.append("samples_during.jsonl", sample)
        assert [event.text for event in watcher.look()] == ["rows.jsonl:3 is answered 'blue or' (expected 'red')"]
        assert list(watcher.look()) == []


def test_what_looks_wrong_is_told_where_it_shows(run: Run) -> None:
    with run.lock():
        for step in range(1, 13):
            run.append("metrics.jsonl", trained(step, grad_norm=90.0 if step == 11 else 0.5))
        events = list(Watcher(run.folder).look())
    assert [event.kind for event in events] == ["step"] * 11 + ["symptom", "step"]
    assert events[11].text.startswith("the gradient norm of step 11 is 90")


def test_the_end_tells_how_it_ended(run: Run) -> None:
    def ending() -> str:
        watcher = Watcher(run.folder)
        *_, last = watcher.look()
        assert watcher.ended and last.kind == "end"
        return last.text

    assert ending() == "the run was interrupted: its process is gone"
    run.set_status("stopped")
    assert ending() == "the run was stopped"
    run.set_status("failed", error={"what": "Memory ran out"})
    assert ending() == "the run failed: Memory ran out"
    figures = {"base": 0.05, "tuned": 0.85, "difference": 0.8, "interval": [0.6, 0.9]}
    of_all = {"verdict": "better", "decided_by": "exact_match", "reason": None, "rows": 40, "confidence": 0.95}
    run.write_json("verdict.json", {**of_all, "metrics": {"exact_match": figures}})
    run.set_status("finished")
    assert ending() == "the run is finished: better, exact_match 0.05 -> 0.85"


def test_a_process_that_ends_between_two_looks_is_not_called_interrupted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, asked = watching.summary, []

    def summary(of: Run) -> Any:
        found = original(of)  # "running" was read, and then the process ended
        if not asked:
            run.set_status("finished")
        asked.append(found.status)
        return found

    monkeypatch.setattr(watching, "summary", summary)
    assert watching.settled(run).status == "finished"
    assert asked == ["interrupted", "finished"]


def test_a_run_is_followed_until_its_end(run: Run) -> None:
    work = ExitStack()
    script = [
        lambda: run.append("metrics.jsonl", trained(20)),
        lambda: None,
        lambda: run.append("metrics.jsonl", trained(40)),
        lambda: run.append("metrics.jsonl", evaluated(40)),
        lambda: run.set_status("running", step=40, judged_step=40),
        lambda: run.set_status("finished", step=40),
        work.close,
    ]
    acts = iter(script)
    with work:
        work.enter_context(run.lock())
        events = list(follow(Watcher(run.folder), sleep=lambda seconds: next(acts)()))
    assert [(event.kind, event.step) for event in events] == [
        ("step", 20), ("step", 40), ("evaluation", 40), ("judging", 40), ("end", 40),
    ]  # fmt: skip
    assert next(acts, None) is None


def test_a_run_that_stops_early_is_judged_too(run: Run) -> None:
    with run.lock():
        watcher = Watcher(run.folder)
        run.append("metrics.jsonl", trained(20))
        run.set_status("running", step=20, judged_step=10)
        assert [event.kind for event in watcher.look()] == ["step", "judging"]
        assert list(watcher.look()) == []


def test_a_run_that_is_cleared_begins_anew_or_never(run: Run) -> None:
    with run.lock():
        watcher = Watcher(run.folder)
        run.clear()
        assert list(watcher.look()) == [] and not watcher.ended
    assert [event.text for event in watcher.look()] == ["the run was interrupted before its first step"]


def test_a_run_whose_folder_goes_away_ends(run: Run) -> None:
    watcher = Watcher(run.folder)
    shutil.rmtree(run.folder)
    assert [event.text for event in watcher.look()] == ["the run is gone: its folder has no status.json"]


def waiting(folder: Path, *acts: Callable[[], object], wait: bool = False) -> tuple[Run | None, list[str]]:
    """What ``begun`` gives and says where something happens at each of its pauses; no run where it refuses."""
    said: list[str] = []
    todo = iter(acts)

    def sleep(seconds: float) -> None:
        next(todo)()

    try:
        return begun(folder, wait=wait, say=said.append, sleep=sleep), said
    except RunError as error:
        return None, [*said, error.what]


def test_a_run_that_a_process_prepares_is_waited_for(run: Run) -> None:
    status = run.folder / "status.json"
    status.unlink()
    with ExitStack() as work:
        work.enter_context(run.lock())
        found, said = waiting(run.folder, lambda: None, lambda: run.set_status("running", step=0))
    assert found is not None and found.folder == run.folder
    assert said == [
        f"{run.folder}: process {os.getpid()} on {os.uname().nodename} is reading data or loading the model"
    ]


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_a_run_that_is_about_to_be_replaced_or_to_go_on_is_waited_for(run: Run, status: Any) -> None:
    run.set_status(status, step=40)
    assert waiting(run.folder) == (ANY, []), "nobody works there: it is told as it stands"
    with run.lock():
        found, said = waiting(run.folder, lambda: run.set_status("running"))
        assert found is not None and len(said) == 1


def test_a_run_that_is_refused_before_it_begins_is_not_waited_for_any_longer(run: Run) -> None:
    (run.folder / "status.json").unlink()
    work = ExitStack()
    work.enter_context(run.lock())
    found, said = waiting(run.folder, work.close)
    assert found is None
    assert said[1:] == ["No run has begun in this folder"]


def test_where_nothing_begins_only_wait_waits(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"
    assert waiting(folder) == (None, ["This folder holds no run"])
    run = Run(folder)

    def begin() -> None:
        folder.mkdir(parents=True)
        run.set_status("running")

    found, said = waiting(folder, lambda: None, begin, wait=True)
    assert found is not None and said == [f"waiting for a run in {folder}"]
    (tmp_path / "file").touch()
    assert waiting(tmp_path / "file", wait=True) == (None, ["This folder holds no run"])


def test_a_damaged_run_is_not_waited_for(run: Run) -> None:
    (run.folder / "status.json").write_text("{")
    with run.lock():
        assert waiting(run.folder) == (ANY, [])
        assert [event.text for event in Watcher(run.folder).look()] == ["the run is damaged"]


def test_a_spike_between_two_lines_is_told_at_its_step(run: Run) -> None:
    norms = [0.5] * 20
    norms[13] = 30.0
    with run.lock():
        watcher = Watcher(run.folder)
        for step in (10, 20):
            run.append("metrics.jsonl", trained(step, grad_norms=norms[step - 10 : step]))
        assert [(event.kind, event.step) for event in watcher.look()] == [("step", 10), ("symptom", 14), ("step", 20)]


def test_a_run_that_is_continued_behind_an_earlier_step_is_told_so(run: Run) -> None:
    with run.lock():
        watcher = Watcher(run.folder)
        for step in range(1, 13):
            run.append("metrics.jsonl", trained(step, grad_norm=90.0 if step == 10 else 0.5))
        assert [event.kind for event in watcher.look()].count("symptom") == 1
        run.drop_after("metrics.jsonl", 11)
        (restarted,) = watcher.look()
        assert (restarted.kind, restarted.step) == ("restarted", 11)
        run.append("metrics.jsonl", trained(12, loss=1.9))
        assert [(event.kind, event.step) for event in watcher.look()] == [("step", 12)]
        run.drop_after("metrics.jsonl", 5)
        run.append("metrics.jsonl", trained(6, loss=1.0))
        assert [(event.kind, event.step) for event in watcher.look()] == [("restarted", 5), ("step", 6)]
        assert watcher.symptoms == [], "what it showed later has not happened"


def test_the_time_left_is_that_of_the_latest_pace() -> None:
    slow = [trained(step, tokens_per_second=1.0) for step in range(1, 21)]
    fast = [trained(step, tokens_per_second=500.0) for step in range(21, 41)]
    assert seconds_left(slow[:1], 100) == pytest.approx(500 * 99)
    assert seconds_left([*slow, *fast], 100) == pytest.approx(60.0)
    assert seconds_left([], 100) is None and seconds_left(slow, None) is None
    assert seconds_left(slow, 20) == 0


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        Watcher(tmp_path)
