"""Writes docs/cli.md from the commands themselves: ``python -m tunesmith.cli.docs > docs/cli.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from typer.main import get_command

from tunesmith.cli.app import app

EXIT_CODES = {
    "0": "done",
    "1": "a mistake that you can mend: the message says what, where, why and what to do (`check`: in the data); "
    "also a fault of Tunesmith itself, with its traceback",
    "2": "the command was not understood",
    "3": "training failed: its run folder says how far it came, and `train RECIPE --resume` goes on",
    "130, 143": "stopped by Ctrl-C, or by a termination signal; a run records that it was stopped",
    "141": "the reader of standard output went away, as `head` does",
}
METRIC = "{NAME: {base, tuned, difference, interval: [low, high], verdict, reason, rows}}"
TRAIN = {
    "run": "the run folder",
    "verdict": "`better`, `no evidence` or `worse`",
    "metrics": f"`{METRIC}`; the first decides; empty without held-out rows",
    "seconds": "of work, the verdict included",
    "tokens": "`{rows, computed, supervised}`: tokens in the rows trained on, through the model, and learned",
}
ERROR = {
    "error": "its kind: RecipeError, DataError, ModelError, RunError, TrainError or ExportError",
    "what": "the fault in one sentence",
    "where": "`file:line`, a recipe key or a folder; or null",
    "why": "what was found and what was expected; or null",
    "remedy": "what to do now; or null",
}
SUMMARY = {
    "name": "the folder's name",
    "run": "the run folder",
    "status": "`running`, `finished`, `failed`, `stopped`, `interrupted` (its process is gone) or `damaged`",
    "step": "optimizer steps taken, or null",
    "total_steps": "in all, or null",
    "verdict": "`better`, `no evidence`, `worse`, or null",
    "metric": "the one that decides, or null",
    "base": "its value for the base",
    "tuned": "its value for the tuned model",
    "updated": "UTC time of the last change",
}
LEDGER = (
    "`{rows, tokens, supervised: {read, invalid, duplicate, leaked, unbalanced, too_long, held_out, test, trained}, "
    "truncated, split, blocks, sources: {path: the same}, epoch: {total, supervised, computed}}`; what is not known is "
    "null"
)
SHAPES: dict[str, dict[str, str]] = {
    "init": {
        "recipe": "the file that was written",
        "model": "its model",
        "output_dir": "its run folder",
        "rows": "rows that can be used",
        "bad": "rows that cannot",
        "format": "shape of the rows",
        "metrics": "names of the metrics that were chosen",
        "method": "the method to train with",
        "parameters": "of the model, or null where they are not known",
        "choices": "`[{key, value, reason, source}]`: hyperparameters by recipe key, why, and who says so",
    },
    "check": {
        "schema": "1; raised when a key changes its meaning or goes away",
        "good": "whether a run could begin; exit code 1 if not",
        "judgement": "the whole in two or three sentences",
        "notes": "how the shape was found, and what was held out",
        "sources": "`[{path, side, split, format, rows, invalid, weight, rows_an_epoch, files: [{path, sha256}], "
        "ignored}]`",
        "ledger": LEDGER,
        "lengths": "`{unit: tokens | characters, quantiles: {min, p5, p25, p50, p75, p95, p99, max}, "
        "histogram: [{from, to, rows}], longest: file:line}`",
        "labels": "`{distinct, counts: [{label, rows}]}`; null where answers are no labels",
        "scripts": "`[{name, rows}]`: scripts of the prompts",
        "languages": "`{sampled, counts: [{name, rows}]}` of a sample; null where none was drawn",
        "diversity": "`{first_words, most_frequent: [{text, rows}], clusters: [{rows, first: file:line}]}`",
        "findings": "`[{id, severity: error | warning | info, count, rows: [file:line], samples: [{row, text}], "
        "message, remedy}]`: every row is named",
        "bad": "`[{source, field, found, expected, raw}]`: every row that cannot be used",
        "shown": "`[{source, tokens, supervised, pieces: [[text, learned]]}]`: with --show",
    },
    "prepare": {
        "folder": "the dataset; `datasets.load_from_disk` reads it",
        "splits": "`{train, validation, test}`: rows of each that there is",
        "ledger": LEDGER,
        "rejected": "rows that were not written; they are in rejected.jsonl",
    },
    "plan": {
        "device": "`{name, memory, fp32, half}`: bytes, and peak FLOP/s; half is null on a CPU",
        "parameters": "of the model",
        "counted": "how: the model is built without weights",
        "workload": "`{rows, longest, tokens, computed, logits, basis}` of an epoch; basis says where it comes from",
        "methods": "`[{method, recipe, trainable, share, memory: {libraries, weights, gradients, optimizer, "
        "activations, logits, total}, judging, fits, budget, tokens, checkpointing, seconds, why}]`: bytes, seconds an "
        "epoch, and the micro-batch",
        "recommended": "`full`, `lora`, `qlora`, or null where nothing fits",
        "reason": "the recommendation in a sentence",
        "measured": "with --measure: `[{method, tokens, predicted_bytes, measured_bytes, memory_error, "
        "predicted_seconds, measured_seconds, time_error}]` of one micro-batch; else empty",
    },
    "train": TRAIN,
    "train --lr-range": {
        "folder": "beside the run folder, where lr-range.json (all below) and lr-range.svg are",
        "schema": "1; raised when a key changes its meaning or goes away",
        "method": "of the recipe, as `objective`, `optim`, `batch_size` and `seed` are",
        "objective": "see `method`",
        "optim": "see `method`",
        "batch_size": "see `method`",
        "seed": "see `method`",
        "lr_min": "the first rate",
        "lr_max": "the last rate",
        "steps": "of the whole test; it ends earlier where the loss diverges",
        "passes": "over the rows",
        "line": "what to add to a `train` command, or null",
        "verdict": "`clear`; or why no rate is suggested: `flat`, `noisy`, or `short` of steps",
        "suggestion": "the learning rate, or null",
        "reason": "in words",
        "steepest": "the rate at which the smoothed loss falls fastest, or null",
        "turn": "the rate from which it rises, or is not finite; or null",
        "ended": "`diverged` or `not finite` where the test ended early, else null",
        "error": "of a smoothed loss, one standard deviation",
        "points": "`[{step, learning_rate, loss, grad_norm, smoothed}]`",
        "seconds": "of work",
    },
    "train --dry-run": {"settings": "`[{key, value, source}]`; source is `default`, `file:line`, `flag` or `auto`"},
    "eval": {
        "target": "what was judged",
        "verdict": "`better`, `no evidence`, `worse`; null for a model without a base",
        "metrics": f"`{METRIC}`; `{{NAME: {{value}}}}` for a model without a base",
        "rows": "rows judged on",
        "...": "and what else verdict.json holds",
    },
    "generate": {
        "target": "what was asked",
        "model": "what was loaded",
        "prompt": "the user's message",
        "base": "with --base: answers of the untuned base, as below; else null",
        "answers": "`[{text, tokens, stopped}]`; stopped is false where the answer was cut off",
    },
    "merge": {
        "folder": "the model folder",
        "base": "the model that was tuned",
        "revision": "its revision, or null",
        "checkpoint": "what was trained on top of it",
        "method": "how it was tuned",
        "onto": "what the update was added to: `base`; over a quantized base `dequantized` or `unquantized`",
        "candidates": "`{WAY: {relative, largest, agreement, positions}}`: logits against those of the tuned model, "
        "before rounding to dtype; relative is the root mean square of the differences by that of the logits",
        "written": "the same of the folder as it is read back",
        "tolerance": "the largest `relative` that is accepted",
        "rows": "what was compared, in words",
        "dtype": "of the weights",
        "files": "files of weights",
        "bytes": "their size",
    },
    "runs list": {"runs": f"`[{{{', '.join(SUMMARY)}}}]`"},
    "runs show": {
        **SUMMARY,
        "facts": "the recipe in short: `{name: text}`",
        "result": "verdict.json, or null",
        "error": "why a failed run failed, as below; or null",
        "training": "`[[step, loss]]`",
        "validation": "`[[step, loss]]`",
        "checkpoints": "their folders, oldest first",
        "best": "the step with the lowest validation loss, with that loss; or null",
    },
    "runs watch": {
        **SUMMARY,
        "symptoms": "`[{kind, step, text}]`: what was warned of; kind is `overfitting`, `flat`, `gradient_spike` or "
        "`learning_rate`",
    },
    "runs curves": {"file": "what was drawn", "runs": "`[{name, run, training, validation, symptoms}]`"},
    "demo": TRAIN,
}

INTRODUCTION = """# The command line

