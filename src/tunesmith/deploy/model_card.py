"""The README.md of a merged model: what it was made from, its verdict, and how close the merge is.

The block at its head is what model hubs read (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, cast

from tunesmith.evaluation.compare import sentence

ONTO = {
    "base": "the weights that it was trained over",
    "dequantized": "the values of the quantized base, dequantized: closer to the tuned model than the original weights",
    "unquantized": "the original, unquantized weights: closer to the tuned model than the dequantized ones",
}


def model_card(merged: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The page as Markdown.

    Args:
        merged: the fields of ``merge.Merged``.
        facts: ``method`` (its settings), ``hub`` (the base's hub id or None), and of a run ``run``, ``training`` (its
            recipe), ``status``, ``verdict`` and ``verdict_is_of_this``.
    """
    parts = [
        _head(facts),
        f"# {PurePath(merged['folder']).name}\n",
        _origin(merged, facts),
        _use(merged),
        *([_training(facts)] if "training" in facts else []),
        _judged(facts),
        _closeness(merged),
    ]
    return "\n".join(parts)


def _head(facts: Mapping[str, Any]) -> str:
    base = [f"base_model: {facts['hub']}"] if facts.get("hub") else []
    lines = ["library_name: transformers", "pipeline_tag: text-generation", *base]
    return "\n".join(["---", *lines, f"tags: [tunesmith, {facts['method']['name']}]", "---", ""])


def _origin(merged: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    base = facts.get("hub") or PurePath(merged["base"]).name
    revision = f" at revision {merged['revision']}" if merged["revision"] else ""
    run = f", from `{PurePath(merged['checkpoint']).name}` of the run `{facts['run']}`" if facts.get("run") else ""
    return (
        f"`{base}`{revision}, fine-tuned with {facts['method']['name']}{run}. The update has been added into "
        f"{ONTO[merged['onto']]}, so these are plain weights in {merged['dtype']}: no adapter and no extra package.\n"
    )


def _use(merged: Mapping[str, Any]) -> str:
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{PurePath(merged["folder"]).name}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{PurePath(merged["folder"]).name}")  # has the chat template of the training
```
"""


def _training(facts: Mapping[str, Any]) -> str:
    recipe, status = facts["training"], facts["status"]
    training = recipe.training
    length = f"{training.max_steps} steps" if training.max_steps else f"{training.num_train_epochs:g} epochs"
    rows = [
        ("data", ", ".join(PurePath(source.path).name for source in recipe.data.train)),
        ("method", json.dumps(facts["method"])),
        ("length", f"{length}, {status.get('total_steps', '?')} optimizer steps in all"),
        ("batch size", training.batch_size),
        ("learning rate", f"{recipe.learning_rate:g}, {training.lr_scheduler_type}"),
        ("seed", training.seed),
    ]
    return "\n".join(["## Training\n", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""])


def _judged(facts: Mapping[str, Any]) -> str:
    verdict = facts.get("verdict")
    if verdict is None:
        return "## Verdict\n\nNone: these weights were not judged against their base.\n"
    if not verdict["metrics"]:
        return f"## Verdict\n\n{verdict['verdict']}: {verdict.get('reason')}\n"
    lines = ["## Verdict\n", sentence(cast(Any, verdict)) + "\n"]
    if not facts.get("verdict_is_of_this"):
        lines.append(f"It is of step {verdict.get('step')} of the run, not of the checkpoint that was merged.\n")
    lines += ["| metric | base | tuned | difference | interval |", "|---|---|---|---|---|"]
    for name, found in verdict["metrics"].items():
        low, high = found["interval"]
        figures = f"{found['base']:.4g} | {found['tuned']:.4g} | {found['difference']:+.3g} | {low:+.3g} to {high:+.3g}"
        lines.append(f"| {name} | {figures} |")
    return "\n".join([*lines, ""])


def _closeness(merged: Mapping[str, Any]) -> str:
    written = merged["written"]
    lines = [
        "## Merge\n",
        f"Compared with the tuned model as it ran, on {merged['rows']}: logits differ by {written['relative']:.2g} of "
        f"their spread (root mean square; accepted up to {merged['tolerance']:g}), by {written['largest']:.3g} at "
        f"most, and the likeliest token is the same at {written['agreement']:.2%} of the positions.\n",
    ]
    if len(merged["candidates"]) > 1:
        tried = ", ".join(f"{name} base {found['relative']:.2g}" for name, found in merged["candidates"].items())
        lines.append(f"Before rounding to {merged['dtype']}, each way to merge was measured: {tried}.\n")
    return "\n".join(lines)
