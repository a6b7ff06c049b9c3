"""The evaluation task: held-out rows and their questions, ready for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunesmith.data.batches.layout import Batch, LayoutName, micro_batches
from tunesmith.data.chat.template import Encoded
from tunesmith.data.examples.message import SHAREGPT_ROLES
from tunesmith.errors import DataError
from tunesmith.evaluation.label_set import Spelling, last_answer, without_stops
from tunesmith.evaluation.metrics.answers import all_text_metrics, check_truths, likelihood_metrics
from tunesmith.evaluation.metrics.base import Scores
from tunesmith.evaluation.metrics.classification import MOST_LABELS
from tunesmith.evaluation.metrics.preferences import Preferences, PreferenceScoring
from tunesmith.evaluation.metrics.tokens import TokenScores
from tunesmith.model.generate import decode_text
from tunesmith.recipe.settings import LABEL_METRICS, LIKELIHOOD_METRICS, EvaluationSettings


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt to answer: its ids as generation sends them, the reference answer, and its source.

    ``asked``: the last turn of the prompt alone, for people to read.
    ``reference`` is the reference answer as token ids, with the stop tokens that follow it in the row. ``row`` is the
    number of its row among those of the task, whose last labels are these tokens.
    """

    prompt: list[int]
    prompt_text: str
    truth: str
    source: str
    group: int
    asked: str
    reference: tuple[int, ...]
    row: int


@dataclass(frozen=True, slots=True)
class Task:
    """The held-out rows of a run. ``groups`` [rows]: rows with the same number are resampled together.

    ``sources`` are the row numbers of each source of a mixture. ``preferences`` is set by a preference objective. Then
    its examples are scored, and ``sources`` has the numbers of examples. ``text_bytes`` float64 [rows] are the bytes of
    each row's supervised text. ``labels`` are the different answers of training rows and of these rows, where they are
    labels and a metric wants them.
    """

    rows: list[Encoded]
    groups: list[int]
    questions: list[Question]
    sources: Mapping[str, np.ndarray] = field(default_factory=dict)
    preferences: Preferences | None = None
    text_bytes: np.ndarray | None = None
    labels: tuple[Spelling, ...] = ()

    @property
    def examples(self) -> int:
        """The number of scored examples: rows, or groups of rows that a preference objective compares."""
        return len(self.rows) // (1 if self.preferences is None else self.preferences.together)

    def scores(self, tokens: TokenScores) -> dict[str, Scores]:
        """Every metric that is computed from log-probabilities, of the rows or of the objective's examples."""
        if self.preferences is None:
            return tokens.scores(self.groups, self.text_bytes)
        return self.preferences.scores(tokens, self.groups)

    def metrics(self, named: Sequence[str]) -> Sequence[str]:
        """The metrics that a recipe names. If it names none, the one that decides for a preference objective."""
        return named or ([] if self.preferences is None else [self.preferences.objective.decides])

    def with_reference(self, logprobs: np.ndarray) -> Task:
        """The same with the untuned model's log-probability of each row's labels, float64 [rows]."""
        assert self.preferences is not None
        return replace(self, preferences=replace(self.preferences, reference=logprobs))

    def only(self, groups: Mapping[int, int]) -> tuple[Task, np.ndarray, list[int]]:
        """Some of its examples in another order: the task of them, and which rows and questions of this one it has.

        Args:
            groups: the group of each example that stays, by its number, in the new order.

        Returns:
            The task; the numbers of its rows, int [rows]; and the numbers of its questions.
        """
        order = {example: place for place, example in enumerate(groups)}
        rows = [number for number, row in enumerate(self.rows) if row.example in order]
        if self.preferences is None:
            rows.sort(key=lambda number: order[self.rows[number].example])
        else:
            assert len(rows) == len(self.rows), "the examples of a preference objective go together"
        place = {number: new for new, number in enumerate(rows)}
        asked = {self.rows[question.row].example: number for number, question in enumerate(self.questions)}
        numbers = [asked[example] for example in groups if example in asked]
        questions = []
        for number in numbers:
            question = self.questions[number]
            group = groups[self.rows[question.row].example]
            questions.append(replace(question, group=group, row=place[question.row]))
        kept = np.array(rows, np.int64)
        return (
            replace(
                self,
                rows=[self.rows[number] for number in rows],
                groups=[groups[self.rows[number].example] for number in rows],
                questions=questions,
                sources={},
                text_bytes=None if self.text_bytes is None else self.text_bytes[kept],
            ),
            kept,
            numbers,
        )

    @property
    def example_numbers(self) -> list[int]:
        """The numbers of its examples, in order."""
        return list(dict.fromkeys(row.example for row in self.rows))

    def losses_by_source(self, loss: Scores) -> dict[str, float]:
        """The mean loss of a supervised token, source by source. It is empty if there is only one source."""
        columns = loss.statistics.T  # [2, rows]
        sums = {name: np.array([column[rows].sum() for column in columns]) for name, rows in self.sources.items()}
        return {name: float(loss.of_sums(each)) for name, each in sums.items()}


