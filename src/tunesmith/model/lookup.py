"""Guesses the next tokens of an answer by copying: from a text that the answer may resemble, and from its own prompt.

Answers repeat what they have read: names, numbers, whole sentences to be rewritten. So where the last tokens of a text
stand elsewhere in it, or in the reference, the tokens behind that place are a guess (prompt lookup: Saxena 2023;
arXiv:2304.04487). It is never an answer: what the model does not choose itself is dropped. This module does not import
torch.

How many tokens are guessed follows how often the text's last guesses were right, also those that were only made and not
computed, and what a guess costs. A pass takes as long as reading the weights and computing its tokens. So a guess that
is right saves its text a token of the next pass and a share of the reading; one that is wrong costs a token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

_LONGEST = 3  # tokens that are looked up: the longer, the surer
_MOST_GUESSED = 16  # tokens guessed at a time
_MEMORY = 0.9  # how much the guesses before each weigh beside the next
_FIRST_RIGHT, _FIRST_GUESSED = 1.0, 1.5  # of guesses before the first
_SUREST = 0.98


def worth_guessing(texts: int, reading: float) -> float:
    """How likely a guess must be right so that a pass over so many texts gains by it.

    Args:
        reading: how many tokens are computed in the time that reading the weights takes.
    """
    # A right guess saves a token and its text's share of a reading, 1 + reading / texts; each guess costs a token.
    return 1 / (1 + reading / texts)


class Lookup:
    """Guesses for one text.

    Args:
        reference: a text that the answer may resemble, such as the true answer.
        length: tokens of the prompt, behind which the answer stands.
    """

    def __init__(self, reference: Sequence[int], length: int) -> None:
        self._reference, self._length = list(reference), length
        self._in_reference = _Index()
        self._in_reference.extend(self._reference)
        self._in_text = _Index()
        self._shift = 0  # how far the answer's tokens stand behind those of the reference that they copy
        self._guess: list[int] = []
        self._right, self._guessed = _FIRST_RIGHT, _FIRST_GUESSED

    def guess(self, text: Sequence[int], most: int, *, worth: float = 0.0) -> list[int]:
        """At most ``most`` tokens that may follow ``text``, prompt and answer so far.

        Args:
            worth: tokens are left out that are less likely right than this, by what was right before.
        """
        self._guess = self._following(text)
        likely, count = min(self._right / self._guessed, _SUREST), 0
        while count < min(most, len(self._guess)) and likely ** (count + 1) >= worth:
            count += 1
        return self._guess[:count]

    def learn(self, followed: Sequence[int]) -> None:
        """Takes note of the tokens that followed the text of the last guess."""
        right = guessed = 0
        for foreseen, token in zip(self._guess, followed, strict=False):
            guessed += 1
            if foreseen != token:  # what stands behind a wrong one says nothing
                break
            right += 1
        for _ in range(guessed):
            self._right, self._guessed = _MEMORY * self._right, _MEMORY * self._guessed
        self._right, self._guessed = self._right + right, self._guessed + guessed

    def _following(self, text: Sequence[int]) -> list[int]:
        self._in_text.extend(text)
        done = len(text) - self._length  # tokens of the answer
        for size in range(_LONGEST, 0, -1):
            last = tuple(text[-size:])
            at = self._in_reference.nearest(last, done - self._shift)
            if at is not None:
                self._shift = done - at
                return self._reference[at : at + _MOST_GUESSED]
            at = self._in_text.nearest(last, len(text)) if size > 1 else None
            if at is not None:
                return list(text[at : at + _MOST_GUESSED])
        at = done - self._shift  # the answer has another token than the reference: it may go on as the reference does
        return self._reference[at : at + _MOST_GUESSED] if at >= 0 else []


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
