"""Row formats and reading keys that a recipe or a flag can name. Light: the command line imports it at start-up."""

from __future__ import annotations

from typing import Literal

RowShape = Literal[
    "auto", "alpaca", "prompt_completion", "messages", "sharegpt", "text", "preference", "unpaired_preference"
]
READING = ("delimiter", "encoding", "header", "key", "sheet")  # how the bytes of a file become rows
