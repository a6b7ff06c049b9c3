"""What a call from Python shows: its progress, no warnings of libraries, and no secret in a traceback."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith.errors import TunesmithError
from tunesmith.runs.progress import Listener, Silent
from tunesmith.safe_text import hide_causes

LIBRARIES = r"(accelerate|bitsandbytes|datasets|huggingface_hub|peft|tensorboard|torch|tqdm|transformers)(\.|$)"


def heard_by(listener: Listener | None, progress: bool) -> Listener:
    """The listener that is given; else a view of the notebook, or lines on standard error; or none."""
    from tunesmith.runs.notebook_progress import InNotebook, in_notebook
    from tunesmith.runs.progress_lines import Lines

    if listener is not None:
        return listener
    if not progress:
        return Silent()
    return InNotebook() if in_notebook() else Lines()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hides what libraries warn of, about which a user can do nothing. `python -W` and PYTHONWARNINGS show it again.

    Outside, nothing changes. Warnings of a user's own metric function stay. bitsandbytes logs, when PEFT imports it,
    that an optional package is missing on some CPUs. Functions may be decorated with it.

    A TunesmithError whose cause says a secret, as drivers of stores do with whole URLs, leaves it without that cause.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", module=LIBRARIES)
            logger.setLevel(logging.ERROR)
        try:
            yield
        except TunesmithError as error:
            hide_causes(error)
            raise
        finally:
            logger.setLevel(level)
