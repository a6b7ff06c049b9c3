"""How much there is to compute in an epoch: from characters, from the tokens of the rows, or as it is said.

From characters and as it is said need no torch; ``by_tokens`` takes the model's own tokenizer, template and layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from tunesmith.errors import DataError
from tunesmith.progress import Listener, Silent
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    from tunesmith.data.layout import TokenRow

CHARACTERS = 4  # a token, in English prose with today's vocabularies; code and other languages have fewer
ANSWER = 0.5  # share of a row's tokens that is learned, where nothing is known of the rows
STEPS = 4  # looked at for what rows share


@dataclass(frozen=True, slots=True)
class Workload:
    """An epoch: rows, tokens in them and computed, logits that a label needs, pairs of tokens that see each other.

    ``longest`` is the row that must fit, ``basis`` where the numbers come from. ``steps``: the rows of some optimizer
    steps, where they are known.
    """

    rows: int
    longest: int
    tokens: int
    computed: int
    logits: int
    pairs: int
    basis: str
    steps: Sequence[Sequence[TokenRow]] = ()


def as_said(rows: int, length: int) -> Workload:
    """So many rows of so many tokens each, which share nothing."""
    return Workload(
        rows=rows,
        longest=length,
        tokens=rows * length,
        computed=rows * length,
        logits=int(rows * length * ANSWER),
        pairs=rows * length * (length + 1) // 2,
        basis=f"{rows:,} rows of {length:,} tokens, as given; half of them learned, nothing shared",
    )


def by_characters(recipe: Recipe, *, listener: Listener | None = None) -> Workload:
    """Of the recipe's rows, read but not encoded. Raises DataError where they cannot be read, or none is left."""
    import numpy as np

    from tunesmith import corpus as corpora
    from tunesmith.data.clean import PLACE

    found = corpora.survey(recipe.data, seed=recipe.training.seed, listener=listener or Silent())
    scan, limit = found.scan, recipe.data.max_length
    trained = found.place == PLACE["trained"]
    if not trained.any():
        raise DataError("There is no row to train on", where="data.train", remedy="Look at `tunesmith check RECIPE`.")
    used = trained | (found.place == PLACE["held_out"])
    lengths = np.minimum(-(-scan.characters.astype(np.int64) // CHARACTERS), limit)
    learned = np.minimum(-(-scan.answer_characters.astype(np.int64) // CHARACTERS), lengths)
    learned = np.where(scan.raw_text, lengths, learned)
    of_rows = lengths[trained]
    return Workload(
        rows=int(trained.sum()),
        longest=max(int(lengths[used].max()), 1),
        tokens=int(of_rows.sum()),
        computed=int(of_rows.sum()),
        logits=int(learned[trained].sum()),
        pairs=int((of_rows * (of_rows + 1) // 2).sum()),
        basis=f"{int(trained.sum()):,} rows, {CHARACTERS} characters a token, without template; nothing shared "
        "(--exact counts)",
    )


def by_tokens(recipe: Recipe, *, listener: Listener | None = None) -> Workload:
    """Of the recipe's rows as its model sees them, and what the rows of the first steps share. Imports torch.

    Args:
        recipe: with its device resolved, which decides the micro-batch.

    Raises:
        DataError, ModelError: what a user can mend in rows or model.
    """
    import numpy as np

    from tunesmith import corpus as corpora
    from tunesmith.data.layout import micro_batches
    from tunesmith.model.load import load_tokenizer, stop_ids
    from tunesmith.model.source import resolve
    from tunesmith.plan import micro_batch_tokens
    from tunesmith.prepare import order_of

    listener = listener or Silent()
    found = corpora.survey(recipe.data, seed=recipe.training.seed, listener=listener)
    code = recipe.model.trust_remote_code
    folder = resolve(recipe.model.path, revision=recipe.model.revision, trust_remote_code=code, say=listener.say)
    tokenizer = load_tokenizer(folder, trust_remote_code=code)
    template = corpora.make_template(recipe.data, tokenizer, stop_ids(folder, tokenizer))
    corpus = corpora.encode(found, template, listener=listener)
    lengths = corpus.train.lengths.astype(np.int64)
    longest = max(int(rows.lengths.max()) for rows in (corpus.train, corpus.held_out) if len(rows))
    windows = list(islice(order_of(recipe, corpus).windows(), STEPS))
    steps = [] if recipe.training.layout == "padded" else [[corpus.train[n] for n in w.rows] for w in windows]
    asked = recipe.training.micro_batch_tokens
    budget = micro_batch_tokens(recipe.model.device, longest, steps) if asked == "auto" else int(asked)
    layout = "padded" if recipe.training.layout == "padded" else "tree"
    rows = [[corpus.train[n] for n in w.rows] for w in windows]
    batches = [batch for own in rows for batch in micro_batches(own, budget=budget, layout=layout)]
    tokens, seen = int(lengths.sum()), sum(batch.tokens for batch in batches)

    def scaled(part: int) -> int:
        return round(tokens * part / seen)

    computed = sum(batch.computed for batch in batches)
    return Workload(
        rows=len(lengths),
        longest=longest,
        tokens=tokens,
        computed=scaled(computed),
        logits=scaled(sum(int(batch.predicts.sum()) for batch in batches)),
        pairs=scaled(sum(int((batch.position_ids + 1).sum()) for batch in batches)),
        basis=f"{len(lengths):,} rows of {tokens:,} tokens, {computed / seen:.0%} of them computed (counted on "
        f"{len(windows)} steps)",
        steps=steps,
    )
