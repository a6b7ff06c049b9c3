"""LoRA over a base that bitsandbytes holds in 8 bits: ``method: {name: lora, load_in_8bit: true}``.

LLM.int8() (arXiv:2208.07339) also rounds activations to 8 bits, except in columns that hold an outlier somewhere in
the batch. Its outputs then depend on which rows stand together, so a prefix that rows share would not be the same in
each of them. On a CPU, bitsandbytes also rounds them in evaluation only. Here only the weights are held in 8 bits, row
by row as bitsandbytes quantizes them, and activations stay as they are: training and evaluation compute the same,
whatever the batch. See docs/decisions/0011-int8-weights-only.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.quantizers_utils import should_convert_module

from tunesmith.errors import ModelError
from tunesmith.methods.base import Origin
from tunesmith.methods.lora_config import linear_names
from tunesmith.methods.quantized_base import dequantize_8_bits, multiply_dequantized, require_bitsandbytes
from tunesmith.methods.quantized_lora import QuantizedLora
from tunesmith.recipe.methods import LoraSettings

HEADS = ("lm_head", "embed_out", "output_layer")  # names of output layers, which stay as they are


class Int8Lora(QuantizedLora):
    """LoRA over 8-bit layers. Merged weights are in the dtype of the base's embedding."""

    bits, layer_class = 8, "Linear8bitLt"
    whole_remedy = "name it in method.llm_int8_skip_modules too"

    def __init__(self, settings: LoraSettings, origin: Origin) -> None:
        super().__init__(settings, origin)
        self.skipped = settings.llm_int8_skip_modules

    def load_options(self) -> dict[str, Any]:
        """quantization_config, and a device_map, because weights are quantized where they land.

        Raises:
            ModelError: bitsandbytes is missing, or does not run on the device.
        """
        device = torch.device(self.origin.device)

        def quantize(library: ModuleType) -> None:
            library.functional.int8_vectorwise_quant(torch.ones(2, 64, dtype=torch.float16, device=device))

        require_bitsandbytes("load_in_8bit", device, quantize)
        skipped = None if self.skipped is None else [*self.skipped, *HEADS]  # a list of one's own replaces the head
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
        return {"quantization_config": config, "device_map": {"": self.origin.device}}

    def _check_layers(self, model: PreTrainedModel, layers: Mapping[str, Any]) -> None:
        head = model.get_output_embeddings()
        packed_head = next((name for name, layer in layers.items() if layer is head), None)
        if packed_head is not None:
            raise ModelError(
                "the output layer would be quantized",
                where="method.llm_int8_skip_modules",
                remedy=f"name it there too: {packed_head}",
            )
        modules = [name for name, _ in model.named_modules()]
        for skipped in self.skipped or ():  # the end of a name, or a regular expression, which loading has tried
            if all(should_convert_module(module, [skipped]) for module in modules):
                raise ModelError(
                    f"the model has no module named {skipped!r}",
                    where="method.llm_int8_skip_modules",
                    remedy=f"linear modules of this model: {', '.join(linear_names(model))}",
                )

    def _compute_exactly(self, layers: Mapping[str, Any]) -> None:
        """Makes each layer multiply with its dequantized weight, instead of rounding its input to 8 bits."""
        multiply_dequantized(layers)

    def _dequantized(self, model: PreTrainedModel, layer: Any) -> Tensor:
        embedding: Any = model.get_input_embeddings()
        return dequantize_8_bits(layer, embedding.weight.dtype)
