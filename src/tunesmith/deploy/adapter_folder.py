"""`tunesmith merge --keep-adapter`: an adapter with a copy of its base beside it, for somebody who has neither."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tunesmith.deploy import plain_weights
from tunesmith.deploy.same_base import check_base
from tunesmith.deploy.tuned import base_folder, check_code, find_target, with_base
from tunesmith.errors import ExportError
from tunesmith.methods.continued_adapter import CONFIG_FILE, WEIGHTS_FILE, read_config_file
from tunesmith.methods.lora import rows_for_tokens
from tunesmith.runs.drift import allowed_kinds
from tunesmith.runs.manifest import MANIFEST
from tunesmith.runs.progress import Listener, Silent
from tunesmith.runs.whole_files import place_for
from tunesmith.safe_text import markdown_text, one_line
from tunesmith.training.checkpoint import OPTIMIZER, STATE, verify

BASE = "base"  # the folder of the base, in the adapter's
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings")
_README = """# {title}

An adapter, and in `base` the model that it belongs to.

```
tunesmith generate {shell} --prompt TEXT
```

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base})
{resize}model = PeftModel.from_pretrained(base, {name})
tokenizer = AutoTokenizer.from_pretrained({tokenizer})
```
"""


@dataclass(frozen=True, slots=True)
class HandedOver:
    """An adapter's folder with its base: their folders, the bytes of both, and allowed changes of the base."""

    folder: str
    base: str
    bytes: int
    changes: list[dict[str, str]]

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)


def hand_over(
    target: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    allow_changes: str | Sequence[str] = (),
    listener: Listener | None = None,
) -> HandedOver:
    """Copies an adapter, its tokenizer and its base into one folder. What only training needs is left out.

    Args:
        target: a run (its judged or last checkpoint), a checkpoint or an adapter folder.
        out: a new or empty folder.
        model: the base, where it is not at the place that the run or adapter names.
        overwrite: replace a folder that `merge` wrote.
        trust_remote_code: also fetch the code that comes with the base. It is not run.
        allow_changes: kinds of changes of the base since the training with which it is copied.

    Raises:
        ExportError: there is no adapter, or the folder is taken.
        ModelError: the base cannot be found.
        RunError: it has changed since the training.
    """
    allowed = allowed_kinds(allow_changes)
    listener, to = listener or Silent(), place_for(out)
    found = with_base(find_target(str(target)), model)
    if found.checkpoint is None or not (found.checkpoint / WEIGHTS_FILE).is_file():
        raise ExportError(
            "there is no adapter to keep",
            where=str(target),
            why="Its weights themselves were trained, or it is a plain model.",
            remedy="Leave --keep-adapter out." if found.checkpoint else "Name a run or an adapter folder.",
        )
    plain_weights.check_free(to, overwrite=overwrite, inputs=[target, model, found.checkpoint])
    verify(found.checkpoint, found.run, listener)
    check_code(found, trust_remote_code=trust_remote_code)
    base = base_folder(found, trust_remote_code=trust_remote_code, listener=listener)
    changes = [change.to_json() for change in check_base(found.run, found.recipe, base, allowed, listener)]
    left_out = (OPTIMIZER, STATE, MANIFEST)
    files = [file for file in found.checkpoint.iterdir() if file.is_file() and file.name not in left_out]
    of_base = [file for file in base.iterdir() if file.is_file()]
    size = sum(os.path.getsize(file) for file in [*files, *of_base])
    plain_weights.check_room(to, size)
    with plain_weights.merged_folder(to, size, overwrite=overwrite) as folder:
        (folder / BASE).mkdir()
        for file in files:
            shutil.copyfile(file, folder / file.name)
        for file in of_base:  # a hub cache holds links, of which the contents are copied
            shutil.copyfile(file, folder / BASE / file.name)
        config = {**read_config_file(found.checkpoint), "base_model_name_or_path": f"./{BASE}", "revision": None}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        record: dict[str, Any] = {"tunesmith": version("tunesmith"), "base": BASE, "checkpoint": found.checkpoint.name}
        record |= {} if found.trained is None else {"prompt": found.trained.to_json()}
        record |= {"changes": changes} if changes else {}
        (folder / plain_weights.MARK).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_readme(to.name, folder), encoding="utf-8")
    return HandedOver(str(to), str(to / BASE), size, changes)


def _readme(name: str, folder: Path) -> str:
    """How the folder is loaded. PEFT does not resize the base itself where the adapter has tokens of its own."""
    own, needed = _own_rows(folder / WEIGHTS_FILE), 0
    if own is None:
        needed = rows_for_tokens(read_config_file(folder).get("trainable_token_indices"))
    resize = "" if own is None else f"base.resize_token_embeddings({own})\n"
    if needed:
        resize = (
            f"if base.get_input_embeddings().num_embeddings < {needed}:  # the adapter has tokens of its own\n"
            f"    base.resize_token_embeddings({needed})\n"
        )
    tokenizer = name if (folder / "tokenizer_config.json").is_file() else f"{name}/{BASE}"
    quoted = {"name": name, "base": f"{name}/{BASE}", "tokenizer": tokenizer}
    quoted = {key: json.dumps(text, ensure_ascii=False) for key, text in quoted.items()}
    title, shell = markdown_text(name), one_line(shlex.quote(name))
    return _README.format(title=title, shell=shell, resize=resize, **quoted)


def _own_rows(weights: Path) -> int | None:
    """The rows of an embedding that the adapter brings whole; None if it brings none."""
    with safe_open(weights, framework="numpy") as file:
        for key in file.keys():  # noqa: SIM118  (it is no mapping)
            parts = key.split(".")
            if parts[-1] == "weight" and set(parts) & set(_EMBEDDINGS) and "lora_" not in key:
                return file.get_slice(key).get_shape()[0]
    return None
