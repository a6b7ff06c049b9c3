"""The command line is frozen: a new command or flag is a decision that this table shows."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.cli.docs import JSON_KEYS, commands, reference_page

MOST_FLAGS = 12
SURFACE = {
    "init": (
        ["DATA", "KEY=VALUE"],
        ["--model", "--method", "--out", "--columns", "--instruction", "--format", "--yes", "--overwrite", "--json"],
    ),
    "check": (
        ["DATA|RECIPE", "KEY=VALUE"],
        [
            "--model",
            "--show",
            "--against",
            "--html",
            "--no-near",
            "--format",
            "--columns",
            "--instruction",
            "--trust-remote-code",
            "--json",
        ],
    ),
    "prepare": (
        ["DATA|RECIPE", "KEY=VALUE"],
        [
            "--out",
            "--model",
            "--format",
            "--columns",
            "--instruction",
            "--ray",
            "--overwrite",
            "--trust-remote-code",
            "--json",
        ],
    ),
    "plan": (
        ["RECIPE", "KEY=VALUE"],
        ["--model", "--device", "--rows", "--length", "--exact", "--measure", "--trust-remote-code", "--json"],
    ),
    "train": (
        ["RECIPE", "KEY=VALUE"],
        [
            "--resume",
            "--overwrite",
            "--allow-changes",
            "--dry-run",
            "--all",
            "--lr-range",
            "--lr-min",
            "--lr-max",
            "--lr-steps",
            "--trust-remote-code",
            "--allow-functions",
            "--json",
        ],
    ),
    "eval": (
        ["TARGET", "KEY=VALUE"],
        [
            "--data",
            "--probe",
            "--tasks",
            "--include-path",
            "--limit",
            "--model",
            "--allow-changes",
            "--trust-remote-code",
            "--allow-functions",
            "--json",
        ],
    ),
    "compare": (
        ["TARGET"],
        ["--data", "--model", "--allow-changes", "--trust-remote-code", "--allow-functions", "--json"],
    ),
    "generate": (
        ["TARGET", "KEY=VALUE"],
        [
            "--prompt",
            "--data",
            "--out",
            "--system",
            "--instruction",
            "--raw",
            "--base",
            "--model",
            "--trust-remote-code",
            "--allow-changes",
            "--overwrite",
            "--json",
        ],
    ),
    "chat": (
        ["TARGET", "KEY=VALUE"],
        ["--system", "--instruction", "--raw", "--model", "--allow-changes", "--trust-remote-code"],
    ),
    "merge": (
        ["TARGET"],
        [
            "--out",
            "--dtype",
            "--data",
            "--max-shard-size",
            "--model",
            "--trust-remote-code",
            "--allow-changes",
            "--keep-adapter",
            "--overwrite",
            "--json",
        ],
    ),
    "demo": ([], ["--overwrite", "--json"]),
    "runs list": (["FOLDER"], ["--json"]),
    "runs show": (["RUN"], ["--wrong", "--eval", "--json"]),
    "runs watch": (["RUN"], ["--wait", "--json"]),
    "runs curves": (["RUN"], ["--out", "--overwrite", "--json"]),
    "runs report": (["RUN"], ["--html", "--card", "--json"]),
}
COMMANDS = dict(commands())


def parameters(command: Any, kind: str) -> list[Any]:
    return [parameter for parameter in command.params if parameter.param_type_name == kind]


def test_the_commands_are_these() -> None:
    assert list(COMMANDS) == list(SURFACE)


@pytest.mark.parametrize("name", SURFACE)
def test_a_command_has_these_arguments_and_flags(name: str) -> None:
    arguments = [parameter.metavar for parameter in parameters(COMMANDS[name], "argument")]
    flags = [flag for parameter in parameters(COMMANDS[name], "option") for flag in parameter.opts]
    assert (sorted(arguments), sorted(flags)) == tuple(map(sorted, SURFACE[name]))
    assert len(flags) <= MOST_FLAGS


@pytest.mark.parametrize("name", SURFACE)
def test_a_flag_is_never_also_its_opposite_and_always_explained(name: str) -> None:
    options = parameters(COMMANDS[name], "option")
    assert [option.secondary_opts for option in options] == [[] for _ in options]
    assert all(parameter.help for parameter in COMMANDS[name].params)


def test_every_command_with_json_has_its_shape_documented() -> None:
    documented = {title for title in JSON_KEYS if "--" not in title}
    assert documented == {name for name, (_, flags) in SURFACE.items() if "--json" in flags}


def test_the_page_of_the_documentation_is_current(pytestconfig: pytest.Config) -> None:
    file = pytestconfig.rootpath / "docs" / "cli.md"
    assert file.read_text(encoding="utf-8") == reference_page(), "run: python -m tunesmith.cli.docs > docs/cli.md"
