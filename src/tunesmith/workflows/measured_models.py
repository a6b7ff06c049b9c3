"""Measures the models of a comparison, none of them twice, and brings what was measured onto the rows they share."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from tunesmith.deploy.tuned import Tuned
from tunesmith.errors import RunError
from tunesmith.evaluation.judge import Judge
from tunesmith.evaluation.measured import Measured, Responses
from tunesmith.evaluation.metrics.base import Scores, TokenRows
from tunesmith.evaluation.metrics.bits_per_byte import BitsPerByte
from tunesmith.evaluation.metrics.classification import labels_of
from tunesmith.evaluation.metrics.normalize import normalized
from tunesmith.evaluation.pairs import Scored
from tunesmith.evaluation.shared_rows import JudgingRows, Key, held_out_alone
from tunesmith.evaluation.task import Task
from tunesmith.evaluation.verdict import STARTED_FROM
from tunesmith.model.generate import Generation
from tunesmith.recipe.settings import LABEL_METRICS
from tunesmith.runs.consent import Consent
from tunesmith.runs.progress import Listener
from tunesmith.safe_text import one_line
from tunesmith.training.rehearsal import memory_faults
from tunesmith.workflows.judged_target import FoundTarget, judged
from tunesmith.workflows.kept_answers import kept_answers, wanted

LABELS_SHOWN = 3  # that a note names
MADE = "made"  # the source of answers that no run kept


@dataclass(frozen=True, slots=True)
class Answered:
    """What one model did on the rows of its own task, before the rows of all models are known.

    Args:
        name: in the comparison.
        described: what was loaded.
        base: the name of its base in the comparison.
        trained_on: as in ``JudgedTarget``.
        answers_from: MADE, or the file that kept the answers.
        judge: of its task.
        responses: to that task.
        numbers: the number of each row's example in the task, by key.
        objective: what its losses are of, if they are no losses of tokens alone.
    """

    name: str
    described: str
    base: str | None
    trained_on: int | None
    answers_from: str
    judge: Judge
    responses: Responses
    numbers: Mapping[Key, int]
    objective: str


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """One model on the rows that all models share. ``judge`` has the task of them; its model is not in memory."""

    answered: Answered
    judge: Judge
    measured: Measured
    scored: Scored

    @property
    def name(self) -> str:
        """In the comparison."""
        return self.answered.name

    @property
    def base(self) -> str | None:
        """The name of its base."""
        return self.answered.base

    @property
    def task(self) -> Task:
        """The shared rows, with the tokens that this model has for them."""
        return self.judge.task

    def facts(self) -> dict[str, Any]:
        """``{name, model, base, trained_on, answers}``."""
        own = self.answered
        return {
            "name": own.name,
            "model": own.described,
            "base": own.base,
            "trained_on": own.trained_on,
            "answers": own.answers_from,
        }

    def with_judge(self, other: MeasuredModel, listener: Listener) -> tuple[Scored, Scored]:
        """Both with the choices of the recipe's judge between them, if it names one."""
        one, two, _ = self.judge.with_judge(self.measured, other.measured, listener=listener)
        return replace(self.scored, scores=_with(self, one)), replace(other.scored, scores=_with(other, two))


class Measurements:
    """The models that were measured, with the names of the targets among them, in the order of the call."""

    def __init__(self, listener: Listener, model: str | None, consent: Consent, allowed: Collection[str]) -> None:
        self.listener, self.model, self.consent, self.allowed = listener, model, consent, allowed
        self.models: list[Answered] = []
        self.targets: list[str] = []
        self.notes: list[str] = []
        self._known: dict[tuple[str, ...], str] = {}  # the weights and prompts of untuned models, and their names

    def add(self, found: FoundTarget, rows: JudgingRows, keys: Sequence[Key]) -> None:
        """Loads and measures a target, and its base if no target before it had the same one with the same prompts."""
        ready = judged(
            found,
            listener=self.listener,
            model=self.model,
            consent=self.consent,
            allowed=self.allowed,
            known=held_out_alone(rows, keys),
        ).with_reference(self.listener)
        tuned, numbers = ready.tuned, {key: rows.numbers[key] for key in keys}
        questions = wanted(ready.judge.settings, ready.judge.task.questions)
        kept = kept_answers(found, ready) if questions else None
        objective = ""
        if ready.judge.task.preferences is not None:  # its losses depend on the base, too
            objective = f"{found.recipe.objective.model_dump_json()} {tuned.folder.resolve()}"
        reference, what = tuned.reference()
        place = _place(tuned, what or "untuned", ready.judge.task, numbers)

        def answered(model: nn.Module, name: str, base: str | None, made: list[Generation] | None) -> Answered:
            # Other targets may lack some of the labels.
            responses = ready.judge.respond(model, name, listener=self.listener, kept=made, all_labels=True)
            source = MADE if made is None else str(kept)
            if made is not None:
                self.listener.say(f"{name}: the answers are those of {source}")
            return Answered(
                name, tuned.describe, base, ready.trained_on, source, replace(ready.judge, batches=()), responses,
                numbers, objective,
            )  # fmt: skip

        if reference is None:
            self._add_untuned(found.name, place, lambda: answered(tuned.model, found.name, None, None))
            return
        with memory_faults():
            base = self._known.get(place)
            own = answered(
                tuned.model, found.name, base or self._base_name(found.name), kept and kept.of("tuned", questions)
            )
            if base is None:
                same = kept is not None and kept.base_model == what
                with reference as untuned:
                    before = answered(
                        untuned, str(own.base), None, kept.of("base", questions) if kept and same else None
                    )
                described = f"model {tuned.target.base}, {what}"
                self.models.append(replace(before, described=described, trained_on=None))
                self._known[place] = before.name
        self.models.append(own)
        self.targets.append(found.name)

    def _add_untuned(self, name: str, place: tuple[str, ...], measure: Any) -> None:
        """A model that was named itself. It may be the base of a target before it."""
        if (base := self._known.get(place)) is not None:
            self.notes.append(f"{name} is {base}: it is compared once.")
            self.targets.append(base)
            return
        with memory_faults():
            self.models.append(measure())
        self._known[place] = name
        self.targets.append(name)

    def _base_name(self, name: str) -> str:
        taken = {each.name for each in self.models}
        return f"base of {name}" if "base" in taken else "base"


