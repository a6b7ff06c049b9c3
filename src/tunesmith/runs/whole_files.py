"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def flush(folder: Path) -> None:
    """Every file of a folder onto the disk, readable for whom the umask admits."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)  # safetensors writes for the owner alone
            with path.open("rb") as file:
                os.fsync(file.fileno())
    flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
