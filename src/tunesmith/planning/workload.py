"""How much there is to compute in an epoch: from the characters of the rows, or from numbers that the user gives.

Imports no torch. ``workflows/exact_workload.py`` counts with the model's own tokenizer, template and layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.files.locations import refuse_missing
from tunesmith.data.placement import OUTCOME
from tunesmith.data.report.findings import CHARACTERS_PER_TOKEN
from tunesmith.data.survey import Survey, survey_rows
from tunesmith.errors import DataError
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.progress import Listener, Silent

if TYPE_CHECKING:
    from tunesmith.data.batches.layout import TokenRow

ANSWER = 0.5  # share of a row's tokens that is learned, where nothing is known of the rows


@dataclass(frozen=True, slots=True)
class Workload:
    """An epoch: rows, tokens in them and computed, logits that a label needs, pairs of tokens that see each other.

    A row that holds two answers counts once. ``longest`` is what must fit into a micro-batch: the longest row, or what
    a preference objective keeps together. ``basis`` says where the numbers come from. ``steps`` are the rows of some
    optimizer steps, if they are known.
    """

    rows: int
    longest: int
    tokens: int
    computed: int
    logits: int
    pairs: int
    basis: str
    steps: Sequence[Sequence[TokenRow]] = ()


def as_given(rows: int, length: int, *, recipe: Recipe | None = None) -> Workload:
    """A number of rows of one length. They share nothing but, under a preference objective, their prompt.

    Args:
        recipe: whose objective it is; None: supervised fine-tuning.
    """
    answers, group = (1, 1) if recipe is None else _kept_together(recipe)
    own = int(length * ANSWER)
    computed, pairs = _behind_a_prompt(length - own, own, answers)
    shared = "nothing shared" if answers == 1 else "two answers to each prompt"
    return Workload(
        rows=rows,
        longest=group * computed,
        tokens=rows * answers * length,
        computed=rows * computed,
        logits=rows * answers * own,
        pairs=rows * pairs,
        basis=f"{rows:,} rows of {length:,} tokens, as given; half of them learned, {shared}",
    )


def _kept_together(recipe: Recipe) -> tuple[int, int]:
    """Answers that are computed behind a prompt, and rows that stay together (see PreferenceObjective)."""
    name, training = recipe.objective.name, recipe.training
    if name == "sft":
        return 1, 1
    return 2, (training.per_device_train_batch_size or training.batch_size) if name == "kto" else 1


def _behind_a_prompt(prompt: Any, own: Any, answers: int) -> tuple[Any, Any]:
    """The tokens to compute, and the pairs of them that see each other: a prompt once, then its answers.

    Args:
        prompt: tokens of the prompt; a number or an array [rows].
        own: tokens of each answer, likewise.
    """
    computed = prompt + answers * own
    return computed, prompt * (prompt + 1) // 2 + answers * (own * prompt + own * (own + 1) // 2)


def by_characters(recipe: Recipe, *, listener: Listener | None = None) -> Workload:
    """The recipe's rows, read but not encoded. A rejected answer is taken to be as long as the chosen one.

    Raises DataError if they cannot be read, or none is left.
    """
    refuse_missing(recipe.data)
    found = survey_rows(
        recipe.data, seed=recipe.training.seed, objective=recipe.objective.name, listener=listener or Silent()
    )
    return of_survey(found, recipe)


def of_survey(found: Survey, recipe: Recipe) -> Workload:
    """Rows that have been read for the recipe's objective. Raises DataError if there is none to train on."""
    scan, limit = found.scan, recipe.data.max_length
    trained = found.outcome == OUTCOME["trained"]
    if not trained.any():
        raise DataError("There is no row to train on", where="data.train", remedy="Look at `tunesmith check RECIPE`.")
    used = trained | (found.outcome == OUTCOME["held_out"])
    if recipe.training.selects:
        used |= found.outcome == OUTCOME["test"]
    answers, group = _kept_together(recipe)
    whole = -(-scan.characters.astype(np.int64) // CHARACTERS_PER_TOKEN)
    full = np.zeros_like(whole)  # blocks of ``limit`` tokens: of a text that is split, all but the last
    if recipe.data.if_too_long(raw_text=True) == "split":
        full = np.where(scan.raw_text, np.maximum(-(-whole // limit) - 1, 0), 0)
    rest = whole - full * limit
    learned = np.where(scan.raw_text, rest, -(-scan.answer_characters.astype(np.int64) // CHARACTERS_PER_TOKEN))
    own = np.minimum(learned, np.minimum(rest, limit))
    prompt = np.clip(rest - found.together * own, 0, limit - own)
    computed, pairs = _behind_a_prompt(prompt, own, answers)
    largest = np.sort(np.where(full > 0, limit, computed)[used])
    blocks, in_blocks = int(full[trained].sum()), int((full * limit)[trained].sum())
    rows = int(trained.sum()) + blocks
    return Workload(
        rows=rows,
        longest=max(int(largest[-group:].sum()), 1),
        tokens=in_blocks + int((found.together * (prompt + own))[trained].sum()),
        computed=in_blocks + int(computed[trained].sum()),
        logits=in_blocks + int((answers * own)[trained].sum()),
        pairs=blocks * (limit * (limit + 1) // 2) + int(pairs[trained].sum()),
        basis=f"{rows:,} rows, {CHARACTERS_PER_TOKEN} characters a token, without template; nothing shared "
        f"{'' if answers == 1 else 'but the prompt of two answers '}(--exact counts)",
    )
