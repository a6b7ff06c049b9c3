"""Rows of the table: secrets that a process has around it, and text of others that would act on what shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tests.cli.conftest import VERDICT
from tests.cli.foreign import ACTS, ATTACK, foreign_run
from tests.door.opening import build_tiny_model
from tests.faults.processes import run
from tests.faults.table import Fault, Try
from tests.workflows.planted import ARGUMENTS, SECRETS, commands_of, forms, planted, recipe_of, repository

MAY_HOLD = {"r.yaml", "made.yaml", ".git/config"}  # what the user wrote or asked for


def _planted_secrets(folder: Path, whole: bool) -> Iterator[Try]:
    """Each secret is looked for in every byte that the commands wrote or printed."""
    build_tiny_model(folder / "model")
    repository(folder)
    (folder / "r.yaml").write_text(json.dumps(recipe_of("model")))
    commands = commands_of("model") if whole else commands_of("model")[:1]
    said, code = planted(folder, commands, *ARGUMENTS)
    if code or said.count("exit 0") < len(commands):
        yield Try("the commands", said[-2000:])
    files = [path for path in folder.rglob("*") if path.is_file() and str(path.relative_to(folder)) not in MAY_HOLD]
    written = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    for kind, secret in SECRETS.items():
        found = [name for name, content in written.items() if any(form in content for form in forms(secret))]
        found += ["what was printed"] if any(form.decode() in said for form in forms(secret)) else []
        yield Try(kind, f"it is in {', '.join(found)}" if found else None)


def _foreign_text(folder: Path, whole: bool) -> Iterator[Try]:
    """Each sign that acts, in every text of a run, through every command that shows one."""
    attacks = [ATTACK, *sorted(set(ACTS.findall(ATTACK)))] if whole else [ATTACK]
    for number, attack in enumerate(attacks):
        name = f"run{number}"
        foreign_run(folder / name, VERDICT, attack)
        shows = [["show", name], ["list", "."], ["watch", name], ["curves", name, "--out", f"{name}.svg"],
                 ["curves", name, "--out", f"{name}.html"]]  # fmt: skip
        for command in shows:
            for more in ([], ["--json"]) if whole else ([],):
                overwrite = ["--overwrite"] if command[0] == "curves" else []
                ended = run(["runs", *command, *more, *overwrite], folder)
                out = folder / command[-1]
                said = ended.said + (out.read_text() if out.suffix in (".svg", ".html") else "")
                left = sorted(set(ACTS.findall(said)))
                wrong = (
                    f"exit {ended.code}: {ended.said[-500:]}" if ended.code else f"{left} stand in it" if left else None
                )
                yield Try(f"{attack!r} in runs {' '.join([*command, *more])}", wrong if ended.code or left else None)


FAULTS = [Fault("planted secrets", _planted_secrets), Fault("foreign text", _foreign_text)]
