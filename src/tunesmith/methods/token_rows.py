"""Trains some rows of the embedding and of the output layer and no others: PEFT's trainable token indices.

PEFT puts the trained rows into a copy of the whole table at every forward pass, and takes their gradient from that of
the whole table. Here the few rows are looked up beside the table, which gives the same values and gradients; the output
layer has its own way in ``model/compute/logprobs.py``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.recipe.methods import AdapterSettings

_SETTING = "method.trainable_token_indices"


def token_rows(
    settings: AdapterSettings, model: PreTrainedModel, added: Sequence[int]
) -> list[int] | dict[str, list[int]] | None:
    """``trainable_token_indices`` for PEFT: those of the settings, and the rows of added tokens wherever they are.

    A table that ``modules_to_save`` trains whole has them already. PEFT trains a list of rows of the embedding, and of
    an output layer that is tied to it; one of its own is named.

    Raises:
        ModelError: a row is beyond the table, or a table would be adapted in two ways.
    """
    asked = settings.trainable_token_indices
    if not asked and not added:
        return None
    embedding, head, tied = _tables(model)
    whole = {name for name in (embedding, head) if name and _named(name, settings.modules_to_save)}
    if isinstance(asked, dict):
        wanted = {_full_name(model, name): list(ids) for name, ids in asked.items()}
    else:
        wanted = {embedding: list(asked or [])}
    for name, ids in wanted.items():
        if ids and name in whole:
            raise ModelError(
                f"{name} is to train whole and by rows",
                where=_SETTING,
                why="modules_to_save names it too.",
                remedy="leave it out of one of them",
            )
    if added and tied and len(whole) == 1:
        raise ModelError(
            "the added tokens would be learned on one side only",
            where="method.modules_to_save",
            why=f"{embedding} and {head} share their weights, and only {whole.pop()} is to train whole.",
            remedy="name both, or neither: the rows of added tokens then train alone, on both sides",
        )
    for name in [embedding] if tied or head is None else [embedding, head]:
        if name not in whole:
            wanted[name] = sorted({*wanted.get(name, []), *added})
    wanted = {name: ids for name, ids in wanted.items() if ids}
    for name, ids in wanted.items():
        _check(model, name, ids, settings)
    if tied and embedding in wanted and head is not None:
        _check(model, head, wanted[embedding], settings)
    return wanted[embedding] if set(wanted) == {embedding} else wanted or None


def _tables(model: PreTrainedModel) -> tuple[str, str | None, bool]:
    """The names of the embedding and of the output layer, and whether they share their weight."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    tied = head is not None and head.weight is embedding.weight
    return names[id(embedding)], None if head is None else names[id(head)], tied


def _named(name: str, wanted: str | Sequence[str] | None) -> bool:
    """By the rule of PEFT: a list has names or their last parts, a text is a regular expression."""
    if isinstance(wanted, str):
        return wanted != "all-linear" and re.fullmatch(wanted, name) is not None  # which leaves the output layer out
    return any(name == one or name.endswith(f".{one}") for one in wanted or ())


def _full_name(model: PreTrainedModel, name: str) -> str:
    found = [full for full, _ in model.named_modules() if _named(full, [name])]
    if len(found) != 1:
        raise ModelError(
            f"the model has {len(found) or 'no'} modules named {name!r}", where=_SETTING, remedy="name the embedding"
        )
    return found[0]


def _check(model: PreTrainedModel, name: str, ids: Sequence[int], settings: AdapterSettings) -> None:
    table: Any = model.get_submodule(name)
    if isinstance(table, nn.Linear) and table.bias is not None:
        raise ModelError(
            f"rows of {name} cannot train alone",
            where=_SETTING,
            why="It has a bias, which PEFT leaves out there.",
            remedy="train the embedding and the output layer whole, by modules_to_save",
        )
    if not isinstance(table, nn.Embedding | nn.Linear):
        raise ModelError(f"{name} has no rows of tokens", where=_SETTING, remedy="name the embedding")
    if max(ids) >= len(table.weight):
        raise ModelError(
            f"there is no token {max(ids)}", where=_SETTING, why=f"{name} has {len(table.weight)} rows, from 0 on."
        )
    if _named(name, settings.target_modules) and not _named(name, settings.exclude_modules):
        raise ModelError(
            f"{name} cannot have an adapter and rows that train",
            where="method.target_modules",
            why="PEFT adapts a table in one way only.",
            remedy="leave it out of target_modules, or train it whole by modules_to_save",
        )


def fuse_token_rows(model: nn.Module) -> None:
    """Makes embeddings look up their trained rows, in place of PEFT's copy of the table. May be called again."""
    for layer in model.modules():
        if type(layer) is TrainableTokensLayer and isinstance(layer.base_layer, nn.Embedding):
            layer.forward = partial(_looked_up, layer)


def _looked_up(self: Any, x: Tensor) -> Tensor:
    names = self.active_adapters
    plain = len(names) == 1 and names[0] in self.trainable_tokens_delta and not self.base_layer.weight.requires_grad
    if self.disable_adapters or self.merged or not plain:
        return type(self).forward(self, x)
    ids = torch.tensor(self.token_indices[names[0]], device=x.device)
    found = x.flatten()[:, None] == ids
    places = found.any(-1).nonzero()[:, 0]
    hidden = self.base_layer(x)
    rows = functional.embedding(found[places].int().argmax(-1), self.trainable_tokens_delta[names[0]].to(hidden.dtype))
    scale = self._get_embed_scale()  # of families that scale what they look up
    rows = rows if scale is None else rows * scale.to(rows.dtype)
    return hidden.flatten(0, -2).index_copy(0, places, rows).view_as(hidden)
