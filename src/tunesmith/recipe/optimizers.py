"""The names of the optimizers, and the bytes of state that each keeps for a parameter. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

Optimizer = Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion_32bit", "sgd"]
OPTIMIZERS: tuple[str, ...] = get_args(Optimizer)
BITSANDBYTES = ("adamw_8bit", "paged_adamw_8bit", "lion_32bit")
WITHOUT_BETAS = ("adafactor", "sgd")  # transformers passes them neither betas nor epsilon
FP32 = 4  # bytes
LEAST_QUANTIZED = 4096  # bitsandbytes keeps the moments of smaller parameters in fp32
QUANTIZATION_BLOCK = 256  # elements that share one fp32 constant


def state_bytes(optimizer: str, shape: Sequence[int], *, itemsize: int = FP32, embedding: bool = False) -> int:
    """Bytes that the optimizer keeps for one parameter, without its step count and other single numbers.

    Args:
        optimizer: one of the names above.
        shape: shape of the parameter.
        itemsize: bytes of an element of the parameter; torch's AdamW keeps its moments in the same dtype.
        embedding: the parameter is an embedding, for which bitsandbytes keeps 8-bit moments in fp32.
    """
    count = math.prod(shape)
    match optimizer:
        case "sgd":
            return 0
        case "adafactor":  # a row and a column instead of a matrix
            return FP32 * (math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1] if len(shape) > 1 else count)
        case "lion_32bit":
            return FP32 * count
        case "adamw_8bit" | "paged_adamw_8bit":
            if embedding or count < LEAST_QUANTIZED:
                return 2 * FP32 * count
            return 2 * (count + FP32 * math.ceil(count / QUANTIZATION_BLOCK))
        case _:
            return 2 * itemsize * count
