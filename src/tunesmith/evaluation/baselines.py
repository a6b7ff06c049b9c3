"""Answers that need no tuned model, as a measure of it: if a bag of words is not worse, the verdict says so.

- ``majority``: the most frequent answer of the training rows.
- ``nearest``: the answer of the training row whose prompt is nearest, by the cosine of tf-idf vectors.
- ``linear``: for answers that are labels, ridge regression over the same vectors, one target a label.
- ``few_shot``: the untuned model with a few training rows before the question (few_shot.py).

They learn from the rows that the run was trained on, and their answers are scored by the metrics of the models. This
module does not import torch, and scikit-learn only where it is used.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal, TypedDict

import numpy as np

from tunesmith.data.checks.facts import LABEL_LENGTH
from tunesmith.data.checks.scan import common_frame
from tunesmith.errors import RecipeError, pip_install
from tunesmith.evaluation.compare import Level, compare_alone
from tunesmith.evaluation.metrics.answers import score_answers, text_metrics
from tunesmith.evaluation.metrics.base import Scores
from tunesmith.evaluation.not_measured import BASELINES, NotMeasured
from tunesmith.evaluation.slices import interval_of
from tunesmith.recipe.settings import BaselineName, EvaluationSettings
from tunesmith.runs.progress import Listener, Silent

KEY = "evaluation.baselines"
NEED_SKLEARN = ("nearest", "linear")
MOST_ROWS = 20_000  # training rows that are learned from; of more, so many are drawn by seed
_WORDS, _CHARACTERS = 50_000, 50_000  # different n-grams that count, the most frequent first
_ROWS_AT_A_TIME = 256  # of the asked prompts, for a dense matrix of similarities
MOST_LINEAR = 6000  # rows that the regression learns from: its matrix of similarities has their square, 144 MiB
_PENALTY = 0.5  # of the regression
MARGIN = 2  # points, if evaluation.margin does not say otherwise
POINTS = {"bleu": 1.0, "chrf": 1.0}  # what one point is; 0.01 of the other metrics
BaselineOutcome = Literal["better", "as well", "not shown to be worse", "worse"]


class BaselineMetric(TypedDict):
    """One metric of a baseline. ``difference`` is tuned minus baseline, and ``verdict`` says how the tuned model is."""

    value: float
    interval: list[float]
    difference: float
    difference_interval: list[float]
    p_value: float
    verdict: str


class BaselineResult(TypedDict):
    """One baseline. ``outcome``: how it is beside the tuned model, by the deciding metric."""

    name: str
    metrics: dict[str, BaselineMetric]
    outcome: BaselineOutcome


@dataclass(frozen=True, slots=True)
class TrainingPairs:
    """Prompts and answers of rows that a run was trained on, as text. ``total`` is the number of its rows.

    ``are_labels``: the answers are labels, by the rule of `init`.
    """

    prompts: Sequence[str]
    answers: Sequence[str]
    total: int
    are_labels: bool


@dataclass(frozen=True, slots=True)
class Baselines:
    """The baselines of a verdict. ``made`` gives the answers of those that a model makes, once they are there.

    ``left_out`` takes why a baseline that was asked for is not there. The listener hears the progress.
    """

    names: Sequence[BaselineName]
    learned: TrainingPairs
    settings: EvaluationSettings
    made: Mapping[str, Callable[[], Sequence[str]]] = field(default_factory=dict)
    left_out: NotMeasured = field(default_factory=NotMeasured)
    listener: Listener = field(default_factory=Silent)

    def result(
        self,
        tuned: Mapping[str, Scores],
        *,
        prompts: Sequence[str],
        truths: Sequence[str],
        groups: Sequence[int],
        labels: Sequence[str] = (),
        decided_by: str,
    ) -> dict[str, Any]:
        """What verdict.json keeps: ``{metric, margin, training_rows, results}``.

        A baseline does as well if the whole interval of the difference is within the margin: ``evaluation.margin``, or
        2 points if that is not set. The margin is None for a Python function, whose scale nobody knows.

        Each baseline is tested by itself: whoever says that the tuned model beats all of them has had every test to
        pass, so that nothing is corrected for being several (an intersection-union test, Berger 1982).

        Args:
            tuned: the tuned model's scores of answers, by metric.
            prompts: of the held-out rows.
            truths: their reference answers.
            groups: as in RowScores.
            labels: as in AnswerRows.
            decided_by: the metric that decided the verdict. If it is none of answers, the first one of these decides.
        """
        settings = self.settings
        level = Level(settings.confidence, settings.resamples, settings.seed)
        metrics = text_metrics(settings)
        names = [metric.name for metric in metrics]  # those of one answer
        decides = decided_by if decided_by in names else names[0]
        margin = settings.margin if decides == decided_by else None
        if margin is None and ":" not in decides:
            margin = POINTS.get(decides, 0.01) * MARGIN
        results: list[BaselineResult] = []
        if "linear" in self.names and len(self.learned.prompts) > MOST_LINEAR:
            self.listener.say(
                f"the baseline linear learns from {MOST_LINEAR:,} of {len(self.learned.prompts):,} training rows, "
                f"drawn by seed"
            )
        with self.listener.task("baselines", len(self.names)) as advance:
            for done, name in enumerate(self.names, start=1):
                with self.left_out.noting(f"{BASELINES}{name}"):
                    answers = self.made[name]() if name in self.made else self._answers_of(name, prompts)
                    scores = score_answers(
                        metrics, answers=answers, truths=truths, prompts=prompts, groups=groups, labels=labels
                    )
                    found = {metric: _compared(metric, scores[metric], tuned[metric], level) for metric in scores}
                    results.append(BaselineResult(name=name, metrics=found, outcome=_outcome(found[decides], margin)))
                advance(done, {})
        return {
            "metric": decides,
            "margin": margin,
            "training_rows": len(self.learned.prompts),
            "results": results,
        }

    def _answers_of(self, name: str, prompts: Sequence[str]) -> list[str]:
        return answers_of(name, self.learned, prompts, seed=self.settings.seed)


def check_baselines(settings: EvaluationSettings) -> None:
    """Raises RecipeError if a baseline that the recipe names lacks its package."""
    needing = [name for name in settings.baselines if name in NEED_SKLEARN] if _named(settings) else []
    if needing and find_spec("sklearn") is None:
        raise RecipeError(
            f"The baseline {needing[0]} needs a package that is not installed",
            where=KEY,
            why="sklearn cannot be found.",
            remedy=f"Install it with {pip_install('metrics')}, or take {needing[0]} out of {KEY}.",
        )


def chosen(
    settings: EvaluationSettings, learned: TrainingPairs, truths: Sequence[str]
) -> tuple[list[BaselineName], dict[str, str]]:
    """The baselines that a recipe asks for and that these rows allow, and why others are left out."""
    if settings.baselines == "none" or not settings.answer_metrics or not learned.prompts or not truths:
        return [], {}
    left_out: dict[str, str] = {}
    if settings.baselines == "auto":
        if max(map(len, [*learned.answers, *truths])) > LABEL_LENGTH:
            return [], {}
        names: list[BaselineName] = ["majority"]
        if find_spec("sklearn") is not None:
            names.append("nearest")
            if learned.are_labels:
                names.append("linear")
    else:
        names = list(dict.fromkeys(settings.baselines))
        if "linear" in names and not learned.are_labels:
            left_out["linear"] = "the answers are not labels"
    if len(set(learned.answers)) < 2 and "linear" in names and "linear" not in left_out:
        left_out["linear"] = "all training rows have the same answer"
    return [name for name in names if name not in left_out], left_out


def answers_of(name: str, learned: TrainingPairs, prompts: Sequence[str], *, seed: int = 0) -> list[str]:
    """The answers of ``majority``, ``nearest`` or ``linear`` to some prompts.

    ``linear`` learns from at most MOST_LINEAR rows, drawn by seed.
    """
    if name == "linear" and len(learned.prompts) > MOST_LINEAR:
        drawn = np.sort(np.random.default_rng(seed).choice(len(learned.prompts), MOST_LINEAR, replace=False)).tolist()
        own, given = ([each[int(number)] for number in drawn] for each in (learned.prompts, learned.answers))
        learned = TrainingPairs(own, given, learned.total, learned.are_labels)
    if name == "majority":
        ((most, _),) = Counter(learned.answers).most_common(1)
        return [most] * len(prompts)
    before, behind = common_frame(learned.prompts)  # what is in every prompt tells nothing
    training, asked = ([_within(prompt, before, behind) for prompt in each] for each in (learned.prompts, prompts))
    vectors, of_asked = _vectors(training, asked)
    return (_nearest if name == "nearest" else _linear)(vectors, learned.answers, of_asked)


def _named(settings: EvaluationSettings) -> bool:
    return settings.baselines not in ("auto", "none")


def _within(prompt: str, before: str, behind: str) -> str:
    """What stands between the words that all training prompts begin and end with; the prompt if nothing does."""
    inner = prompt.removeprefix(before).removesuffix(behind)
    return inner if inner.strip() else prompt


def _vectors(training: Sequence[str], asked: Sequence[str]) -> tuple[Any, Any]:
    """tf-idf of words and pairs of words, and of 2 to 4 characters within words, as the training texts have them.

    Returns:
        Sparse float64 [training rows, n-grams] and [asked, n-grams]. Rows of each kind of n-gram have length 1.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    kinds = [TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=_CHARACTERS)]
    word = r"(?u)\b\w+\b"  # single letters and digits too, which may be all that a prompt has
    if any(re.search(r"\w", text) for text in training):
        words = TfidfVectorizer(token_pattern=word, ngram_range=(1, 2), sublinear_tf=True, max_features=_WORDS)
        kinds.insert(0, words)
    fitted = [kind.fit_transform(training) for kind in kinds]
    return hstack(fitted, format="csr"), hstack([kind.transform(asked) for kind in kinds], format="csr")


