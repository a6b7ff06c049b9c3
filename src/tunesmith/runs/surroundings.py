"""What a command needs of the place it is given in: a working folder that is there, and names that are text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith.errors import RunError
from tunesmith.runs.disk import disk_errors
from tunesmith.runs.from_python import quiet_libraries


@contextmanager
def library_call() -> Iterator[None]:
    """For public functions: hides what libraries warn of, and turns faults of the place and the disk into messages."""
    with quiet_libraries(), disk_errors():
        refuse_lost_folder()
        yield


def refuse_lost_folder() -> None:
    """Raises RunError if the working folder is not there any more."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise RunError(
            "The working folder is gone",
            why="It was removed or replaced while this shell or program was in it.",
            remedy="Change to a folder that is there, such as with `cd`, and give the command again.",
        ) from None
