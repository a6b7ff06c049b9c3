"""One measured LoRA run with litgpt's model, adapter and loss on given rows, in its environment (see bench/peers.py).

The steps are those of litgpt/finetune/lora.py, whose data modules tokenize for themselves: its collator, forward pass
with a chunked head, ``chunked_cross_entropy``, backward pass and optimizer through Fabric. Two things are added to make
it equal to the others: gradients are clipped, and rows are grouped by length, the longest first. The model is converted
by litgpt's own function, in memory.
"""

from __future__ import annotations

import json
import operator
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from litgpt.data.base import get_sft_collate_fn
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer
from memory import peak_bytes
from safetensors.torch import load_file


def main(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    cpu = job["device"] == "cpu"
    fabric = lightning.Fabric(
        accelerator="cpu" if cpu else "cuda", devices=1, precision="32-true" if cpu else "bf16-true"
    )
    fabric.launch()
    model, optimizer = _model(fabric, job)
    batches = [_passes(rows, job["peer_rows"]) for rows in _steps(sorted(job["rows"], key=_length, reverse=True), job)]
    first = _passes(job["rows"][: job["batch"]], job["peer_rows"])
    with torch.no_grad():
        counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in first]
        losses = [[_loss(model, _to(fabric, batch), exact=exact).item() for batch in first] for exact in (False, True)]
        means = [sum(map(operator.mul, each, counts)) / sum(counts) for each in losses]
    seconds = []
    for step in batches:
        begin = time.perf_counter()
        for batch in step:
            fabric.backward(_loss(model, _to(fabric, batch)) / len(step))
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        if not cpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    supervised = [sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in step) for step in batches]
    return {
        "step_zero_loss": means[0],
        "step_zero_loss_fp64": means[1],
        "supervised": sum(supervised),
        "seconds": seconds[1:],
        "tokens": [sum(int(batch["token_counts"]["raw"].sum()) for batch in step) for step in batches][1:],
        "supervised_tokens": supervised[1:],
        "peak_bytes": peak_bytes(job["device"]),
    }


def _model(fabric: Any, job: dict[str, Any]) -> tuple[Any, Any]:
    """The model with LoRA on every linear layer but the head, and its optimizer, as litgpt's script makes them."""
    folder = Path(job["model"])
    config = _config(json.loads((folder / "config.json").read_text(encoding="utf-8")), job)
    with fabric.init_module():
        model = GPT(config)
    mark_only_lora_as_trainable(model)
    weights = {name: part for file in folder.glob("*.safetensors") for name, part in load_file(file).items()}
    converted: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, converted, weights)
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not unexpected and all("lora_" in name for name in missing), (missing, unexpected)
    model = fabric.setup_module(model)
    model.max_seq_length = max(len(row["input_ids"]) for row in job["rows"])
    optimizer = instantiate_torch_optimizer("AdamW", model.parameters(), lr=job["rate"], weight_decay=0.0)
    return model, fabric.setup_optimizers(optimizer)


def _config(given: dict[str, Any], job: dict[str, Any]) -> Config:
    rope = given.get("rope_parameters") or {"rope_type": "default", "rope_theta": given.get("rope_theta", 10000)}
    assert given["model_type"] == "llama" and rope["rope_type"] == "default", "this script converts plain llama models"
    return Config(
        name="benchmark", block_size=given["max_position_embeddings"], vocab_size=given["vocab_size"],
        padded_vocab_size=given["vocab_size"], n_layer=given["num_hidden_layers"], n_head=given["num_attention_heads"],
        n_query_groups=given["num_key_value_heads"], n_embd=given["hidden_size"], head_size=given.get("head_dim"),
        intermediate_size=given["intermediate_size"], rotary_percentage=1.0, rope_base=int(rope["rope_theta"]),
        norm_class_name="RMSNorm", norm_eps=given["rms_norm_eps"], mlp_class_name="LLaMAMLP", bias=False,
        parallel_residual=False, lora_r=job["r"], lora_alpha=2 * job["r"], lora_dropout=0.0, lora_query=True,
        lora_key=True, lora_value=True, lora_projection=True, lora_mlp=True, lora_head=False,
    )  # fmt: skip


def _loss(model: Any, batch: dict[str, Any], *, exact: bool = False) -> torch.Tensor:
    """As litgpt's script has it. ``exact``: with the logits normalised in fp64."""
    logits = model(batch["input_ids"], lm_head_chunk_size=128)
    logits[-1] = logits[-1][..., :-1, :]
    if exact:
        logits = [chunk.double() for chunk in logits]
    return chunked_cross_entropy(logits, batch["labels"][..., 1:])


def _length(row: dict[str, list[int]]) -> int:
    return len(row["input_ids"])


def _steps(rows: list[Any], job: dict[str, Any]) -> list[list[Any]]:
    return [rows[begin : begin + job["batch"]] for begin in range(0, len(rows), job["batch"])]


def _passes(rows: list[dict[str, list[int]]], size: int) -> list[dict[str, Any]]:
    items = [
        {
            "input_ids": torch.tensor(row["input_ids"]), "labels": torch.tensor(row["labels"]),
            "token_counts": {"raw": _length(row), "raw_plus_prompt_template": _length(row)},
        }
        for row in rows
    ]  # fmt: skip
    return [get_sft_collate_fn()(items[begin : begin + size]) for begin in range(0, len(items), size)]


def _to(fabric: Any, batch: dict[str, Any]) -> dict[str, Any]:
    return {name: batch[name].to(fabric.device) for name in ("input_ids", "labels")}


if __name__ == "__main__":
    result = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
