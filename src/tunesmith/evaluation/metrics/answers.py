"""The metrics over answers by their names in a recipe, or a Python function `score.py:score`.

To add one, copy one of the files beside this one and add its class to METRICS, and its name to the recipe's settings.
Names and reference answers are checked before training, so this module does not import torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence

from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.endpoint import endpoint_of
from tunesmith.evaluation.metrics import judged
from tunesmith.evaluation.metrics.answer_length import AnswerLength
from tunesmith.evaluation.metrics.base import (
    COMPUTE_METRICS_KEY,
    DURING_KEY,
    METRICS_KEY,
    AnswerRows,
    Scores,
    TextMetric,
)
from tunesmith.evaluation.metrics.by_likelihood import ByLikelihood, LikelihoodMetric
from tunesmith.evaluation.metrics.calibration import NOT_COMPARED, BrierScore, CalibrationError
from tunesmith.evaluation.metrics.classification import LabelMetric
from tunesmith.evaluation.metrics.edit_similarity import EditSimilarity
from tunesmith.evaluation.metrics.exact_match import ExactMatch
from tunesmith.evaluation.metrics.json_answers import JsonExact, JsonFieldF1, JsonFields, JsonSchema, JsonValid
from tunesmith.evaluation.metrics.number_match import NumberMatch
from tunesmith.evaluation.metrics.regex_match import RegexMatch
from tunesmith.evaluation.metrics.rouge import Rouge
from tunesmith.evaluation.metrics.translation import Bleu, ChrF
from tunesmith.evaluation.metrics.user_functions import function_metric, import_function
from tunesmith.recipe.settings import (
    LIKELIHOOD_METRICS,
    NOT_OF_ONE_ANSWER,
    PREFERENCE_METRICS,
    TOKEN_METRICS,
    EvaluationSettings,
)

METRICS: dict[str, Callable[[EvaluationSettings], TextMetric]] = {
    "exact_match": lambda settings: ExactMatch(settings.normalize),
    "accuracy": lambda settings: LabelMetric("accuracy", settings.normalize),
    "macro_f1": lambda settings: LabelMetric("macro_f1", settings.normalize),
    "json_valid": lambda _: JsonValid(),
    "json_schema": lambda settings: JsonSchema(settings.json_schema or {}),
    "json_exact": lambda _: JsonExact(),
    "json_fields": lambda _: JsonFields(),
    "json_field_f1": lambda _: JsonFieldF1(),
    "number_match": lambda _: NumberMatch(),
    "regex_match": lambda settings: RegexMatch(settings.answer_pattern or "", settings.normalize),
    "bleu": lambda _: Bleu(),
    "chrf": lambda _: ChrF(),
    "rouge1": lambda _: Rouge("rouge1"),
    "rouge2": lambda _: Rouge("rouge2"),
    "rougeL": lambda _: Rouge("rougeL"),
    "edit_similarity": lambda _: EditSimilarity(),
    "answer_length": lambda _: AnswerLength(),
}
LIKELIHOODS: dict[str, Callable[[], LikelihoodMetric]] = {
    "likelihood_accuracy": lambda: ByLikelihood("accuracy"),
    "likelihood_macro_f1": lambda: ByLikelihood("macro_f1"),
    "brier_score": BrierScore,
    "calibration_error": CalibrationError,
}


def check_metrics_exist(settings: EvaluationSettings) -> None:
    """Raises RecipeError if a metric does not exist, lacks a package, or would decide and cannot.

    Functions are imported and their parameters are checked.
    """
    if (first := next(iter(settings.metrics), None)) in NOT_COMPARED:
        raise RecipeError(
            f"{first} cannot decide a verdict",
            where=METRICS_KEY,
            why="It is shown for each model and is not compared, because its noise depends on how sure a model is. The "
            "first metric decides.",
            remedy=f"Put brier_score first, as in metrics=[brier_score, {first}].",
        )
    all_text_metrics(settings)
    likelihood_metrics([*settings.metrics, *settings.during])


def check_names(settings: EvaluationSettings) -> None:
    """Raises RecipeError if a metric does not exist. Packages and functions are not looked for."""
    for key, names in _named(settings):
        for name in names:
            _check_name(name, key)


def check_functions(evaluation: EvaluationSettings) -> None:
    """The same of everything that a recipe names: `compute_metrics`, and the key of a judge too."""
    check_metrics_exist(evaluation)
    if evaluation.judge is not None and judged.NAME in evaluation.metrics:
        endpoint_of(evaluation.judge)
    if evaluation.compute_metrics is not None:
        import_function(evaluation.compute_metrics, where=COMPUTE_METRICS_KEY)


def text_metrics(settings: EvaluationSettings) -> list[TextMetric]:
    """The metrics of a recipe that score answers, in order.

    Raises:
        RecipeError: an unknown name, a package that is not installed, or a function that cannot be imported or called.
    """
    return [_resolve(name, settings) for name in settings.answer_metrics]


def all_text_metrics(settings: EvaluationSettings) -> list[TextMetric]:
    """The same with those of validations, each once."""
    found = {name: _resolve(name, settings, key) for key, names in reversed(_named(settings)) for name in names}
    return [found[name] for name in dict.fromkeys(name for _, names in _named(settings) for name in names)]


def likelihood_metrics(names: Iterable[str]) -> list[LikelihoodMetric]:
    """Those of some metrics that score the likelihood of labels. Raises RecipeError if a package is not installed."""
    return [LIKELIHOODS[name]() for name in names if name in LIKELIHOODS]


def _named(settings: EvaluationSettings) -> list[tuple[str, list[str]]]:
    """The metrics of answers that a recipe names, by its keys."""
    named = ((METRICS_KEY, settings.metrics), (DURING_KEY, settings.during))
    return [(key, [name for name in names if name not in NOT_OF_ONE_ANSWER]) for key, names in named]


def needs_answers(settings: EvaluationSettings) -> bool:
    """Whether every question has to be answered: by a metric of answers, or of both models' answers."""
    without = (*TOKEN_METRICS, *PREFERENCE_METRICS, *LIKELIHOOD_METRICS)
    return any(name not in without for name in settings.metrics)


