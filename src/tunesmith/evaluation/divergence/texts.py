"""The texts on which base and tuned model are compared: general text, and prompts that the base answers itself.

Both files were written for this project. This module does not import torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

TEXTS, PROMPTS = (Path(__file__).with_name(name) for name in ("texts.jsonl", "prompts.jsonl"))


@dataclass(frozen=True, slots=True)
class GeneralText:
    """One text or prompt. ``form`` is prose, dialogue, code, list or answer; ``language`` is a code, such as de."""

    id: str
    form: str
    language: str
    text: str


def general_texts(file: Path = TEXTS) -> list[GeneralText]:
    """The texts of one of the two files, in their order."""
    return [GeneralText(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
