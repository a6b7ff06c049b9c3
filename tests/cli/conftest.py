"""Runs commands inside the test's process, with fakes where the library would load a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith.cli.app import main
from tunesmith.deploy.run_prompt import RunPrompt
from tunesmith.recipe.file import read_recipe
from tunesmith.workflows import starting

VERDICT = {
    "verdict": "better",
    "decided_by": "exact_match",
    "reason": None,
    "rows": 40,
    "confidence": 0.95,
    "resamples": 10_000,
    "seed": 0,
    "metrics": {
        "exact_match": {
            "base": 0.05,
            "tuned": 0.85,
            "difference": 0.8,
            "interval": [0.65, 0.925],
            "verdict": "better",
            "reason": None,
            "rows": 40,
        }
    },
}


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


@dataclass
class Calls:
    """What a fake was asked, and what it is to do."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    act: Callable[[], None] = lambda: None
    instruction: str | None = None


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """Runs one command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*argv: str) -> Outcome:
        with pytest.raises(SystemExit) as stopped:
            main(list(argv))
        captured = capsys.readouterr()
        code = stopped.value.code
        return Outcome(0 if code is None else int(code), captured.out, captured.err)

    return run


def replace_module(monkeypatch: pytest.MonkeyPatch, name: str, fake: Any) -> None:
    """Puts a fake in place of ``tunesmith.<name>``, whether or not the real one has been imported."""
    package, _, module = f"tunesmith.{name}".rpartition(".")
    monkeypatch.setitem(sys.modules, f"{package}.{module}", fake)
    monkeypatch.setattr(import_module(package), module, fake, raising=False)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """The name of a recipe that is read without a complaint, in the folder that commands run in."""
    (tmp_path / "recipe.yaml").write_text("model: m\ndata: {train: rows.jsonl}\noutput_dir: runs/rows\n")
    return "recipe.yaml"


@pytest.fixture
def finetune(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A library that trains nothing and is done at once."""
    calls = Calls()

    given: list[dict[str, Any]] = []

    @contextmanager
    def started(recipe: Any, overrides: Any, *, resume: bool, overwrite: bool, **more: Any) -> Iterator[Any]:
        if not Path(recipe).is_dir():
            read_recipe(recipe, overrides)  # reports an error
        given.append({"recipe": recipe, "overrides": overrides, "resume": resume, "overwrite": overwrite})
        yield SimpleNamespace()

    def train_in(start: Any, listener: Any) -> Any:
        calls.asked.append(given.pop())
        listener.say("the story")
        listener.warn("few rows")
        with listener.task("training", 4) as advance:
            calls.act()
            advance(4, {"loss": "0.5"})
        print("a library's own line")
        facts = {
            "run": "runs/rows",
            "verdict": "better",
            "metrics": VERDICT["metrics"],
            "seconds": 1.5,
            "tokens": {"rows": 9},
        }
        return SimpleNamespace(
            run=Path("runs/rows"), verdict=VERDICT, metrics=VERDICT["metrics"], to_json=lambda: facts
        )

    def dry_run(recipe: Any, overrides: Any = (), *, consent: Any = None, listener: Any = None) -> Any:
        return [
            ("training.seed", 0, "default"),
            ("model.path", "m", f"{recipe}:1"),
            ("training.learning_rate", 2e-4, "auto"),
        ]

    def evaluate(
        target: Any,
        *,
        data: Any = None,
        settings: Any = None,
        probe: Any = None,
        progress: Any = None,
        listener: Any = None,
        model: Any = None,
        trust_remote_code: Any = None,
        allow_functions: Any = None,
        allow_changes: Any = None,
    ) -> Any:
        calls.asked.append({"target": target, "data": data, "settings": settings, "probe": probe})
        calls.act()
        return VERDICT

    replace_module(monkeypatch, "workflows.finetune", SimpleNamespace(train_in=train_in, dry_run=dry_run))
    monkeypatch.setattr(starting, "started", started)
    replace_module(monkeypatch, "workflows.evaluate", SimpleNamespace(evaluated=evaluate))
    return calls


class FakeModel:
    """Answers with its name and the number of messages that it was sent."""

    describe = "model fake"
    changes = ()

    def __init__(self, calls: Calls, name: str = "tuned") -> None:
        self.calls, self.name = calls, name

    def run_prompt(self, *, raw: bool = False, instruction: str | None = None) -> RunPrompt:
        return RunPrompt() if raw else RunPrompt(instruction or self.calls.instruction, from_run=instruction is None)

    def stream(
        self, messages: Any, *, raw: bool = False, instruction: str | None = None, **settings: Any
    ) -> Iterator[str]:
        messages = self.run_prompt(raw=raw, instruction=instruction).around(messages)
        self.calls.asked.append({"messages": [(m.role, m.content) for m in messages], "settings": settings})
        yield f"{self.name}"
        self.calls.act()
        yield f" {len(messages)}\x07"

    def generate(self, messages: Any, **settings: Any) -> list[Any]:
        count = settings.get("num_return_sequences", 1)
        return [SimpleNamespace(text="".join(self.stream(messages, **settings)), tokens=(1, 2), stopped=True)] * count

    @contextmanager
    def base(self) -> Iterator[FakeModel]:
        yield FakeModel(self.calls, "base")


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A model that is loaded at once."""
    calls = Calls()
    replace_module(
        monkeypatch, "deploy.tuned", SimpleNamespace(load=lambda target, *, listener, **more: FakeModel(calls))
    )
    return calls


@pytest.fixture
def verdict() -> dict[str, Any]:
    """verdict.json of a run that got better."""
    return VERDICT
