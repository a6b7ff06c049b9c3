"""What lm-evaluation-harness and its libraries show by themselves is replaced by the progress of this package."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tunesmith.runs.progress import Listener

LOGGERS = ("lm_eval", "datasets", "evaluate", "filelock", "fsspec", "huggingface_hub", "urllib3")


@contextmanager
def only_our_progress(listener: Listener) -> Iterator[None]:
    """Inside, the harness draws no bar and logs nothing. The listener hears how many questions are made.

    Every bar of `tqdm` is off, also those of libraries that the harness calls. Outside, nothing changes.
    """
    from lm_eval.api import task  # pyright: ignore[reportMissingImports]
    from tqdm.std import tqdm

    whole, bar = tqdm.__init__, task.tqdm
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]

    def silent(self: Any, *given: Any, **named: Any) -> None:
        whole(self, *given, **{**named, "disable": True})

    def questions(items: Iterable[Any], *, total: int | None = None, **_: Any) -> Iterator[Any]:
        with listener.task("tasks: questions", total) as advance:
            for done, item in enumerate(items, start=1):
                yield item
                advance(done, {})

    tqdm.__init__ = silent
    task.tqdm = questions
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.__init__ = whole
        task.tqdm = bar
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
