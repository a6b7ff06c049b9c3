"""What the files of a model or adapter may not ask for: pickles, code, kernels, other folders, memory they do not fill.

A model folder is data that may come from anybody. These checks read small files only and come before the libraries do.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.model.weights.weight_files import ADAPTER, ANY_INDEX, ENDING, INDEX, weight_bytes, weight_files

ATTENTIONS = frozenset(
    {"eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4"}
)
WEIGHTS_A_BYTE = 8  # packed in one bit each, at the most
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_hidden_size", "head_dim")
_COUNTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_attention_heads",
    "num_key_value_heads",
    "n_head",
)
_LARGEST = {  # of a config: far beyond any model
    **dict.fromkeys(_LAYERS, 4096),
    **dict.fromkeys(_WIDTHS, 2**22),
    **dict.fromkeys(_COUNTS, 2**16),
    "vocab_size": 2**27,
}
_ANY_RANK = 1024  # needs little memory, whatever the file holds: an adapter may name a rank that it does not use
_RANKS = ("r", "init_r", "target_r", "num_virtual_tokens", "num_vectors")


def refuse_pickles(folder: Path) -> None:
    """Refuses an index of weights that names anything but safetensors of its own folder, whatever the index is called.

    A file that it names has to be a plain file if it is there.

    Raises:
        ModelError: it does, or it cannot be read.
    """
    for file in sorted({folder / INDEX, *folder.glob(f"*{ANY_INDEX}")}):
        if file.is_file():
            _refuse_in_index(file)


def _refuse_in_index(file: Path) -> None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        names = {str(name) for name in found["weight_map"].values()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            "the index of the weights cannot be read",
            where=str(file),
            why=f"{type(error).__name__}: {error}",
            remedy="fetch the model again.",
        ) from error
    odd = sorted(name for name in names if not name.endswith(ENDING))
    if odd:
        raise ModelError(
            "the weights are a pickle, which is not loaded",
            where=str(file),
            why=f"The index names {odd[0][:80]!r}, which can run any program when it is opened.",
            remedy="if you trust its maker, convert it once with transformers: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), and the tokenizer likewise.",
        )
    outside = sorted(name for name in names if Path(name).name != name or name in ("", ".."))
    if outside:
        raise ModelError(
            "the index of the weights names a file outside of the model's folder",
            where=str(file),
            why=f"It names {outside[0][:80]!r}.",
            remedy="put all files of the model into one folder, and name them in the index without a path.",
        )
    there = sorted(name for name in names if os.path.exists(file.parent / name))
    odd = [name for name in there if not os.path.isfile(file.parent / name)]
    if odd:  # opening a pipe would wait for ever
        raise ModelError(
            "the index of the weights names what is no plain file",
            where=str(file),
            why=f"It names {odd[0][:80]!r}, which is a folder, a pipe or a device.",
            remedy="remove it, and fetch the model again.",
        )


def refuse_adapter_in(folder: Path) -> None:
    """Refuses a model folder with an adapter: transformers would load the base that the adapter names in its place."""
    file = folder / "adapter_config.json"
    if file.is_file():
        raise ModelError(
            "this folder holds a model and an adapter",
            where=str(file),
            why="The adapter names another base, whose weights would be loaded in place of those that are here.",
            remedy="move adapter_config.json and the adapter's weights into a folder of their own.",
        )


def refuse_code(values: Mapping[str, Any], file: Path, *, trust_remote_code: bool) -> None:
    """Refuses a config that asks for a kernel of the hub, or that says itself that its code may run.

    Code that ``auto_map`` names is left where it is: it runs only if the user says so.
    """
    for path, key, value in _walk(values):
        name = f"{path}{key}"
        if key in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal"):
            asked = value.values() if isinstance(value, Mapping) else [value]
            odd = [each for each in asked if each is not None and each not in ATTENTIONS]
            if odd:
                raise _asks_for_code(file, name, odd[0], "attention that is fetched as a program, or that nobody knows")
        elif key.endswith(("experts_implementation", "experts_implementation_internal")):
            if isinstance(value, str) and not re.fullmatch(r"\w+", value):
                raise _asks_for_code(file, name, value, "experts that are fetched as a program")
        elif key in ("kernel_config", "use_kernels") and value and not trust_remote_code:
            raise _asks_for_code(file, name, value, "kernels that are fetched as programs")
        elif key == "transformers_weights" and value is not None:
            raise _names_weights(file, name, value)
        elif key == "trust_remote_code" and value and not trust_remote_code:
            raise _asks_for_code(file, name, value, "that its own code runs, which only you can say")


def _names_weights(file: Path, key: str, value: Any) -> ModelError:
    return ModelError(
        "the config names the files of weights itself",
        where=f"{file}: {key}",
        why=f"It is {str(value)[:80]!r}. Such a name leads around the checks of the weights.",
        remedy=f"take {key} out of {file.name}, and give the weights their usual name: model.safetensors, or {INDEX} "
        "for an index of several files.",
    )


def _asks_for_code(file: Path, key: str, value: Any, what: str) -> ModelError:
    return ModelError(
        f"the config asks for {what}",
        where=f"{file}: {key}",
        why=f"It is {str(value)[:80]!r}.",
        remedy=f"read what it is; to use the model without it, take {key} out of {file.name}.",
    )


def _walk(values: Mapping[str, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, str, Any]]:
    """(path, key, value) of every key of a config and of the configs in it."""
    for key, value in values.items():
        yield path, str(key), value
        if isinstance(value, Mapping) and depth < 8:
            yield from _walk(value, f"{path}{key}.", depth + 1)


def refuse_impossible_sizes(values: Mapping[str, Any], file: Path) -> None:
    """Refuses numbers of a config that no model has, before anything is made of that size."""
    for path, key, value in _walk(values):
        most = _LARGEST.get(key)
        if most is not None and isinstance(value, (int, float)) and not -1 <= value <= most:
            raise ModelError(
                f"the config has a size that no model has: {path}{key} is {value:,}",
                where=str(file),
                why=f"The largest that is read is {most:,}.",
                remedy="fetch the model again, or correct the number.",
            )


def refuse_unfilled_sizes(values: Mapping[str, Any], folder: Path) -> None:
    """Refuses a config whose model would be larger than its files, before memory is taken for it.

    Raises:
        ModelError: the embedding or the number of layers cannot be in the files, or a file of weights is damaged.
    """
    from safetensors import SafetensorError, safe_open

    files = weight_files(folder)
    if not files:
        return  # loading says that there are none
    stored, tensors = weight_bytes(folder), 0
    for file in files:
        try:
            with safe_open(file, framework="np") as weights:
                tensors += len(weights.keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(
                "the model cannot be loaded",
                where=str(file),
                why=f"Its {file.stat().st_size:,} bytes do not fit what its header says: {error}",
                remedy="fetch the file again.",
            ) from error
    for found in [values, *(value for _, _, value in _walk(values) if isinstance(value, Mapping))]:
        rows, width = found.get("vocab_size"), next((found[key] for key in _WIDTHS[:3] if key in found), None)
        layers = next((found[key] for key in _LAYERS if key in found), None)
        large = isinstance(rows, int) and isinstance(width, int) and rows * width > WEIGHTS_A_BYTE * stored
        many = isinstance(layers, int) and layers > tensors and found is values
        if large or many:
            said = f"{layers:,} layers" if many else f"an embedding of {rows:,} by {width:,}"
            raise ModelError(
                "the config describes a larger model than its files hold",
                where=str(folder / "config.json"),
                why=f"It says {said}; the files have {tensors:,} tensors in {stored / 1e6:,.1f} MB.",
                remedy="fetch the model again: config.json and the weights are not of one model.",
            )


def refuse_foreign_adapter(config: Mapping[str, Any], file: Path) -> None:
    """Refuses an adapter's configuration that has PEFT import a module, open a pickle or load other adapters."""
    mapping = config.get("auto_mapping")
    library = str(mapping.get("parent_library")) if isinstance(mapping, Mapping) else ""
    odd = {
        "megatron_config": "imports the module that megatron_core names",
        "prompt_tuning_init_state_dict_path": "opens a pickle",
    }
    found = {key: what for key, what in odd.items() if config.get(key)}
    if library and library.split(".")[0] != "transformers":
        found["auto_mapping"] = f"imports the module {library[:80]}"
    if str(config.get("peft_type")).upper() == "XLORA":
        found["peft_type"] = "XLORA loads adapters of other places"
    if config.get("trust_remote_code"):
        found["trust_remote_code"] = "says that code of the model runs, which only you can say"
    if found:
        key, what = next(iter(found.items()))
        raise ModelError(
            "the adapter asks for more than its weights",
            where=f"{file}: {key}",
            why=f"With this key PEFT {what}." if key in odd else f"It {what}.",
            remedy=f"take {key} out of {file.name}, or have its maker merge the adapter into its base.",
        )
    _refuse_large_ranks(config, file)


