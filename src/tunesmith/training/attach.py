"""Loads the base model and attaches the method to it, ready to train."""

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
from tunesmith.evaluation.verdict import STARTED_FROM
from tunesmith.methods.base import Method, refuse_untrained_tokens, shared_line, trainable_line, weights_in
from tunesmith.methods.quantized_base import was_stored_quantized
from tunesmith.methods.table import build
from tunesmith.model.base_model import load_base_model
from tunesmith.model.compute.fused_modules import fuse
from tunesmith.model.compute.neftune import add_noise
from tunesmith.model.compute.probe import probe_model
from tunesmith.model.weights.added_tokens import AddedTokens
from tunesmith.model.weights.resolve import portable_name
from tunesmith.planning import budget, memory
from tunesmith.recipe.methods import QUANTIZED, AdapterSettings, MethodSettings, method_label
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.manifest import refuse_damaged
from tunesmith.runs.progress import Listener, Silent
from tunesmith.training.optim import build_optimizer


class ModelInputs(Protocol):
    """The facts that ``load_for_training`` needs. ``training.setup.Prepared`` has them from a recipe's data.

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
    def started_in(self) -> Path: ...
    @property
    def rows(self) -> Sequence[Encoded]: ...
    def rows_of_steps(self) -> Iterator[Sequence[Encoded]]: ...


@dataclass(slots=True)
class Ready:
    """The model in memory with its method attached. ``recipe`` has every ``auto`` resolved."""

    recipe: Recipe
    model: nn.Module
    method: Method

    def reload(self, inputs: ModelInputs, checkpoint: Path) -> None:
        """Takes the weights of another checkpoint. The old model is freed first, so there is one at a time."""
        del self.model, self.method
        loaded = load_for_training(inputs, checkpoint, Silent())
        self.model, self.method = loaded.model, loaded.method


def load_for_training(inputs: ModelInputs, checkpoint: Path | None, listener: Listener) -> Ready:
    """Loads the weights, attaches the method, and resolves the layout, which depends on the loaded model.

    Args:
        inputs: the recipe, and where the model is.
        checkpoint: continue from this one, with the layout that the recipe has resolved; None: a new run.
        listener: hears what trains and which layout is used.

    Raises:
        ModelError: the weights cannot be loaded, or the method does not fit them.
        RunError: the checkpoint is damaged.
        RecipeError: the recipe asks for a layout that the model cannot use.
    """
    recipe = inputs.recipe
    if checkpoint is not None:
        refuse_damaged(checkpoint)
    method = _make_method(inputs)
    base = load_base(inputs, method.load_options())
    model = method.load(base, checkpoint) if checkpoint else method.attach(base, inputs.rows_of_steps())
    if inputs.start is None:  # tokens of an adapter that is continued have been learned, or its layers go by them
        refuse_untrained_tokens(base, inputs.added)
    fuse(base)
    if recipe.training.neftune_noise_alpha is not None:
        add_noise(base, recipe.training.neftune_noise_alpha)
    for line in filter(None, (trainable_line(model), shared_line(model))):
        listener.say(line)
    layout = recipe.training.layout if checkpoint else _layout(inputs, model, listener)
    if recipe.training.gradient_checkpointing:
        _recompute(base)
    if recipe.model.device == "cpu" and recipe.training.gradient_checkpointing:
        memory.give_back_large_blocks()
    elif recipe.model.device == "cpu":
        memory.keep_freed_blocks()
    return Ready(recipe.with_values(training={"layout": layout}), model, method)


def _recompute(base: PreTrainedModel) -> None:
    """Turns on gradient checkpointing. Raises RecipeError for a model that does not support it."""
    if not base.supports_gradient_checkpointing:
        raise RecipeError(
            "This model cannot recompute its layers",
            where="training.gradient_checkpointing",
            why=f"{type(base).__name__} does not support it in transformers.",
            remedy="Set training.gradient_checkpointing: false. If memory is short, set a smaller micro_batch_tokens.",
        )
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    base.disable_input_require_grads()  # only reentrant checkpointing needs it; frozen layers would get gradients


def optimizer_of(ready: Ready) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that its method trains."""
    settings = ready.recipe.training
    return build_optimizer(
        ready.method.parameter_groups(ready.model),
        learning_rate=ready.recipe.learning_rate,
        weight_decay=settings.weight_decay,
        betas=(settings.adam_beta1, settings.adam_beta2),
        epsilon=settings.adam_epsilon,
        optim=settings.optim,
    )


def _make_method(inputs: ModelInputs) -> Method:
    """The recipe's method. An adapter refers to its base by a name that others have too."""
    recipe = inputs.recipe
    model = recipe.model
    base, revision = portable_name(model.path, inputs.folder, revision=model.revision, started_in=inputs.started_in)
    return build(
        recipe.method,
        base=base,
        revision=revision,
        seed=recipe.training.seed,
        device=recipe.model.device,
        added=inputs.added,
        start=inputs.start,
    )


def load_base(inputs: ModelInputs, options: Mapping[str, Any]) -> PreTrainedModel:
    """The untuned weights with rows for added tokens, with attention from ``model/compute/attention.py``."""
    settings = inputs.recipe.model
    return load_base_model(
        inputs.folder,
        dtype=getattr(torch, settings.dtype),
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
        added=inputs.added,
        load_options=options,
    )


def untuned(
    method: Method, settings: MethodSettings, model: nn.Module, *, device: str, load_plain: Callable[[], nn.Module]
) -> tuple[AbstractContextManager[nn.Module], str]:
    """A context with the model to compare with, and its name.

    It is the untuned model. For a quantized base, it is the unquantized one if that fits into memory beside the tuned
    model. If training continued from an adapter, it is what the user had before: the base with that adapter.

    Args:
        method: of the tuned model.
        settings: of the method.
        model: the tuned model.
        device: where it is.
        load_plain: loads the unquantized base.
    """
    if isinstance(settings, AdapterSettings) and settings.adapter_name_or_path is not None:
        return method.reference(model), STARTED_FROM
    if method_label(settings) not in QUANTIZED or was_stored_quantized(model):
        return method.reference(model), "untuned"
    parameters = sum(weights_in(parameter) for parameter in model.parameters())
    if not budget.unquantized_base_fits(parameters, memory=memory.total_memory(device)):
        return method.reference(model), "untuned, quantized"

    @contextmanager
    def unquantized() -> Iterator[nn.Module]:
        yield load_plain()

    return unquantized(), "untuned, unquantized"


def _layout(inputs: ModelInputs, model: nn.Module, listener: Listener) -> LayoutName:
    """The layout that the model can use, by a probe. With the method attached, because 4-bit layers cannot run before.

    At step zero, the model with its method computes the same as the base.
    """
    settings = inputs.recipe.training
    probe = probe_model(model, inputs.rows, device=inputs.recipe.model.device)  # refuses a model that is not causal
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
