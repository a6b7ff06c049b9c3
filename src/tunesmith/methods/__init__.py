"""Fine-tuning methods: what trains, what a checkpoint holds, and how it becomes plain weights again.

A method is one file here, one settings class in recipe.py, one row in ``METHODS``, and passes the shared contract test.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.recipe import FullSettings, LoraSettings, QloraSettings

if TYPE_CHECKING:
    from tunesmith.methods.base import Method

METHODS = {
    "full": "tunesmith.methods.full.Full",
    "lora": "tunesmith.methods.lora.Lora",
    "qlora": "tunesmith.methods.qlora.Qlora",
}


def build(
    settings: FullSettings | LoraSettings | QloraSettings,
    *,
    base: str | Path,
    revision: str | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Method:
    """The method that a recipe names. Weights and libraries are touched only by its methods, not here.

    Args:
        settings: the recipe's ``method`` section.
        base: folder or hub id of the untuned model; it is what ``adapter_config.json`` points to.
        revision: branch, tag or commit of a hub id.
        seed: adapters are drawn from it alone, whatever else was drawn before.
        device: where the model will run, such as ``cpu`` or ``cuda:0``.
    """
    from tunesmith.methods.base import Origin

    module, _, name = METHODS[settings.name].rpartition(".")
    with _without_kernel_warning():
        method = getattr(import_module(module), name)
    return method(settings, Origin(str(base), revision=revision, seed=seed, device=device))


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
