"""What a tokenizer.json of somebody else may not hold: it would fill the memory or end the process.

The tokenizers library reads the file in Rust, where neither can be stopped.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError

_INSTEAD = "use the tokenizer of the original model"
MOST_PADDING = 2**20  # tokens
MOST_GROWTH = 1000  # times, of a text by replacements that follow each other
_WHOLE_TRIE = 1024  # bytes: a smaller map of characters has no entry for some bytes


def refuse_odd_tokenizer(folder: Path) -> None:
    """Refuses a tokenizer.json that would fill the memory or end the process.

    Raises:
        ModelError: it has replacements that make a text very long, padding beyond any row, or a damaged map of
            characters. A regular expression may stay: what it gives up on is a message of ``data.chat.tokenizing``.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError, OSError):
        return  # loading it says what is wrong
    if not isinstance(found, dict):
        return
    _refuse_padding(found.get("padding"), file)
    for key in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        growth = 1.0
        for part in _parts(found.get(key)):
            if isinstance(part.get("precompiled_charsmap"), str):
                _refuse_damaged_map(part["precompiled_charsmap"], file)
            growth *= _growth(part)
        if growth > MOST_GROWTH:
            remedy = f"{_INSTEAD}, or take what repeats the text out of {key} there."
            raise _odd(file, f"Its {key} makes a text up to {growth:,.0f} times as long.", remedy)


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """A part with all the parts in it."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _growth(part: dict[str, Any]) -> float:
    """How many times as long a part can make a text."""
    if isinstance(part.get("prepend"), str):
        return max(1.0, float(len(part["prepend"])))
    if part.get("type") != "Replace" or not isinstance(part.get("content"), str):
        return 1.0
    pattern = part.get("pattern")
    replaced = pattern.get("String") if isinstance(pattern, dict) else None
    return max(1.0, len(part["content"]) / max(len(replaced) if isinstance(replaced, str) else 1, 1))


def _refuse_padding(padding: Any, file: Path) -> None:
    if not isinstance(padding, dict):
        return
    strategy = padding.get("strategy")
    numbers = [padding.get("pad_to_multiple_of"), *(strategy.values() if isinstance(strategy, dict) else ())]
    most = max((each for each in numbers if isinstance(each, (int, float))), default=0)
    if most > MOST_PADDING:
        raise _odd(file, f"It pads each text to {most:,} tokens.", 'set "padding" to null there.')


def _refuse_damaged_map(text: str, file: Path) -> None:
    """A map of characters begins with the size of its table, which the library takes at its word."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 + size or size < _WHOLE_TRIE or size % 4:
        raise _odd(file, "Its precompiled_charsmap is damaged.", "fetch the model again.")


def _odd(file: Path, why: str, remedy: str) -> ModelError:
    return ModelError("the tokenizer cannot be used", where=str(file), why=why, remedy=remedy)
