"""What error messages say to do exists: every key of a recipe, flag and command that a remedy names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import typer
from tests.recipe.test_documented import keys

from tunesmith.cli.app import app
from tunesmith.recipe.settings import Recipe

SOURCE = Path(__file__).parents[1] / "src" / "tunesmith"
SECTIONS = ("data", "training", "method", "model", "evaluation", "objective", "generation")
KEY = re.compile(rf"(?<![\w./\\])(?:{'|'.join(SECTIONS)})(?:\.[a-z_0-9]+)+(?![\w/(\\])")
FILES = (".json", ".jsonl", ".safetensors", ".yaml")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(r"`tunesmith ([a-z]+)(?: ([a-z]+))?")
OF_OTHERS = {"--merge", "--local-dir", "--upgrade"}  # of gguf-split, hf and pip


def remedies() -> Iterator[tuple[str, str]]:
    """(file:line, text) of every text of a remedy; what is filled in when it is raised is left out."""
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            value = node.value if isinstance(node, ast.keyword) and node.arg == "remedy" else None
            if isinstance(node, ast.Assign) and any(getattr(target, "id", None) == "remedy" for target in node.targets):
                value = node.value
            for part in ast.walk(value) if value is not None else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield f"{file.relative_to(SOURCE)}:{part.lineno}", part.value


def commands() -> dict[str, list[str]]:
    """The flags of each command, by its words."""
    found: dict[str, list[str]] = {}

    def collect(command: object, name: str) -> None:
        found[name] = [flag for each in getattr(command, "params", []) for flag in each.opts + each.secondary_opts]
        for inner, each in getattr(command, "commands", {}).items():
            collect(each, f"{name} {inner}".strip())

    collect(typer.main.get_command(app), "")
    return found


def test_every_key_that_a_remedy_names_exists() -> None:
    known = {path for path, _ in keys(Recipe)}
    known |= {path[: path.index(".", 5)] for path in known if "." in path[5:]}
    named = [(where, key) for where, text in remedies() for key in KEY.findall(text) if not key.endswith(FILES)]
    assert len(named) > 40
    assert [(where, key) for where, key in named if key not in known] == []


def test_every_flag_and_command_that_a_remedy_names_exists() -> None:
    known = commands()
    flags = {flag for each in known.values() for flag in each} | OF_OTHERS
    texts = list(remedies())
    named = [(where, flag) for where, text in texts for flag in FLAG.findall(text)]
    assert len(named) > 40
    assert [(where, flag) for where, flag in named if flag not in flags] == []
    said = [(where, words) for where, text in texts for words in COMMAND.findall(text)]
    assert len(said) > 8
    wrong = [
        (where, words)
        for where, words in said
        if words[0] not in known or (words[0] == "runs" and " ".join(words) not in known)
    ]
    assert wrong == []
