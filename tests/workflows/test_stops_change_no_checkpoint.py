"""A stop at any moment leaves the checkpoints of a run without a stop, byte for byte, and no other one.

The validation losses are given, so the best step and the end of each run are known.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Advance, Silent
from tunesmith.training import trainer
from tunesmith.training.loop import Step
from tunesmith.training.trainer import Trainer
from tunesmith.workflows.finetune import train

Moment = Literal["step", "validation"]
WORDS = ["red", "green", "blue", "black", "white", "brown", "pink"]


@dataclass(frozen=True)
class Case:
    """A run: its settings, the loss of each validation, and the checkpoints that it ends with."""

    training: Mapping[str, Any]
    losses: Mapping[int, float]
    kept: tuple[int, ...]

    @property
    def last(self) -> int:
        return max(self.losses)


CASES = {
    # Step 8 is saved only because it is the best; step 2 was, before it.
    "the best of all, one kept": Case(
        {"load_best_model_at_end": True, "save_total_limit": 1, "eval_steps": 2, "save_steps": 3, "max_steps": 9},
        {2: 1.0, 4: 2.0, 6: 3.0, 8: 0.5, 9: 4.0},
        (8, 9),
    ),
    # Until step 9 is validated step 3 is the best, which would stay in place of step 6.
    "two kept": Case(
        {"save_total_limit": 2, "eval_steps": 3, "save_steps": 3, "max_steps": 9}, {3: 1.0, 6: 2.0, 9: 0.5}, (6, 9)
    ),
    # Steps 5 and 6 get their line of metrics only because the run stops early there.
    "early stopping": Case(
        {"early_stopping_patience": 1, "logging_steps": 4, "eval_steps": 2, "save_steps": 20, "max_steps": 20},
        {2: 1.0, 4: 0.5, 6: 2.0},
        (6,),
    ),
}


class Signals(Silent):
    """Sends SIGINT at the end of a step."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    @contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        def advance(done: int, facts: Any) -> None:
            if title == "training" and done == self.step:
                os.kill(os.getpid(), signal.SIGINT)

        yield advance


def _run(values: dict[str, Any], name: str, case: Case, stop: tuple[Moment, int] | None = None) -> Path:
    """Trains, or goes on, with the given losses. Ctrl-C comes at the moment of a step."""
    moment, at = stop or ("step", None)
    folder = Path(values["output_dir"]) / name.replace(" ", "-")
    asked = {**values, "training": {**values["training"], **case.training}, "output_dir": str(folder)}
    validated = [0]
    measure, on_eval = trainer.validate, Trainer.on_eval

    def validate(*given: Any, **more: Any) -> Any:
        loss = case.losses[validated[0]]
        return replace(measure(*given, **more), loss=loss, selectable={"loss": loss})

    def heard(self: Trainer, step: Step) -> None:
        validated[0] = step.number
        on_eval(self, step)
        if (moment, at) == ("validation", step.number):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "validate", validate)
        patch.setattr(Trainer, "on_eval", heard)
        listener = Signals(at if moment == "step" else None)
        if stop is None:
            train(asked, resume=True, listener=listener)
        else:
            with pytest.raises(KeyboardInterrupt):
                train(asked, resume=True, listener=listener)
    return folder


def _content(folder: Path) -> dict[str, Any]:
    """Every byte of every checkpoint, and lines, verdict and status without times."""
    run = Run(folder)
    found: dict[str, Any] = {
        f"{path.name}/{file.name}": file.read_bytes() for path in run.checkpoints for file in sorted(path.iterdir())
    }
    for name in ("metrics.jsonl", "samples_during.jsonl", "samples.jsonl"):
        found[name] = [
            {key: value for key, value in line.items() if "second" not in key} for line in run.read_lines(name)
        ]
    status = run.status()
    return {**found, "verdict": run.read_json("verdict.json"), "best": (status["best"], status["judged_step"])}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("stops")
    pairs = [{"instruction": "Name it.", "input": f"{WORDS[n % 7]} {n}", "output": WORDS[n % 7]} for n in range(44)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.4},
        "method": {"name": "lora", "r": 4},
        "training": {
            "learning_rate": 1e-2, "batch_size": 8, "micro_batch_tokens": 160, "logging_steps": 3, "report_to": "none",
            "threads": 1,
        },
        "evaluation": {"resamples": 100, "samples": 1, "max_new_tokens": 2},
        "output_dir": str(folder),
    }  # fmt: skip


@pytest.fixture(scope="module")
def wholes(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each run comes to without a stop."""
    found = {}
    for name, case in CASES.items():
        folder = _run(values, name, case)
        assert [path.name for path in Run(folder).checkpoints] == [f"step-{step:06d}" for step in case.kept]
        found[name] = _content(folder)
    return found


@pytest.mark.parametrize(
    ("name", "moment", "at"),
    [
        ("the best of all, one kept", "validation", 8),  # the stop saves the step that the run would have saved
        ("two kept", "step", 9),  # the stop puts off the validation that finds the best step
        ("two kept", "step", 8),  # a checkpoint only to stop takes no place of another one
        ("early stopping", "step", 6),  # the stop puts off the validation that ends the run
    ],
)
def test_a_stop_and_a_run_that_goes_on_end_with_the_same_checkpoints(
    name: str, moment: Moment, at: int, values: dict[str, Any], wholes: dict[str, dict[str, Any]]
) -> None:
    case = CASES[name]
    folder = _run(values, f"{name} {moment} {at}", case, (moment, at))
    assert Run(folder).checkpoints[-1].name == f"step-{at:06d}"
    _run(values, f"{name} {moment} {at}", case)
    assert _content(folder) == wholes[name]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["step", "validation"])
@pytest.mark.parametrize("name", CASES)
def test_stops_at_every_step_and_in_every_validation_change_no_checkpoint(
    name: str, moment: Moment, values: dict[str, Any], wholes: dict[str, dict[str, Any]]
) -> None:
    case = CASES[name]
    for at in range(1, case.last + 1) if moment == "step" else case.losses:
        _run(values, f"{name} all {moment}", case, (moment, at))
    folder = _run(values, f"{name} all {moment}", case)
    found, wanted = _content(folder), wholes[name]
    limited = "save_total_limit" in case.training
    assert {key: found[key] for key in found if limited or not key.startswith("step-") or key in wanted} == wanted


def test_a_kill_after_the_validation_that_ends_a_run_writes_no_line_twice(
    values: dict[str, Any], wholes: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["early stopping"]
    folder = _run(values, "killed", case, ("step", case.last))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("tunesmith.training.checkpoint.save", _killed)
        _run(values, "killed", case)
    assert Run(folder).read_lines("metrics.jsonl")[-1]["step"] == case.last
    _run(values, "killed", case)
    assert _content(folder) == wholes["early stopping"]


def _killed(*_: Any, **__: Any) -> None:
    raise RuntimeError("killed")
