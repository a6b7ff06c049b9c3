"""What each optimizer is called and how many bytes of state it keeps for a parameter. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

Optimizer = Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion_32bit", "sgd"]
OPTIMIZERS: tuple[str, ...] = get_args(Optimizer)
BITSANDBYTES = ("adamw_8bit", "paged_adamw_8bit", "lion_32bit")
WITHOUT_BETAS = ("adafactor", "sgd")  # transformers gives them neither betas nor epsilon
FP32 = 4  # bytes
LEAST_QUANTIZED = 4096  # bitsandbytes keeps smaller parameters' moments in fp32
BLOCK = 256  # elements that share one fp32 constant


def state_bytes(optimizer: str, shape: Sequence[int], *, itemsize: int = FP32, embedding: bool = False) -> int:
    """Bytes that the optimizer keeps for one parameter, its step count and other single numbers aside.

    Args:
        shape: of the parameter.
        itemsize: bytes of one of its elements; torch's AdamW keeps its moments in the parameter's dtype.
        embedding: bitsandbytes' 8-bit moments are fp32 there.
    """
    count = math.prod(shape)
    match optimizer:
        case "sgd":
            return 0
        case "adafactor":  # a row and a column in place of a matrix
            return FP32 * (math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1] if len(shape) > 1 else count)
        case "lion_32bit":
            return FP32 * count
        case "adamw_8bit" | "paged_adamw_8bit":
            if embedding or count < LEAST_QUANTIZED:
                return 2 * FP32 * count
            return 2 * (count + FP32 * math.ceil(count / BLOCK))
        case _:
            return 2 * itemsize * count
