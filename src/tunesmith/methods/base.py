"""The protocol of a method, and what methods share: groups for the optimizer, counts, exact swaps of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.data.batches.layout import TokenRow
from tunesmith.errors import ModelError
from tunesmith.model.weights.added_tokens import NO_TOKENS, AddedTokens

LINEAR = (nn.Linear, Conv1D)
SAME_RATE = {"lr_ratio": 1.0}  # as the step's


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the untuned weights come from (folder or hub id), the seed of an adapter, and the device of the model.

    ``added``: tokens that got rows of their own. ``start``: folder of an adapter to continue.
    """

    base: str
    revision: str | None = None
    seed: int = 0
    device: str = "cpu"
    added: AddedTokens = NO_TOKENS
    start: Path | None = None


class Method(Protocol):
    """One way to fine-tune. An instance serves one run: ``save`` writes what ``attach`` or ``load`` set up."""

    name: str

    def load_options(self) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained``, such as quantization. Raises ModelError if unusable here."""
        return {}

    def attach(self, model: PreTrainedModel, batches: Iterable[Iterable[TokenRow]] | None = None) -> nn.Module:
        """Decides what trains and gives back the model to train.

        ``batches`` are the rows of each optimizer step, in order, for data-driven initialisation. Raises ModelError
        where the settings do not fit the model.
        """
        ...

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """What trains, in groups for the optimizer: see the function ``parameter_groups``."""
        return parameter_groups(model)

    def reference(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Inside, the model that training began with: untuned, or with the adapter that it continued.

        Afterwards weights, modes and what trains are as before.
        """
        ...

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Copies on the CPU of all that a checkpoint holds, by name. Call it outside ``reference``."""
        ...

    def save(self, state: dict[str, Tensor], to: Path) -> None:
        """Writes a folder that the ecosystem loads; same state, same bytes."""
        ...

    def load(self, model: PreTrainedModel, path: Path) -> nn.Module:
        """Puts what ``save`` wrote onto an untuned model, ready to train on. Raises ModelError if they do not fit."""
        ...

    def merge(self, model: nn.Module) -> PreTrainedModel:
        """A new model of plain weights; the model passed in keeps its own (so both are in memory at once)."""
        ...


def parameter_groups(
    model: nn.Module, rate_of: Callable[[str, nn.Parameter], Mapping[str, float]] = lambda name, parameter: SAME_RATE
) -> list[dict[str, Any]]:
    """What trains, in the model's order, in groups: ``{"params", "names", "decay", "lr_ratio", "embeddings"}``.

    ``embeddings`` [params] says which are lookup tables, whose rare gradients 8-bit moments do not suit. Weight decay
    is for matrices. Biases, norms and other vectors (such as DoRA's magnitudes) are spared, told by the
    kind of module and the number of dimensions, not by name alone.

    Args:
        rate_of: ``{"lr_ratio": x}``, a parameter's learning rate over that of the step, or
            ``{"learning_rate": x}``, its own peak rate.
    """
    spared = {id(own) for module in model.modules() if _is_norm(module) for own in module.parameters(recurse=False)}
    tables = lookup_tables(model)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = parameter.ndim > 1 and id(parameter) not in spared and not name.endswith("bias")
            rate = rate_of(name, parameter)
            empty: dict[str, Any] = {"params": [], "names": [], "decay": decay, "embeddings": [], **rate}
            group = groups.setdefault((decay, *rate.items()), empty)
            group["params"].append(parameter)
            group["names"].append(name)
            group["embeddings"].append(id(parameter) in tables)
    return sorted(groups.values(), key=lambda group: not group["decay"])


def lookup_tables(model: nn.Module) -> set[int]:
    """The ids of the parameters that are looked up by token, also of rows that PEFT trains apart from their table."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return tables | {id(own) for name, own in model.named_parameters() if ".trainable_tokens_delta." in name}


def refuse_untrained_tokens(base: PreTrainedModel, added: AddedTokens) -> None:
    """Raises ModelError where tokens were added and no row of the embedding trains, so they would mean nothing.

    Args:
        base: the model with its method attached, without an adapter's wrapper.
    """
    embedding: nn.Module = base.get_input_embeddings()
    if added.ids and not any(parameter.requires_grad for parameter in embedding.parameters()):
        raise ModelError(
            "the added tokens would not be learned",
            where="model.add_tokens",
            why="Their rows of the embedding do not train under this method.",
            remedy="train the embedding (under freeze: train_embeddings: true), or use method: lora, qlora or full",
        )


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)) or "norm" in type(module).__name__.lower()


def weights_in(parameter: nn.Parameter) -> int:
    """How many weights a parameter holds; a 4-bit parameter of bitsandbytes holds two in each byte."""
    packed = type(parameter).__name__ == "Params4bit"
    return parameter.numel() * (2 * parameter.element_size() if packed else 1)


def trainable_line(model: nn.Module) -> str:
    """``trainable params: … || all params: … || trainable%: …`` in PEFT's format; a 4-bit weight counts unpacked."""
    trainable = total = 0
    for parameter in model.parameters():
        count = weights_in(parameter)
        total += count
        trainable += count if parameter.requires_grad else 0
    return f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}"


def shared_line(model: nn.Module) -> str | None:
    """Names the weights that train under several names, such as a tied head; None if all weights train."""
    parameters = list(model.parameters())
    if all(own.requires_grad for own in parameters):
        return None
    names: dict[int, list[str]] = {}
    for name, own in model.named_parameters(remove_duplicate=False):
        if own.requires_grad:
            names.setdefault(id(own), []).append(name)
    shared = [" is ".join(own) for own in names.values() if len(own) > 1]
    return f"one weight under several names, so all of them train: {'; '.join(shared)}" if shared else None


@contextmanager
def exchanged(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Inside, the first tensor of each pair has the values of the second; afterwards its own again, bit for bit."""
    own = [live.data for live, _ in pairs]
    try:
        for live, other in pairs:
            live.data = other.to(device=live.device, dtype=live.dtype)
        yield
    finally:
        for (live, _), data in zip(pairs, own, strict=True):
            live.data = data


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU, which later steps do not change."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
