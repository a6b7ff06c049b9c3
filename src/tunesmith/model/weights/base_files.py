"""What a model folder is by the contents of its files: weights, config, tokenizer and chat template, as plain values.

config.json, generation_config.json and tokenizer_config.json are compared by what they say, so that a line end or the
version that saved them is no difference. Every byte counts of weights and of the other files of a tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.model.weights.load import CONFIG
from tunesmith.model.weights.weight_files import ENDING, weight_files
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.cache import Say
from tunesmith.runs.drift import OF_BASE, Change, Fingerprint, Kind, compared
from tunesmith.runs.file_hashes import known_sha256
from tunesmith.runs.manifest import sha256_of

_CONFIGS = (CONFIG, "generation_config.json")
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_MORE_TEMPLATES = "additional_chat_templates"
_OF_TOKENIZERS = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "spiece", "sentencepiece", "tekken")
_ENDINGS = (".model", ".tiktoken", ".spm")
_SAYS_NOTHING = {"transformers_version", "_name_or_path", "name_or_path", "_commit_hash"}
_IN_FOLDERS = "Python files in folders"
_LONG, _NESTED = 80, 2000  # characters: longer values are hashed, and mappings up to this size are looked into


def base_files(folder: Path, *, say: Say) -> dict[str, dict[str, Any]]:
    """``{weights, config, tokenizer, template}``: for each, values by file, or by file and key.

    Args:
        say: takes a line before a file of several gigabytes is read.
    """
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    configs = [name for name in _CONFIGS if name in files]
    tokenizer: dict[str, Any] = {}
    for name, path in files.items():
        if name == _TOKENIZER_CONFIG:
            tokenizer |= _of_json(path, without={"chat_template"})
        elif name.startswith(_OF_TOKENIZERS) or path.suffix in _ENDINGS:
            tokenizer[name] = known_sha256(path, say=say)
    config = {key: value for name in configs for key, value in _of_json(files[name]).items()}
    if "auto_map" in f"{config} {tokenizer}":  # code of the folder builds the model
        config |= {name: sha256_of(path) for name, path in files.items() if path.suffix == ".py"}
        inner = {path.relative_to(folder).as_posix(): path for path in _code_in_folders(folder)}
        config |= {_IN_FOLDERS: len(inner), **{name: sha256_of(path) for name, path in inner.items()}}
    return {
        "weights": {path.name: known_sha256(path, say=say) for path in _weights(folder, files)},
        "config": config,
        "tokenizer": tokenizer,
        "template": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in _templates(folder).items()},
    }


def base_changes(before: Fingerprint, now: Mapping[str, Mapping[str, Any]], recipe: Recipe) -> list[Change]:
    """What differs in the base of a run. Its template counts only where the run's recipe has none of its own."""
    kinds: list[Kind] = [kind for kind in OF_BASE if kind != "template" or recipe.data.chat_template is None]
    there = {kind: now[kind] for kind in kinds}
    if _IN_FOLDERS not in before.base["config"]:  # an earlier version did not look at code in folders
        there["config"] = {
            key: value for key, value in now["config"].items() if key != _IN_FOLDERS and not _is_inner_code(key)
        }
    return [change for kind in kinds for change in compared(kind, before.base[kind], there[kind])]


def _code_in_folders(folder: Path) -> list[Path]:
    """The Python files below the folders of a model. Hidden folders, such as that of git, hold no code of a model."""
    found = (path for path in sorted(folder.glob("*/**/*.py")) if path.is_file())
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _is_inner_code(key: str) -> bool:
    return "/" in key and key.endswith(".py") and ": " not in key


def _weights(folder: Path, files: Mapping[str, Path]) -> list[Path]:
    """The files of weights that the loader takes, or all that are there if it takes none."""
    return weight_files(folder) or [path for path in files.values() if path.suffix == ENDING]


def _templates(folder: Path) -> dict[str, str]:
    """The chat templates by name, wherever the folder keeps them. A file of its own comes before tokenizer_config."""
    found: dict[str, str] = {}
    for name in (_TOKENIZER_CONFIG, _TEMPLATES[1]):
        said = _json(folder / name) if (folder / name).is_file() else None
        given = said.get("chat_template") if isinstance(said, dict) else None
        if isinstance(given, str):
            found["default"] = given
        elif isinstance(given, dict):
            found |= {str(key): str(text) for key, text in given.items()}
        for each in given if isinstance(given, list) else ():
            if isinstance(each, dict):
                found[str(each.get("name"))] = str(each.get("template"))
    if (folder / _TEMPLATES[0]).is_file():
        found["default"] = (folder / _TEMPLATES[0]).read_text(encoding="utf-8", errors="replace")
    for path in sorted((folder / _MORE_TEMPLATES).glob("*.jinja")):
        found[path.stem] = path.read_text(encoding="utf-8", errors="replace")
    return found


def _of_json(path: Path, *, without: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    """``{"config.json: hidden_size": 64}``; the sha256 of a file that is no JSON object."""
    found = _json(path)
    if not isinstance(found, dict):
        return {path.name: sha256_of(path)}
    kept = {key: value for key, value in found.items() if key not in without | _SAYS_NOTHING}
    return {f"{path.name}: {key}": value for key, value in _values(kept)}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None  # loading the model says what is wrong


def _values(found: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key. What is long is hashed."""
    for key, value in found.items():
        text = json.dumps(value, sort_keys=True)
        if isinstance(value, dict) and value and len(text) <= _NESTED:
            yield from _values(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value if len(text) <= _LONG else hashlib.sha256(text.encode()).hexdigest()
