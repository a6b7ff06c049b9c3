"""What a run folder of somebody else may not make us do: write through a link, or wait for a pipe.

The run folder itself may be a link, and so may the user's own entries in it. What a run writes may not.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from tunesmith.errors import RunError
from tunesmith.runs.stored_json import most_text, too_large

FOLDERS = ("checkpoints", "set_aside", "functions", "start", "tensorboard", "wandb", "mlflow")  # that a run writes to


def read_plain(path: Path) -> bytes:
    """The content of a file of text.

    Raises OSError for what is no file, such as a pipe, which would never end, and for one with more bytes than a text
    may have (stored_json.py): a file without content takes no room on the disk, and all of it in memory.
    """
    with open_plain(path) as file:
        much = too_large(os.fstat(file.fileno()).st_size, most_text())
        if much is not None:
            raise OSError(errno.EFBIG, f"it {much}", str(path))
        return file.read()


def open_plain(path: Path) -> BinaryIO:
    """A file to read from. Raises OSError for what is no file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return open(descriptor, "rb")


def refuse_links(run: Path, files: Collection[str], folders: Collection[str] = ()) -> None:
    """Refuses a run in which something that will be written is a link or a pipe, so it would be written elsewhere.

    Args:
        files: names of files that are appended to or locked. A file that is replaced whole needs no check.
        folders: of ``FOLDERS``.

    Raises:
        RunError: it names the entry.
    """
    for path in (run / name for name in files):
        if path.is_symlink():
            raise _refused(run, path)
        if path.exists() and not path.is_file():
            raise RunError(
                "An entry of the run folder is no plain file",
                where=str(path),
                why="The run writes to it, and it is a folder, a pipe or a device.",
                remedy="Remove it, or move it out of the run folder.",
            )
    for path in (entry for name in folders for entry in _entries(run / name)):
        if path.is_symlink():
            raise _refused(run, path)


def _entries(folder: Path) -> Iterator[Path]:
    yield folder
    if folder.is_symlink() or not folder.is_dir():
        return
    if folder.name == "checkpoints":  # the user may have links of his own there, such as `best`
        yield from (entry for entry in folder.iterdir() if entry.name.startswith(("step-", ".step-")))
    else:
        inside = os.path.realpath(folder)  # wandb makes links there itself, such as `latest-run`
        yield from (entry for entry in folder.rglob("*") if not Path(os.path.realpath(entry)).is_relative_to(inside))


def _refused(run: Path, link: Path) -> RunError:
    target, here = Path(os.path.realpath(link)), Path(os.path.realpath(run))
    moved = target.with_name(f"{target.name}.run")
    if link.parent == run and target.is_dir() and not moved.exists() and here not in target.parents:
        name = os.path.abspath(run)
        steps = (
            ("rm", os.path.join(name, link.name)),
            ("mv", str(here), str(moved)),
            ("mv", str(target), str(moved / link.name)),
            *((("rm", name),) if os.path.islink(name) else ()),
            ("ln", "-s", str(moved), name),
        )
        way = f"let all of the run lie on that disk, and make its name a link: {' && '.join(map(shlex.join, steps))}"
    else:
        way = (
            f"put what it leads to in its place: {shlex.join(('rm', str(link)))} && mv TARGET {shlex.quote(str(link))}"
        )
    return RunError(
        "An entry of the run folder is a link",
        where=str(link),
        why=f"It leads to {os.readlink(link)}. The run would write or remove files there.",
        remedy=f"Remove the link if it is not yours. Else {way}. A new run can have its output_dir on another disk.",
    )
