"""The command line: strings and exit codes. Each command calls one library function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command, and ends the process with its exit code (docs/cli.md lists them)."""
    from tunesmith.cli.app import run

    run(argv)
