"""Counts a recipe's rows in tokens, with the tokenizer and template that training uses."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np

from tunesmith.data.corpus import encode_corpus
from tunesmith.data.files.locations import refuse_missing
from tunesmith.data.survey import survey_rows
from tunesmith.model.weights.text_side import text_side
from tunesmith.planning.budget import micro_batch_tokens
from tunesmith.planning.workload import Workload
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.progress import Listener, Silent
from tunesmith.training.objectives.table import preference_objective
from tunesmith.training.step_rows import PLANNED_STEPS, first_steps, lay_out_step, longest_part, order_of


def by_tokens(recipe: Recipe, *, listener: Listener | None = None) -> Workload:
    """The recipe's rows as its model sees them, and what the rows of the first steps share.

    Args:
        recipe: with its device resolved, which decides the micro-batch.

    Raises:
        DataError, ModelError: what a user can fix in rows or model.
    """
    listener = listener or Silent()
    refuse_missing(recipe.data)
    found = survey_rows(recipe.data, seed=recipe.training.seed, objective=recipe.objective.name, listener=listener)
    text = text_side(recipe.model, recipe.data, say=listener.say)
    recipe = recipe.with_values(data={"max_length": text.data.max_length})
    corpus = encode_corpus(replace(found, settings=recipe.data), text.template, listener=listener)
    longest, steps = longest_part(recipe, corpus), first_steps(recipe, corpus)
    # The first steps are laid out as in training, and the epoch is taken to be like them.
    asked = recipe.training.micro_batch_tokens
    budget = micro_batch_tokens(recipe.model.device, longest, steps) if asked == "auto" else int(asked)
    layout, objective, order = recipe.training.wanted_layout, preference_objective(recipe), order_of(recipe, corpus)
    windows = list(islice(order.windows(), PLANNED_STEPS))
    batches = [
        batch
        for window in windows
        for batch in lay_out_step(corpus.rows_of(window.rows), objective, budget=budget, layout=layout)
    ]
    of_rows = corpus.train.lengths.astype(np.int64).reshape(-1, corpus.together).sum(1)  # tokens [examples]
    epoch = order.epoch_rows(0)
    tokens, seen = int(of_rows[epoch].sum()), sum(int(of_rows[list(window.rows)].sum()) for window in windows)

    def scaled(part: int) -> int:
        return round(tokens * part / seen)

    computed = sum(batch.computed for batch in batches)
    return Workload(
        rows=len(epoch),
        longest=longest,
        tokens=tokens,
        computed=scaled(computed),
        logits=scaled(sum(int(batch.predicts.sum()) for batch in batches)),
        pairs=scaled(sum(int((batch.position_ids + 1).sum()) for batch in batches)),
        basis=f"{len(epoch):,} rows of {tokens:,} tokens, {computed / seen:.0%} of them computed (counted on "
        f"{len(windows)} steps)",
        steps=steps,
    )
