"""Guesses the next tokens of an answer by copying: from a text that the answer may resemble, and from its own prompt.

Answers repeat what they have read: names, numbers, whole sentences to be rewritten. So where the last tokens of a text
stand elsewhere in it, or in the reference, the tokens behind that place are a guess (prompt lookup: Saxena 2023;
arXiv:2304.04487). A guess costs one more token in a pass that runs anyway. It is never an answer: what the model does
not choose itself is dropped. This module does not import torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

_LONGEST = 3  # tokens that are looked up: the longer, the surer
_LEAST_GUESSED, _FIRST_GUESSED, _MOST_GUESSED = 1, 4, 16  # tokens guessed at a time


class Lookup:
    """Guesses for one text. How many tokens are guessed follows how many of the last guess were right.

    Args:
        reference: a text that the answer may resemble, such as the true answer.
        length: tokens of the prompt, behind which the answer stands.
    """

    def __init__(self, reference: Sequence[int], length: int) -> None:
        self._reference, self._length = list(reference), length
        self._in_reference = _Index()
        self._in_reference.extend(self._reference)
        self._in_text = _Index()
        self._count = _FIRST_GUESSED
        self._shift = 0  # how far the answer's tokens stand behind those of the reference that they copy

    def guess(self, text: Sequence[int], most: int) -> list[int]:
        """At most ``most`` tokens that may follow ``text``, prompt and answer so far."""
        count = min(self._count, most)
        if count < 1:
            return []
        self._in_text.extend(text)
        done = len(text) - self._length  # tokens of the answer
        for size in range(_LONGEST, 0, -1):
            last = tuple(text[-size:])
            at = self._in_reference.nearest(last, done - self._shift)
            if at is not None:
                self._shift = done - at
                return self._reference[at : at + count]
            at = self._in_text.nearest(last, len(text)) if size > 1 else None
            if at is not None:
                return list(text[at : at + count])
        at = done - self._shift  # the answer has another token than the reference: it may go on as the reference does
        return self._reference[at : at + count] if at >= 0 else []

    def learn(self, guessed: int, right: int) -> None:
        """Takes note of how many tokens of the last guess were right."""
        if guessed and right == guessed:
            self._count = min(2 * self._count, _MOST_GUESSED)
        elif guessed and not right:
            self._count = max(self._count // 2, _LEAST_GUESSED)


class _Index:
    """Where each run of up to ``_LONGEST`` tokens ends in a growing text, if a token follows it."""

    def __init__(self) -> None:
        self._ends: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        self._seen = 0

    def extend(self, text: Sequence[int]) -> None:
        """Takes in the tokens of a text from where it last ended."""
        for end in range(max(self._seen, 1), len(text)):
            for size in range(1, min(_LONGEST, end) + 1):
                self._ends[tuple(text[end - size : end])].append(end)
        self._seen = max(self._seen, len(text))

    def nearest(self, run: tuple[int, ...], place: int) -> int | None:
        """The end of this run that is nearest to a place."""
        ends = self._ends.get(run)
        return None if not ends else min(ends, key=lambda end: abs(end - place))
