"""EVA (arXiv:2410.07170): A begins with the directions in which a layer's input varies most, on the run's own rows.

PEFT finds the directions by an incremental SVD, which goes through the batches until they settle. It gives more rank to
modules whose inputs need more directions, within the same sum. A module of rank zero loses its adapter. The adapter's
configuration holds the ranks and the modules that are left, so the rows are not needed again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_eva_state_dict, initialize_lora_eva_weights
from peft.tuners.lora.layer import Embedding, LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import cast_adapter_dtype
from torch import Tensor

from tunesmith.data.batches.layout import TokenRow
from tunesmith.errors import ModelError
from tunesmith.methods.lora_config import ADAPTER

_SETTING = "method.init_lora_weights"
_BATCHES = 64  # at most
_TOKENS = 1024  # computed in a batch, or more where few are supervised
_PASSES = 1000  # forward passes; directions that have not settled by then will not


def begin(adapted: PeftModel, steps: Iterable[Iterable[TokenRow]]) -> None:
    """Gives the adapter its first A; B is zero. Call it before a layer has a forward pass of its own.

    Args:
        steps: the rows of each optimizer step, in order; read as far as they are needed.

    Raises:
        ModelError: the rows are too few, or the directions do not settle.
    """
    config = adapted.active_peft_config
    assert isinstance(config, LoraConfig) and config.eva_config is not None
    eva = config.eva_config
    # 1. The directions of each layer's inputs, by path: [rank, in], of as many as the layer is to have.
    batches = _batches(steps, _tokens_needed(adapted, eva.rho), masked=eva.use_label_mask)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
        found = get_eva_state_dict(
            adapted,
            batches,
            forward_fn=_Forward(adapted),
            prepare_model_inputs_fn=_used_tokens,
            prepare_layer_inputs_fn=_inputs_of,
            adapter_name=ADAPTER,
            show_progress_bar=False,
        )
    directions = dict(found)
    # 2. A layer that is to have another rank is made anew, and one of rank 0 gives way to its base layer.
    initialize_lora_eva_weights(adapted, eva_state_dict=found, adapter_name=ADAPTER)  # takes from the dictionary
    # 3. A is written once more in float32: PEFT made the new layers in the base's dtype.
    cast_adapter_dtype(adapted, adapter_name=ADAPTER)
    layers = dict(adapted.named_modules())
    with torch.no_grad():
        for path, rows in directions.items():
            layer: Any = layers[path]
            if isinstance(layer, LoraLayer):
                layer.lora_A[ADAPTER].get_parameter("weight").copy_(rows)
    # 4. The configuration names the modules that are left.
    assert config.target_modules is not None
    # As PEFT reads it, so that a resumed run writes it in the same order.
    config.target_modules = set(config.target_modules)  # type: ignore[assignment]
    config.layers_to_transform = config.layers_pattern = None  # the modules are named one by one now


def _tokens_needed(adapted: PeftModel, rho: float) -> int:
    """The tokens that PEFT's SVD needs in a batch: twice the largest rank. Raises ModelError for too narrow a layer."""
    needed = 0
    for path, layer in adapted.named_modules():
        if isinstance(layer, ParamWrapper):
            raise _misfit(path, "PEFT finds directions for linear layers, and these are stacked experts")
        if isinstance(layer, LoraLayer) and not isinstance(layer, Embedding):  # that one begins as usual
            samples = 2 * round(layer.r[ADAPTER] * rho)
            if samples > (layer.in_features or samples):
                raise _misfit(path, f"its SVD takes 2 * r * rho = {samples} samples of {layer.in_features} values")
            needed = max(needed, samples)
    return needed


def _batches(steps: Iterable[Iterable[TokenRow]], needed: int, *, masked: bool) -> list[dict[str, Tensor]]:
    batches = list(islice(_filled(steps, needed, masked=masked), _BATCHES))
    if not batches:
        kind = "supervised tokens" if masked else "tokens"
        raise ModelError(
            "the rows are too few for eva",
            where=_SETTING,
            why=f"with this r and rho it needs {needed} {kind} at a time, and the run's rows have fewer",
            remedy="lower method.r or method.eva_config.rho"
            + (", or set method.eva_config.use_label_mask: false" if masked else ""),
        )
    return batches


def _filled(steps: Iterable[Iterable[TokenRow]], needed: int, *, masked: bool) -> Iterator[dict[str, Tensor]]:
    """Batches of as few rows as have the tokens that are needed; the rows that are left at the end may be dropped."""
    rows: list[TokenRow] = []
    tokens = used = 0
    for row in (row for step in steps for row in step):
        rows.append(row)
        tokens += len(row.ids)
        used += int(row.supervised.sum()) if masked else len(row.ids)
        if used >= needed and tokens >= _TOKENS:
            yield _padded(rows, masked=masked)
            rows, tokens, used = [], 0, 0
    if rows and used >= needed:
        yield _padded(rows, masked=masked)


def _padded(rows: list[TokenRow], *, masked: bool) -> dict[str, Tensor]:
    """input_ids and attention_mask for the model, and which tokens are used for the SVD; each [rows, tokens]."""
    width = max(len(row.ids) for row in rows)
    ids, mask, used = torch.zeros(3, len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        length = len(row.ids)
        ids[number, :length], mask[number, :length] = torch.tensor(row.ids), 1
        used[number, :length] = torch.tensor(row.supervised) if masked else 1
    return {"input_ids": ids, "attention_mask": mask, "used": used}


def _used_tokens(inputs: dict[str, Tensor], config: LoraConfig) -> Tensor:
    """The tokens that are used for the SVD, bool [rows * tokens]."""
    return inputs["used"].flatten().bool()


def _inputs_of(inputs: Any, used: Tensor, path: str) -> Tensor:
    """A layer's inputs at the used tokens, [used, in]. Raises ModelError for a layer that sees only some tokens."""
    flat = (inputs[0] if isinstance(inputs, tuple) else inputs).flatten(0, -2)  # [rows * tokens, in]
    if len(flat) != len(used):
        raise _misfit(path, "it sees a part of the tokens only, as an expert does")
    return flat[used]


def _misfit(path: str, why: str) -> ModelError:
    return ModelError(
        f"{path.removeprefix('base_model.model.')} cannot begin with eva",
        where=_SETTING,
        why=why,
        remedy="lower method.r or method.eva_config.rho, or leave the module out of target_modules",
    )


class _Forward:
    """A pass through the layers; through the output layer too only where that has an adapter. Counts its calls."""

    def __init__(self, adapted: PeftModel) -> None:
        model: Any = adapted.get_base_model()
        self.body = model if isinstance(model.get_output_embeddings(), LoraLayer) else model.base_model
        self.calls = 0

    def __call__(self, model: Any, inputs: dict[str, Tensor]) -> None:
        self.calls += 1
        if self.calls > _PASSES:
            raise ModelError(
                "the directions of eva do not settle",
                where=_SETTING,
                why=f"after {_PASSES} passes some are still not within method.eva_config.tau of what they were before",
                remedy="lower method.eva_config.tau, or method.r",
            )
        self.body(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