def make_task(
    rows: Sequence[Encoded],
    groups: Sequence[int] | np.ndarray,
    *,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    settings: EvaluationSettings,
    objective: PreferenceScoring | None = None,
    labels: np.ndarray | None = None,
    raw_text: np.ndarray | None = None,
    trained: Sequence[Spelling] = (),
) -> Task:
    """The task of some held-out rows: at most ``max_rows`` examples, drawn by seed.

    Each example asks one question, about its last answer. Of a chosen and a rejected answer, it is about the chosen.

    Args:
        rows: encoded held-out rows. Several may come from one example.
        groups: by example number. Examples with the same group are not independent (two answers to one prompt).
        tokenizer: decodes prompts and answers.
        stop_ids: token ids that end an answer.
        settings: the metrics, and how many rows.
        objective: the preference objective, if the run has one.
        labels: by example number, whether its answer is desirable; for an objective.
        raw_text: by example number, whether it is a document, which has no answer to ask for.
        trained: the different answers of training rows, if a metric wants labels.

    Raises:
        DataError: a metric cannot score against one of the reference answers, or there is none to score.
    """
    examples = sorted({row.example for row in rows})
    if settings.max_rows is not None and len(examples) > settings.max_rows:
        drawn = np.random.default_rng(settings.seed).choice(examples, settings.max_rows, replace=False)
        examples = sorted(drawn.tolist())
    kept = set(examples)
    chosen = [row for row in rows if row.example in kept]
    last = {row.example: row for row in (chosen if objective is None else reversed(chosen))}
    asked = [number for number in examples if raw_text is None or not raw_text[number]]
    laid_out = chosen if objective is None else objective.rows(chosen)
    place = {id(row): number for number, row in enumerate(laid_out)}
    questions = [
        _question(last[number], tokenizer, stop_ids, int(groups[number]), place[id(last[number])]) for number in asked
    ]
    of_answers = all_text_metrics(settings)
    if (of_answers or likelihood_metrics([*settings.metrics, *settings.during])) and not questions:
        raise DataError(
            "No held-out row has an answer to compare",
            where="evaluation.metrics",
            why="All held-out rows are raw text.",
            remedy="Hold out conversations too, or judge by loss or perplexity.",
        )
    spelled = _labels(questions, trained, settings)
    check_truths(of_answers, [item.truth for item in questions], [item.source for item in questions])
    preferences = None
    if objective is not None:
        assert labels is not None
        desirable = labels[[row.example for row in chosen[:: objective.answers]]]
        preferences = Preferences(objective, desirable, objective.share(laid_out))
    return Task(
        laid_out,
        [int(groups[row.example]) for row in laid_out],
        questions,
        preferences=preferences,
        text_bytes=None if objective is not None else _text_bytes(laid_out, tokenizer),
        labels=spelled,
    )


def wants_labels(settings: EvaluationSettings) -> bool:
    """Whether a metric, of the verdict or of validations, is of answers that are labels."""
    return not {*LABEL_METRICS}.isdisjoint([*settings.metrics, *settings.during])


def _labels(
    questions: Sequence[Question], trained: Sequence[Spelling], settings: EvaluationSettings
) -> tuple[Spelling, ...]:
    """The labels of the task, if a metric wants any; none if they are too many, which only some metrics refuse.

    Raises:
        DataError: a metric of their likelihoods would have too many of them.
    """
    if not wants_labels(settings):
        return ()
    own = {Spelling(question.truth, question.reference) for question in questions}
    found = tuple(sorted({*trained, *own}, key=lambda each: each.ids))
    if len(found) <= MOST_LABELS:
        return found
    of_likelihoods = sorted({*settings.metrics, *settings.during} & {*LIKELIHOOD_METRICS})
    if of_likelihoods:
        raise DataError(
            f"The reference answers cannot be judged by {of_likelihoods[0]}",
            where="evaluation.metrics",
            why=f"With those of training rows they are more than {MOST_LABELS:,} different texts, the most that fit.",
            remedy=f"Take {of_likelihoods[0]} out, or name a metric of generated answers, such as exact_match.",
        )
    return ()


def _text_bytes(rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The bytes of each row's supervised text in UTF-8, at least 1: float64 [rows]."""
    found = []
    for row in rows:
        edges = np.flatnonzero(np.diff(row.supervised, prepend=False, append=False))  # [2 runs]: starts and ends
        texts = [decode_text(tokenizer, row.ids[start:end].tolist()) for start, end in edges.reshape(-1, 2)]
        found.append(max(1, sum(len(text.encode(errors="replace")) for text in texts)))
    return np.array(found, dtype=np.float64)


def _question(
    row: Encoded, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], group: int, place: int
) -> Question:
    """The last run of supervised tokens is the answer, and all tokens before it are the prompt."""
    start, end = last_answer(row)
    reference = tuple(row.ids[start:end].tolist())
    answer = without_stops(reference, stop_ids)
    prompt = row.ids[:start].tolist()
    return Question(
        prompt=prompt,
        prompt_text=decode_text(tokenizer, prompt),
        truth=decode_text(tokenizer, answer),
        source=row.source,
        group=group,
        asked=_last_turn(prompt, tokenizer),
        reference=reference,
        row=place,
    )


def _last_turn(prompt: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the last turn before the answer, without the names of roles that a template puts around it.

    Special tokens stand between turns. A template that has none of them gives the whole prompt.
    """
    special = set(tokenizer.all_special_ids)
    runs = [list(run) for between, run in groupby(prompt, key=special.__contains__) if not between]
    turns = [text for text in (decode_text(tokenizer, run).strip() for run in runs) if text]
    while len(turns) > 1 and _speaker(turns[-1]) == "assistant":  # the opening of the answer
        turns.pop()
    last = turns[-1] if turns else ""
    role, _, text = last.partition("\n")
    return text.strip() if text.strip() and _speaker(role) else last


def _speaker(text: str) -> str | None:
    """The role that the first line of a text names, if that is all of the line."""
    return SHAREGPT_ROLES.get(text.partition("\n")[0].strip().lower())


def task_batches(task: Task, *, budget: int, layout: LayoutName) -> list[Batch]:
    """The task's rows laid out once, for every loss that is measured on them."""
    if task.preferences is not None:
        return task.preferences.objective.batches(task.rows, budget=budget, layout=layout)
    return micro_batches(task.rows, budget=budget, layout=layout)
