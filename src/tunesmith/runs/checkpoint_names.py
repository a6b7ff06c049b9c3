"""The names of checkpoint folders, and which folders are checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"step-(\d{6,})")


def checkpoint_name(step: int) -> str:
    """The name of a checkpoint's folder, such as ``step-000100``."""
    return f"step-{step:06d}"


def step_of(path: Path) -> int:
    """The step of a folder with such a name."""
    return int(path.name.removeprefix("step-"))


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoint folders in a folder, by step. One with another name, such as a copy, is the user's own."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()), key=step_of)