def on_shared_rows(models: Sequence[Answered], keys: Sequence[Key]) -> tuple[list[MeasuredModel], list[str]]:
    """Every model scored on the rows that all of them have whole, in one order, and notes on what differs.

    Raises:
        RunError: no row is left, or a preference objective lacks one.
    """
    truths = [_truths(each) for each in models]
    left = [key for key in keys if all(key in of and of[key] == truths[0][key] for of in truths)]
    notes = [] if len(left) == len(keys) else [_lost(models, truths, keys, left)]
    if not left:
        raise RunError(
            f"{' and '.join(each.name for each in models)} have no row in common",
            why=notes[0],
            remedy="Name shorter rows with --data FILE.",
        )
    first = models[0]
    labels, of_labels = _shared_labels(models)
    notes += of_labels
    group_of = dict(zip((row.example for row in first.judge.task.rows), first.judge.task.groups, strict=True))
    groups = {key: group_of[first.numbers[key]] for key in left}
    found = [_on(each, groups, labels) for each in models]
    return found, [*notes, *_differences(found)]


def _shared_labels(models: Sequence[Answered]) -> tuple[list[str], list[str]]:
    """The labels that all models were measured with, by name, and a note if some were measured with others, too.

    Those are the answers of a run's training rows, which other runs lack. There are none if no metric wants labels.
    """
    forms, known = models[0].judge.settings.normalize, {}
    for each in models:
        known[each.name] = labels_of([label.text for label in each.judge.task.labels], forms)
    every = sorted(set().union(*known.values()))
    shared = [name for name in every if all(name in own for own in known.values())]
    lacking = [name for name in every if name not in shared]
    if not lacking:
        return shared, []
    named = ", ".join(name for name in models[0].judge.settings.metrics if name in LABEL_METRICS)
    if not all(known.values()):  # one has too many of them
        return [], [f"Labels are the answers of the compared rows alone, so values of {named} can differ from a run's."]
    first = ", ".join(f"{one_line(name)!r}" for name in lacking[:LABELS_SHOWN])
    more = f" and {len(lacking) - LABELS_SHOWN:,} more" if len(lacking) > LABELS_SHOWN else ""
    counts = ", ".join(f"{name} {len(own):,}" for name, own in known.items())
    note = (
        f"Labels are the {len(shared):,} that all have: {first}{more} {'is' if len(lacking) == 1 else 'are'} left out. "
        f"Labels of each: {counts}. So values of {named} can differ from those of a run's verdict."
    )
    return shared, [note]


