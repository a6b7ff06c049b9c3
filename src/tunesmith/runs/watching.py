"""Watches a run from outside, by the files in its folder, until it ends. It does not import torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import RunError
from tunesmith.runs.folder import Run
from tunesmith.runs.overview import Summary, summary
from tunesmith.runs.progress import sample_line
from tunesmith.runs.stored_shapes import metric_lines, sample_lines, validation_metrics
from tunesmith.runs.symptoms import Symptom, Watch

POLL = 1.0  # seconds between two looks
_RECENT = 20  # the time left is estimated by so many lines of metrics
_FACTS = (  # of a line of metrics: its key, its name for the reader, and its format
    ("loss", "loss", ".4f"), ("eval_loss", "eval loss", ".4f"), ("learning_rate", "lr", ".2e"),
    ("grad_norm", "grad norm", ".3g"), ("tokens_per_second", "tokens/s", ".0f"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """Something new in the folder.

    Args:
        kind: ``step`` (a line of training metrics), ``evaluation``, ``sample``, ``symptom``, ``restarted`` (the run
            continues after an earlier step), ``judging`` (all steps are done) or ``end``.
        step: where it happened.
        total_steps: of the run, if they are known.
        facts: values as text, by name, in the order to show them.
        text: of a symptom, a sample or an end.
        seconds_left: until the last step, if they are known.
    """

    kind: Literal["step", "evaluation", "sample", "symptom", "restarted", "judging", "end"]
    step: int
    total_steps: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    seconds_left: float | None = None


class Watcher:
    """Finds what is new in a run's folder since the last look. A run has ``ended`` once no process works in it."""

    def __init__(self, folder: str | Path) -> None:
        """Raises RunError if there is no run."""
        self.run = Run.open(folder)
        self._begin()
        self._samples = 0
        self.summary = summary(self.run)
        self._judging = self.ended = False

    @property
    def symptoms(self) -> list[Symptom]:
        """All symptoms so far."""
        return self._watch.found

    def look(self) -> Iterator[Event]:
        """Everything that is new, in the order of the run. The end comes last, once."""
        held = self.run.is_held()  # read before the status, and that before the files: no last line of a run is missed
        now = settled(self.run)
        judging = now.status == "running" and "judged_step" in self.run.status()
        self.summary = now
        if now.status != "damaged":
            yield from sorted([*self._lines(), *self._new_samples()], key=lambda event: event.step)
        total = now.total_steps
        if judging and not self._judging:
            self._judging = True
            yield Event("judging", now.step or 0, total, text="training done; evaluating both models")
        # A process that is there under another status is about to start over, to continue, or to end.
        if not self.ended and (now.status == "damaged" or (now.status != "running" and not held)):
            self.ended = True
            yield Event("end", now.step or 0, total, text=_ending(now, self.run))

    def _begin(self) -> None:
        self._seen: list[dict[str, Any]] = []
        self._watch = Watch()
        self._tokens = self._computed = 0
        self._last_evaluation: float | None = None

    def _lines(self) -> Iterator[Event]:
        lines, total = metric_lines(self.run), self.summary.total_steps
        if lines[: len(self._seen)] != self._seen:  # the run continues after an earlier step
            same = next(n for n, line in enumerate([*self._seen, None]) if n >= len(lines) or line != lines[n])
            self._begin()
            for line in lines[:same]:
                self._take(line)
            self._judging = False
            step = lines[same - 1]["step"] if same else 0
            yield Event("restarted", step, total, text=f"the run continues after step {step}")
        for line in lines[len(self._seen) :]:
            new = self._take(line)
            kind = "evaluation" if "eval_loss" in line else "step"
            left = seconds_left(self._seen, total) if kind == "step" else None
            yield Event(kind, line["step"], total, self._facts(line), seconds_left=left)
            yield from (Event("symptom", found.step, total, text=found.text) for found in new)

    def _take(self, line: dict[str, Any]) -> list[Symptom]:
        self._seen.append(line)
        self._tokens += line.get("tokens", 0)
        self._computed += line.get("computed_tokens", 0)
        self._last_evaluation = line.get("eval_loss", self._last_evaluation)
        return self._watch.see(line)

    def _facts(self, line: Mapping[str, Any]) -> dict[str, str]:
        if "eval_loss" in line:
            others = {name: format(value, ".4g") for name, value in validation_metrics(line).items()}
            return {"eval loss": f"{line['eval_loss']:.4f}", **others}
        known = {**line, "eval_loss": self._last_evaluation}
        facts = {name: format(known[key], form) for key, name, form in _FACTS if known.get(key) is not None}
        if self._computed < self._tokens:
            facts["saved"] = f"{1 - self._computed / self._tokens:.0%}"
        return facts

    def _new_samples(self) -> Iterator[Event]:
        lines = sample_lines(self.run)
        self._samples = min(self._samples, len(lines))
        for line in lines[self._samples :]:
            yield Event("sample", line["step"], self.summary.total_steps, text=sample_line(line))
        self._samples = len(lines)


