"""Adds a recipe's tokens to the tokenizer, and gives them rows of the embedding and of the output layer.

A new row begins as the mean of all rows that were there before, so its logit begins near the average one
(Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html). transformers draws new rows from a normal
distribution about that mean, with a spread of 3e-5 of the rows' own, so its result depends on the random state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.data.chat.tokenizing import tokenizing
from tunesmith.errors import ModelError
from tunesmith.model.modes import random_state_kept
from tunesmith.model.weights.load import quiet_transformers
from tunesmith.recipe.settings import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_SETTING = "model.add_tokens"
_ROWS_AT_A_TIME = 8192  # of a table, when they are added up


@dataclass(frozen=True, slots=True)
class AddedTokens:
    """The tokens that a recipe names, as the tokenizer has them.

    Args:
        ids: of the new ones.
        texts: of the new ones, in the order of their ids.
        known: those that the vocabulary had already; nothing was added for them.
        existing: the ids that the vocabulary had already, ascending.
    """

    ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    existing: tuple[int, ...] = ()

    def notes(self) -> list[str]:
        """Lines for the user: which tokens were added with which ids, and which were there already."""
        notes = (
            [f"{', '.join(map(repr, self.known))}: in the vocabulary already, nothing is added"] if self.known else []
        )
        if self.ids:
            each = ", ".join(f"{text!r} {number}" for text, number in zip(self.texts, self.ids, strict=True))
            notes.append(f"tokens added: {each}; their rows begin as the mean of all others")
        return notes


NO_TOKENS = AddedTokens()


def extend(tokenizer: PreTrainedTokenizerBase, settings: ModelSettings) -> AddedTokens:
    """Adds the recipe's tokens to the tokenizer of the base model. Their texts match as they are written.

    Raises:
        ModelError: the tokenizer does not keep one of them whole.
    """
    from tokenizers import AddedToken

    if not settings.named_tokens:
        return NO_TOKENS
    vocabulary = tokenizer.get_vocab()
    plain = [text for text in settings.add_tokens if text not in vocabulary]
    special = [text for text in settings.add_special_tokens if text not in vocabulary]
    ordinary: list[Any] = [AddedToken(text, normalized=False, special=False) for text in plain]
    tokenizer.add_tokens(ordinary)
    if special:
        tokens: list[Any] = [AddedToken(text, normalized=False, special=True) for text in special]
        tokenizer.add_special_tokens({"additional_special_tokens": tokens}, False)
    existing = set(vocabulary.values())
    ids = {text: int(tokenizer.convert_tokens_to_ids(text)) for text in [*plain, *special]}  # type: ignore[arg-type]
    for text, number in ids.items():
        with tokenizing(len(text), where=_SETTING):
            made: Any = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if number in existing or number not in made:
            raise ModelError(f"the tokenizer does not keep {text!r} as one token", where=_SETTING)
    return AddedTokens(
        ids=tuple(sorted(ids.values())),
        texts=tuple(sorted(ids, key=ids.__getitem__)),
        known=tuple(text for text in settings.named_tokens if text in vocabulary),
        existing=tuple(sorted(existing)),
    )


def grow(model: PreTrainedModel, added: AddedTokens) -> None:
    """Gives each new token a row: a spare one, or a new one after the last. Tied weights stay tied.

    Raises:
        ModelError: the embedding or the output layer cannot have one.
    """
    if added.ids:
        _fill(model, rows=added.ids, of=added.existing, size=max(added.ids) + 1)


def grow_to(model: PreTrainedModel, size: int) -> None:
    """An embedding of ``size`` rows, the new ones as the mean of all others. Raises ModelError as ``grow`` does."""
    before = len(_weight(model.get_input_embeddings()))
    _fill(model, rows=range(before, size), of=range(before), size=size)


@torch.no_grad()
def _fill(model: PreTrainedModel, *, rows: Sequence[int], of: Sequence[int], size: int) -> None:
    tables = _tables(model)
    before = len(tables[0])
    _refuse_tables_beside(model, size)
    real = torch.tensor([number for number in of if number < before])
    means = [_mean(table, real) for table in tables]
    if size > before:
        _resize(model, size)
        rows = sorted({*rows, *range(before, size)})
    for table, mean in zip(_tables(model), means, strict=True):
        table[list(rows)] = mean.to(table.dtype)


def _tables(model: PreTrainedModel) -> list[Tensor]:
    """The weights with a row for each token: of the embedding, and of an output layer that is not tied to it."""
    embedding, head = _weight(model.get_input_embeddings()), model.get_output_embeddings()
    if head is None or _weight(head) is embedding:
        bias = getattr(head, "bias", None)
        return [embedding] if bias is None else [embedding, bias]
    own = [_weight(head), getattr(head, "bias", None)]
    return [embedding, *(each for each in own if each is not None)]


def _weight(layer: Any) -> Tensor:
    """The weight of an embedding or output layer. Raises ModelError if rows cannot be added to it."""
    weight = getattr(layer, "weight", None)
    if isinstance(layer, (nn.Embedding, nn.Linear)) and isinstance(weight, Tensor) and weight.is_floating_point():
        return weight
    held = type(layer).__name__ if weight is None else f"{type(layer).__name__} of {weight.dtype}"
    raise ModelError(
        "this model cannot be given new tokens",
        where=_SETTING,
        why=f"Its embedding or output layer is a {held}, to which no row can be added.",
        remedy="use the model before it was quantized, or train without new tokens",
    )


def _mean(table: Tensor, rows: Tensor) -> Tensor:
    """The mean of some rows, summed in float64 so that their order makes no difference."""
    parts = (table[part.to(table.device)].double().sum(0) for part in rows.split(_ROWS_AT_A_TIME))
    return torch.stack(list(parts)).sum(0) / len(rows)


def _resize(model: PreTrainedModel, size: int) -> None:
    device = _weight(model.get_input_embeddings()).device
    try:  # what transformers draws for the new rows is replaced, and must not show elsewhere either
        with random_state_kept(device), quiet_transformers():
            model.resize_token_embeddings(size, mean_resizing=False)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            "this model cannot be given new tokens",
            where=_SETTING,
            why=f"transformers cannot resize the embedding of {type(model).__name__}: {error}",
        ) from error


def _refuse_tables_beside(model: PreTrainedModel, size: int) -> None:
    """Raises ModelError for Gemma 3n and 4, which have a second table of tokens that transformers does not resize."""
    rows = getattr(model.config.get_text_config(), "vocab_size_per_layer_input", None)
    if rows is not None and size > rows:
        raise ModelError(
            "this model cannot be given new tokens",
            where=_SETTING,
            why=f"It has a second embedding, of {rows} rows for all layers, which cannot be resized.",
        )
