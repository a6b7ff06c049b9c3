"""Checks everything that the evaluation section of a recipe names, before anything is loaded."""

from __future__ import annotations

from tunesmith.evaluation.baselines import check_baselines
from tunesmith.evaluation.metrics.answers import check_functions
from tunesmith.evaluation.probe.items import probe_of
from tunesmith.recipe.settings import EvaluationSettings


def check_evaluation(settings: EvaluationSettings) -> None:
    """Raises RecipeError or DataError for a metric, a function, a probe or a baseline that cannot be used.

    Functions are imported, so they must be allowed.
    """
    check_functions(settings)
    probe_of(settings.probe)
    check_baselines(settings)