def begun(
    folder: str | Path,
    *,
    wait: bool = False,
    say: Callable[[str], None] = lambda text: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Run:
    """The run in a folder, once it has begun. Waits for a process that still reads data or loads a model there.

    Args:
        folder: of the run.
        wait: also wait if no process works in the folder yet, or there is no folder.
        say: hears once what this waits for.
        sleep: waits some seconds.

    Raises:
        RunError: there is no run, and none is about to begin.
    """
    run, said = Run(folder), set[str]()
    while True:
        held = run.is_held()  # read before the status: a run that has ended since counts as begun
        if _has_begun(run, held=held):
            return run
        if held:
            news = f"{folder}: process {run.holder()} is reading data or loading the model"
        elif wait and not run.folder.is_file():
            news = f"waiting for a run in {folder}"
        else:
            raise _no_run(folder, ended=bool(said))
        if news not in said:
            said.add(news)
            say(news)
        sleep(POLL)


def _has_begun(run: Run, *, held: bool) -> bool:
    """Whether there is a run, and no process is about to replace or to continue it."""
    try:
        return run.exists() and (not held or run.status().get("status") == "running")
    except RunError:  # damaged: reading it says so
        return True


def _no_run(folder: str | Path, *, ended: bool) -> RunError:
    if ended:
        return RunError(
            "No run has begun in this folder",
            where=str(folder),
            why="The process that worked here has ended before its first step.",
            remedy="Its output says why. Train again, or add --wait to wait for the next run.",
        )
    return RunError(
        "This folder holds no run",
        where=str(folder),
        why="A run folder has a recipe.yaml and a status.json, and no process is about to write them.",
        remedy="Name a folder that `tunesmith train` has written (`tunesmith runs list` shows them), or add --wait to "
        "wait until a run begins there.",
    )


def follow(watcher: Watcher, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[Event]:
    """Every event of a run, from its beginning to its end."""
    while True:
        yield from watcher.look()
        if watcher.ended:
            return
        sleep(POLL)


def settled(run: Run) -> Summary:
    """The run in one line, read twice if need be: a process that ends between two reads is not interrupted."""
    found = summary(run)
    return summary(run) if found.status == "interrupted" else found


def seconds_left(lines: list[dict[str, Any]], total_steps: int | None) -> float | None:
    """Seconds until the last step at the pace of the latest lines, evaluations included; None where it is not known."""
    recent = lines[-_RECENT:]
    steps = [line for line in recent if line.get("tokens_per_second")]
    if total_steps is None or not steps:
        return None
    before = [line["step"] for line in lines[: -len(recent)] if line["step"] < steps[0]["step"]]
    taken = steps[-1]["step"] - (before[-1] if before else 0)
    seconds = sum(line["tokens"] / line["tokens_per_second"] for line in steps)
    seconds += sum(line.get("eval_seconds", 0.0) for line in recent)
    return seconds / taken * (total_steps - steps[-1]["step"]) if taken > 0 else None


def _ending(found: Summary, run: Run) -> str:
    if found.status == "failed":
        error = run.status().get("error") or {}
        return f"the run failed: {error.get('what', 'for an unknown reason')}"
    if found.status == "finished":
        change = ""
        if found.metric is not None and found.base is not None and found.tuned is not None:
            change = f", {found.metric} {found.base:.4g} -> {found.tuned:.4g}"
        return f"the run is finished: {found.verdict or 'no verdict'}{change}"
    reasons = {
        "stopped": "was stopped",
        "interrupted": "was interrupted: its process is gone",
        "starting": "was interrupted before its first step",
        "unknown": "is gone: its folder has no status.json",
    }
    return f"the run {reasons.get(found.status, f'is {found.status}')}"
