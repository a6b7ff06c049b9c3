"""Peak memory of this process and its children, for the trainers of the benchmark. Needs torch and nothing else."""

from __future__ import annotations

import resource

import torch


def peak_bytes(device: str) -> int:
    """On a GPU what torch reserved at most, on a CPU the resident memory at most, with the largest child's."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_reserved()
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return 1024 * (own + children)
