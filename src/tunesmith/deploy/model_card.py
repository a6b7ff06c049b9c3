"""The README.md of a merged model: what it was made from, its verdict, and how close the merge is.

The block at its head is what model hubs read (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, cast

from tunesmith.evaluation.wording import sentence
from tunesmith.safe_text import fenced, markdown_code, markdown_text

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
        f"# {markdown_text(PurePath(merged['folder']).name)}\n",
        _origin(merged, facts),
        _use(merged),
        *([_training(facts)] if "training" in facts else []),
        _judged(facts),
        _closeness(merged),
    ]
    return "\n".join(parts)


def _head(facts: Mapping[str, Any]) -> str:
    base = [f"base_model: {_in_yaml(facts['hub'])}"] if facts.get("hub") else []
    lines = ["library_name: transformers", "pipeline_tag: text-generation", *base]
    return "\n".join(["---", *lines, f"tags: [tunesmith, {facts['method']['name']}]", "---", ""])


def _in_yaml(hub: str) -> str:
    """A hub id as it is, and any other text in quotes that YAML reads."""
    return hub if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", hub, re.ASCII) else json.dumps(hub)


def _origin(merged: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    base = facts.get("hub") or PurePath(merged["base"]).name
    revision = f" at revision {markdown_text(merged['revision'])}" if merged["revision"] else ""
    checkpoint = markdown_code(PurePath(merged["checkpoint"]).name) if facts.get("run") else ""
    run = f", from {checkpoint} of the run {markdown_code(facts['run'])}" if facts.get("run") else ""
    return (
        f"{markdown_code(base)}{revision}, fine-tuned with {facts['method']['name']}{run}. The update has been added "
        f"into {ONTO[merged['onto']]}, so these are plain weights in {merged['dtype']}: no adapter and no extra "
        "package.\n"
    )


def _use(merged: Mapping[str, Any]) -> str:
    name = json.dumps(PurePath(merged["folder"]).name, ensure_ascii=False)
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained({name}, dtype="auto")',
        f"tokenizer = AutoTokenizer.from_pretrained({name})  # has the chat template of the training",
    ]
    return "\n".join([*fenced(lines, "python"), ""])


def _training(facts: Mapping[str, Any]) -> str:
    recipe, status = facts["training"], facts["status"]
    training = recipe.training
    length = f"{training.max_steps} steps" if training.max_steps else f"{training.num_train_epochs:g} epochs"
    rows = [
        ("data", markdown_text(", ".join(PurePath(source.path).name for source in recipe.data.train))),
        ("method", markdown_text(json.dumps(facts["method"]))),
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
        return "\n".join(["## Verdict\n", markdown_text(f"{verdict['verdict']}: {verdict.get('reason')}"), ""])
    lines = ["## Verdict\n", markdown_text(sentence(cast(Any, verdict))) + "\n"]
    if not facts.get("verdict_is_of_this"):
        lines.append(f"It is of step {verdict.get('step')} of the run, not of the checkpoint that was merged.\n")
    lines += ["| metric | base | tuned | difference | interval |", "|---|---|---|---|---|"]
    for name, found in verdict["metrics"].items():
        low, high = found["interval"]
        figures = f"{found['base']:.4g} | {found['tuned']:.4g} | {found['difference']:+.3g} | {low:+.3g} to {high:+.3g}"
        lines.append(f"| {markdown_text(name)} | {figures} |")
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