Made by `python -m tunesmith.cli.docs > docs/cli.md`; a test holds it to the commands.

Results go to standard output; progress, warnings and errors to standard error. With `--json` the last line of standard
output is one JSON object, and everything else goes to standard error. A mistake is an object too (below), with its exit
code; where the command was not understood or was stopped there is none. Numbers that are not finite are null.

Progress is a bar on a screen and a line now and then in a file or pipe. `NO_COLOR` and `TERM=dumb` are respected.

`KEY=VALUE` arguments have YAML values. For `train` they are keys of the recipe, for `eval` those of its evaluation
section, for `generate` and `chat` those of generation.
"""


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its full name, in the order of the help."""
    for name, command in _subcommands(get_command(app)):
        inner = list(_subcommands(command))
        yield from ((f"{name} {sub}", item) for sub, item in inner) if inner else [(name, command)]


def page() -> str:
    """The whole of docs/cli.md."""
    parts = [INTRODUCTION, "## Exit codes\n", _table("code", EXIT_CODES)]
    for name, command in commands():
        parts += [f"## tunesmith {name}\n", *_about(command)]
        for title, shape in SHAPES.items():
            if title == name or title.startswith(f"{name} --"):
                parts += [f"`tunesmith {title}{' ' if '--' in title else ' ... '}--json`:\n", _table("key", shape)]
    parts += ["## A mistake under --json\n", _table("key", ERROR)]
    return "\n".join(parts)


