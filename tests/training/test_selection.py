"""The best step and the end of a run are counted as transformers counts them, and go on where a run goes on."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, TrainerControl

from tunesmith.recipe.settings import TrainingSettings
from tunesmith.training.selection import Selection, selection

VALUES = [2.0, 1.5, 1.45, 1.6, 1.44, 1.7, 1.43, 1.2, 1.2, 1.3, 1.25, 1.9]


def settings(**training: Any) -> TrainingSettings:
    return TrainingSettings.model_validate({"early_stopping_patience": 2, **training})


def reference(values: list[float], given: TrainingSettings) -> tuple[int | None, int]:
    """Where transformers' callback stops, and the best step so far, which its Trainer updates behind the callback."""
    callback = EarlyStoppingCallback(given.early_stopping_patience or 10**9, given.early_stopping_threshold)
    args: Any = SimpleNamespace(metric_for_best_model="loss", greater_is_better=given.higher_is_better)
    state: Any = SimpleNamespace(best_metric=None)
    control, best_step = TrainerControl(), 0
    for step, value in enumerate(values, 1):
        callback.on_evaluate(args, state, control, {"eval_loss": value})
        better = value > (state.best_metric or 0) if given.higher_is_better else value < (state.best_metric or 1e9)
        if state.best_metric is None or better:
            state.best_metric, best_step = value, step
        if control.should_training_stop:
            return step, best_step
    return None, best_step


@pytest.mark.parametrize("patience", [1, 2, 3, 4])
@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("higher", [False, True])
def test_a_run_stops_and_has_its_best_step_where_transformers_has_them(
    patience: int, threshold: float, higher: bool
) -> None:
    metric = "accuracy" if higher else "loss"
    given = settings(early_stopping_patience=patience, early_stopping_threshold=threshold, metric_for_best_model=metric)
    values = [4 - value for value in VALUES] if higher else VALUES
    found = Selection(metric)
    for step, value in enumerate(values, 1):
        found.add(step, value, given)
        if found.stopped_at is not None:
            break
    assert (found.stopped_at, found.best_step) == reference(values, given)


def test_a_selection_goes_on_from_its_state() -> None:
    given = settings()
    whole = Selection("loss")
    for step, value in enumerate(VALUES[:5], 1):
        whole.add(step, value, given)
    resumed = selection(given, json.loads(json.dumps(whole.state())))
    assert resumed == whole
    assert resumed is not None
    assert (resumed.best_step, resumed.best, resumed.stale) == (5, 1.44, 0)


def test_without_a_setting_that_selects_there_is_no_selection() -> None:
    assert selection(TrainingSettings(), {}) is None
    assert selection(TrainingSettings(load_best_model_at_end=True), {}) == Selection("loss")


@pytest.mark.parametrize(
    ("metric", "given", "higher"),
    [
        ("loss", None, False),
        ("eval_loss", None, False),
        ("perplexity", None, False),
        ("token_accuracy", None, True),
        ("my_loss", None, False),
        ("accuracy", None, True),
        ("errors", False, False),
    ],
)
def test_higher_is_better_but_for_losses_or_where_it_is_said(metric: str, given: bool | None, higher: bool) -> None:
    assert settings(metric_for_best_model=metric, greater_is_better=given).higher_is_better is higher
