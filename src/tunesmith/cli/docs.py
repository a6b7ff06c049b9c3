"""Writes docs/cli.md from the commands themselves: ``python -m tunesmith.cli.docs > docs/cli.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from typer.main import get_command

from tunesmith.cli.app import app
from tunesmith.cli.shapes import ERROR, EXIT_CODES, SHAPES

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
