"""Runs ``tunesmith demo``: trains on the invoice rows of this package, shows five answers and reports the verdict.

``train.jsonl`` has 540 invoice headers in twelve locales, each with the JSON that it becomes. ``test.jsonl`` has 100
more, in phrasings that training never sees. ``tests/workflows/demo/invoices.py`` makes both files.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError, TunesmithError
from tunesmith.evaluation.wording import sentence
from tunesmith.recipe.file import dump, read_recipe
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.outputs import check_file, write_output, wrote
from tunesmith.runs.progress import Listener
from tunesmith.runs.samples import SAMPLES, one_line
from tunesmith.workflows.finetune import TrainResult, stored_result, train

ROWS = resources.files("tunesmith.workflows.demo")  # the folder of train.jsonl and test.jsonl
SHOWN = 5  # answers side by side


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
    """Runs the demo and reports to the listener. A finished demo shows its stored result; an interrupted one continues.

    Returns:
        What ``train --json`` gives.
    """
    made = Run(folder)
    if made.exists() and not overwrite and made.status()["status"] == "finished":
        listener.say(f"{folder} is already finished. This is its stored result; --overwrite trains again.\n")
        result = stored_result(made)
    else:
        result = _train(folder, overwrite=overwrite, listener=listener)
    _show(Run(result.run), listener)
    listener.say("\n" + sentence(result.verdict))  # type: ignore[arg-type]
    return result.to_json()


def _train(folder: Path, *, overwrite: bool, listener: Listener) -> TrainResult:
    data = folder.with_name(f"{folder.name}-data")
    recipe = read_recipe(recipe_values(data, folder)).recipe
    kept = _check_ours(data, recipe)
    data.mkdir(parents=True, exist_ok=True)
    train_rows, held_out = _copy_rows("train.jsonl", data), _copy_rows("test.jsonl", data)
    listener.say("The task: turn invoice headers, written in twelve locales, into JSON.")
    listener.say(f"{train_rows} rows to train on; {held_out} held-out rows, in phrasings that training never sees.")
    if not kept:
        write_output(data / "recipe.yaml", dump(recipe))
    listener.say(f"The rows and the recipe are in {data}.\n")
    return train(recipe, resume=not overwrite, overwrite=overwrite, listener=listener)


def _check_ours(data: Path, recipe: Recipe) -> bool:
    """Raises RunError if a file of the demo would replace one of somebody else, or one that was changed.

    Returns whether the recipe there stays: it says the same, and is not known, as of a version that noted no files.
    """
    kept = False
    for name in ("train.jsonl", "test.jsonl", "recipe.yaml"):
        file = data / name
        if file.is_file() and not wrote(file):
            if name != "recipe.yaml" and file.read_bytes() == ROWS.joinpath(name).read_bytes():
                continue
            if name == "recipe.yaml" and _says(file, recipe):
                kept = True
                continue
        check_file(file, overwrite=True, kind=RunError, flag="working folder")
    return kept


def _says(file: Path, recipe: Recipe) -> bool:
    try:
        return read_recipe(file).recipe == recipe
    except TunesmithError:
        return False


def _copy_rows(name: str, folder: Path) -> int:
    """Copies a file of rows into the folder, byte for byte, and returns its number of rows."""
    content = ROWS.joinpath(name).read_bytes()
    write_output(folder / name, content)
    return content.count(b"\n")


def _show(run: Run, listener: Listener) -> None:
    listener.say(f"\n{SHOWN} held-out rows, with the answers of the base and the tuned model:")
    for number, line in enumerate(run.read_lines(SAMPLES)[:SHOWN], start=1):
        rows = {"input": _input(line), "base": line["base"], "tuned": line["tuned"], "truth": line["truth"]}
        listener.say(f"\n  {number}.")
        for name, text in rows.items():
            listener.say(f"    {name:<6} {one_line(text)}")


def _input(line: dict[str, Any]) -> str:
    """The invoice header alone: the row's own input field."""
    path, _, number = line["source"].rpartition(":")
    with Path(path).open(encoding="utf-8") as rows:
        for count, row in enumerate(rows, start=1):
            if count == int(number):
                return json.loads(row)["input"]
    return line["prompt"]
