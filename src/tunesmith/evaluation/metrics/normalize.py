"""What two texts may differ in and still be the same answer: `evaluation.normalize`."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection

from tunesmith.recipe.settings import NormalForm


def normalized(text: str, forms: Collection[NormalForm] = ()) -> str:
    """The text in Unicode's NFC form, without white space around it.

    Args:
        text: an answer.
        forms: ``case`` folds upper and lower case, ``punctuation`` takes out every character that Unicode calls
            punctuation, and ``space`` makes one space of each run of white space.
    """
    if "case" in forms:
        text = text.casefold()
    if "punctuation" in forms:
        text = "".join(character for character in text if not unicodedata.category(character).startswith("P"))
    if "space" in forms:
        text = " ".join(text.split())
    return unicodedata.normalize("NFC", text).strip()


def lasting(beginning: str) -> str:
    """What stays at the beginning of the form that is compared whatever text follows: all but the last letter, which
    may get marks."""
    text = unicodedata.normalize("NFC", beginning).lstrip()
    last = next((place for place in range(len(text) - 1, -1, -1) if not unicodedata.combining(text[place])), 0)
    return text[:last].rstrip()
