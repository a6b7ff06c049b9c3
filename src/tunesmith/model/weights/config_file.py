"""A model's config.json, read without fetching the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError


def read_config(path: str, *, revision: str | None = None, fetch: bool = True) -> tuple[dict[str, Any], Path | None]:
    """A model's config and its folder, None where only the config is at hand: a file, a folder, bundled, or of the hub.

    Args:
        fetch: or convert, what is not here yet.

    Raises:
        ModelError: there is none, or it is no JSON object.
    """
    place = Path(path).expanduser()
    if place.is_file() and place.suffix == ".json":
        return _json_of(place), None
    if (place / "config.json").is_file():
        return _json_of(place / "config.json"), place
    from tunesmith.runs.cache import cache_dir

    for made in sorted((cache_dir() / "models").glob(f"{path}-*/config.json")) if "/" not in path else []:
        return _json_of(made), made.parent
    if place.exists() or "/" not in path:
        if not fetch:
            raise ModelError("the config is not at hand", where=path)
        from tunesmith.model.weights.resolve import resolve

        folder = resolve(path, revision=revision)
        return _json_of(folder / "config.json"), folder
    return _json_of(_hub_config(path, revision, fetch=fetch)), None


def _hub_config(path: str, revision: str | None, *, fetch: bool) -> Path:
    """config.json of a hub id, from the local hub cache or fetched: a few kilobytes."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    name, _, written = path.partition("@")
    try:
        chosen = revision or written or None
        return Path(hf_hub_download(name, "config.json", revision=chosen, local_files_only=not fetch))
    except (HFValidationError, HTTPError, OSError) as error:
        raise ModelError(
            f"the config of {path} cannot be fetched",
            where="model.path",
            why=str(error).splitlines()[0],
            remedy="Connect to the network, log in with `hf auth login` for a gated model, or name its config.json.",
        ) from error


def _json_of(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("the config cannot be read", where=str(file), why=str(error)) from error
    if not isinstance(found, dict):
        raise ModelError("the config is no JSON object", where=str(file))
    return found
