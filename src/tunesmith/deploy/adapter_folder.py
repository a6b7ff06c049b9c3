"""`tunesmith merge --keep-adapter`: an adapter with a copy of its base beside it, for somebody who has neither."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunesmith.deploy import plain_weights
from tunesmith.deploy.tuned import base_folder, find_target, with_base
from tunesmith.errors import ExportError
from tunesmith.methods.continued_adapter import CONFIG_FILE, WEIGHTS_FILE, read_config_file
from tunesmith.recipe.paths import local
from tunesmith.runs.progress import Listener, Silent
from tunesmith.training.checkpoint import OPTIMIZER, STATE

BASE = "base"  # the folder of the base, in the adapter's
_README = """# {name}

An adapter, and in `base` the model that it belongs to.

```
tunesmith generate {name} --prompt TEXT
```

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{name}/base"), "{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
"""


@dataclass(frozen=True, slots=True)
class HandedOver:
    """An adapter's folder with its base: their folders, and the bytes of both."""

    folder: str
    base: str
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)


def hand_over(
    target: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> HandedOver:
    """Copies an adapter, its tokenizer and its base into one folder. What only training needs is left out.

    Args:
        target: a run (its judged or last checkpoint), a checkpoint or an adapter folder.
        out: a new or empty folder.
        model: the base, where it is not at the place that the run or adapter names.
        overwrite: replace a folder that `merge` wrote.

    Raises:
        ExportError: there is no adapter, or the folder is taken.
        ModelError: the base cannot be found.
    """
    listener, to = listener or Silent(), Path(local(out))
    found = with_base(find_target(str(target)), model)
    if found.checkpoint is None or not (found.checkpoint / WEIGHTS_FILE).is_file():
        raise ExportError(
            "there is no adapter to keep",
            where=str(target),
            why="Its weights themselves were trained, or it is a plain model.",
            remedy="Leave --keep-adapter out." if found.checkpoint else "Name a run or an adapter folder.",
        )
    plain_weights.check_free(to, overwrite=overwrite)
    own_code = found.recipe is not None and found.recipe.model.trust_remote_code
    base = base_folder(found, trust_remote_code=own_code, listener=listener)
    files = [file for file in found.checkpoint.iterdir() if file.is_file() and file.name not in (OPTIMIZER, STATE)]
    of_base = [file for file in base.iterdir() if file.is_file()]
    size = sum(os.path.getsize(file) for file in [*files, *of_base])
    plain_weights.check_room(to, size)
    with plain_weights.merged_folder(to) as folder:
        (folder / BASE).mkdir()
        for file in files:
            shutil.copyfile(file, folder / file.name)
        for file in of_base:  # a hub cache holds links, of which the contents are copied
            shutil.copyfile(file, folder / BASE / file.name)
        config = {**read_config_file(found.checkpoint), "base_model_name_or_path": f"./{BASE}", "revision": None}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        record: dict[str, Any] = {"tunesmith": version("tunesmith"), "base": BASE, "checkpoint": found.checkpoint.name}
        record |= {} if found.trained is None else {"prompt": found.trained.to_json()}
        (folder / plain_weights.MARK).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_README.format(name=to.name), encoding="utf-8")
    return HandedOver(str(to), str(to / BASE), size)
