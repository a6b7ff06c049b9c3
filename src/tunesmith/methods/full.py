"""Full fine-tuning: every parameter trains, and a checkpoint is a model folder."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.data.batches.layout import TokenRow
from tunesmith.errors import ModelError
from tunesmith.methods.base import Method, Origin, exchanged, on_cpu
from tunesmith.model.modes import kept_modes, seeded
from tunesmith.model.weights.added_tokens import NO_TOKENS, AddedTokens, grow
from tunesmith.model.weights.finite import ANOTHER, refuse_not_finite
from tunesmith.model.weights.load import quiet_transformers
from tunesmith.recipe.methods import FreezeSettings, FullSettings

MAX_SHARD_SIZE = "5GB"


class Full(Method):
    """All weights train. No second copy is held: ``reference`` reads the untuned weights from disk."""

    name = "full"

    def __init__(self, settings: FullSettings | FreezeSettings, origin: Origin) -> None:
        self.settings = settings
        self.origin = origin
        self._model: PreTrainedModel | None = None  # knows its config and how its files are laid out

    def attach(self, model: PreTrainedModel, batches: Iterable[Iterable[TokenRow]] | None = None) -> PreTrainedModel:
        """Every parameter trains. Raises ModelError for quantized weights, which have no gradient."""
        refuse_quantized(model, self.name)
        model.requires_grad_(True)
        self._model = model
        return model

    @contextmanager
    def reference(self, model: nn.Module) -> Iterator[nn.Module]:
        """Inside, the model has the base weights, read from disk; the trained ones wait in memory."""
        assert isinstance(model, PreTrainedModel)
        base = read_weights(self.origin.base, like=model, revision=self.origin.revision, added=self.origin.added)
        with kept_modes(model), exchanged(paired(model, base)):
            del base
            yield model

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The state dict; a weight that two names share is held once, under the first."""
        return on_cpu(live_tensors(model))

    def save(self, state: dict[str, Tensor], to: Path) -> None:
        """config.json, generation_config.json and model.safetensors, in shards of at most 5 GB."""
        assert self._model is not None, "save before attach or load"
        with quiet_transformers():
            self._model.save_pretrained(to, state_dict=dict(state), max_shard_size=MAX_SHARD_SIZE)

    def load(self, model: PreTrainedModel, path: Path) -> PreTrainedModel:
        """Puts the weights of a model folder into the model."""
        saved = read_weights(str(path), like=model)
        with torch.no_grad():
            for live, tensor in paired(model, saved):
                live.copy_(tensor)
        return self.attach(model)

    def merge(self, model: nn.Module) -> PreTrainedModel:
        """A copy: the weights are plain already."""
        assert isinstance(model, PreTrainedModel)
        return copy.deepcopy(model)


def refuse_quantized(model: PreTrainedModel, method: str) -> None:
    """Raises ModelError for weights that are not floating point, which have no gradient."""
    packed = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
    if packed:
        raise ModelError(
            f"method: {method} cannot train quantized weights",
            why=f"{len(packed)} weights are not floating point, such as {packed[0]}",
            remedy="use method: qlora, or the unquantized model",
        )


def read_weights(
    folder: str, *, like: PreTrainedModel, revision: str | None = None, added: AddedTokens = NO_TOKENS
) -> dict[str, Tensor]:
    """The state dict of a model folder on the CPU, in the dtype of ``like``, by the names that ``like`` uses.

    transformers reads it, because a file may name and group weights otherwise than the module tree does.

    Args:
        added: tokens that the model gets rows for once it is read.

    Raises:
        ModelError: the folder cannot be read, lacks weights, or has some that are not finite.
    """
    try:
        with seeded(0), quiet_transformers():
            found: Any = type(like).from_pretrained(
                folder, revision=revision or "main", dtype=like.dtype, use_safetensors=True, output_loading_info=True
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError("the weights cannot be read", where=folder, why=str(error)) from error
    fresh, report = found
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError("weights are missing", where=folder, why=_some(missing), remedy="fetch or save it again")
    refuse_not_finite(dict(fresh.named_parameters()), where=folder, remedy=ANOTHER)
    grow(fresh, added)
    return fresh.state_dict()


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a state dict, not copies, each once and under its first name."""
    first_names: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    for name, own in tensors.items():
        first_names.setdefault(id(own), name)
    return {name: tensors[name] for name in first_names.values()}


def paired(model: PreTrainedModel, weights: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each tensor of the model with the saved one of the same name. Raises ModelError if names or shapes differ."""
    live = live_tensors(model)
    wrong = [name for name, own in live.items() if name not in weights or weights[name].shape != own.shape]
    wrong += weights.keys() - model.state_dict().keys()
    if wrong:
        raise ModelError(
            "the saved weights are of another model",
            why=f"names or shapes differ: {_some(sorted(wrong))}",
            remedy="name the base model that this checkpoint was trained from",
        )
    return [(own, weights[name]) for name, own in live.items()]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
