"""Writes docs/cli.md from the commands themselves: ``python -m tunesmith.cli.docs > docs/cli.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from ruamel.yaml import YAML
from typer.main import get_command

from tunesmith.cli.app import app

EXIT_CODES = {
    "0": "done",
    "1": "an error that you can fix: the message says what happened, where, why and what to do (`check`: errors in the "
    "data); also a result that was printed and could not be kept in its run, because "
    "the disk is full or lost; also a bug in Tunesmith, with its traceback",
    "2": "the command was not understood",
    "3": "training failed: the run folder says how far it came, and `train RECIPE --resume` continues",
    "4": "training stopped because a loss, a gradient, a weight or the optimizer's state was infinite or not a number, "
    "or too many steps in a row were skipped: no checkpoint holds such a value",
    "130, 143, 129": "stopped by Ctrl-C, by a termination signal, or because the terminal was closed. While a run "
    "trains, the running step ends and a checkpoint is saved first, and the command that continues is printed; a "
    "second Ctrl-C stops at once",
    "141": "the reader of standard output has gone, as `head` does",
}
INTRODUCTION = """# The command line

Made by `python -m tunesmith.cli.docs > docs/cli.md`; a test compares this page with the commands.

Results go to standard output; progress, warnings and errors go to standard error. With `--json` the last line of
standard output is one JSON object, and everything else goes to standard error. An error is an object too (below), with
its exit code. If the command was not understood or was stopped, there is no object. Numbers that are not finite are
null.

Progress is a bar on a screen, and a line now and then in a file or pipe. `NO_COLOR` and `TERM=dumb` are respected.

The values of `KEY=VALUE` arguments are YAML. The keys are those of the recipe for `train`, those of its evaluation
section for `eval`, and settings of generation for `generate` and `chat`. An argument of `train` replaces the recipe's
keys that say the same thing, and this is reported: `training.max_steps=3` replaces `num_train_epochs`. Arguments that
contradict each other are refused. `training.num_train_epochs=null` leaves a key of the recipe out.
"""
_FOUND = YAML(typ="safe", pure=True).load(resources.files("tunesmith.cli").joinpath("json_keys.yaml"))
JSON_KEYS: dict[str, dict[str, str]] = _FOUND["commands"]
ERROR_KEYS: dict[str, str] = _FOUND["error"]
SUMMARY_KEYS: dict[str, str] = _FOUND["summary"]


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its full name, in the order of the help."""
    for name, command in _subcommands(get_command(app)):
        inner = list(_subcommands(command))
        yield from ((f"{name} {sub}", item) for sub, item in inner) if inner else [(name, command)]


def reference_page() -> str:
    """The whole of docs/cli.md."""
    parts = [INTRODUCTION, "## Exit codes\n", _table("code", EXIT_CODES)]
    for name, command in commands():
        parts += [f"## tunesmith {name}\n", *_about(command)]
        for title, keys in JSON_KEYS.items():
            if title == name or title.startswith(f"{name} --"):
                parts += [f"`tunesmith {title}{' ' if '--' in title else ' ... '}--json`:\n", _table("key", keys)]
    parts += ["## An error under --json\n", _table("key", ERROR_KEYS)]
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
    sys.stdout.write(reference_page())
