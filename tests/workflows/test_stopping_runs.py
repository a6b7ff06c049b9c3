"""Ctrl-C and SIGTERM while a run trains: a checkpoint, how to continue, and the same bytes in the end."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.terminal.text import folded
from tunesmith.errors import RunError, TrainError
from tunesmith.planning import budget, memory
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Advance, Silent
from tunesmith.training import checkpoint
from tunesmith.workflows.finetune import train

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink"]
LAST = 8  # step of the run


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Any]:
    rows = tmp_path_factory.mktemp("stopping") / "rows.jsonl"
    pairs = [{"instruction": "Name it.", "input": f"{WORDS[n % 7]} {n}", "output": WORDS[n % 7]} for n in range(44)]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(rows), "eval": 0.25},
        "method": {"name": "lora", "r": 4, "lora_dropout": 0.1},
        "training": {
            "learning_rate": 1e-2, "max_steps": LAST, "batch_size": 8, "micro_batch_tokens": 160, "logging_steps": 3,
            "eval_steps": 2, "save_steps": 3, "report_to": "none", "threads": 1,
        },
        "evaluation": {"metrics": ["exact_match"], "max_new_tokens": 6, "resamples": 200, "samples": 1},
        "output_dir": str(rows.parent / "whole"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(values: dict[str, Any]) -> Path:
    """The folder of the same run without a stop."""
    return train(values).run


class Signals(Silent):
    """Sends a signal to this process in a step, and keeps what is said."""

    def __init__(self, step: int | None = None, number: int = signal.SIGINT) -> None:
        self.step, self.number = step, number
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        def advance(done: int, facts: Any) -> None:
            if title == "training" and done == self.step:
                os.kill(os.getpid(), self.number)

        yield advance


def content(folder: Path) -> dict[str, Any]:
    """What a run computed: every byte of the last checkpoint, and lines and verdict without times."""
    run = Run(folder)
    lines = [
        {key: value for key, value in line.items() if "second" not in key}
        for name in ("metrics.jsonl", "samples_during.jsonl", "samples.jsonl")
        for line in run.read_lines(name)
    ]
    files = {path.name: path.read_bytes() for path in run.checkpoints[-1].iterdir()}
    return {"files": files, "lines": lines, "verdict": run.read_json("verdict.json"), "best": run.status().get("best")}


@pytest.mark.parametrize("step", [1, 6, LAST])  # nothing is due; a validation and a checkpoint; the end
def test_ctrl_c_saves_the_step_and_the_run_continues_to_the_same_bytes(
    step: int, values: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    stopped, listener = {**values, "output_dir": str(tmp_path / "a run")}, Signals(step)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(stopped, listener=listener)
    assert caught.type is KeyboardInterrupt
    run = Run(stopped["output_dir"])
    assert run.checkpoints[-1].name == f"step-{step:06d}"
    assert run.status()["status"] == "stopped"
    assert listener.lines[-1] == (
        f"stopped: the checkpoint step-{step:06d} is saved. "
        f"To continue: `tunesmith train {shlex.quote(str(run.folder))} --resume`"
    )
    assert f"`tunesmith train {shlex.quote(str(run.folder))} --resume`" in folded(listener.lines[-1], 80)
    again = Signals()
    train(run.folder, resume=True, listener=again)
    assert f"continuing after step {step} of {LAST}" in again.lines
    assert content(run.folder) == content(whole)


@pytest.mark.slow
def test_a_run_that_is_stopped_at_every_step_ends_with_the_same_bytes(
    values: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    stopped = {**values, "output_dir": str(tmp_path / "run")}
    for step in range(1, LAST + 1):
        with pytest.raises(KeyboardInterrupt):
            train(stopped, resume=True, listener=Signals(step))
    train(stopped, resume=True)
    assert content(Path(stopped["output_dir"])) == content(whole)


def test_a_stop_before_a_validation_keeps_the_choice_of_the_best_step(values: dict[str, Any], tmp_path: Path) -> None:
    training = {**values["training"], "load_best_model_at_end": True, "early_stopping_patience": 2}
    values = {**values, "training": training, "output_dir": str(tmp_path / "whole")}
    train(values)
    stopped = {**values, "output_dir": str(tmp_path / "run")}
    for step in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            train(stopped, resume=True, listener=Signals(step))
    train(stopped, resume=True)
    found, expected = Run(stopped["output_dir"]), Run(values["output_dir"])
    assert content(found.folder) == content(expected.folder)
    assert found.status()["selection"] == expected.status()["selection"]


def test_a_kill_after_a_validation_that_was_put_off_writes_no_line_twice(
    values: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = {**values, "output_dir": str(tmp_path / "run")}
    with pytest.raises(KeyboardInterrupt):
        train(stopped, listener=Signals(2))

    def killed(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed after the validation")

    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.training.trainer.train_steps", killed)
        with pytest.raises(RuntimeError):
            train(stopped, resume=True)
    assert [line["step"] for line in Run(stopped["output_dir"]).read_lines("metrics.jsonl")] == [2]
    train(stopped, resume=True)
    assert content(Path(stopped["output_dir"])) == content(whole)


def test_a_thread_trains_without_hearing_signals(values: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    asked = {**values, "output_dir": str(tmp_path / "run")}
    thread = threading.Thread(target=train, args=(asked,))
    thread.start()
    thread.join()
    assert content(Path(asked["output_dir"])) == content(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_is_signalled_exits_with_its_code_and_says_how_to_continue(
    number: int, code: int, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # an adapter names its base from the folder in which its run started
    whole = train({**values, "output_dir": "whole"}).run
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({**values, "output_dir": "my run"}))
    command = [sys.executable, "-u", "-m", "tunesmith", "train"]
    monkeypatch.setenv("COLUMNS", "")  # a pipe has no width, and no line is broken
    process = subprocess.Popen(
        [*command, "recipe.yaml"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and "total_steps" not in Run(tmp_path / "my run").status():
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "stopping: this step ends and a checkpoint is saved" in out
    assert Run(tmp_path / "my run").checkpoints
    said = next(line for line in out.splitlines() if line.startswith("stopped: "))
    continues = shlex.split(said.partition("To continue: ")[2].strip("`"))
    assert continues == ["tunesmith", "train", "my run", "--resume"]
    done = subprocess.run([*command, *continues[2:]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "my run")["files"] == content(Path(whole))["files"]


# Optimizer states


def optimizers(run: Run) -> dict[str, bool]:
    """Which checkpoints keep the optimizer's state."""
    return {path.name: (path / "optimizer.safetensors").is_file() for path in run.checkpoints}