def check_truths(metrics: Sequence[TextMetric], truths: Sequence[str], sources: Sequence[str]) -> None:
    """Raises DataError at the first reference answer that a metric cannot score against, with its ``file:line``."""
    for truth, source in zip(truths, sources, strict=True):
        for metric in metrics:
            if fault := metric.fault_of(truth):
                raise DataError(
                    f"The reference answer cannot be judged by {metric.name}",
                    where=source,
                    why=f"{fault[0].upper()}{fault[1:]}. It is {truth[:200]!r}.",
                    remedy=f"Correct the row, or take {metric.name} out of {METRICS_KEY}.",
                )
    for metric in metrics:
        if fault := metric.fault_of_all(truths):
            raise DataError(
                f"The reference answers cannot be judged by {metric.name}",
                where=METRICS_KEY,
                why=f"{fault[0].upper()}{fault[1:]}.",
                remedy=f"Take {metric.name} out of {METRICS_KEY}, or limit evaluation.max_rows.",
            )


def score_answers(
    metrics: Sequence[TextMetric],
    *,
    answers: Sequence[str],
    truths: Sequence[str],
    prompts: Sequence[str],
    groups: Sequence[int] | None = None,
    labels: Sequence[str] = (),
) -> dict[str, Scores]:
    """Every metric on every row, by name. Reference answers have passed ``check_truths``.

    Raises:
        RecipeError: a user's function failed. The message names the row, counted from 1.
    """
    rows = AnswerRows(answers, truths, prompts, groups, labels)
    return {metric.name: metric.scores(rows) for metric in metrics}


def _resolve(name: str, settings: EvaluationSettings, key: str = METRICS_KEY) -> TextMetric:
    _check_name(name, key)
    return METRICS[name](settings) if name in METRICS else function_metric(name)


def _check_name(name: str, key: str) -> None:
    """Raises RecipeError if it names neither a metric nor a function."""
    if name in METRICS or ":" in name:
        return
    known = [*NOT_OF_ONE_ANSWER, *METRICS]
    close = difflib.get_close_matches(name, known, n=1)
    raise RecipeError(
        f"There is no metric {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
        where=key,
        why=f"Metrics are {', '.join(known)}.",
        remedy="Use one of them, or name a Python function as score.py:my_function.",
    )
