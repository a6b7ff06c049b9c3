"""The decoder's layers: where a model keeps them, and the lowest that a backward pass has to reach."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """The decoder's list of layers, by whatever name (``layers``, ``h``, ``blocks``); None where there is none.

    Of several (of an image part, of a stack beside) it is one as long as the config says, the nearest to the decoder
    itself, the one with the most weights.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    # transformers takes an output layer that is called decoder for one.
    found = list(_outermost(model.get_decoder())) or _outermost(model)
    lists = [(own, depth) for own, depth in found if _weights(own)]
    fitting = [each for each in lists if len(each[0]) == count] or lists
    return max(fitting, key=lambda each: (-each[1], _weights(each[0])), default=(None, 0))[0]


def lowest_trained(model: PreTrainedModel, layers: nn.ModuleList) -> int:
    """Number of the first layer that the gradient passes; as many as there are layers where it passes none.

    A weight outside the layers counts as before or behind them by its place in the model, which is that in which
    it is used (a few models name their last norm first: there the gradient is taken to pass all layers).
    """
    number = {id(own): place for place, layer in reversed(list(enumerate(layers))) for own in layer.parameters()}
    behind, lowest = 0, len(layers)
    for own in model.parameters():
        if id(own) in number:
            behind = len(layers)
        if own.requires_grad:
            lowest = min(lowest, number.get(id(own), behind))
    return lowest


def _outermost(module: nn.Module, depth: int = 0) -> Iterator[tuple[nn.ModuleList, int]]:
    """Lists that are in no other list, and how deep in the module they are."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child, depth
        else:
            yield from _outermost(child, depth + 1)


def _weights(module: nn.Module) -> int:
    return sum(own.numel() for own in module.parameters())
