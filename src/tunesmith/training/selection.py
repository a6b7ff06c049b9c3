"""Selects the step whose weights a run ends with by its held-out rows, and decides when to stop early."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.recipe.settings import TrainingSettings


@dataclass(slots=True)
class Selection:
    """The best step so far by one metric, by the rules of transformers' Trainer and EarlyStoppingCallback.

    ``stale`` counts the latest validations in which the metric was not better than the best by more than the threshold.
    All fields are saved in the checkpoint.
    """

    metric: str
    best_step: int | None = None
    best: float | None = None
    stale: int = 0
    stopped_at: int | None = None

    def add(self, step: int, value: float, settings: TrainingSettings) -> None:
        """Takes a validation's metric into account."""
        gain = 0.0 if self.best is None else value - self.best if settings.higher_is_better else self.best - value
        first = self.best is None
        self.stale = 0 if first or gain > settings.early_stopping_threshold else self.stale + 1
        if first or gain > 0:
            self.best_step, self.best = step, value
        patience = settings.early_stopping_patience
        if patience is not None and self.stale >= patience:
            self.stopped_at = step

    def state(self) -> dict[str, Any]:
        """All fields, for the checkpoint."""
        return asdict(self)


def selects_nothing(metric: str, lines: Iterable[Mapping[str, Any]]) -> str | None:
    """That a metric was the same at every validation, so that no step was better than another; None if it differed.

    Args:
        metric: the one that selects.
        lines: of metrics.jsonl.
    """
    values = [line[f"eval_{metric}"] for line in lines if line.get(f"eval_{metric}") is not None]
    if len(values) < 2 or len({*values}) > 1:
        return None
    by_loss = " Set training.metric_for_best_model=loss to select by the loss."
    other = "" if metric in ("loss", "perplexity") else by_loss
    return (
        f"{metric} was {values[0]:.6g} at all {len(values)} validations, so no step was better than another, and the "
        f"first one counts as the best.{other}"
    )


def selection(settings: TrainingSettings, state: Mapping[str, Any]) -> Selection | None:
    """A run's selection, as its checkpoint has it; None if the recipe asks for none."""
    if not settings.selects:
        return None
    return Selection(**state) if state else Selection(settings.metric_for_best_model)
