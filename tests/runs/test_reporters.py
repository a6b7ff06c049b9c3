"""Numbers go to the tools that are asked for; one that is not installed is refused before training."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest

from tunesmith.errors import RecipeError
from tunesmith.recipe.settings import ReporterName
from tunesmith.runs import reporters
from tunesmith.runs.folder import Run
from tunesmith.runs.reporters import PACKAGES, REPORTERS, check_reporters, chosen_reporters, open_reporters

VALUES = {"train/loss": 1.5, "train/grad_norm": 0.25}


def run_in(tmp_path: Path) -> Run:
    folder = tmp_path / "tickets"
    folder.mkdir()
    return Run(folder)


def test_every_name_of_the_recipe_has_a_reporter() -> None:
    assert set(get_args(ReporterName)) == set(REPORTERS) == set(PACKAGES)


def test_a_package_that_is_missing_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporters, "find_spec", lambda name: None if name in ("wandb", "sqlalchemy") else object())
    check_reporters(["tensorboard", "trackio"])
    with pytest.raises(RecipeError, match="mlflow, wandb is not installed") as error:
        check_reporters(["tensorboard", "mlflow", "wandb"])
    assert error.value.remedy is not None
    assert error.value.remedy.startswith("pip install mlflow wandb")


def test_tensorboard_is_an_extra_and_auto_takes_it_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporters, "find_spec", lambda name: object())
    assert chosen_reporters("auto") == ["tensorboard"]
    monkeypatch.setattr(reporters, "find_spec", lambda name: None)
    assert (chosen_reporters("auto"), chosen_reporters(["wandb"])) == ([], ["wandb"])
    with pytest.raises(RecipeError) as error:
        check_reporters(["tensorboard", "wandb"])
    assert error.value.remedy is not None
    assert error.value.remedy.startswith("pip install 'tunesmith[tensorboard]' and pip install wandb, or leave it out")


class Recorded:
    """Stands for a tool's client and keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.info, self.experiment_id = SimpleNamespace(run_id="run"), "experiment"

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append((name, arguments, named))
            return self

        return call


def module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    made = ModuleType(name)
    vars(made).update(content)
    monkeypatch.setitem(sys.modules, name, made)


def test_wandb_is_offline_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = Recorded()
    module(monkeypatch, "wandb", init=tool.init, Settings=lambda **given: given)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = run_in(tmp_path)
    (reporter,) = open_reporters(["wandb"], run, 0)
    reporter.log(VALUES, 3)
    reporter.close()
    (_, _, opened), logged, closed = tool.calls
    assert (opened["mode"], opened["name"], opened["dir"]) == ("offline", "tickets", str(run.folder))
    assert opened["settings"]["disable_git"] and opened["settings"]["x_disable_meta"]  # a command may hold a password
    assert logged == ("log", (VALUES,), {"step": 3})
    assert closed[0] == "finish"


def test_mlflow_writes_into_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, places = Recorded(), []
    module(monkeypatch, "mlflow", MlflowClient=lambda place: places.append(place) or tool)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = run_in(tmp_path)
    (reporter,) = open_reporters(["mlflow"], run, 0)
    reporter.log(VALUES, 3)
    reporter.close()
    assert places == [f"sqlite:///{run.folder / 'mlflow.db'}"]
    logged = [(arguments[1:], named) for name, arguments, named in tool.calls if name == "log_metric"]
    assert logged == [(("train/loss", 1.5), {"step": 3}), (("train/grad_norm", 0.25), {"step": 3})]
    assert tool.calls[-1][0] == "set_terminated"


@pytest.mark.parametrize(("step", "resume"), [(0, "never"), (5, "allow")])
def test_trackio_continues_a_run_that_is_continued(
    step: int, resume: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = Recorded()
    module(monkeypatch, "trackio", init=tool.init)
    (reporter,) = open_reporters(["trackio"], run_in(tmp_path), step)
    reporter.log(VALUES, 6)
    reporter.close()
    (_, _, opened), logged, closed = tool.calls
    assert (opened["project"], opened["name"], opened["resume"]) == ("tunesmith", "tickets", resume)
    assert logged == ("log", (VALUES,), {"step": 6})
    assert closed[0] == "finish"
