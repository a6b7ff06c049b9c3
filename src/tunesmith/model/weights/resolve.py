"""Finds the folder of a model by its name: with ``config.json``, safetensors and a tokenizer.

A name is a bundled model, a folder, a ``.gguf`` file or a hub id (``user/name``, ``user/name@revision``). Weights are
read from safetensors and GGUF only. A pickle (``*.bin``, ``*.pt``) can run any program, so it is never opened.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from tunesmith.errors import ModelError
from tunesmith.model.weights import gguf
from tunesmith.model.weights.bundled import BUNDLED, bundled_model
from tunesmith.model.weights.foreign_files import refuse_pickles
from tunesmith.model.weights.recipes import refuse_recipe
from tunesmith.recipe.paths import local
from tunesmith.runs.cache import Say, to_stderr

ModelKind = Literal["run", "adapter", "model", "gguf", "bundled", "hub"]

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?")
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_UNWANTED = ["*/*", "consolidated*"]  # other formats of the same weights
_OF_RUNS = "name a run, a checkpoint, an adapter or a model; `tunesmith runs list FOLDER` shows the runs in a folder."
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def resolve(path: str, *, revision: str | None = None, trust_remote_code: bool = False, say: Say = to_stderr) -> Path:
    """The folder of the model called ``path``, which is fetched or converted once where that is needed.

    Args:
        path: bundled name, folder, ``.gguf`` file, or hub id with an optional ``@revision``.
        revision: branch, tag or commit of a hub id, another way to write ``@revision``.
        trust_remote_code: fetch a hub repository's Python files too (whether they run is decided when loading).
        say: takes lines of progress; standard error unless given.

    Raises:
        ModelError: there is no such model, it cannot be fetched, or it holds pickled weights only.
    """
    found = kind(path)
    if found == "hub":
        return _from_hub(path, revision=revision, code=trust_remote_code, say=say)
    if revision is not None:
        raise ModelError(
            "a revision goes with a hub id only", where="model.revision", why=f"{path!r} is local.", remedy="remove it."
        )
    if found == "bundled":
        return bundled_model(path, say=say)
    location = Path(local(path)).resolve()
    if found == "gguf":
        return gguf.from_gguf(location, say=say)
    if found == "model":
        return _with_safetensors(location)
    raise ModelError(
        f"this folder is {'a run' if found == 'run' else 'an adapter'}, not a model",
        where=str(location),
        remedy="name the model that it was trained from; `eval`, `generate` and `chat` take the folder itself.",
    )


def kind(path: str, *, where: str = "model") -> ModelKind:
    """What ``path`` names: a run, an adapter, a model folder, a GGUF file, a bundled model or a hub id.

    What exists on disk comes before the hub. Nothing is fetched.

    Args:
        where: the key or argument that names it, for messages.

    Raises:
        ModelError: nothing of that name exists, or what exists is none of these.
    """
    if path in BUNDLED:
        return "bundled"
    location = Path(local(path))
    if location.is_dir():
        return _folder_kind(location)
    if location.is_file():
        if location.suffix.lower() == ".gguf":
            return "gguf"
        refuse_recipe(path)
        raise ModelError("this file is no model", where=path, remedy="name a folder, a .gguf file or a hub id.")
    if path in _cached_ids() or (_HUB_ID.fullmatch(path) and not _among_runs(location)):
        return "hub"
    raise _nothing_called(path, where)


def portable_name(path: str, folder: Path, *, revision: str | None, started_in: Path) -> tuple[str, str | None]:
    """What ``adapter_config.json`` calls a base, and its revision: a name that others have too.

    It is a hub id, also for a folder of the hub cache, a bundled name, or the path from the folder that the run was
    started in (``./models/base``), where PEFT finds it.

    Args:
        folder: of the model.
    """
    name, _, written = path.partition("@")
    found = kind(path)
    if found == "hub":
        return name, revision or written or None
    if found == "bundled":
        return path, None
    cached = [part for part in folder.parts if part.startswith("models--")]
    if cached and folder.parent.name == "snapshots":
        return cached[-1].removeprefix("models--").replace("--", "/"), folder.name
    location = Path(local(path)).resolve() if found == "gguf" else folder
    try:
        relative = Path(os.path.relpath(location, started_in.resolve())).as_posix()
    except ValueError:  # on another drive
        return location.name, None
    return relative if relative.startswith("..") else f"./{relative}", None  # models/base alone would be a hub id


def _folder_kind(folder: Path) -> ModelKind:
    marks: dict[str, ModelKind] = {"recipe.yaml": "run", "adapter_config.json": "adapter", "config.json": "model"}
    for name, found in marks.items():
        if (folder / name).is_file():
            return found
    if (folder / "status.json").is_file():
        return "run"  # without its recipe, which reading it says
    names = sorted(entry.name for entry in folder.iterdir())
    single = [name for name in names if name.endswith(".gguf")]
    raise ModelError(
        "this folder is no model, adapter or run",
        where=str(folder),
        why=f"It has none of {', '.join(marks)}. It holds: {', '.join(names[:8]) or 'nothing'}.",
        remedy=f"name the file: {folder / single[0]}." if single else _inside_or_beside(folder, tuple(marks)),
    )


def _inside_or_beside(folder: Path, marks: tuple[str, ...]) -> str:
    """What may be meant by a folder that holds none of the marks: a run or model in it, or one beside it."""
    inside = sorted(found.parent for name in marks for found in folder.glob(f"*/{name}"))
    if inside:
        return f"name one that is in it, such as {inside[0]}."
    return _close(folder.name, [name for name in _siblings(folder) if name != str(folder)])


def _with_safetensors(folder: Path) -> Path:
    refuse_pickles(folder)
    if any(folder.glob("*.safetensors")):
        return folder
    pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _PICKLES)
    if pickles:
        raise ModelError(
            "the weights are a pickle, which is not loaded",
            where=str(folder),
            why=f"{pickles[0]} can run any program when it is opened; there are no safetensors.",
            remedy="if you trust its maker, convert it once with transformers: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), and the tokenizer likewise.",
        )
    raise ModelError("the folder has no weights (*.safetensors)", where=str(folder), remedy="fetch the model again.")


def _from_hub(path: str, *, revision: str | None, code: bool, say: Say) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    name, _, written = path.partition("@")
    if written and revision and written != revision:
        raise ModelError(
            "two revisions are named", where="model.revision", why=f"{written!r} and {revision!r}.", remedy="keep one."
        )
    chosen = written or revision
    wanted = [*_WANTED, "*.py"] if code else _WANTED
    try:
        folder = snapshot_download(name, revision=chosen, allow_patterns=wanted, ignore_patterns=_UNWANTED)
    except (HFValidationError, HTTPError, OSError) as error:
        raise _hub_error(name, chosen, error) from error
    location = Path(folder)
    say(f"{name}: revision {location.name}.")
    if (location / "adapter_config.json").is_file() and not (location / "config.json").is_file():
        raise ModelError(f"{name} is an adapter, not a model", where=str(location), remedy="name its base model.")
    return _with_safetensors(location)


def _hub_error(name: str, revision: str | None, error: Exception) -> ModelError:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    reason = str(error).splitlines()[0]
    near = _close(name, [*_known(), *_siblings(Path(name))])
    if isinstance(error, GatedRepoError):
        remedy = f"accept its conditions at https://huggingface.co/{name}, then log in with `hf auth login`."
        return ModelError(f"access to {name} has to be asked for", where="model", why=reason, remedy=remedy)
    if isinstance(error, RepositoryNotFoundError):
        remedy = f"{near} A private model needs `hf auth login`."
        return ModelError(f"the hub has no model {name}", where="model", why="Model id mistyped?", remedy=remedy)
    if isinstance(error, RevisionNotFoundError):
        remedy = "look up its branches, tags and commits on its hub page."
        return ModelError(f"{name} has no revision {revision!r}", where="model", why=reason, remedy=remedy)
    if isinstance(error, LocalEntryNotFoundError):
        why = "There is no such folder, it is not in the local hub cache, and the hub cannot be reached or "
        why += "HF_HUB_OFFLINE is set."
        remedy = f"{near} Otherwise connect to the network, or name a folder or a .gguf file."
        return ModelError(f"{_with_revision(name, revision)} cannot be fetched", where="model", why=why, remedy=remedy)
    remedy = "try again later; check the hub cache's folder (HF_HOME) for space and permissions."
    return ModelError(f"{name} cannot be fetched from the hub", where="model", why=reason, remedy=remedy)


def _with_revision(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else name


def _nothing_called(path: str, where: str) -> ModelError:
    location = Path(local(path))
    there = next(folder for folder in location.absolute().parents if folder.is_dir())
    why = "Model id mistyped? A hub id looks like user/name." if where == "model" else None
    if not _HUB_ID.fullmatch(path) and location.name != path:
        why = f"The last folder of this path that is there is {there}."
    if location.is_symlink():
        why = f"It is a link to {os.readlink(location)}, which is not there."
    return ModelError(
        f"there is no model, file or folder called {path!r}",
        where=where,
        why=why,
        remedy=_close(path, [*_known(), *_siblings(location)], otherwise="" if where == "model" else _OF_RUNS),
    )


def _known() -> list[str]:
    return [*BUNDLED, *_cached_ids()]


def _cached_ids() -> list[str]:
    """The models in the local hub cache, which lays them out as ``models--user--name``."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)


def _siblings(location: Path) -> list[str]:
    """The folders and GGUF files beside a path that does not exist, written as the user wrote it."""
    parent = location.parent
    if not parent.is_dir():
        return []
    usable = (entry for entry in parent.iterdir() if entry.is_dir() or entry.suffix == ".gguf")
    return sorted(str(entry) for entry in usable if not entry.name.startswith("."))


def _among_runs(location: Path) -> bool:
    """Whether ``runs/tikets`` is more likely a mistyped run than a hub id: there are runs beside it."""
    return location.parent.is_dir() and any((entry / "recipe.yaml").is_file() for entry in location.parent.iterdir())


def _close(name: str, candidates: Iterable[str], *, otherwise: str = "") -> str:
    """The remedy: names that are spelled like ``name``, or the names that always work."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(by_lower[match] for match in near)}?"
    return otherwise or f"correct the path or id; the bundled model is {', '.join(BUNDLED)}."
