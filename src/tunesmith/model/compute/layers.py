"""Parts of a model: the model inside an adapter, its decoder's layers, the lowest that a backward pass must reach."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel


def inner_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model, also inside an adapter's wrapper."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def adds_prompt_tokens(model: nn.Module) -> bool:
    """Whether the model is an adapter that puts trained tokens before the prompt (PEFT calls it prompt learning)."""
    config = getattr(model, "active_peft_config", None)
    return config is not None and config.is_prompt_learning


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """The decoder's list of layers, by whatever name (``layers``, ``h``, ``blocks``); None where there is none.

    A model with an image part has several lists. The decoder's is as long as the config says; of those it is the
    nearest to the decoder itself, and of those the one with the most weights.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    # If an output layer is called ``decoder``, transformers gives that, which has no layers.
    found = list(_outermost(model.get_decoder())) or _outermost(model)
    lists = [(own, depth) for own, depth in found if _weights(own)]
    fitting = [each for each in lists if len(each[0]) == count] or lists
    return max(fitting, key=lambda each: (-each[1], _weights(each[0])), default=(None, 0))[0]


def lowest_trained(model: PreTrainedModel, layers: nn.ModuleList) -> int:
    """Number of the first layer that the gradient passes; the number of layers where it passes none.

    Models name their parts in the order of use. So a weight outside the layers is before or behind them by its place
    in the model. (A few models name their last norm first: there the gradient is taken to pass all layers.)
    """
    # A weight that several layers share has the number of the lowest one.
    number = {id(own): index for index, layer in reversed(list(enumerate(layers))) for own in layer.parameters()}
    behind, lowest = 0, len(layers)
    for own in model.parameters():
        if id(own) in number:
            behind = len(layers)
        if own.requires_grad:
            lowest = min(lowest, number.get(id(own), behind))
    return lowest


def _outermost(module: nn.Module, depth: int = 0) -> Iterator[tuple[nn.ModuleList, int]]:
    """The lists of modules that are in no other list, and how deep in the module they are."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child, depth
        else:
            yield from _outermost(child, depth + 1)


def _weights(module: nn.Module) -> int:
    return sum(own.numel() for own in module.parameters())
