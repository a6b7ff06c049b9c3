"""The optimizer steps of a run: which rows each takes, their layout as micro-batches, and the longest of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

import numpy as np

from tunesmith.data.batches.layout import Batch, LayoutName, computed_tokens, micro_batches
from tunesmith.data.batches.order import Order
from tunesmith.data.chat.template import Encoded
from tunesmith.data.corpus import Corpus
from tunesmith.data.encoded_rows import EncodedRows
from tunesmith.recipe.schedules import learning_rate_at, steps_of_warmup
from tunesmith.recipe.settings import Recipe
from tunesmith.training.loop import Step
from tunesmith.training.objectives.preference import PreferenceObjective
from tunesmith.training.objectives.supervised import CrossEntropy, Objective
from tunesmith.training.objectives.table import preference_objective

PLANNED_STEPS = 4  # the budget of a micro-batch is chosen by the rows of so many steps
RATE_TOLERANCE = 1e-3  # a peak that falls between two steps of a short run is no surprise


class Steps:
    """The steps of a run, laid out one at a time.

    Args:
        recipe: with the budget of a micro-batch and the layout resolved.
        corpus: the rows to train on.
        references: gives the untuned model's log-probability of each row of a step, float64 [rows], by the number of
            the step and its rows; None while nothing is measured.
    """

    def __init__(
        self, recipe: Recipe, corpus: Corpus, references: Callable[[int, Sequence[int]], np.ndarray] | None = None
    ) -> None:
        self.recipe, self.corpus, self.references = recipe, corpus, references
        self.order = order_of(recipe, corpus)
        self.preference = preference_objective(recipe)
        # Where memory ran out: the first step of a smaller budget of a micro-batch, and the budget.
        self.smaller: dict[int, int] = {}

    @property
    def objective(self) -> Objective:
        """What a step minimises."""
        return self.preference or CrossEntropy()

    def after(self, step: int) -> Iterator[Step]:
        """Every step after this one."""
        for window in self.order.windows(after=step):
            yield Step(window.step, window.epoch, self.lay_out(window.rows, step=window.step))

    def budget(self, step: int | None = None) -> int:
        """Tokens of a micro-batch in a step: the recipe's number, or fewer if memory ran out in a step up to it."""
        lowered = [tokens for since, tokens in self.smaller.items() if step is not None and since <= step]
        return min([int(self.recipe.training.micro_batch_tokens), *lowered])

    def halved(self, step: Step) -> list[Batch] | None:
        """The same rows with half the budget or less, so that the largest micro-batch shrinks; kept for later steps.

        None if it cannot shrink, because it is one row or one group that stays together.
        """
        window = next(self.order.windows(after=step.number - 1))
        largest = max(batch.computed for batch in step.batches)
        before = dict(self.smaller)
        budget = min(self.budget(step.number), largest) // 2
        while budget >= 1:
            self.smaller[step.number] = budget
            batches = self.lay_out(window.rows, step=step.number)
            if max(batch.computed for batch in batches) < largest:
                return batches
            budget //= 2
        self.smaller = before
        return None

    def first_epoch(self) -> Iterator[list[Batch]]:
        """The micro-batches of each step of one pass over the rows, even if the run is shorter than that."""
        rows, size = self.order.epoch_rows(0).tolist(), self.order.batch_size
        for start in range(0, len(rows), size):
            yield self.lay_out(rows[start : start + size])

    def lay_out(self, rows: Sequence[int], *, step: int | None = None) -> list[Batch]:
        """The micro-batches of one step. References are found by the step's number."""
        settings, corpus, preference = self.recipe.training, self.corpus, self.preference
        assert settings.layout != "auto", "the layout is resolved when the model is loaded"
        encoded, reference, desirable = corpus.rows_of(rows), None, None
        if preference is not None:
            desirable = corpus.labels[[row.example for row in encoded[:: preference.answers]]]  # bool [examples]
            if step is not None and self.references is not None:
                reference = self.references(step, rows)
        return lay_out_step(
            encoded,
            preference,
            budget=self.budget(step),
            layout=settings.layout,
            reference=reference,
            desirable=desirable,
        )


def _computed(recipe: Recipe, corpus: Corpus) -> list[EncodedRows]:
    """All rows that go through the model in this run."""
    return [corpus.train, corpus.held_out, *([corpus.test] if recipe.training.selects else [])]


