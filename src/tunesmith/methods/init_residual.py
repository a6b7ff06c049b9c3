"""Adapters that begin with a part of the base's weights: PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775).

W = R + s B0 A0: what A and B begin with is taken out of the base, which holds the residual R from then on, so their sum
is still W. PEFT decomposes W into A0 and B0. R is computed here, in one way for a new run and a resumed one.

What is written is plain LoRA of twice the rank over W itself, because R + s B A = W + s [B, -B0] [A; A0]. So nobody
needs a decomposition to read a folder, and A, B, A0 and B0 can be told apart in it, bit for bit. PEFT's own conversion
gives the same tensors, but it needs A0 and B0 as a second adapter and drops modules that train whole.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError
from tunesmith.methods.lora_config import ADAPTER
from tunesmith.recipe.methods import REWRITES_BASE

# How PEFT's files name the factors, and the dimension of each that is as long as the rank: A [rank, in], B [out, rank].
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_RANK_DIM = {_DOWN: 0, _UP: 1}
_DECOMPOSED = (torch.float32, torch.bfloat16, torch.float16)


def rewrites_base(init: Any) -> bool:
    """Whether PEFT changes the base's weights for this ``init_lora_weights``."""
    return isinstance(init, str) and init.lower().startswith(REWRITES_BASE)


@torch.no_grad()
def take_out(
    adapted: PeftModel, init: str, begin: Mapping[str, Tensor] | None = None
) -> tuple[list[tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Puts the residual in place of each adapted weight, and A0 and B0 into the adapter.

    Args:
        begin: A0 and B0 by the names of PEFT's files; None: PEFT decomposes the weights.

    Returns:
        Each rewritten weight with what it was, and copies of A0 and B0.

    Raises:
        ModelError: a module cannot begin so.
        KeyError: ``begin`` lacks a module.
    """
    replaced, begun = [], {}
    for path, layer in _adapted_layers(adapted, init).items():
        weight, down, up = layer.get_base_layer().weight, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        original = weight.data  # [out, in], or [in, out] of a Conv1D
        # 1. A0 [rank, in] and B0 [out, rank]: those of the run, or PEFT's decomposition of W.
        if begin is not None:
            down.data.copy_(begin[path + _DOWN])
            up.data.copy_(begin[path + _UP])
        else:
            weight.data = original.clone()  # PEFT writes its own residual, at times into the same memory
            if init.lower().startswith("pissa"):
                layer.pissa_init(ADAPTER, init)
            else:
                layer.olora_init(ADAPTER)
            down.data, up.data = down.data.contiguous(), up.data.contiguous()
        # 2. R = W - s B0 A0, in float32 and then in the dtype of the base.
        weight.data = (original.float() - layer.get_delta_weight(ADAPTER)).to(original.dtype)
        replaced.append((weight, original))
        begun |= {path + _DOWN: down.detach().clone(), path + _UP: up.detach().clone()}
    return replaced, begun


def as_plain(state: Mapping[str, Tensor], begun: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of A and B as [A; A0] and [B, -B0], which is the update of the base itself; all else as it is."""
    plain = dict(state)
    for key, start in begun.items():
        sign = 1 if key.endswith(_DOWN) else -1
        plain[key] = torch.cat((state[key], sign * start.to(state[key])), dim=_rank_dim(key))
    return plain


def apart(plain: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A and B (with all that is neither), and A0 and B0, of what ``as_plain`` made."""
    state, begun = dict(plain), {}
    for key, joined in plain.items():
        if key.endswith((_DOWN, _UP)):
            state[key], start = (part.contiguous() for part in joined.chunk(2, dim=_rank_dim(key)))
            begun[key] = start if key.endswith(_DOWN) else -start
    return state, begun


def _rank_dim(key: str) -> int:
    return _RANK_DIM[_DOWN if key.endswith(_DOWN) else _UP]


def plain_config(config: LoraConfig) -> LoraConfig:
    """The configuration of what ``as_plain`` makes: twice the rank at the same scale."""
    plain = copy.deepcopy(config)
    factor = math.sqrt(2) if config.use_rslora else 2
    plain.init_lora_weights = True
    plain.r, plain.lora_alpha = 2 * config.r, factor * config.lora_alpha  # type: ignore[assignment]
    plain.rank_pattern = {key: 2 * rank for key, rank in (config.rank_pattern or {}).items()}
    plain.alpha_pattern = {key: factor * alpha for key, alpha in (config.alpha_pattern or {}).items()}
    return plain


def _adapted_layers(adapted: PeftModel, init: str) -> dict[str, Any]:
    """The adapted layers by path. Raises ModelError for one whose weight cannot give its adapter."""
    uses = Counter(id(own) for _, own in adapted.named_parameters(remove_duplicate=False))
    layers = {path: layer for path, layer in adapted.named_modules() if isinstance(layer, LoraLayer)}
    for path, layer in layers.items():
        why = _obstacle(layer, init, uses)
        if why:
            raise ModelError(
                f"{path.removeprefix('base_model.model.')} cannot begin with {init}",
                where="method.init_lora_weights",
                why=why,
                remedy="use init_lora_weights: true, or leave the module out of target_modules",
            )
    return layers


def _obstacle(layer: Any, init: str, uses: Counter[int]) -> str | None:
    base = layer.get_base_layer()
    weight = getattr(base, "weight", None)
    if isinstance(weight, Tensor) and weight.dtype not in _DECOMPOSED:
        return f"its weights are {weight.dtype}: what the adapter leaves of them would be rounded once more"
    if type(layer) is not LoraLinear or type(base) not in (nn.Linear, Conv1D):
        return "PEFT decomposes the weights of plain linear layers only"
    if uses[id(base.weight)] > 1:
        return "its weight is the embedding's too (tied), which would lose what the adapter takes"
    if layer.r[ADAPTER] > min(base.weight.shape):
        return f"a weight of {' x '.join(map(str, base.weight.shape))} has no {layer.r[ADAPTER]} directions: lower r"
    if isinstance(base, Conv1D) and not init.lower().startswith("pissa"):
        return "PEFT computes it for weights [out, in], and this model's are [in, out]"
    return None
