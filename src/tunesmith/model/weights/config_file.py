"""A model's config.json: found without fetching weights, read, and checked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError
from tunesmith.runs.cache import cache_dir

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG = "config.json"
CODE_REMEDY = "read that code; if you trust it, set model.trust_remote_code: true in the recipe."
_OTHER_TASK = re.compile(r"MaskedLM|Classification|QuestionAnswering|MultipleChoice|PreTraining|Reward")


def read_config(path: str, *, revision: str | None = None, fetch: bool = True) -> tuple[dict[str, Any], Path | None]:
    """A model's config, and its folder where all of the model is there.

    Args:
        path: a file, a folder, a bundled name or a hub id.
        fetch: fetch or convert what is not on this machine yet.

    Raises:
        ModelError: there is no config, or it is not a JSON object.
    """
    place = Path(path).expanduser()
    if place.is_file() and place.suffix == ".json":
        return read_json_object(place), None
    if (place / CONFIG).is_file():
        return read_json_object(place / CONFIG), place
    for made in sorted((cache_dir() / "models").glob(f"{path}-*/{CONFIG}")) if "/" not in path else []:
        return read_json_object(made), made.parent
    if place.exists() or "/" not in path:
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


def read_json_object(file: Path) -> dict[str, Any]:
    """A JSON file of a model folder. Raises ModelError if it cannot be read or is not an object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError("the file cannot be read", where=str(file), why=str(error)) from error
    except ValueError as error:
        raise ModelError("the file is not valid JSON", where=str(file), why=str(error)) from error
    if not isinstance(found, dict):
        raise ModelError("the file is not a JSON object", where=str(file))
    return found


def load_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a model folder as transformers has it, every default filled in.

    Raises:
        ModelError: it is not one of a causal language model, or transformers cannot read it.
    """
    from transformers import AutoConfig

    check_config(folder, trust_remote_code=trust_remote_code)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise ModelError(
            "the config cannot be used",
            where=str(folder / CONFIG),
            why="\n".join(str(error).strip().splitlines()[:6]),
            remedy="fetch the model again, or update transformers.",
        ) from error


def check_config(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Refuses a folder that is not a causal language model which transformers knows, before any weight is read.

    Raises:
        ModelError: ``config.json`` names another kind of model, or one that only the folder's own code can build.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    file = folder / CONFIG
    if not file.is_file():
        raise ModelError("there is no config.json, so this is no model folder", where=str(folder))
    config = read_json_object(file)
    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        if not trust_remote_code:
            raise _unknown_architecture(model_type, file, has_code="auto_map" in config)
        return
    made_for = " ".join(config.get("architectures") or [model_type])
    other = config.get("is_encoder_decoder") or CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING
    if other or _OTHER_TASK.search(made_for):
        raise ModelError(
            f"{made_for} is not a causal language model",
            where=str(file),
            why="Only models that predict the next token are trained here: no encoders, encoder-decoders, classifiers.",
            remedy="use a model whose page says text-generation.",
        )


def _unknown_architecture(model_type: str, file: Path, *, has_code: bool) -> ModelError:
    if has_code:
        return ModelError(
            "this model needs program code that comes with it",
            where=str(file),
            why=f"model_type {model_type!r} is not part of transformers; auto_map names Python files in the folder.",
            remedy=CODE_REMEDY,
        )
    return ModelError(f"this architecture is not known: {model_type!r}", where=str(file), remedy="update transformers.")
