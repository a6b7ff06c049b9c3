"""What ``tunesmith demo`` does: rows, check, training, five rows side by side, and the verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.evaluation.compare import sentence
from tunesmith.recipe.file import dump, read_recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Listener
from tunesmith.workflows.demo.invoices import write
from tunesmith.workflows.finetune import TrainResult, stored_result, train

TRAIN_ROWS, HELD_OUT_ROWS, SEED, SHOWN = 540, 100, 0, 5


def recipe_values(data: Path, folder: Path) -> dict[str, Any]:
    """The demo's recipe: LoRA on the bundled model, judged on held-out phrasings."""
    return {
        "model": "smollm2-135m-instruct",
        "data": {"train": str(data / "train.jsonl"), "eval": str(data / "test.jsonl"), "max_length": 512},
        "method": {"name": "lora", "r": 16, "lora_alpha": 32},
        "training": {
            "learning_rate": 1e-3,
            "num_train_epochs": 1.0,
            "batch_size": 6,
            "warmup_steps": 0.05,
            "logging_steps": 10,
            "eval_strategy": "no",
        },
        "evaluation": {
            "metrics": ["json_exact", "json_fields", "json_valid"],
            "max_new_tokens": 64,
            "batch_size": 100,
            "samples": SHOWN,
        },
        "output_dir": str(folder),
    }


def run(folder: Path, *, overwrite: bool, listener: Listener) -> dict[str, Any]:
    """The story, told to the listener. A finished demo tells its stored end; an interrupted one goes on.

    Returns:
        What ``train --json`` gives.
    """
    made = Run(folder)
    if made.exists() and not overwrite and made.status()["status"] == "finished":
        listener.say(f"{folder} is finished already; this is its stored result (--overwrite trains anew)\n")
        result = stored_result(made)
    else:
        result = _train(folder, overwrite=overwrite, listener=listener)
    _show(Run(result.run), listener)
    listener.say("\n" + sentence(result.verdict))  # type: ignore[arg-type]
    return result.to_json()


def _train(folder: Path, *, overwrite: bool, listener: Listener) -> TrainResult:
    data = folder.with_name(f"{folder.name}-data")
    listener.say("The task: invoice headers, written in twelve locales, become JSON.")
    listener.say(f"{TRAIN_ROWS} rows to train on; {HELD_OUT_ROWS} held out, in phrasings that training never sees.")
    write(data, train=TRAIN_ROWS, held_out=HELD_OUT_ROWS, seed=SEED)
    recipe = read_recipe(recipe_values(data, folder)).recipe
    (data / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    listener.say(f"The rows and the recipe are in {data}.\n")
    return train(recipe, resume=not overwrite, overwrite=overwrite, listener=listener)


def _show(run: Run, listener: Listener) -> None:
    listener.say(f"\n{SHOWN} held-out rows, base and tuned side by side:")
    for number, line in enumerate(run.read_lines("samples.jsonl")[:SHOWN], start=1):
        rows = {"input": _input(line), "base": line["base"], "tuned": line["tuned"], "truth": line["truth"]}
        listener.say(f"\n  {number}.")
        for name, text in rows.items():
            listener.say(f"    {name:<6} {_one_line(text)}")


def _input(line: dict[str, Any]) -> str:
    """The invoice header alone: the row's own input field."""
    path, _, number = line["source"].rpartition(":")
    with Path(path).open(encoding="utf-8") as rows:
        for count, row in enumerate(rows, start=1):
            if count == int(number):
                return json.loads(row)["input"]
    return line["prompt"]


def _one_line(text: str) -> str:
    flat = " | ".join(part.strip() for part in text.strip().splitlines() if part.strip())
    return flat if len(flat) <= 160 else f"{flat[:157]}..."