def _on(model: Answered, groups: Mapping[Key, int], labels: Sequence[str]) -> MeasuredModel:
    """One model on these rows, in this order, with these labels. Rows with the same group are resampled together."""
    whole = model.judge.task
    if whole.preferences is not None and len(groups) < whole.examples:
        raise RunError(
            f"{model.name} cannot be compared on a part of its rows",
            why="Its objective scores pairs of answers, and other targets lack some of them, as they are too long.",
            remedy="Name shorter rows with --data FILE.",
        )
    task, rows, questions = whole.only({model.numbers[key]: group for key, group in groups.items()})
    forms = model.judge.settings.normalize
    task = replace(task, labels=tuple(each for each in whole.labels if normalized(each.text, forms) in labels))
    judge, made = replace(model.judge, task=task), model.responses.answers
    asked = questions[: len(made)]
    answers = [made[number] for number in asked] if all(number < len(made) for number in asked) else []
    tokens = model.responses.tokens.only(rows)
    of_labels = model.responses.of_labels
    if of_labels is not None:
        of_groups = np.array([question.group for question in task.questions])
        of_labels = of_labels.only(np.array(questions), labels, of_groups)
    measured = judge.scored(Responses(tokens, answers, of_labels))
    scores: dict[str, Scores] = dict(measured.scores)
    if task.text_bytes is not None and len(task.rows) > len(groups):
        # Other tokens may make another number of rows of an example, so those of each are added up: [examples].
        numbers = {example: number for number, example in enumerate(task.example_numbers)}
        place = np.array([numbers[row.example] for row in task.rows])
        nll_sum, correct, count, text_bytes = (
            np.bincount(place, weights=each)
            for each in (tokens.nll_sum, tokens.correct, tokens.tokens, task.text_bytes)
        )  # [examples] each
        by_example = TokenRows(nll_sum, correct, count, text_bytes, np.array(list(groups.values())))
        scores[BitsPerByte.name] = BitsPerByte().scores(by_example)
    tokens_of = _digest(task, labels_only=True) + model.objective
    return MeasuredModel(model, judge, measured, Scored(scores, judge.signs_of(measured), tokens_of))


def _with(model: MeasuredModel, measured: Measured) -> dict[str, Scores]:
    """The scores of a model with those that a judge has added."""
    return {**measured.scores, **model.scored.scores}


def _truths(model: Answered) -> dict[Key, str | None]:
    """The reference answer of each row that the model's task has, by key; None for raw text."""
    task = model.judge.task
    answers = {task.rows[question.row].example: question.truth.strip() for question in task.questions}
    there = {row.example for row in task.rows}
    return {key: answers.get(number) for key, number in model.numbers.items() if number in there}


def _lost(
    models: Sequence[Answered], truths: Sequence[Mapping[Key, str | None]], keys: Sequence[Key], left: Sequence[Key]
) -> str:
    """Which models lack rows, or have cut the answers of some."""
    counts = [
        (each.name, sum(key not in of or of[key] != truths[0].get(key) for key in keys))
        for each, of in zip(models, truths, strict=True)
    ]
    named = ", ".join(f"{name} {count:,}" for name, count in counts if count)
    lost = len(keys) - len(left)
    return f"{lost:,} of {len(keys):,} rows are left out: they are too long or cut off for some models ({named})."


def _differences(models: Sequence[MeasuredModel]) -> list[str]:
    """What differs between the models besides their weights, in sentences."""
    notes, first = [], models[0]
    prompts = [question.prompt_text for question in first.task.questions]
    other = [each for each in models if [question.prompt_text for question in each.task.questions] != prompts]
    if other:
        pairs = zip(first.task.questions, other[0].task.questions, strict=True)
        source = next(one.source for one, two in pairs if one.prompt_text != two.prompt_text)
        notes.append(
            f"The prompts of {', '.join(each.name for each in other)} differ from those of {first.name}, by the "
            f"instruction or the template (first at {source})."
        )
    apart = [each.name for each in models if each.scored.tokens != first.scored.tokens]
    if apart:
        notes.append(
            f"The tokens or the objective of {', '.join(apart)} differ from those of {first.name}, so losses are not "
            "compared with it. bits_per_byte and metrics of answers are."
        )
    return notes


def _place(tuned: Tuned, what: str, task: Task, numbers: Mapping[Key, int]) -> tuple[str, ...]:
    """Everything that decides what an untuned model answers: its weights and its prompts."""
    dtype = str(next(tuned.model.parameters()).dtype)
    what = what.removesuffix(", unquantized")  # the same weights, loaded beside quantized ones
    weights = [str(tuned.folder.resolve()), what, dtype, str(tuned.added)]
    if what == STARTED_FROM:  # each run has its own
        weights.append(str(tuned.target.checkpoint))
    elif what == "untuned, quantized" and tuned.method is not None:
        weights.append(str(tuned.method.load_options()))
    ordered = task if task.preferences else task.only(dict.fromkeys(numbers.values(), 0))[0]
    return (*weights, _digest(ordered, labels_only=False))


def _digest(task: Task, *, labels_only: bool) -> str:
    """A sha256 of the tokens of a task's rows in order, with where they are labels; or of the labels alone."""
    digest = hashlib.sha256()
    for row in task.rows:
        ids = np.asarray(row.ids, np.int32)
        kept = ids[row.supervised] if labels_only else ids
        digest.update(f"{len(kept)}\n".encode() + kept.tobytes())
        if not labels_only:
            digest.update(np.asarray(row.supervised, bool).tobytes())
    return digest.hexdigest()
