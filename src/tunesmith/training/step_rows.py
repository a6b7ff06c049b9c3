"""Which rows a step takes, and the longest steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from tunesmith.data.batches.layout import Batch, LayoutName, computed_tokens, micro_batches
from tunesmith.data.batches.order import Order
from tunesmith.data.chat.template import Encoded
from tunesmith.data.corpus import Corpus
from tunesmith.data.encoded_rows import EncodedRows
from tunesmith.recipe.settings import Recipe
from tunesmith.training.objectives.preference import PreferenceObjective
from tunesmith.training.objectives.table import preference_objective

PLANNED_STEPS = 4  # whose rows the budget of a micro-batch is chosen by


def _computed(recipe: Recipe, corpus: Corpus) -> list[EncodedRows]:
    """The rows that go through the model in this run."""
    return [corpus.train, corpus.held_out, *([corpus.test] if recipe.training.selects else [])]


def longest_part(recipe: Recipe, corpus: Corpus) -> int:
    """Tokens of what cannot be divided among micro-batches: a row, a pair of answers, a group of kto's.

    Rows that are only judged count too. kto's groups are those of the first epoch.
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
    """Of one side; the order is of kto's examples, because pairs depend on none."""
    answers, size = objective.answers, objective.indivisible
    lengths = rows.lengths.reshape(-1, answers).sum(1)
    if size == 1:
        order = np.argsort(-lengths, kind="stable")
    longest = 0
    for start in range(0, len(order), size):
        part = order[start : start + size]
        if size == 1 and layout != "padded" and lengths[part[0]] <= longest:
            break  # no pair that follows has as many tokens, shared or not
        encoded = [rows[number * answers + answer] for number in part.tolist() for answer in range(answers)]
        longest = max(longest, computed_tokens(objective.rows(encoded), layout=layout))
    return longest


def first_steps(recipe: Recipe, corpus: Corpus) -> list[list[Encoded]]:
    """The rows of a few steps, to see what they share; none where they share nothing or come in pairs."""
    if recipe.training.wanted_layout != "tree" or corpus.together > 1:
        return []
    windows = islice(order_of(recipe, corpus).windows(), PLANNED_STEPS)
    return [[corpus.train[number] for number in window.rows] for window in windows]


def lay_out(
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
    """Which rows each step of the run sees."""
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
