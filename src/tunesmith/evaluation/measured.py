"""What was measured of a model, and the parts of a verdict that follow from it: details, slices, sources, samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.evaluation.compare import Level
from tunesmith.evaluation.metrics.base import Scores
from tunesmith.evaluation.metrics.by_likelihood import LikelihoodRows
from tunesmith.evaluation.metrics.tokens import TokenScores
from tunesmith.evaluation.slices import names_of_answers, names_of_rows, slices
from tunesmith.evaluation.task import Task
from tunesmith.model.generate import Generation
from tunesmith.recipe.settings import LIKELIHOOD_METRICS, PAIR_METRICS, EvaluationSettings


@dataclass(frozen=True, slots=True)
class Measured:
    """The results of one model: scores by metric, and its answers (none if no answer was needed).

    ``of_answers`` are the scores with one row for each question. ``computed`` is what the user's function returned.
    """

    scores: dict[str, Scores]
    of_answers: dict[str, Scores]
    answers: list[Generation]
    computed: dict[str, float]

    def with_answer_scores(self, name: str, scores: Scores) -> Measured:
        """The same with one more metric of answers."""
        more = {name: scores}
        return replace(self, scores={**self.scores, **more}, of_answers={**self.of_answers, **more})


@dataclass(frozen=True, slots=True)
class Responses:
    """What one model did on a task: the scores of its tokens, and its answers to the first questions.

    ``of_labels`` are the likelihoods of the labels, with one row for each question; None if no metric wants them.
    """

    tokens: TokenScores
    answers: list[Generation]
    of_labels: LikelihoodRows | None = None


def computed_pairs(base: Measured, tuned: Measured) -> dict[str, dict[str, float]]:
    """The numbers of the user's function that both models have."""
    both = [name for name in tuned.computed if name in base.computed]
    return {name: {"base": base.computed[name], "tuned": tuned.computed[name]} for name in both}


def details_of(base: Measured, tuned: Measured, metrics: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What metrics say beside their values, of both models: ``{name: {base, tuned}}``."""
    found: dict[str, dict[str, Any]] = {}
    for side, measured in (("base", base), ("tuned", tuned)):
        for metric in metrics:
            scores = measured.scores.get(metric)
            for name, value in ({} if scores is None else scores.details).items():
                found.setdefault(name, {})[side] = value
    return found


def losses_by_source(task: Task, base: Measured, tuned: Measured) -> dict[str, Any]:
    """The loss on each source of a mixture: ``{by_source: {path: {rows, tokens, base, tuned}}}``.

    ``tokens`` are the supervised ones. Preferences have none, because their loss is a mean over examples.
    """
    before, after = (task.losses_by_source(each.scores["loss"]) for each in (base, tuned))
    tokens = tuned.scores["loss"].statistics[:, 1]  # [rows]
    found = {
        name: {
            "rows": len(rows),
            **({"tokens": int(tokens[rows].sum())} if task.preferences is None else {}),
            "base": before[name],
            "tuned": after[name],
        }
        for name, rows in task.sources.items()
    }
    return {"by_source": found} if found else {}


def slices_of(task: Task, base: Measured, tuned: Measured, metric: str, settings: EvaluationSettings) -> dict[str, Any]:
    """The metric that decided on slices of the rows: ``{sliced_by, slices}``. Signs of damage have no slices."""
    name = "loss" if metric == "perplexity" else metric
    if name in tuned.of_answers:
        asked = task.questions
        names = names_of_answers(
            [question.prompt_text for question in asked],
            [question.truth for question in asked],
            [question.source for question in asked],
        )
    elif name in tuned.scores and len(tuned.scores[name]) == len(task.rows):
        names = names_of_rows([len(row.ids) for row in task.rows], [row.source for row in task.rows])
    else:
        return {}
    level = Level(settings.confidence, settings.resamples, settings.seed)
    found = slices(metric, base.scores[name], tuned.scores[name], names, level)
    return {"sliced_by": metric, "slices": found} if found else {}


def values_alone(measured: Measured, metrics: Sequence[str], rows: int) -> dict[str, Any]:
    """The content of verdict.json for a model without a base: values, and no verdict."""
    values = {name: scores.value for name, scores in measured.scores.items()}
    metrics = [name for name in metrics if name not in PAIR_METRICS]
    names = [*metrics, *(["loss"] if "loss" not in metrics else [])]
    computed = {"compute_metrics": {name: {"value": value} for name, value in measured.computed.items()}}
    found = computed if measured.computed else {}
    return {"verdict": None, **found, "metrics": {name: {"value": values[name]} for name in names}, "rows": rows}


def samples_of(
    task: Task, base: Measured | None, tuned: Measured, replies: Sequence[tuple[str, str]] = ()
) -> list[dict[str, Any]]:
    """Answers side by side, one line of samples.jsonl each. ``replies`` of a judge: base first, tuned first."""
    lines = []
    for number, answer in enumerate(tuned.answers):
        question = task.questions[number]
        line: dict[str, Any] = {"source": question.source, "prompt": question.prompt_text, "asked": question.asked}
        line["truth"] = question.truth
        if base is not None:
            line |= {"base": base.answers[number].text, "base_stopped": base.answers[number].stopped}
        line |= {"tuned": answer.text, "tuned_stopped": answer.stopped}
        # Unfinished answers, whose rest could not have changed a score.
        both = {"base": None if base is None else base.answers[number], "tuned": answer}
        line |= {f"{name}_settled": True for name, one in both.items() if one is not None and one.settled}
        if replies:
            line |= {"judge": list(replies[number])}
        for key, of in (("scores", tuned), *([] if base is None else [("base_scores", base)])):
            own = {name: scores for name, scores in of.of_answers.items() if name not in LIKELIHOOD_METRICS}
            if own:
                line[key] = {name: float(scores.of_rows[number]) for name, scores in own.items()}
        lines.append(line)
    return lines
