"""Links and pipes in a run of somebody else: does a file of the user's change, or does a command wait for ever?

Each entry that a run writes or reads becomes a link to a file or folder of the user's, or a pipe. Then the folder is
locked, pruned, written to and read, in a fork with a limit of time. It survives if what is the user's stays as it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.faults.foreign_files import outcome
from tests.faults.table import Fault, Try

from tunesmith.runs.folder import Run
from tunesmith.runs.overview import details
from tunesmith.training.checkpoint import prune, remove_former_best, remove_older_optimizers, remove_unfinished

STEPS = ("step-000001", "step-000002", "step-000003")
FILES = (
    ".manifest.json.tunesmith-0123abcd", ".status.json.tunesmith-0123abcd", ".status.json.tmp",
    "evaluations.jsonl", "metrics.jsonl", ".lock",
    "status.json", "manifest.json", "verdict.json", "samples_during.jsonl", ".lock.held", "recipe.yaml",
    "functions/score.py", "start/adapter_config.json", "mlflow.db",
)  # fmt: skip
PLACES = (
    "checkpoints", "checkpoints/step-000001", "set_aside", "functions", "start", "tensorboard",
    "checkpoints/.step-000009", "checkpoints/.step-000001.old", "checkpoints/.step-000001.tunesmith-old",
    ".start.tmp", ".start.tunesmith-tmp",
)  # fmt: skip


def _fresh(folder: Path) -> tuple[Run, Path]:
    shutil.rmtree(folder, ignore_errors=True)
    run, home = Run(folder / "run"), folder / "home"
    for name in STEPS:
        for step in (home / name, run.folder / "checkpoints" / name):
            step.mkdir(parents=True)
            (step / "optimizer.safetensors").write_text("x")
            (step / "training_state.json").write_text('{"only_as_best": true}')
    (home / "profile").write_text("what is the user's own\n")
    run.write_text("recipe.yaml", "model: m\n")
    run.set_status("running", step=0)
    return run, home


def _work(run: Run) -> None:
    """What `eval` does, what `runs show` does, and what `train --resume` does."""
    run.write_json("verdict.json", {"verdict": "better"})
    run.set_status("running")
    details(run.folder) if run.exists() else None
    _trained(run)
    for name in ("evaluations.jsonl", "metrics.jsonl", "samples_during.jsonl"):
        run.append(name, {"step": 1})
        run.seal(name)


def _trained(run: Run) -> None:
    with run.lock():
        checkpoints = run.folder / "checkpoints"
        remove_unfinished(checkpoints)
        remove_older_optimizers(checkpoints, newest=3)
        remove_former_best(checkpoints, best=None)
        prune(checkpoints, keep=1, best=None)


def _content(folder: Path) -> dict[str, str | None]:
    return {str(path): path.read_text() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def _replace(entry: Path) -> None:
    shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
    entry.parent.mkdir(parents=True, exist_ok=True)


def _links(folder: Path, whole: bool) -> Iterator[Try]:
    for name, target in [*((name, "profile") for name in FILES), *((name, "") for name in PLACES)]:
        for act in (_work, _trained) if whole else (_trained,):
            run, home = _fresh(folder / "tried")
            before = _content(home)
            _replace(run.folder / name)
            (run.folder / name).symlink_to(home / target)
            lost = outcome(lambda act=act, run=run: act(run), folder, may_end_well=True)
            yield Try(f"{name} is a link", lost if _content(home) == before else "a file of the user's has changed")


def _pipes(folder: Path, whole: bool) -> Iterator[Try]:
    for name in FILES if whole else FILES[:8]:
        run, _ = _fresh(folder / "tried")
        _replace(run.folder / name)
        os.mkfifo(run.folder / name)
        yield Try(f"{name} is a pipe", outcome(lambda run=run: _work(run), folder, may_end_well=True))


def _hard_links(folder: Path, whole: bool) -> Iterator[Try]:
    for name in FILES:
        run, home = _fresh(folder / "tried")
        before = _content(home)
        _replace(run.folder / name)
        os.link(home / "profile", run.folder / name)
        lost = outcome(lambda run=run: _work(run), folder, may_end_well=True)
        yield Try(f"{name} is a hard link", lost if _content(home) == before else "a file of the user's has changed")


FAULTS = [Fault("foreign links", _links), Fault("foreign hard links", _hard_links), Fault("foreign pipes", _pipes)]
