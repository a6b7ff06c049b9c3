"""QLoRA (arXiv:2305.14314): LoRA over a base that bitsandbytes holds in 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel

from tunesmith.methods.base import Origin
from tunesmith.methods.quantized_base import dequantize_4_bits, require_bitsandbytes
from tunesmith.methods.quantized_lora import QuantizedLora
from tunesmith.recipe.methods import QloraSettings


class Qlora(QuantizedLora):
    """LoRA over 4-bit layers. Merged weights are in the dtype that the base was quantized from."""

    name = "qlora"
    bits, layer_class = 4, "Linear4bit"
    whole_remedy = "give it an adapter (target_modules), or use method: lora"

    def __init__(self, settings: QloraSettings, origin: Origin) -> None:
        super().__init__(settings, origin)
        self.quantization = settings

    def load_options(self) -> dict[str, Any]:
        """quantization_config, and a device_map, because weights are quantized where they land.

        Raises:
            ModelError: bitsandbytes is missing, or does not run on the device.
        """
        device, settings = torch.device(self.origin.device), self.quantization

        def quantize(library: ModuleType) -> None:  # one block, and back
            weights = torch.ones(64, device=device)
            packed, state = library.functional.quantize_4bit(weights, quant_type=settings.bnb_4bit_quant_type)
            library.functional.dequantize_4bit(packed, state)

        require_bitsandbytes("qlora", device, quantize)
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=settings.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=settings.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=compute_dtype(settings.bnb_4bit_compute_dtype, device),
        )
        return {"quantization_config": config, "device_map": {"": self.origin.device}}

    def _compute_exactly(self, layers: Mapping[str, Any]) -> None:
        """Keeps bitsandbytes from repacking layers.

        On a CPU with AVX512-BF16, its first pass in eval mode repacks a layer for good: from then on it computes in
        bfloat16 whatever its compute dtype, gives no gradient, and dequantizes to other values.
        """
        dtype = compute_dtype(self.quantization.bnb_4bit_compute_dtype, torch.device(self.origin.device))
        for name, layer in layers.items():
            packed = getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
            assert not packed, f"{name} was repacked by a forward pass before attach or load"
            layer.support_avx512bf16_for_cpu = False
            layer.compute_dtype = dtype  # files in 4 bits name one of their own, which may be slow here

    def _dequantized(self, model: PreTrainedModel, layer: Any) -> Tensor:
        return dequantize_4_bits(layer)


def compute_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The dtype of the matrix products. auto: float32 on a CPU, on a GPU bfloat16, or float16 where it has none."""
    if setting != "auto":
        return getattr(torch, setting)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float32
