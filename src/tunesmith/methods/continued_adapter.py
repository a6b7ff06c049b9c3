"""Continuing from an adapter: finds its folder and reads its settings. Imports no torch.

An adapter's shape is fixed: its rank, its scale and its modules are read from its file, and a recipe that says
otherwise is refused. Adapters of other types in PEFT (AdaLoRA, IA3, prompts) are not trained here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import safe_open

from tunesmith.errors import ModelError, RecipeError
from tunesmith.model.weights.foreign_files import refuse_foreign_adapter
from tunesmith.model.weights.resolve import kind
from tunesmith.model.weights.slow_regex import refuse_slow_patterns
from tunesmith.model.weights.weight_files import ADAPTER
from tunesmith.recipe.methods import AdapterSettings, MethodSettings
from tunesmith.recipe.paths import local
from tunesmith.runs.folder import Run, way_to_checkpoint
from tunesmith.runs.manifest import refuse_damaged, sha256_of

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", ADAPTER
START_FOLDER = "start"  # in a run's folder: a copy of the adapter that the run continues
_SETTING = "method.adapter_name_or_path"
SHAPE_OF_ADAPTER = (  # the settings that an adapter's file decides, by the names of PEFT and of the recipe
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias", "use_rslora", "use_dora",
    "modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
)  # fmt: skip
# Weights of the embedding and of the output layer, by the names of the families in transformers.
_TABLE = re.compile(r"\.(embed_tokens|wte|word_embeddings|embed_in|lm_head|embed_out|output_layer)\.(.*\.)?weight$")
_OTHER_MODELS = ("layer_replication", "alora_invocation_tokens", "megatron_config")  # more than LoRA on layers


def find_start(name: str) -> Path:
    """The adapter folder that a recipe names by a run, a checkpoint or a folder; of a run, its judged or last one.

    Raises:
        ModelError: there is no adapter of that name.
    """
    try:
        what = kind(name, where=_SETTING)
    except ModelError as error:
        why = error.why if error.where == _SETTING else f"{error.where}: {error.why or 'It is a file.'}"
        raise ModelError(error.what, where=_SETTING, why=why, remedy=error.remedy) from error
    folder = Path(local(name)).resolve()
    if what == "run":
        result = Run(folder).result
        if result is None:
            raise ModelError(
                "the run has no checkpoint to continue from",
                where=_SETTING,
                why=f"the status of {name} is: {Run(folder).status().get('status')}",
                remedy=way_to_checkpoint(Run(folder)),
            )
        folder, what = result, "model" if (result / "config.json").is_file() else "adapter"
    if what == "hub":
        raise ModelError(
            f"there is no folder {name} here, and adapters are not fetched from the hub",
            where=_SETTING,
            remedy=f"correct the path of a run or adapter; or, if it is on the hub, fetch it first: "
            f"hf download {name} --local-dir FOLDER, and name the folder",
        )
    if what != "adapter":
        raise ModelError(
            f"{name} is a model, not an adapter",
            where=_SETTING,
            why=f"it has no {CONFIG_FILE}: all of its weights were trained",
            remedy=f"set model.path: {folder} and leave adapter_name_or_path out",
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(
            "the adapter has no safetensors",
            where=_SETTING,
            why=f"{folder} has no {WEIGHTS_FILE}; pickled weights (.bin) are not read",
            remedy="put the file back, name another checkpoint, or save the adapter again with PEFT's save_pretrained",
        )
    refuse_damaged(folder)
    return folder


def kept_start(run: Path, method: MethodSettings | None) -> Path | None:
    """The run's own copy of the adapter that it continues, if it does. Raises ModelError where a file is missing."""
    if not isinstance(method, AdapterSettings) or method.adapter_name_or_path is None:
        return None
    folder = run / START_FOLDER
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            "the run has lost its copy of the adapter that it continues",
            where=str(folder),
            why=f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing. The copy was made from "
            f"{method.adapter_name_or_path}.",
            remedy=f"copy {CONFIG_FILE} and {WEIGHTS_FILE} from there into this folder",
        )
    refuse_damaged(folder)
    return folder