def _subcommands(command: Any) -> list[tuple[str, Any]]:
    return list(getattr(command, "commands", {}).items())


def _about(command: Any) -> list[str]:
    paragraphs = [" ".join(part.split()) + "\n" for part in command.help.split("\n\n")]
    arguments = {_argument(p): p.help for p in command.params if p.param_type_name == "argument"}
    flags = {_flag(p): p.help + _default(p) for p in command.params if p.param_type_name == "option"}
    tables = [_table(head, rows) for head, rows in (("argument", arguments), ("flag", flags)) if rows]
    return [*paragraphs, *tables]


def _argument(parameter: Any) -> str:
    name = f"{parameter.metavar}" + (" ..." if parameter.nargs == -1 else "")
    return f"`{name}`" if parameter.required else f"`[{name}]`"


def _flag(parameter: Any) -> str:
    value = "" if parameter.is_flag else f" {parameter.metavar}"
    return f"`{parameter.opts[0]}{value}`"


def _default(parameter: Any) -> str:
    if parameter.is_flag or parameter.default is None:
        shown = parameter.show_default if isinstance(parameter.show_default, str) else None
        return f" Default: {shown}." if shown else " Required." if parameter.required else ""
    return f" Default: {parameter.default}."


def _table(head: str, rows: Mapping[str, str]) -> str:
    def cell(text: str) -> str:
        return text.replace("|", "\\|")

    names = [key if key.startswith("`") else f"`{key}`" for key in rows]
    lines = [f"| {cell(name)} | {cell(meaning)} |" for name, meaning in zip(names, rows.values(), strict=True)]
    return "\n".join([f"| {head} | meaning |", "|---|---|", *lines, ""])


if __name__ == "__main__":
    sys.stdout.write(page())
