"""QLoRA (arXiv:2305.14314): LoRA over a base that bitsandbytes holds in 4 bits."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.methods.base import Origin
from tunesmith.methods.lora import Lora
from tunesmith.methods.quantized_base import (
    bitsandbytes,
    plain_copy,
    put_plain_layers,
    refuse_whole,
    require_bitsandbytes,
)
from tunesmith.recipe.methods import QloraSettings


class Qlora(Lora):
    """Frozen 4-bit linear layers with LoRA beside them; head, embeddings and norms keep the dtype they loaded in."""

    name = "qlora"

    def __init__(self, settings: QloraSettings, origin: Origin) -> None:
        super().__init__(settings, origin)
        self.quantization = settings

    def load_options(self) -> dict[str, Any]:
        """quantization_config, and a device_map, because weights are quantized where they land.

        Raises:
            ModelError: bitsandbytes is missing, or does not run on the device.
        """
        device = torch.device(self.origin.device)
        require_4_bits(device, self.quantization.bnb_4bit_quant_type)
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quantization.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=self.quantization.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=compute_dtype(self.quantization.bnb_4bit_compute_dtype, device),
        )
        return {"quantization_config": config, "device_map": {"": self.origin.device}}

    def _wrap(self, model: PreTrainedModel, config: PeftConfig, name: str, **how: Any) -> PeftModel:
        layers = four_bit_layers(model)
        if not layers:
            raise ModelError("the model has no 4-bit layers", why="qlora adapts a base that was loaded in 4 bits")
        if getattr(config, "init_lora_weights", True) == "orthogonal":
            raise ModelError(
                "orthogonal initialisation does not work over 4-bit weights",
                where="method.init_lora_weights",
                why="PEFT draws the adapter in the dtype of the base, which is uint8 here",
                remedy="use init_lora_weights: true, gaussian or eva",
            )
        whole = getattr(config, "modules_to_save", None)
        refuse_whole(layers, whole, "give it an adapter (target_modules), or use method: lora")
        compute_exactly(layers)
        return super()._wrap(model, config, name, **how)

    def merge(self, model: nn.Module) -> PreTrainedModel:
        """Dequantized weights plus update, as a plain model in the dtype that the base was quantized from.

        PEFT's own merge would quantize the sum again. So the adapter goes onto a dequantized copy and merges there.
        """
        return self.merge_onto(plain_copy(model, dequantized), model)


def compute_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The dtype of the matrix products. auto: float32 on a CPU, on a GPU bfloat16, or float16 where it has none."""
    if setting != "auto":
        return getattr(torch, setting)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float32


def require_4_bits(device: torch.device, quant_type: str) -> None:
    """Quantizes one block on the device and back. Raises ModelError if that cannot be done."""

    def quantize(library: ModuleType) -> None:
        packed, state = library.functional.quantize_4bit(torch.ones(64, device=device), quant_type=quant_type)
        library.functional.dequantize_4bit(packed, state)

    require_bitsandbytes("qlora", device, quantize)


def four_bit_layers(model: nn.Module) -> dict[str, Any]:
    """bitsandbytes' 4-bit linear layers by name."""
    kind = bitsandbytes().nn.Linear4bit
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def compute_exactly(layers: dict[str, Any]) -> None:
    """Keeps training and evaluation on the same arithmetic. Call it before the first forward pass.

    On a CPU with AVX512-BF16, bitsandbytes' first pass in eval mode repacks a layer for good: from then on it computes
    in bfloat16 whatever its compute dtype, gives no gradient, and dequantizes to other values.
    """
    for name, layer in layers.items():
        packed = getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
        assert not packed, f"{name} was repacked by a forward pass before attach or load"
        layer.support_avx512bf16_for_cpu = False


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """Puts plain layers of the same values in place of the 4-bit layers of this very model."""

    def dequantize(layer: Any) -> Tensor:
        return bitsandbytes().functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)

    return put_plain_layers(model, four_bit_layers(model), dequantize)
