"""Loads the base model and attaches the method to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.data.batches.layout import LayoutName
from tunesmith.data.chat.template import Encoded
from tunesmith.errors import RecipeError
from tunesmith.evaluation.compare import STARTED_FROM
from tunesmith.methods.base import Method, refuse_untrained_tokens, shared_line, trainable_line, weights_in
from tunesmith.methods.table import build
from tunesmith.model.compute import attention
from tunesmith.model.compute.fused_modules import fuse
from tunesmith.model.compute.neftune import add_noise
from tunesmith.model.compute.probe import probe_model
from tunesmith.model.weights.added_tokens import AddedTokens, grow
from tunesmith.model.weights.load import load_model
from tunesmith.model.weights.resolve import kind
from tunesmith.planning import budget, memory
from tunesmith.recipe.methods import QUANTIZED, AdapterSettings, MethodSettings, method_label
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.progress import Listener


class ModelInputs(Protocol):
    """The facts that ``load`` needs. ``training.setup.Prepared`` has them from a recipe's data.

    ``rows`` are the rows to train on, and ``rows_of_steps`` gives those of each optimizer step in order.
    """

    @property
    def recipe(self) -> Recipe: ...
    @property
    def folder(self) -> Path: ...
    @property
    def added(self) -> AddedTokens: ...
    @property
    def start(self) -> Path | None: ...
    @property
    def rows(self) -> Sequence[Encoded]: ...
    def rows_of_steps(self) -> Iterator[Sequence[Encoded]]: ...


@dataclass(slots=True)
class Ready:
    """A model with its method attached. ``recipe`` has every ``auto`` resolved."""

    recipe: Recipe
    model: nn.Module
    method: Method


def load(prepared: ModelInputs, checkpoint: Path | None, listener: Listener) -> Ready:
    """Weights, attention and method; the layout that only a loaded model can tell.

    Args:
        checkpoint: continue from this one, with the layout that the recipe has resolved; None: begin anew.

    Raises:
        ModelError: the weights cannot be loaded, or the method does not fit them.
        RecipeError: the recipe asks for a layout that the model does not admit.
    """
    recipe = prepared.recipe
    method = make_method(prepared)
    base = load_base(prepared, method.load_options())
    model = method.load(base, checkpoint) if checkpoint else method.attach(base, prepared.rows_of_steps())
    refuse_untrained_tokens(base, prepared.added)
    fuse(base)
    if recipe.training.neftune_noise_alpha is not None:
        add_noise(base, recipe.training.neftune_noise_alpha)
    for line in filter(None, (trainable_line(model), shared_line(model))):
        listener.say(line)
    layout = recipe.training.layout if checkpoint else _layout(prepared, model, listener)
    if recipe.training.gradient_checkpointing:
        _recompute(base)
    if recipe.model.device == "cpu":
        (memory.give_back_large_blocks if recipe.training.gradient_checkpointing else memory.keep_freed_blocks)()
    return Ready(recipe.with_values(training={"layout": layout}), model, method)


def _recompute(base: PreTrainedModel) -> None:
    """Gradient checkpointing. Raises RecipeError for a model without it."""
    if not base.supports_gradient_checkpointing:
        raise RecipeError(
            "This model cannot recompute its layers",
            where="training.gradient_checkpointing",
            why=f"{type(base).__name__} does not support it in transformers.",
            remedy="Set training.gradient_checkpointing: false, and a smaller micro_batch_tokens if memory is short.",
        )
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    base.disable_input_require_grads()  # reentrant checkpointing needs it; here frozen layers would pass gradients


def make_method(prepared: ModelInputs) -> Method:
    """The recipe's method. An adapter points to a hub id where that is the base, else to the base's folder."""
    recipe = prepared.recipe
    name, _, revision = recipe.model.path.partition("@")
    hub = kind(recipe.model.path) == "hub"
    return build(
        recipe.method,
        base=name if hub else str(prepared.folder),
        revision=recipe.model.revision or revision or None if hub else None,
        seed=recipe.training.seed,
        device=recipe.model.device,
        added=prepared.added,
        start=prepared.start,
    )


def load_base(prepared: ModelInputs, options: Mapping[str, Any]) -> PreTrainedModel:
    """The untuned weights with rows for added tokens, attending through ``model/attention.py``."""
    settings = prepared.recipe.model
    model = load_model(
        prepared.folder,
        dtype=getattr(torch, settings.dtype),
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
        **options,
    )
    grow(model, prepared.added)
    attention.install(model)
    return model


def untuned(
    method: Method, settings: MethodSettings, model: nn.Module, *, device: str, load_plain: Callable[[], nn.Module]
) -> tuple[AbstractContextManager[nn.Module], str]:
    """A context with the model to judge against, and what it is.

    That is the untuned model, over quantized weights the unquantized one where it fits beside the other. Where training
    went on from an adapter it is what the user had before, the base with that adapter.

    Args:
        load_plain: loads the unquantized base.
    """
    if isinstance(settings, AdapterSettings) and settings.adapter_name_or_path is not None:
        return method.reference(model), STARTED_FROM
    if method_label(settings) not in QUANTIZED:
        return method.reference(model), "untuned"
    parameters = sum(weights_in(parameter) for parameter in model.parameters())
    if not budget.unquantized_base_fits(parameters, memory=memory.total_memory(device)):
        return method.reference(model), "untuned, quantized"

    @contextmanager
    def unquantized() -> Iterator[nn.Module]:
        yield load_plain()

    return unquantized(), "untuned, unquantized"


def _layout(prepared: ModelInputs, model: nn.Module, listener: Listener) -> LayoutName:
    """Probed with the method attached, which at step zero is the base: a 4-bit layer must not run before."""
    settings = prepared.recipe.training
    probe = probe_model(model, prepared.rows, device=prepared.recipe.model.device)  # refuses what sees ahead
    if settings.layout == "padded":
        return settings.layout
    listener.say(probe.reason)
    if settings.layout != "auto" and not probe.shares:
        raise RecipeError(
            "This model cannot share prefixes" if settings.layout == "tree" else "This model cannot keep rows apart",
            where="training.layout",
            why=probe.reason,
            remedy="Set training.layout: auto or padded.",
        )
    return settings.wanted_layout if probe.shares else "padded"
