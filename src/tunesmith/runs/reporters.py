"""Sends the numbers of a run to TensorBoard, trackio, MLflow or Weights & Biases, besides its own metrics.jsonl.

All of them write on this machine: into the run folder, or into trackio's own. Nothing is sent anywhere unless the own
environment variables of a tool (WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID) say so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from tunesmith.errors import RecipeError, pip_install
from tunesmith.recipe.settings import ReporterName
from tunesmith.runs.folder import Run

PACKAGES = {  # mlflow-skinny has no database
    "tensorboard": ("tensorboard",), "trackio": ("trackio",), "mlflow": ("mlflow", "sqlalchemy"), "wandb": ("wandb",),
}  # fmt: skip
_PROJECT = "tunesmith"


class MetricsReporter(Protocol):
    """Gets the numbers of a step by name, and is closed at the end."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


def check_reporters(names: Sequence[str]) -> None:
    """Raises RecipeError if the package of a reporter is not installed."""
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        others = " ".join(name for name in missing if name != "tensorboard")
        commands = [*([pip_install("tensorboard")] if "tensorboard" in missing else []), f"pip install {others}"]
        raise RecipeError(
            f"training.report_to: {', '.join(missing)} is not installed",
            where="training.report_to",
            remedy=f"{' and '.join(commands if others else commands[:1])}, or leave it out; metrics.jsonl is always "
            "written.",
        )


def chosen_reporters(asked: Sequence[ReporterName] | Literal["auto"]) -> list[ReporterName]:
    """The reporters by name; ``auto`` is TensorBoard where it is installed."""
    if asked != "auto":
        return list(asked)
    return ["tensorboard"] if _is_installed("tensorboard") else []


def _is_installed(name: str) -> bool:
    return all(find_spec(package) is not None for package in PACKAGES[name])


def open_reporters(names: Sequence[str], run: Run, step: int) -> list[MetricsReporter]:
    """The reporters, ready to log. The run continues after ``step``; 0 for a new run."""
    return [REPORTERS[name](run, step) for name in names]


class _TensorBoard:
    """Event files in the run folder. Values after ``step`` are dropped, because they are computed again."""

    def __init__(self, run: Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=step + 1 if step else None)
        self.close = self._writer.close

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class _Wandb:
    """Weights & Biases, offline: files in the run folder, for ``wandb sync``.

    The command line, the remote of git and facts of the machine stay out of them: they may hold secrets, and a run that
    is synchronized is seen by others. environment.json has what may be known.
    """

    def __init__(self, run: Run, step: int) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        name = run.folder.resolve().name
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        apart = {"disable_git": True, "disable_code": True, "save_code": False, "x_disable_meta": True}
        settings = wandb.Settings(silent=True, console="off", **apart, x_disable_machine_info=True)
        self._run = wandb.init(project=_PROJECT, name=name, dir=str(run.folder), mode=mode, settings=settings)
        self.close = self._run.finish

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)


class _Mlflow:
    """An SQLite file in the run folder, for ``mlflow ui --backend-store-uri sqlite:///<run>/mlflow.db``."""

    def __init__(self, run: Run, step: int) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        folder = run.folder.resolve()
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}"))
        known = self._client.get_experiment_by_name(_PROJECT)
        experiment = known.experiment_id if known else self._client.create_experiment(_PROJECT, str(folder / "mlflow"))
        self._id = self._client.create_run(experiment, run_name=folder.name).info.run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, float(value), step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class _Trackio:
    """trackio's own folder (TRACKIO_DIR), for ``trackio show``. What it prints goes to stderr."""

    def __init__(self, run: Run, step: int) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=_PROJECT, name=run.folder.resolve().name, resume="allow" if step else "never", embed=False
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()


REPORTERS: dict[str, Callable[[Run, int], MetricsReporter]] = {
    "tensorboard": _TensorBoard, "trackio": _Trackio, "mlflow": _Mlflow, "wandb": _Wandb,
}  # fmt: skip
