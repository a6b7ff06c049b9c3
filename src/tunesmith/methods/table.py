"""The table of methods by name, and the function that builds one.

A method is one file in this package, one settings class in recipe/methods.py, and one row in ``METHOD_CLASSES``.
Each method passes the shared contract test.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.recipe.methods import FreezeSettings, FullSettings, LoraSettings, QloraSettings, method_label

if TYPE_CHECKING:
    from tunesmith.methods.base import Method
    from tunesmith.model.weights.added_tokens import AddedTokens


METHOD_CLASSES = {
    "full": "tunesmith.methods.full.Full",
    "freeze": "tunesmith.methods.freeze.Freeze",
    "lora": "tunesmith.methods.lora.Lora",
    "lora-int8": "tunesmith.methods.int8.Int8Lora",
    "qlora": "tunesmith.methods.qlora.Qlora",
}


def build(
    settings: FullSettings | FreezeSettings | LoraSettings | QloraSettings,
    *,
    base: str | Path,
    revision: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    added: AddedTokens | None = None,
    start: Path | None = None,
) -> Method:
    """The method that a recipe names. Weights are loaded by its own functions, not here.

    Args:
        settings: the recipe's ``method`` section.
        base: folder or hub id of the untuned model; it is what ``adapter_config.json`` points to.
        revision: branch, tag or commit of a hub id.
        seed: adapters are drawn from it alone, whatever else was drawn before.
        device: where the model will run, such as ``cpu`` or ``cuda:0``.
        added: tokens that the untuned model was given rows for.
        start: folder of an adapter to continue, which is also the reference.
    """
    from tunesmith.methods.base import Origin
    from tunesmith.model.weights.added_tokens import NO_TOKENS

    module, _, name = METHOD_CLASSES[method_label(settings)].rpartition(".")
    with _without_kernel_warning():
        method = getattr(import_module(module), name)
    origin = Origin(str(base), revision=revision, seed=seed, device=device, added=added or NO_TOKENS, start=start)
    return method(settings, origin)


@contextmanager
def _without_kernel_warning() -> Iterator[None]:
    """PEFT imports bitsandbytes, which on some CPUs warns that an optional package is missing. Nothing here uses it."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
