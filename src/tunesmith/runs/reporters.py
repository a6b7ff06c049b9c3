"""Where the numbers of a run go besides its own metrics.jsonl: TensorBoard, trackio, MLflow, Weights & Biases.

All write on this machine: into the run folder, or for trackio into its own. Nothing is sent anywhere unless the tool's
own environment variables (WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID) say so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any, Protocol

from tunesmith.errors import RecipeError
from tunesmith.runs.folder import Run

MODULES = {  # mlflow-skinny has no database
    "tensorboard": ("tensorboard",), "trackio": ("trackio",), "mlflow": ("mlflow", "sqlalchemy"), "wandb": ("wandb",),
}  # fmt: skip
PROJECT = "tunesmith"


class Reporter(Protocol):
    """Gets the numbers of a step, by name, and is closed at the end."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


def check_reporters(names: Sequence[str]) -> None:
    """Raises RecipeError for one whose package is not installed."""
    missing = [name for name in names if any(find_spec(module) is None for module in MODULES[name])]
    if missing:
        raise RecipeError(
            f"training.report_to: {', '.join(missing)} is not installed",
            where="training.report_to",
            remedy=f"pip install {' '.join(missing)}, or leave it out; metrics.jsonl is always written.",
        )


def open_reporters(names: Sequence[str], run: Run, step: int) -> list[Reporter]:
    """Ready to log.

    Args:
        step: the run continues behind this one; 0 where it begins.
    """
    return [REPORTERS[name](run, step) for name in names]


class TensorBoard:
    """Event files in the run folder; what is behind ``step`` is computed again, and its old values are dropped."""

    def __init__(self, run: Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Flushes the event file."""
        self._writer.close()


class Wandb:
    """Weights & Biases, offline: files in the run folder, which ``wandb sync`` sends if anybody asks it to."""

    def __init__(self, run: Run, step: int) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        name = run.folder.resolve().name
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        settings = wandb.Settings(silent=True, console="off")
        self._run = wandb.init(project=PROJECT, name=name, dir=str(run.folder), mode=mode, settings=settings)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One record."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finishes the record."""
        self._run.finish()


class Mlflow:
    """An SQLite file in the run folder, for ``mlflow ui --backend-store-uri sqlite:///<run>/mlflow.db``."""

    def __init__(self, run: Run, step: int) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        folder = run.folder.resolve()
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}"))
        known = self._client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known else self._client.create_experiment(PROJECT, str(folder / "mlflow"))
        self._id = self._client.create_run(experiment, run_name=folder.name).info.run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One metric each."""
        for name, value in values.items():
            self._client.log_metric(self._id, name, float(value), step=step)

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self._id)


class Trackio:
    """trackio's own folder (TRACKIO_DIR), for ``trackio show``."""

    def __init__(self, run: Run, step: int) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=PROJECT, name=run.folder.resolve().name, resume="allow" if step else "never", embed=False
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One record."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Waits until everything is written."""
        with redirect_stdout(sys.stderr):
            self._run.finish()


REPORTERS: dict[str, Any] = {"tensorboard": TensorBoard, "trackio": Trackio, "mlflow": Mlflow, "wandb": Wandb}
