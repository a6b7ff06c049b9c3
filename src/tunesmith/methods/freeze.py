"""Trains a part of the model: the last decoder layers, named modules or the embeddings. All other weights are frozen.

Layers below the lowest one that trains take no part in the backward pass, so their activations are not kept.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.data.batches.layout import TokenRow
from tunesmith.errors import ModelError
from tunesmith.methods.base import Origin, exchanged, on_cpu
from tunesmith.methods.full import Full, live_tensors, paired, read_weights, refuse_quantized
from tunesmith.model.compute.layers import decoder_layers
from tunesmith.model.modes import kept_modes
from tunesmith.model.weights.slow_regex import refuse_slow_patterns
from tunesmith.recipe.methods import FreezeSettings

_SETTING = "method.trainable_modules"


class Freeze(Full):
    """The chosen weights train; all others are the base's after training, bit for bit.

    A checkpoint is a whole model folder, because that is what the ecosystem loads. ``state`` copies only what trains,
    and ``save`` takes the frozen weights from the model itself. ``reference`` is exact from copies of what trains as it
    was before (one more copy of a part, kept on the CPU), so the base is not read a second time as under full.
    """

    name = "freeze"

    def __init__(self, settings: FreezeSettings, origin: Origin) -> None:
        super().__init__(settings, origin)
        self.chosen = settings
        self._before: dict[str, Tensor] = {}  # what trains, by name, as the base has it

    def attach(self, model: PreTrainedModel, batches: Iterable[Iterable[TokenRow]] | None = None) -> PreTrainedModel:
        """Freezes all weights except those that the settings choose.

        Raises:
            ModelError: the weights are quantized, or the settings choose what the model does not have.
        """
        refuse_quantized(model, self.name)
        trains = chosen_parameters(model, self.chosen)
        model.requires_grad_(False)
        for parameter in trains:
            parameter.requires_grad_(True)
        self._before = {name: _copied(own) for name, own in model.named_parameters() if own.requires_grad}
        self._model = model
        return model

    @contextmanager
    def reference(self, model: nn.Module) -> Iterator[nn.Module]:
        """Inside, the weights that train have their first values; the trained ones wait in memory. Nothing is read."""
        own = dict(model.named_parameters())
        with kept_modes(model), exchanged([(own[name], before) for name, before in self._before.items()]):
            yield model

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights that train; one that two names share is held once, under the first."""
        return on_cpu({name: own for name, own in model.named_parameters() if name in self._before})

    def save(self, state: dict[str, Tensor], to: Path) -> None:
        """Writes the folder that full fine-tuning writes: the state, and the frozen weights of the model."""
        assert self._model is not None, "save before attach or load"
        super().save({**{name: own.detach() for name, own in live_tensors(self._model).items()}, **state}, to)

    def load(self, model: PreTrainedModel, path: Path) -> PreTrainedModel:
        """Puts the trained weights of a model folder into the base that they were trained from.

        Raises:
            ModelError: the folder cannot be read, or its frozen weights are not this base's.
        """
        pairs = paired(model, read_weights(str(path), like=model))
        attached = self.attach(model)
        frozen = [pair for pair in pairs if not pair[0].requires_grad]
        if not any(all(_same(*pair, stored) for pair in frozen) for stored in (None, torch.bfloat16, torch.float16)):
            raise ModelError(
                "the checkpoint was trained from another base",
                where=str(path),
                why=f"weights that were frozen differ from those of {self.origin.base}",
                remedy="name the model, and its revision, that the run began with",
            )
        with torch.no_grad():
            for own, saved in pairs:
                if own.requires_grad:
                    own.copy_(saved)
        return attached


def chosen_parameters(model: PreTrainedModel, settings: FreezeSettings) -> list[nn.Parameter]:
    """The chosen weights; one may be listed twice. Raises ModelError for what the model does not have."""
    chosen = [*_of_last_layers(model, settings.trainable_layers), *_named(model, settings.trainable_modules or [])]
    if settings.train_embeddings:
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            chosen += [] if module is None else module.parameters()
    return chosen


def _of_last_layers(model: PreTrainedModel, number: int) -> list[nn.Parameter]:
    layers = decoder_layers(model) if number else nn.ModuleList()
    if layers is None:
        raise ModelError(
            f"{type(model).__name__} has no list of decoder layers",
            where="method.trainable_layers",
            remedy="Set trainable_layers: 0 and name what trains in trainable_modules.",
        )
    if number > len(layers):
        raise ModelError(
            f"{number} layers are to train, and the model has {len(layers)}",
            where="method.trainable_layers",
            remedy=f"Lower it to {len(layers)} at most; method: full trains all layers and the embeddings.",
        )
    return [own for layer in layers[len(layers) - number :] for own in layer.parameters()]


def _named(model: PreTrainedModel, wanted: str | list[str]) -> list[nn.Parameter]:
    """The weights of modules whose whole name a pattern matches, or whose name ends with one of the names."""
    places: dict[str, list[nn.Parameter]] = {name: list(own.parameters()) for name, own in model.named_modules()}
    places |= {name: [own] for name, own in model.named_parameters(remove_duplicate=False)}
    places = {name: owned for name, owned in places.items() if name and owned}
    chosen: list[nn.Parameter] = []
    remedy = "Write the last parts of the names as a list there, such as [mlp, norm]."
    refuse_slow_patterns({"trainable_modules": wanted}, places, "method.", remedy=remedy)
    for each in [wanted] if isinstance(wanted, str) else wanted:
        if isinstance(wanted, str):
            found = [name for name in places if re.fullmatch(each, name)]
        else:
            found = [name for name in places if name == each or name.endswith(f".{each}")]
        if not found:
            raise _nothing_called(each, list(places), is_pattern=isinstance(wanted, str))
        chosen += [own for name in found for own in places[name]]
    return chosen


def _nothing_called(wanted: str, places: list[str], *, is_pattern: bool) -> ModelError:
    known = sorted({place.rpartition(".")[2] for place in places})
    close = difflib.get_close_matches(wanted.rpartition(".")[2], known, n=1, cutoff=0.6)
    listed = ", ".join(name for name in known if not name.isdigit() and name not in ("weight", "bias"))
    hint = f"Did you mean {f'[{close[0]}]' if is_pattern else close[0]}? " if close else ""
    return ModelError(
        f"{wanted!r} matches no whole name of a module" if is_pattern else f"the model has no module named {wanted!r}",
        where=_SETTING,
        why=f"A pattern is held to whole names, such as {places[-1]}; names go in a list." if is_pattern else None,
        remedy=f"{hint}Modules of this model: {listed}.",
    )


def _copied(parameter: nn.Parameter) -> Tensor:
    """A copy on the CPU; a parameter on the meta device is only counted, so it is returned itself."""
    own = parameter.detach()
    return own if own.is_meta else own.to("cpu", copy=True)


def _same(own: Tensor, saved: Tensor, stored: torch.dtype | None) -> bool:
    """Whether a weight equals a saved one that was stored in the dtype ``stored`` (None: its own)."""
    own = own.detach().to("cpu")
    rounded = own if stored is None or not own.is_floating_point() else own.to(stored).to(own.dtype)
    return torch.equal(rounded, saved)
