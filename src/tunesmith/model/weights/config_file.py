"""A model's config.json, found and read without fetching weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.model.weights.foreign_files import refuse_impossible_sizes
from tunesmith.model.weights.load import CONFIG, read_json_object
from tunesmith.recipe.paths import local
from tunesmith.runs.cache import cache_dir


def read_config(path: str, *, revision: str | None = None, fetch: bool = True) -> tuple[dict[str, Any], Path | None]:
    """A model's config, and its folder where all of the model is there.

    Args:
        path: a file, a folder, a bundled name or a hub id.
        fetch: fetch or convert what is not on this machine yet.

    Raises:
        ModelError: there is no config, or it is not a JSON object.
    """
    config, folder = _found(path, revision=revision, fetch=fetch)
    refuse_impossible_sizes(config, Path(path) if folder is None else folder / CONFIG)
    return config, folder


def read_at_hand(path: str, *, revision: str | None = None) -> tuple[dict[str, Any], Path] | None:
    """A model's config, and the folder with what is here of its files, in the local hub cache too; None without both.

    Raises:
        ModelError: there is no config here, or it is not a JSON object.
    """
    config, folder = read_config(path, revision=revision, fetch=False)
    if folder is None and not Path(local(path)).exists():
        folder = _hub_config(path, revision, fetch=False).parent
    return None if folder is None else (config, folder)


def _found(path: str, *, revision: str | None, fetch: bool) -> tuple[dict[str, Any], Path | None]:
    location = Path(local(path))
    if location.is_file() and location.suffix == ".json":
        return read_json_object(location), None
    if (location / CONFIG).is_file():
        return read_json_object(location / CONFIG), location
    for made in sorted((cache_dir() / "models").glob(f"{path}-*/{CONFIG}")) if "/" not in path else []:
        return read_json_object(made), made.parent
    if location.exists() or "/" not in path:
        if not fetch:
            raise ModelError("the config is not at hand", where=path)
        from tunesmith.model.weights.resolve import resolve

        folder = resolve(path, revision=revision)
        return read_json_object(folder / CONFIG), folder
    return read_json_object(_hub_config(path, revision, fetch=fetch)), None


def _hub_config(path: str, revision: str | None, *, fetch: bool) -> Path:
    """config.json of a hub id, from the local hub cache or fetched: a few kilobytes."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    name, _, written = path.partition("@")
    try:
        chosen = revision or written or None
        return Path(hf_hub_download(name, CONFIG, revision=chosen, local_files_only=not fetch))
    except (HFValidationError, HTTPError, OSError) as error:
        raise ModelError(
            f"the config of {path} cannot be fetched",
            where="model.path",
            why=str(error).splitlines()[0],
            remedy="Connect to the network, log in with `hf auth login` for a gated model, or name its config.json.",
        ) from error
