"""Answers that are copied from training rows: runs of words that stand in a training answer and not in the truth.

A run is at least N words long. Words that the reference answer or the prompt has in the same order count for nothing:
they are right, or asked for. This module does not import torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import regex

N = 8  # words of the shortest run
MOST_WORDS = 2_000_000  # of training answers that are looked at
# Scripts without spaces between words count each character.
_ONE_BY_ONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{_ONE_BY_ONE}]|(?:(?![{_ONE_BY_ONE}])\w)+|[^\w\s]")

_Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CopiedRun:
    """The longest run of one answer: its words, its share of the answer's words, and the training row it stands in."""

    words: int
    share: float
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class CopySearch:
    """The runs of all answers (None: none), how many answers are long enough to have one, and what was looked at."""

    runs: list[CopiedRun | None]
    measured: list[bool]
    training_answers: int


def words_of(text: str) -> list[str]:
    """Words in small letters, signs, and single characters of scripts without spaces."""
    return _WORD.findall(text.casefold())


def longest_runs(
    answers: Sequence[str], truths: Sequence[str], prompts: Sequence[str], training: Iterable[tuple[str, str]]
) -> CopySearch:
    """The longest copied run of each answer.

    The training answers are read once, one at a time, so that their number costs no memory.

    Args:
        answers: of a model.
        truths: the reference answers.
        prompts: of the answers.
        training: (source, text) of each training answer.
    """
    split = [words_of(answer) for answer in answers]
    # Where each run of N words stands: number of the answer, and position in it.
    places: dict[_Gram, list[tuple[int, int]]] = defaultdict(list)
    for number, (found, truth, prompt) in enumerate(zip(split, truths, prompts, strict=True)):
        known = {gram for text in (truth, prompt) for gram in _grams(words_of(text))}
        for position, gram in enumerate(_grams(found)):
            if gram not in known:
                places[gram].append((number, position))
    longest: list[tuple[int, int, str]] = [(0, 0, "")] * len(answers)  # (words, end, source)
    read = rows = 0
    for source, text in training:
        if read >= MOST_WORDS:
            break
        learned = words_of(text)
        read, rows = read + len(learned), rows + 1
        before: dict[tuple[int, int], int] = {}  # runs that end at the last word, by where they end in an answer
        for gram in _grams(learned):
            here: dict[tuple[int, int], int] = {}
            for number, position in places.get(gram, ()):
                # A run that ended one word earlier in both goes on.
                length = before.get((number, position - 1), N - 1) + 1
                here[number, position] = length
                if length > longest[number][0]:
                    longest[number] = (length, position + N, source)
            before = here
    runs: list[CopiedRun | None] = [
        CopiedRun(length, length / len(found), " ".join(found[end - length : end]), source) if length else None
        for found, (length, end, source) in zip(split, longest, strict=True)
    ]
    return CopySearch(runs, [len(found) >= N for found in split], rows)


def _grams(words: Sequence[str]) -> Iterator[_Gram]:
    return zip(*(words[shift:] for shift in range(N)), strict=False)
