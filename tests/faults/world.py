"""A tiny random model, rows and recipes, and what a run came to, for the rows of the table."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.runs.folder import Run

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink"]
SAVE_STEPS = 3
TRAIN = ["train", "recipe.yaml", "--resume"]


def in_a_fork(work: Callable[[], None]) -> None:
    """Does something that must not leave threads or random numbers behind in this process."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def make_world(folder: Path) -> Path:
    """A folder with ``model``, ``rows.jsonl`` and ``pairs.jsonl``."""
    folder.mkdir(parents=True)
    in_a_fork(lambda: _make_model(folder / "model"))
    rows = [{"instruction": "Name it.", "input": f"{WORDS[n % 7]} {n}", "output": WORDS[n % 7]} for n in range(34)]
    pairs = [{"prompt": f"May I go {n}?", "chosen": WORDS[n % 7], "rejected": WORDS[n % 3 + 3]} for n in range(34)]
    for name, lines in (("rows", rows), ("pairs", [each for each in pairs if each["chosen"] != each["rejected"]])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _make_model(folder: Path) -> None:
    import torch
    from tests.conftest import build_tokenizer
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    build_tokenizer(folder)
    size: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "max_position_embeddings": 256,
    }
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=400, **size, **heads, **ids))
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)


def recipe(world: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of two epochs of seven steps, which saves in the middle of each; ``section={...}`` adds to a section."""
    values: dict[str, Any] = {
        "model": str(world / "model"),
        "data": {"train": str(world / "rows.jsonl"), "eval": 0.25},
        "method": {"name": "lora", "r": 4},
        "training": {
            "learning_rate": 1e-2, "num_train_epochs": 2, "batch_size": 4, "micro_batch_tokens": 400,
            "logging_steps": 1, "eval_steps": 2, "save_steps": SAVE_STEPS, "report_to": "none", "threads": 1,
        },
        "evaluation": {"metrics": ["exact_match"], "max_new_tokens": 3, "resamples": 200, "samples": 1},
        "output_dir": "run",
    }  # fmt: skip
    for name, value in changes.items():
        merged = isinstance(value, dict) and name != "method" and isinstance(values.get(name), dict)
        values[name] = {**values[name], **value} if merged else value
    return values


METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora with dropout": {"method": {"name": "lora", "r": 4, "lora_dropout": 0.1}},
    "qlora": {"method": {"name": "qlora", "r": 4}},
    "freeze": {"method": {"name": "freeze", "trainable_layers": 1}},
    "dpo": {"method": {"name": "lora", "r": 4}, "objective": "dpo"},
    "accumulation": {
        "method": {"name": "lora", "r": 4, "lora_dropout": 0.1},
        "training": {"micro_batch_tokens": 60, "logging_steps": 2},
    },
    "best of all, one kept": {
        "data": {"eval": 0.5},
        "training": {"load_best_model_at_end": True, "save_total_limit": 1, "learning_rate": 5e-2},
    },
    "early stopping": {
        "data": {"eval": 0.5},
        "training": {
            "load_best_model_at_end": True, "early_stopping_patience": 1, "early_stopping_threshold": 0.5,
            "logging_steps": 5, "eval_steps": 2,
        },
    },
}  # fmt: skip


def write_recipe(world: Path, folder: Path, name: str) -> None:
    """The recipe of a method, as ``recipe.yaml`` in a folder."""
    folder.mkdir(parents=True)
    values = recipe(world, **METHODS[name])
    if values.get("objective"):
        values["data"]["train"] = str(world / "pairs.jsonl")
        del values["evaluation"]["metrics"]
    (folder / "recipe.yaml").write_text(json.dumps(values, indent=1))


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def content(folder: Path) -> dict[str, Any]:
    """What the run in ``folder/run`` came to: bytes of all checkpoints, and lines and verdict without times."""
    run = Run(folder / "run")
    found: dict[str, Any] = {
        f"{path.name}/{name}": digest for path in run.checkpoints for name, digest in hashes(path).items()
    }
    for name in ("metrics.jsonl", "samples_during.jsonl", "samples.jsonl"):
        lines = run.read_lines(name)
        found[name] = [{key: value for key, value in line.items() if "second" not in key} for line in lines]
    status = run.status()
    facts = ("status", "step", "judged_step", "tokens", "best", "selection")
    found["status"] = {name: status.get(name) for name in facts}
    found["verdict"] = run.read_json("verdict.json")
    found["names"] = sorted(path.name for path in run.folder.iterdir())
    found["hidden"] = sorted(path.name for path in run.folder.glob("checkpoints/.*"))
    return found


def apart(found: dict[str, Any], wanted: dict[str, Any], *, stopped: bool = False) -> str | None:
    """The first thing in which they differ; None if they are the same."""
    for name in {**wanted, **found}:
        if stopped and name.startswith("step-") and name not in wanted:
            continue  # the checkpoint of the stop
        if found.get(name) != wanted.get(name):
            return f"{name} is {str(found.get(name))[:300]} and should be {str(wanted.get(name))[:300]}"
    return None


def steps_repeated(folder: Path, said: str, before: int) -> int:
    """How many steps a command that continues computes again: ``before`` were in metrics.jsonl when it began."""
    start = re.search(r"continuing after step (\d+)", said)
    return before - int(start.group(1)) if start else before


def last_line(folder: Path) -> int:
    """The step of the last line of metrics; 0 if there is none."""
    run = Run(folder / "run")
    return max((line["step"] for line in run.read_lines("metrics.jsonl")), default=0)


def copy_of(made: Path, folder: Path) -> Path:
    """A copy of a folder."""
    shutil.copytree(made, folder, symlinks=True)
    return folder


def hidden_in(folder: Path) -> list[str]:
    """What looks like half of a file or a folder, outside the cache's locks and the answers so far."""
    found = [
        path for path in folder.rglob(".*") if path.name not in (".lock", ".keeping", ".gitignore", ".answers.answers")
    ]
    found += folder.glob("cache/**/*.partial")
    return sorted(str(path.relative_to(folder)) for path in found)
