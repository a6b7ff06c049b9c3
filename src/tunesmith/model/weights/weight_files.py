"""The files of weights that are loaded from a folder: others that lie beside them do not count."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tunesmith.runs.plain_files import read_plain

ENDING = ".safetensors"
ANY_INDEX = f"{ENDING}.index.json"
SINGLE, INDEX = f"model{ENDING}", f"model{ANY_INDEX}"
ADAPTER = f"adapter_model{ENDING}"


def weight_files(folder: Path) -> list[Path]:
    """``model.safetensors``, else the files that ``model.safetensors.index.json`` names, in order of their names.

    transformers (``modeling_utils._get_resolved_checkpoint_files``) looks in this order. So a folder may hold the same
    weights again in other files, such as ``consolidated.safetensors`` or ``model.fp16.safetensors``. Only plain files
    that are there are listed, as reading a pipe would never end. The list is empty if the index cannot be read: loading
    says what is wrong.
    """
    if os.path.isfile(folder / SINGLE):
        return [folder / SINGLE]
    try:
        named = {str(name) for name in json.loads(read_plain(folder / INDEX))["weight_map"].values()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return []
    inside = [name for name in sorted(named) if Path(name).name == name and name.endswith(ENDING)]
    return [folder / name for name in inside if os.path.isfile(folder / name)]


def trained_files(folder: Path) -> list[Path]:
    """The files of weights of a checkpoint, which is an adapter or a whole model."""
    return [folder / ADAPTER] if os.path.isfile(folder / ADAPTER) else weight_files(folder)


def weight_bytes(folder: Path) -> int:
    """The bytes of the files of weights that the loader takes."""
    return sum(file.stat().st_size for file in weight_files(folder))
