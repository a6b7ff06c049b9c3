"""Sizes that bound how much a step holds at once."""

from __future__ import annotations

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
CHUNK = 2**23  # logits in memory at a time: 32 MiB of fp32