def test_only_the_newest_checkpoint_keeps_its_optimizer_unless_all_are_asked_for(
    values: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    assert optimizers(Run(whole)) == {"step-000003": False, "step-000006": False, "step-000008": True}
    training = {**values["training"], "save_only_model": False}
    kept = train({**values, "training": training, "output_dir": str(tmp_path / "all")}).run
    assert optimizers(Run(kept)) == {"step-000003": True, "step-000006": True, "step-000008": True}
    assert content(kept)["files"] == content(whole)["files"]


def test_resuming_without_an_optimizer_state_starts_again_and_gives_the_same_bytes(
    values: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    stopped = {**values, "output_dir": str(tmp_path / "run")}
    with pytest.raises(KeyboardInterrupt):
        train(stopped, listener=Signals(7))
    run = Run(stopped["output_dir"])
    shutil.rmtree(run.checkpoints[-1])
    listener = Signals()
    train(run.folder, resume=True, listener=listener)
    (warned,) = [line for line in listener.lines if "has no optimizer state" in line]
    assert "a newer checkpoint than" in warned and "so the run starts again from its first step" in warned
    assert content(run.folder) == content(whole)


def test_a_kill_right_after_a_checkpoint_and_before_the_older_state_is_gone_loses_nothing(
    values: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = {**values, "output_dir": str(tmp_path / "run")}
    run = Run(stopped["output_dir"])

    def killed(folder: Path, *, newest: int) -> None:
        assert optimizers(run)[f"step-{newest:06d}"], "the newer one is whole"
        if newest == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.training.checkpoint.remove_older_optimizers", killed)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    assert optimizers(run) == {"step-000003": True, "step-000006": True}
    train(stopped, resume=True)
    assert optimizers(run) == {"step-000003": False, "step-000006": False, "step-000008": True}
    assert content(run.folder) == content(whole)


@pytest.mark.parametrize("step", [3, 6])
def test_a_checkpoint_that_cannot_be_written_leaves_the_optimizer_of_the_one_before(
    step: int, values: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        if f"step-{step:06d}" in str(path):
            raise OSError(28, "No space left on device")
        original(tensors, path)

    stopped = {**values, "output_dir": str(tmp_path / "run")}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(TrainError, match="The checkpoint cannot be written"):
            train(stopped)
    assert optimizers(Run(stopped["output_dir"])) == ({} if step == 3 else {"step-000003": True})
    train(stopped, resume=True)
    assert content(Path(stopped["output_dir"])) == content(whole)


# Finished runs


def test_a_finished_run_is_resumed_whatever_auto_came_to(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {**values["training"], "micro_batch_tokens": "auto", "threads": "auto", "max_steps": 1}
    asked = {**values, "training": training, "output_dir": str(tmp_path / "run")}
    first = train(asked)
    monkeypatch.setattr(memory, "total_memory", lambda device: 1 << 20)  # another machine, far too small
    monkeypatch.setattr(budget, "threads", lambda: 77)
    for recipe in (asked, first.run, first.run / "recipe.yaml"):
        listener = Signals()
        again = train(recipe, resume=True, listener=listener)
        assert (again.already_finished, again.verdict) == (True, first.verdict)
        assert listener.lines[-1] == f"{first.run} is finished already"
    with pytest.raises(RunError, match="another recipe"):
        train(first.run / "recipe.yaml", ["training.seed=5"], resume=True)