def read_config_file(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says, whatever the adapter's type.

    Raises:
        ModelError: it is no JSON object, or asks for more than weights.
    """
    file = folder / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = str(error)
    else:
        if isinstance(config, dict):
            refuse_foreign_adapter(config, file)
            return config
        why = f"It holds a JSON {'list' if isinstance(config, list) else 'value'}, not an object."
    raise ModelError(
        "the adapter's configuration cannot be read",
        where=str(file),
        why=why,
        remedy="copy the file again from where the adapter was saved, or save the adapter again",
    )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter's own configuration. Raises ModelError where it cannot be trained further here."""
    file, config = folder / CONFIG_FILE, read_config_file(folder)
    found = str(config.get("peft_type", "LORA")).upper()
    if found != "LORA":
        raise ModelError(
            f"an adapter of type {found} cannot be trained further here",
            where=str(file),
            why="lora and qlora continue LoRA adapters (peft_type: LORA)",
            remedy="merge it into its base with PEFT and train on the merged model",
        )
    task = config.get("task_type") or "CAUSAL_LM"
    if task != "CAUSAL_LM":
        raise ModelError(f"the adapter is for another task: {task}", where=str(file), why="only CAUSAL_LM trains here")
    if not config.get("target_modules"):
        raise ModelError("the adapter does not say what it adapts", where=str(file), why="it has no target_modules")
    odd = [name for name in _OTHER_MODELS if config.get(name)]
    if odd:
        raise ModelError(f"the adapter uses {odd[0]}, which is not trained here", where=str(file))
    return config


def check_tokens(folder: Path, added: Mapping[int, str], vocabulary: Collection[int]) -> None:
    """Raises ModelError unless the adapter's rows of tokens are those of the tokens that the recipe adds.

    Args:
        added: the new tokens of this run by their ids.
        vocabulary: all ids of the tokenizer, the new ones among them.
    """
    named = {int(token["id"]): token["content"] for token in _named_tokens(folder)}
    trained, brought = _trained_rows(folder), _brought_rows(folder)
    rows = trained | {row for row in named if row < brought}
    there = {row: named.get(row) for row in rows if row not in vocabulary or row in added}
    if there.keys() == added.keys() and all(there[row] in (None, text) for row, text in added.items()):
        return
    texts = ", ".join(repr(text) if text else f"id {row}" for row, text in sorted(there.items())) or "none"
    raise ModelError(
        "the adapter has learned other added tokens than the recipe names",
        where="model.add_tokens",
        why=f"The adapter has, in this order: {texts}; the recipe: {', '.join(map(repr, added.values())) or 'none'}.",
        remedy="Name the same tokens in the same order; or merge the adapter and add tokens to the merged model.",
    )


def tokens_of_start(folder: Path, vocabulary: Collection[str]) -> tuple[list[str], list[str]]:
    """The tokens that an adapter has rows for and the base's vocabulary has not: ordinary and special ones.

    They are in the order of their ids, as its tokenizer.json names them.
    """
    trained, brought = _trained_rows(folder), _brought_rows(folder)
    found: tuple[list[str], list[str]] = [], []
    for token in sorted(_named_tokens(folder), key=lambda each: int(each["id"])):
        if token["content"] not in vocabulary and (int(token["id"]) in trained or int(token["id"]) < brought):
            found[bool(token.get("special"))].append(token["content"])
    return found


def _named_tokens(folder: Path) -> list[dict[str, Any]]:
    """The tokens beside the vocabulary in the tokenizer.json of an adapter's folder, if it has one."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return [
            {**token, "id": int(token["id"]), "content": str(token["content"])}
            for token in found.get("added_tokens") or []
        ]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            "the adapter's tokenizer cannot be read",
            where=str(file),
            why=f"{type(error).__name__}: {error}",
            remedy="copy the file again from where the adapter was saved, or save the adapter again",
        ) from error


def _trained_rows(folder: Path) -> set[int]:
    rows = read_adapter_config(folder).get("trainable_token_indices") or []
    return {int(row) for ids in (rows.values() if isinstance(rows, dict) else [rows]) for row in ids}


def _brought_rows(folder: Path) -> int:
    """How many rows the embedding or output layer in an adapter's file has; 0 if the file has neither."""
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        return 0
    with safe_open(file, framework="np") as weights:
        tables = [key for key in weights.keys() if "lora_" not in key and _TABLE.search(key)]  # noqa: SIM118
        return max((weights.get_slice(key).get_shape()[0] for key in tables), default=0)


def started(settings: AdapterSettings, folder: Path, *, path: str) -> AdapterSettings:
    """The settings as the adapter's file has them, with the sha256 of its weights.

    Args:
        folder: the adapter's.
        path: what ``adapter_name_or_path`` becomes.

    Raises:
        RecipeError: a given setting contradicts the file; targets are checked by ``with_targets``.
        ModelError: the adapter cannot be trained further, or is another one than it was.
    """
    config = read_adapter_config(folder)
    digest = sha256_of(folder / WEIGHTS_FILE)
    if settings.adapter_sha256 not in (None, digest):
        raise ModelError(
            "the adapter to continue has changed",
            where=str(folder / WEIGHTS_FILE),
            why=f"its sha256 is {digest}, and adapter_sha256 is {settings.adapter_sha256}",
            remedy="put it back, or leave adapter_sha256 out",
        )
    found = {name: config[name] for name in SHAPE_OF_ADAPTER if config.get(name) is not None}
    for name in SHAPE_OF_ADAPTER:
        default = type(settings).model_fields[name].get_default(call_default_factory=True)
        wanted, there = getattr(settings, name), found.get(name, default)
        if name in settings.model_fields_set and name != "target_modules" and not _same(wanted, there):
            raise contradiction(name, wanted, there, folder)
    own = settings.model_dump(exclude_unset=True)
    try:
        return type(settings)(**{**own, **found, "adapter_name_or_path": path, "adapter_sha256": digest})
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(
            "the adapter's configuration cannot be used",
            where=str(folder / CONFIG_FILE),
            why=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
        ) from None


def with_targets(
    settings: AdapterSettings, asked: AdapterSettings, linears: Iterable[str], folder: Path
) -> AdapterSettings:
    """The settings with ``all-linear`` as targets where the adapter has all linear modules, as a recipe says it.

    Args:
        settings: from ``started``.
        asked: as the recipe had them.
        linears: names of the model's linear modules without the output layer.
        folder: the adapter's.

    Raises:
        RecipeError: the recipe gave other targets.
        ModelError: targets are a regular expression that takes too long.
    """
    names = set(linears)
    for given, where in ((settings, f"{folder / CONFIG_FILE}: "), (asked, "method.")):
        remedy = "Write the names of the modules as a list there, without a regular expression."
        refuse_slow_patterns({"target_modules": given.target_modules}, sorted(names), where, remedy=remedy)
    there = _meant(settings.target_modules, names)
    if "target_modules" in asked.model_fields_set and _meant(asked.target_modules, names) != there:
        raise contradiction("target_modules", asked.target_modules, settings.target_modules, folder)
    if there == names and settings.layers_to_transform is None:
        return settings.model_copy(update={"target_modules": "all-linear"})
    return settings


def _meant(targets: str | list[str], names: set[str]) -> set[str]:
    """The modules that targets match by PEFT's rules, and the names in a list that match none."""
    if targets == "all-linear":
        return names
    if isinstance(targets, str):
        return {name for name in names if re.fullmatch(targets, name)}
    found = {part: {name for name in names if name == part or name.endswith(f".{part}")} for part in targets}
    return set().union(*found.values()) | {part for part, matched in found.items() if not matched}


def contradiction(name: str, wanted: Any, there: Any, folder: Path) -> RecipeError:
    """The error for a setting of the recipe that differs from the adapter's file."""
    return RecipeError(
        f"method.{name} contradicts the adapter to continue",
        where=_SETTING,
        why=f"The recipe says {_short(wanted)}, {folder / CONFIG_FILE} says {_short(there)}.",
        remedy=f"Leave method.{name} out: an adapter keeps its own shape.",
    )


def in_words(settings: AdapterSettings) -> str:
    """One line that names the adapter and the settings from its file."""
    shape = f"r {settings.r}, lora_alpha {settings.lora_alpha:g}, target_modules {_short(settings.target_modules)}"
    dropout = f", lora_dropout {settings.lora_dropout:g}" if settings.lora_dropout else ""
    return f"continuing from {settings.adapter_name_or_path}: {shape}{dropout}, as its file says"


def other_base(folder: Path, base: Path, name: str) -> str | None:
    """A warning if the adapter's file names another base than the recipe: its weights may still fit.

    Args:
        base: folder of the recipe's model.
        name: what the recipe calls it.
    """
    said = read_adapter_config(folder).get("base_model_name_or_path")
    if not said or said == name.partition("@")[0]:
        return None
    if base.resolve() in (Path(local(said)).resolve(), (folder / said).resolve()):
        return None
    return (
        f"{_SETTING}: the adapter was trained on {said}, and this run's model is {name}: that makes sense only if they "
        "are the same weights"
    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return sorted(map(str, one)) == sorted(map(str, other))
    return one == other or [one] == other or one == [other]


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."