def _refuse_large_ranks(config: Mapping[str, Any], file: Path) -> None:
    """Refuses an adapter's configuration whose matrices would be larger than its file, before memory is taken."""
    pattern = config.get("rank_pattern") or {}
    if not isinstance(pattern, Mapping):
        raise _odd_shape(file, "rank_pattern", pattern, "no object of names and ranks")
    asked = {key: config[key] for key in _RANKS if config.get(key) is not None}
    if str(config.get("peft_type")).upper() == "LOKR":
        asked.pop("r", None)  # one that is too large means a whole matrix there
    kept = {
        name: len(rank) if isinstance(rank, list) else rank for name, rank in pattern.items()
    }  # AdaLoRA's are masks
    asked |= {f"rank_pattern.{str(name)[:80]}": rank for name, rank in kept.items()}
    largest, tensors = _adapter_sizes(file.parent / ADAPTER)
    for key, rank in asked.items():
        if not isinstance(rank, int) or isinstance(rank, bool):
            raise _odd_shape(file, key, rank, "no whole number")
        if rank > max(largest, _ANY_RANK):
            raise _odd_shape(file, key, f"{rank:,}", f"larger than the adapter's file, whose largest rank is {largest}")
    ranges = config.get("layer_replication") or []
    try:
        layers = sum(int(end) - int(start) for start, end in ranges)
    except (TypeError, ValueError):
        raise _odd_shape(file, "layer_replication", ranges, "no list of pairs of numbers") from None
    if layers > max(tensors, _ANY_RANK):
        raise _odd_shape(file, "layer_replication", ranges, f"{layers:,} layers, and the file has {tensors:,} tensors")


def _adapter_sizes(weights: Path) -> tuple[int, int]:
    """The largest rank that the header of an adapter's weights has, and the number of tensors; 0 without weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="np") as stored:
            shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return 0, 0  # reading the weights says what is wrong with them
    matrices = [shape for name, shape in shapes.items() if ".lora_" in name and len(shape) > 1]
    if matrices:
        return max(map(min, matrices)), len(shapes)  # the longer side is the model's
    # A side counts only if others are behind it: an empty or thin tensor could claim any size in a small file.
    sides = (side for shape in shapes.values() for side in shape if math.prod(shape) >= 8 * side)
    return max(sides, default=0), len(shapes)


def _odd_shape(file: Path, key: str, value: Any, what: str) -> ModelError:
    return ModelError(
        "the adapter's configuration does not fit its weights",
        where=f"{file}: {key}",
        why=f"It is {str(value)[:80]}, which is {what}.",
        remedy="copy adapter_config.json and adapter_model.safetensors again from where the adapter was saved: they "
        "are not of one adapter.",
    )