def _nearest(training: Any, answers: Sequence[str], asked: Any) -> list[str]:
    """The answer of the row with the greatest cosine; of several, the first."""
    from sklearn.preprocessing import normalize

    training, asked = normalize(training), normalize(asked)
    found: list[str] = []
    for start in range(0, asked.shape[0], _ROWS_AT_A_TIME):
        similar = (asked[start : start + _ROWS_AT_A_TIME] @ training.T).toarray()  # [asked, training rows]
        found += [answers[int(number)] for number in similar.argmax(axis=1).tolist()]
    return found


def _linear(training: Any, answers: Sequence[str], asked: Any) -> list[str]:
    """Ridge regression on one target a label, 1 for its rows and 0 for others; the label with the largest value.

    It is solved in its dual form, over the similarities of the n training rows (Saunders et al. 1998): weights A [n,k]
    from (K + penalty) A = Y, with K [n,n] and Y [n,k] for k labels. So neither memory nor time grows with labels times
    n-grams.
    """
    from scipy.sparse import csr_matrix, hstack
    from sklearn.kernel_ridge import KernelRidge

    labels, numbers = np.unique(np.asarray(answers, dtype=object), return_inverse=True)  # [labels], [training rows]
    # 1. A column of ones is the constant of the regression.
    training, asked = (
        hstack([each, csr_matrix(np.ones((each.shape[0], 1)))], format="csr").astype(np.float32)
        for each in (training, asked)
    )
    targets = np.zeros((len(numbers), len(labels)), dtype=np.float32)
    targets[np.arange(len(numbers)), numbers] = 1
    # 2. The similarities, some rows at a time: a product of sparse matrices takes three times the memory of its result.
    penalized = KernelRidge(alpha=_PENALTY, kernel="precomputed")  # pyright: ignore[reportArgumentType]
    model = penalized.fit(_similar(training, training), targets)
    return [str(labels[number]) for number in model.predict(_similar(asked, training)).argmax(axis=1).tolist()]


def _similar(rows: Any, others: Any) -> np.ndarray:
    """The products of all rows with all others, float32 [rows, others]."""
    found = np.empty((rows.shape[0], others.shape[0]), dtype=np.float32)
    for start in range(0, rows.shape[0], _ROWS_AT_A_TIME):
        own = slice(start, start + _ROWS_AT_A_TIME)
        found[own] = (rows[own] @ others.T).toarray()
    return found


def _outcome(found: BaselineMetric, margin: float | None) -> BaselineOutcome:
    """What was only not shown to differ does not do as well."""
    if found["verdict"] in ("better", "worse"):  # the tuned model is
        return "worse" if found["verdict"] == "better" else "better"
    within = margin is not None and max(map(abs, found["difference_interval"])) <= margin
    return "as well" if within else "not shown to be worse"


def _compared(name: str, baseline: Scores, tuned: Scores, level: Level) -> BaselineMetric:
    found = compare_alone(name, baseline, tuned, level)
    return BaselineMetric(
        value=found["base"],
        interval=interval_of(name, baseline, level),
        difference=found["difference"],
        difference_interval=found["interval"],
        p_value=found["p_value"],
        verdict=found["verdict"],
    )
