"""What the machine gives on matrix products, and how many of them a step needs at the least."""

from __future__ import annotations

import time
from typing import Any

import torch

SIZE, TIMES = 1536, 12


def sgemm(device: str = "cpu") -> float:
    """FLOP/s of a product of two square matrices on all threads, the median of some: fp32 on a CPU, bf16 on a GPU."""
    size, dtype = (SIZE, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(TIMES + 2):
        begin = time.perf_counter()
        one @ other
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / sorted(seconds[2:])[TIMES // 2]


def floor_flops(
    *, method: str, distinct: int, logits: int, pairs: int, linear: int, head: int, layers: int, width: int
) -> float:
    """The fewest floating-point operations of the matrix products of a step.

    A product of a token with N weights is 2N, forward; its gradient by the token 2N more, and by the weights another
    2N, which LoRA does without. So LoRA needs 4N + 4cE a token and full fine-tuning 6N + 6cE, where E are the weights
    of the output layer and c the share of tokens whose logits a label needs. Attention is 4 d for each pair of tokens
    that see each other, forward, and twice that backward.

    Args:
        distinct: tokens that differ in what precedes them: the nodes of a trie over the step's rows.
        logits: of those, how many predict a label.
        pairs: of those, pairs (token, token before it or itself).
        linear: weights of the linear layers in the decoder.
        head: weights of the output layer.
        width: heads times head size.
    """
    passes = 4 if method in ("lora", "qlora") else 6
    return passes * (linear * distinct + head * logits) + 3 * 4 * width * layers * pairs


def trie_counts(rows: list[dict[str, list[int]]]) -> tuple[int, int, int]:
    """Of the rows of one step: distinct tokens, those that predict a label, and pairs that see each other."""
    nodes: dict[tuple[int, int], int] = {}
    predicting: set[int] = set()
    pairs = 0
    for row in rows:
        node = -1
        for depth, (token, label) in enumerate(zip(row["input_ids"], row["labels"], strict=True)):
            if label != -100:
                predicting.add(node)
            found = nodes.get((node, token))
            if found is None:
                found = nodes[node, token] = len(nodes)
                pairs += depth + 1
            node = found
    return len(nodes), len(predicting), pairs


def floor_per_token(config: Any, method: str, steps: list[list[dict[str, list[int]]]]) -> float:
    """Floor FLOPs of these steps by the tokens of their rows.

    Args:
        config: a llama-like model's.
        steps: the rows of each.
    """
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width, kept = config.num_attention_heads * size, config.num_key_value_heads * size
    layer = config.hidden_size * (2 * width + 2 * kept) + 3 * config.hidden_size * config.intermediate_size
    flops = tokens = 0.0
    for rows in steps:
        distinct, logits, pairs = trie_counts(rows)
        tokens += sum(len(row["input_ids"]) for row in rows)
        flops += floor_flops(
            method=method, distinct=distinct, logits=logits, pairs=pairs, linear=layer * config.num_hidden_layers,
            head=config.vocab_size * config.hidden_size, layers=config.num_hidden_layers, width=width,
        )  # fmt: skip
    return flops / tokens
