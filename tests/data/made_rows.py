"""Examples, and how rows of tokens are compared, for the tests of encoded rows and their cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tunesmith.data.chat.template import Encoded
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.message import Message

STOP = (2,)  # <|im_end|>
REWRITES = (  # leaves the thinking out of earlier answers, so that each answer of a conversation is a row of its own
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{{ m.content if m.role != 'assistant' or loop.last else m.content.split('=')[-1] }}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def example(number: int, *, turns: int = 1, answer: str = "=yes") -> Example:
    pair = (Message("user", f"Question {number}?"), Message("assistant", f"think {number}{answer}"))
    return Example(pair * turns, source=f"rows.jsonl:{number + 1}")


def examples(count: int) -> list[Example]:
    """Every third becomes two rows."""
    return [example(number, turns=1 + (number % 3 == 0)) for number in range(count)]


def in_blocks(rows: Sequence[Any], size: int) -> Iterator[list[tuple[int, Any]]]:
    numbered = list(enumerate(rows))
    yield from (numbered[start : start + size] for start in range(0, len(numbered), size))


def same(row: Encoded, other: Encoded) -> bool:
    arrays = zip((row.ids, row.supervised), (other.ids, other.supervised), strict=True)
    return (row.source, row.example) == (other.source, other.example) and all(
        one.dtype == two.dtype and np.array_equal(one, two) for one, two in arrays
    )
