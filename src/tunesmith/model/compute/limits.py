"""What the planner must know of the computation, without importing torch."""

from __future__ import annotations

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # linear layers that read the same tensor
LOGITS_AT_ONCE = 2**23  # logits in memory at a time: 32 MiB of fp32