def longest_part(recipe: Recipe, corpus: Corpus) -> int:
    """The tokens of the longest part that micro-batches cannot divide: a row, a pair of answers, or a group of kto.

    Held-out rows count too. The groups of kto are those of the first epoch.
    """
    objective = preference_objective(recipe)
    sides = [rows for rows in _computed(recipe, corpus) if len(rows)]
    if objective is None:
        return max(int(rows.lengths.max()) for rows in sides)
    layout = recipe.training.wanted_layout
    longest = 0
    for rows in sides:
        order = order_of(recipe, corpus).epoch_rows(0) if rows is corpus.train else np.arange(len(rows))
        longest = max(longest, _longest_of(rows, order, objective, layout))
    return longest


def _longest_of(rows: EncodedRows, order: np.ndarray, objective: PreferenceObjective, layout: LayoutName) -> int:
    """The longest part of one split. The order matters for kto's groups; pairs are the same in any order."""
    answers, size = objective.answers, objective.indivisible
    lengths = rows.lengths.reshape(-1, answers).sum(1)
    if size == 1:
        order = np.argsort(-lengths, kind="stable")
    longest = 0
    for start in range(0, len(order), size):
        part = order[start : start + size]
        if size == 1 and layout != "padded" and lengths[part[0]] <= longest:
            break  # no later pair has as many tokens, shared or not
        encoded = [rows[number * answers + answer] for number in part.tolist() for answer in range(answers)]
        longest = max(longest, computed_tokens(objective.rows(encoded), layout=layout))
    return longest


def first_steps(recipe: Recipe, corpus: Corpus) -> list[list[Encoded]]:
    """The rows of a few steps, to see what they share; empty if rows cannot share or come in pairs."""
    if recipe.training.wanted_layout != "tree" or corpus.together > 1:
        return []
    windows = islice(order_of(recipe, corpus).windows(), PLANNED_STEPS)
    return [[corpus.train[number] for number in window.rows] for window in windows]


def lay_out_step(
    rows: Sequence[Encoded],
    objective: PreferenceObjective | None,
    *,
    budget: int,
    layout: LayoutName,
    reference: np.ndarray | None = None,
    desirable: np.ndarray | None = None,
) -> list[Batch]:
    """The micro-batches of one step's rows.

    Args:
        objective: None for supervised fine-tuning.
        reference, desirable: as in ``PreferenceObjective.lay_out``.
    """
    if objective is None:
        return micro_batches(rows, budget=budget, layout=layout)
    pairs = objective.rows(rows)
    return objective.lay_out(pairs, budget=budget, layout=layout, reference=reference, desirable=desirable)


def order_of(recipe: Recipe, corpus: Corpus) -> Order:
    """The order in which the run's steps take the rows."""
    settings = recipe.training
    return Order(
        corpus.weights,
        sources=corpus.train_sources,
        quotas=corpus.quotas,
        batch_size=settings.batch_size,
        epochs=settings.num_train_epochs,
        max_steps=settings.max_steps,
        seed=settings.seed,
    )


def rate_of(recipe: Recipe, total_steps: int) -> Callable[[int], float]:
    """The learning rate of each step of a run, counted from 1."""
    settings = recipe.training
    return partial(
        learning_rate_at,
        peak=recipe.learning_rate,
        total_steps=total_steps,
        warmup_steps=steps_of_warmup(settings.warmup_steps, total_steps),
        schedule=settings.lr_scheduler_type,
        arguments=settings.lr_scheduler_kwargs,
    )


def rate_warnings(recipe: Recipe, total_steps: int) -> list[str]:
    """What a user would not expect of the learning rate: it never reaches ``training.learning_rate``, or exceeds it."""
    peak, rate = recipe.learning_rate, rate_of(recipe, total_steps)
    highest = max(map(rate, range(1, total_steps + 1)))
    warmup = steps_of_warmup(recipe.training.warmup_steps, total_steps)
    if highest > peak * (1 + RATE_TOLERANCE):
        return [
            f"the learning rate climbs to {highest:.3g}, above training.learning_rate {peak:g}. "
            "Lower the rate in training.lr_scheduler_kwargs, or set a share of the rate there (min_lr_rate: 0.1)"
        ]
    if highest >= peak * (1 - RATE_TOLERANCE):
        return []
    reached = "is 0 in every step, so nothing is learned" if highest == 0 else f"reaches {highest:.3g}"
    if warmup >= total_steps:
        reason = f"the warm-up takes {total_steps:,} of {total_steps:,} steps. Lower training.warmup_steps"
    else:
        reason = f"the run has {total_steps:,} steps. Look at training.lr_scheduler_kwargs"
    return [f"the learning rate {reached} and never gets to training.learning_rate {peak:g}: {reason}"]
