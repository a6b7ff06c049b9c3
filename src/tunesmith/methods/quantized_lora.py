"""LoRA over a base that bitsandbytes holds in few bits: what qlora and int8 have in common."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError
from tunesmith.methods.lora import Lora
from tunesmith.methods.quantized_base import packed_layers
from tunesmith.recipe.methods import REWRITES_BASE


class QuantizedLora(Lora):
    """Frozen packed linear layers with LoRA beside them; head, embeddings and norms keep the dtype they loaded in."""

    bits: ClassVar[int]
    layer_class: ClassVar[str]  # the packed layer's, in bitsandbytes.nn
    whole_remedy: ClassVar[str]  # for a packed layer that is to train whole

    def _prepare_base(self, model: PreTrainedModel, config: PeftConfig) -> None:
        layers = packed_layers(model, self.layer_class)
        if not layers:
            raise ModelError(
                f"the model has no {self.bits}-bit layers", why=f"the method adapts a base loaded in {self.bits} bits"
            )
        init = str(getattr(config, "init_lora_weights", True)).lower()
        if init.startswith(("orthogonal", *REWRITES_BASE)):
            raise ModelError(
                f"{init} initialisation does not work over {self.bits}-bit weights",
                where="method.init_lora_weights",
                why="PEFT computes it from, or in the dtype of, the base's weights, which are packed here",
                remedy="use init_lora_weights: true, gaussian or eva, or method: lora over the unquantized base",
            )
        _refuse_whole(layers, getattr(config, "modules_to_save", None), self.whole_remedy)
        self._check_layers(model, layers)
        self._compute_exactly(layers)

    def _check_layers(self, model: PreTrainedModel, layers: Mapping[str, Any]) -> None:
        """Raises ModelError for packed layers that do not fit the settings."""

    def _compute_exactly(self, layers: Mapping[str, Any]) -> None:
        """Makes the layers compute alike in training and evaluation."""
        raise NotImplementedError

    def _dequantized(self, model: PreTrainedModel, layer: Any) -> Tensor:
        """The weight [out, in] of a packed layer."""
        raise NotImplementedError

    def merge(self, model: nn.Module) -> PreTrainedModel:
        """Dequantized weights plus update, as a plain model.

        PEFT's own merge would quantize the sum again. So the adapter goes onto a dequantized copy and merges there.
        """
        assert isinstance(model, PeftModel)
        tuner = copy.deepcopy(model).base_model
        assert isinstance(tuner, BaseTuner)
        plain = tuner.unload()
        assert isinstance(plain, PreTrainedModel)
        for name, layer in packed_layers(plain, self.layer_class).items():
            plain.set_submodule(name, _plain_layer(layer, self._dequantized(plain, layer)))
        marked: Any = plain  # transformers sets these marks on the instance
        marked.hf_quantizer.remove_quantization_config(plain)
        marked.is_loaded_in_4bit = marked.is_loaded_in_8bit = False
        # transformers remembers how packed files were read, and would write them so, which it cannot.
        kept = getattr(plain, "_weight_conversions", None)
        marked._weight_conversions = [each for each in kept or [] if not _unpacks(each)] if kept else None
        return self.merge_onto(plain, model)


def _unpacks(conversion: Any) -> bool:
    """Whether a conversion of transformers reads weights of bitsandbytes."""
    operations = getattr(conversion, "operations", [])
    return any(type(each).__name__.startswith("Bnb") for each in operations)


def _refuse_whole(layers: Mapping[str, Any], names: Sequence[str] | None, remedy: str) -> None:
    """Raises ModelError where ``modules_to_save`` names a packed layer, which has no gradient."""
    for name in names or ():
        packed = next((layer for layer in layers if layer == name or layer.endswith(f".{name}")), None)
        if packed is not None:
            raise ModelError(
                f"{name} is quantized, so it cannot train whole",
                where="method.modules_to_save",
                why=f"{packed} is a packed layer",
                remedy=remedy,
            )


def _plain_layer(layer: Any, weight: Tensor) -> nn.Module:
    """A plain layer with ``weight`` [out, in] and the bias of a packed one."""
    with torch.device("meta"):
        if issubclass(layer.source_cls, Conv1D):  # such as GPT-2's, whose weights are [in, out]
            plain, weight = Conv1D(layer.out_features, layer.in_features), weight.T.contiguous()
        else:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = layer.bias
    return plain
