"""Metrics over answers: exact_match, json_valid, json_exact, json_fields, or a Python function `score.py:score`.

To add one, copy a class below and add it to METRICS. Names and reference answers are checked before training, so this
module does not import torch.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.data.files.json_rows import parse_json
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.metrics.base import COMPUTE_METRICS_KEY, METRICS_KEY, RowScores, TextMetric, row_scores
from tunesmith.evaluation.metrics.user_functions import function_metric, import_function
from tunesmith.recipe.settings import PREFERENCE_METRICS, TOKEN_METRICS, EvaluationSettings


class ExactMatch:
    """1 where answer and truth are the same text, in Unicode's NFC form and without white space around them."""

    name = "exact_match"

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """Compares with upper and lower case, punctuation and inner white space."""
        return float(_plain(answer) == _plain(truth))

    def is_lost(self, beginning: str, truth: str) -> bool:
        """Whether the truth does not begin like this, in the same form that ``score`` compares."""
        return not _plain(truth).startswith(_lasting(beginning))

    def fault_of(self, truth: str) -> str | None:
        """None: any text can be matched."""
        return None


class JsonValid:
    """1 where the answer is JSON and nothing else (see parse_json). The truth does not matter."""

    name = "json_valid"

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """Accepts any JSON value."""
        return float(_json_fault(answer) is None)

    def fault_of(self, truth: str) -> str | None:
        """None: the truth is not used."""
        return None


class JsonExact:
    """1 where the answer is JSON equal to the truth's. The order of keys does not matter, and 1 equals 1.0."""

    name = "json_exact"

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """An answer that is not JSON scores 0."""
        return float(_json_fault(answer) is None and same_json(parse_json(answer), parse_json(truth)))

    def fault_of(self, truth: str) -> str | None:
        """The truth must be JSON itself."""
        fault = _json_fault(truth)
        return fault and f"it is not JSON: {fault}"


class JsonFields:
    """Equal fields of a JSON object over the fields that answer or truth have: |equal| / |answer's and truth's keys|.

    Top-level fields are compared, each as a whole. A missing, a wrong and an invented field cost the same. An answer
    that is not a JSON object scores 0. Two empty objects score 1.
    """

    name = "json_fields"

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """From 0 to 1."""
        found = None if _json_fault(answer) else parse_json(answer)
        expected = parse_json(truth)
        if not isinstance(found, dict):
            return 0.0
        keys = found.keys() | expected.keys()
        equal = sum(key in found and key in expected and same_json(found[key], expected[key]) for key in keys)
        return equal / len(keys) if keys else 1.0

    def fault_of(self, truth: str) -> str | None:
        """The truth must be a JSON object."""
        if fault := _json_fault(truth):
            return f"it is not JSON: {fault}"
        return None if isinstance(parse_json(truth), dict) else "it is JSON but not an object, so it has no fields"


METRICS: dict[str, TextMetric] = {
    metric.name: metric for metric in (ExactMatch(), JsonValid(), JsonExact(), JsonFields())
}


def check_names(names: Sequence[str]) -> None:
    """Raises RecipeError if a metric does not exist. Functions are imported and their parameters are checked."""
    text_metrics(names)


def check_functions(evaluation: EvaluationSettings) -> None:
    """The same of everything that a recipe names, `compute_metrics` included."""
    check_names(evaluation.metrics)
    if evaluation.compute_metrics is not None:
        import_function(evaluation.compute_metrics, where=COMPUTE_METRICS_KEY)


def text_metrics(names: Sequence[str]) -> list[TextMetric]:
    """The metrics among these that need answers, in order.

    Raises:
        RecipeError: an unknown name, or a function that cannot be imported or called.
    """
    return [_resolve(name) for name in names if name not in (*TOKEN_METRICS, *PREFERENCE_METRICS)]


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


def score_answers(
    metrics: Sequence[TextMetric],
    *,
    answers: Sequence[str],
    truths: Sequence[str],
    prompts: Sequence[str],
    groups: Sequence[int] | None = None,
) -> dict[str, RowScores]:
    """Every metric on every row, by name. Reference answers have passed ``check_truths``.

    Raises:
        RecipeError: a user's function failed. The message names the row, counted from 1.
    """
    rows = list(zip(answers, truths, prompts, strict=True))
    return {metric.name: row_scores(list(_scores(metric, rows)), groups) for metric in metrics}


def _scores(metric: TextMetric, rows: Sequence[tuple[str, str, str]]) -> Iterator[float]:
    for number, row in enumerate(rows, start=1):
        try:
            yield metric.score(*row)
        except RecipeError as error:
            raise RecipeError(
                error.what, where=f"{METRICS_KEY}, row {number} of {len(rows)}", why=error.why, remedy=error.remedy
            ) from error


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _lasting(beginning: str) -> str:
    """What stays at the beginning of ``_plain`` whatever text follows: all but the last letter, which may get marks."""
    text = unicodedata.normalize("NFC", beginning).lstrip()
    last = next((place for place in range(len(text) - 1, -1, -1) if not unicodedata.combining(text[place])), 0)
    return text[:last].rstrip()


def _json_fault(text: str) -> str | None:
    try:
        parse_json(text)
    except ValueError as error:
        return str(error)
    return None


def same_json(one: Any, other: Any) -> bool:
    """Equality of parsed JSON: 1 equals 1.0, true does not equal 1, the order of keys does not matter."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other
    return type(one) is type(other) and one == other


def _resolve(name: str) -> TextMetric:
    if name in METRICS:
        return METRICS[name]
    if ":" in name:
        return function_metric(name)
    known = [*TOKEN_METRICS, *PREFERENCE_METRICS, *METRICS]
    close = difflib.get_close_matches(name, known, n=1)
    raise RecipeError(
        f"There is no metric {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
        where=METRICS_KEY,
        why=f"Metrics are {', '.join(known)}.",
        remedy="Use one of them, or name a Python function as score.py:my_function.",
    )
