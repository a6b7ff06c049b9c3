"""LoRA over a base that bitsandbytes holds in 8 bits: ``method: {name: lora, load_in_8bit: true}``.

LLM.int8() (arXiv:2208.07339) also rounds activations to 8 bits, but for the columns that hold an outlier somewhere in
the batch. Its outputs then depend on which rows stand together, and a prefix that rows share would not be what it is in
each of them; and on a CPU, bitsandbytes rounds them in evaluation only. Here the weights are what is held in 8 bits,
row by row as bitsandbytes quantizes them, and activations stay as they are: training and evaluation compute the same,
whatever the batch. See docs/decisions/0011-int8-weights-only.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.methods.base import Origin
from tunesmith.methods.lora import Lora, linear_names
from tunesmith.methods.quantized_base import (
    bitsandbytes,
    dequantize_8_bits,
    eight_bit_forward,
    plain_copy,
    put_plain_layers,
    refuse_whole,
    require_bitsandbytes,
)
from tunesmith.recipe.methods import REWRITES_BASE, LoraSettings

HEADS = ("lm_head", "embed_out", "output_layer")  # names of output layers, which stay as they are


class Int8Lora(Lora):
    """Frozen 8-bit linear layers with LoRA beside them; head, embeddings and norms keep the dtype they loaded in."""

    def __init__(self, settings: LoraSettings, origin: Origin) -> None:
        super().__init__(settings, origin)
        self.skipped = settings.llm_int8_skip_modules

    def load_options(self) -> dict[str, Any]:
        """quantization_config, and a device_map, because weights are quantized where they land.

        Raises:
            ModelError: bitsandbytes is missing, or does not run on the device.
        """
        require_8_bits(torch.device(self.origin.device))
        skipped = None if self.skipped is None else [*self.skipped, *HEADS]  # a list of one's own replaces the head
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
        return {"quantization_config": config, "device_map": {"": self.origin.device}}

    def _wrap(self, model: PreTrainedModel, config: PeftConfig, name: str, **how: Any) -> PeftModel:
        layers = eight_bit_layers(model)
        if not layers:
            raise ModelError("the model has no 8-bit layers", why="load_in_8bit adapts a base loaded in 8 bits")
        head = model.get_output_embeddings()
        packed_head = next((name for name, layer in layers.items() if layer is head), None)
        if packed_head is not None:
            raise ModelError(
                "the output layer would be quantized",
                where="method.llm_int8_skip_modules",
                remedy=f"name it there too: {packed_head}",
            )
        init = getattr(config, "init_lora_weights", True)
        if str(init).lower().startswith(("orthogonal", *REWRITES_BASE)):
            raise ModelError(
                f"{init} initialisation does not work over 8-bit weights",
                where="method.init_lora_weights",
                why="PEFT computes it from, or in the dtype of, the base's weights, which are int8 here",
                remedy="use init_lora_weights: true, gaussian or eva, or leave load_in_8bit out",
            )
        refuse_whole(layers, getattr(config, "modules_to_save", None), "name it in method.llm_int8_skip_modules too")
        modules = [name for name, _ in model.named_modules()]
        for skipped in self.skipped or ():  # transformers takes a part of a name, or a regular expression
            if not any(re.search(rf"(^|\.){skipped}(\.|$)", module) for module in modules):
                raise ModelError(
                    f"the model has no module named {skipped!r}",
                    where="method.llm_int8_skip_modules",
                    remedy=f"linear modules of this model: {', '.join(linear_names(model))}",
                )
        compute_exactly(layers)
        return super()._wrap(model, config, name, **how)

    def merge(self, model: nn.Module) -> PreTrainedModel:
        """Dequantized weights plus update, as a plain model in the dtype of the base's embedding.

        PEFT's own merge would quantize the sum again. So the adapter goes onto a dequantized copy and merges there.
        """
        return self.merge_onto(plain_copy(model, dequantized), model)


def require_8_bits(device: torch.device) -> None:
    """Raises ModelError if bitsandbytes cannot quantize to 8 bits on the device."""

    def quantize(library: ModuleType) -> None:
        library.functional.int8_vectorwise_quant(torch.ones(2, 64, dtype=torch.float16, device=device))

    require_bitsandbytes("load_in_8bit", device, quantize)


def eight_bit_layers(model: nn.Module) -> dict[str, Any]:
    """bitsandbytes' 8-bit linear layers by name."""
    kind = bitsandbytes().nn.Linear8bitLt
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def compute_exactly(layers: Mapping[str, Any]) -> None:
    """Has each layer multiply with its dequantized weight, instead of rounding what it multiplies with to 8 bits."""
    for layer in layers.values():
        layer.forward = partial(eight_bit_forward, layer)


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """Puts plain layers of the same values in place of the 8-bit layers of this very model."""
    table: Any = model.get_input_embeddings()
    return put_plain_layers(model, eight_bit_layers(model), partial(dequantize_8_bits, dtype=table.weight.dtype))
