"""Why the files of a tokenizer cannot be read: a package is missing, a file is newer than the library, or damaged."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from tunesmith.data.chat.tokenizing import is_panic
from tunesmith.errors import ModelError, pip_install

_WHAT = "the tokenizer cannot be loaded"
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/=]+ \d+\r?\n")
_POINTER = b"version https://git-lfs"


def unreadable_tokenizer(folder: Path, error: Exception) -> ModelError | None:
    """The message for a folder whose tokenizer failed to load with ``error``; None if the files do not say why."""
    if "trust_remote_code" in str(error):
        return None
    whole = folder / "tokenizer.json"
    if whole.is_file():
        return _unreadable_json(whole)
    for path in sorted([*folder.glob("*.model"), *folder.glob("*.tiktoken")]):
        with path.open("rb") as file:
            begins = file.read(256)
        if begins.startswith(_POINTER):
            return _pointer(path)
        package = "tiktoken" if _TIKTOKEN_LINE.match(begins) else "sentencepiece"
        if find_spec(package) is None:
            return ModelError(
                _WHAT,
                where=str(folder),
                why=f"There is no tokenizer.json, and {path.name} is read with the package {package}, which is not "
                "installed.",
                remedy=f"{pip_install(package)}, or use a copy of the model that has a tokenizer.json.",
            )
    return None


def _unreadable_json(path: Path) -> ModelError | None:
    """The message for a tokenizer.json that the tokenizers library cannot read; None if it can."""
    from tokenizers import Tokenizer

    with path.open("rb") as file:
        if file.read(256).startswith(_POINTER):
            return _pointer(path)
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError) as fault:
        remedy = "fetch the model again: the file is not whole."
        return ModelError(_WHAT, where=str(path), why=f"It is damaged: {fault}", remedy=remedy)
    try:
        Tokenizer.from_file(str(path))
    except BaseException as fault:
        if not (isinstance(fault, Exception) or is_panic(fault)):  # the library raises no narrower class
            raise
        return ModelError(
            _WHAT,
            where=str(path),
            why=f"tokenizers {version('tokenizers')} cannot read it: {fault}\n"
            f"Most often the file was written by a newer version.{_written_by(path.parent)}",
            remedy="pip install --upgrade tokenizers transformers; if that changes nothing, fetch the model again.",
        )
    return None


def _written_by(folder: Path) -> str:
    """The version of transformers that config.json names, in words."""
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_version")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    here = version("transformers")
    return f" The model was saved with transformers {named}; here is {here}." if named and named != here else ""


def _pointer(path: Path) -> ModelError:
    return ModelError(
        _WHAT,
        where=str(path),
        why="It is a pointer of Git LFS, not the file itself.",
        remedy="run `git lfs pull` in the folder, or fetch the model again.",
    )
