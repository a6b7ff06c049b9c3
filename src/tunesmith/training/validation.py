"""One validation during training: the loss of the current weights on the held-out rows, and other metrics.

Metrics of answers come after the loss pass and use what it has found (evaluation/during.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from torch import nn

from tunesmith.evaluation.during import measured_during, refuse_two_of_a_name
from tunesmith.evaluation.judge import Judge
from tunesmith.evaluation.metrics.computed import computed_metrics
from tunesmith.evaluation.metrics.perplexity import perplexity_of
from tunesmith.evaluation.metrics.tokens import TokenScores
from tunesmith.recipe.settings import PREFERENCE_METRICS
from tunesmith.runs.progress import Silent


@dataclass(frozen=True, slots=True)
class Validation:
    """What was measured. ``by_source`` has the loss on each source of a mixture, ``metrics`` other numbers by name."""

    scores: TokenScores
    loss: float
    by_source: dict[str, float]
    metrics: dict[str, float]
    selectable: dict[str, float]  # every number by which a step can be selected
    seconds: float

    def with_answers(self, during: Judge, model: nn.Module) -> Validation:
        """The same with the metrics of answers, measured with the same weights.

        Raises:
            ModelError: memory ran out.
            RecipeError: a function failed, or gives a metric of the same name.
        """
        began = time.perf_counter()
        refuse_two_of_a_name(during.settings.metrics, self.selectable)
        found = measured_during(during, model, self.scores)
        return replace(
            self,
            metrics={**self.metrics, **found},
            selectable={**self.selectable, **found},
            seconds=self.seconds + time.perf_counter() - began,
        )


def validate(judge: Judge, model: nn.Module, *, selected_by: str | None) -> Validation:
    """Measures the model without changing weights, modes or random state.

    Args:
        judge: of the validation rows.
        model: with the weights of this step.
        selected_by: the metric that selects the step, if one does. It is recorded too.

    Raises:
        ModelError: the loss of a row is not finite.
        RecipeError: the user's function failed.
    """
    began = time.perf_counter()
    scores = judge.token_scores(model, title="validation", listener=Silent())
    of_rows = judge.task.scores(scores)
    loss = of_rows["loss"].value
    metrics = {name: found.value for name, found in of_rows.items() if name in PREFERENCE_METRICS}
    if selected_by in ("bits_per_byte", "token_accuracy"):
        metrics[selected_by] = of_rows[selected_by].value
    if judge.settings.compute_metrics is not None:
        device = next(model.parameters()).device
        metrics |= computed_metrics(judge.settings.compute_metrics, model, judge.batches, device=device)
    perplexity = {"perplexity": float(perplexity_of(loss))} if judge.task.preferences is None else {}
    return Validation(
        scores=scores,
        loss=loss,
        by_source=judge.task.losses_by_source(of_rows["loss"]),
        metrics=metrics,
        selectable={"loss": loss, **perplexity, **metrics},
        seconds=time.perf_counter() - began,
    )
