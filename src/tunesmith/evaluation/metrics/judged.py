"""The metric ``judge``: which of the two models' answers another model finds better, asked in both orders.

A model is better on a row if the judge prefers its answer in both orders (Zheng et al. 2023, arXiv:2306.05685); else
the row is a tie. The metric of a model is its share of the rows, where a tie counts half to each.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np

from tunesmith.errors import ModelError
from tunesmith.evaluation.endpoint import KEY, Endpoint, RequestStop, StoppedError
from tunesmith.evaluation.metrics.base import AnswerRows, RowScores

NAME = "judge"
_LEAVE = 0.5  # seconds for requests to end once nobody waits for them
UNREADABLE = 0.1  # the share of replies that may be unreadable; they count as ties
Choice = Literal["A", "B", "TIE"]
_CHOICES: dict[str, Choice] = {"A": "A", "B": "B", "TIE": "TIE"}
_CHOICE = re.compile(r"\[\[\s*(A|B|TIE)\s*\]\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge found: the scores of both models, and each row's two replies, with the base's answer first and then
    with the tuned model's first."""

    base: RowScores
    tuned: RowScores
    replies: list[tuple[str, str]]


def judged(
    endpoint: Endpoint, base: AnswerRows, tuned: AnswerRows, *, on_row: Callable[[int], None] = lambda _: None
) -> Judged:
    """Asks the judge about each row twice, with the answers swapped. Equal answers are a tie and are not asked about.

    Args:
        endpoint: the judge.
        base: the base's answers to the same prompts.
        tuned: the tuned model's answers.
        on_row: hears how many rows are done.

    Raises:
        ModelError: the judge cannot be asked, or too many of its replies cannot be read.
    """
    rows = list(zip(base.answers, tuned.answers, base.truths, base.prompts, strict=True))
    prompts = [text for row in rows for text in _prompts(endpoint, *row)]
    replies = _replies(endpoint, prompts, on_row)
    choices: list[Choice | None] = [choice_in(reply) for reply in replies]
    asked = [number for number, prompt in enumerate(prompts) if prompt]
    unreadable = [number for number in asked if choices[number] is None]
    if len(unreadable) > UNREADABLE * len(asked):
        raise ModelError(
            "The judge's replies cannot be read",
            where=f"{KEY}: {endpoint.settings.model}",
            why=f"{len(unreadable):,} of {len(asked):,} replies lack [[A]], [[B]] or [[TIE]]. The first of them is "
            f"{replies[unreadable[0]][:200]!r}.",
            remedy="Use a more capable model, allow more max_tokens, or give a prompt that asks for one of the three.",
        )
    pairs = list(zip(choices[::2], choices[1::2], strict=True))
    share = np.array([_share_of_tuned(before, after) for before, after in pairs])  # [rows]
    counted = Counter("tuned" if each == 1 else "base" if each == 0 else "tie" for each in share)
    details: dict[str, Any] = {
        "model": endpoint.settings.model,
        "base_url": endpoint.settings.base_url,
        "prompt": endpoint.settings.prompt,
        "rows": {name: counted[name] for name in ("base", "tie", "tuned")},
        "contradictions": sum({*pair} == {"A"} or {*pair} == {"B"} for pair in pairs),
        "unreadable": len(unreadable),
    }
    scores = [RowScores(of, np.ones_like(of), base.group_numbers, {NAME: details}) for of in (1 - share, share)]
    return Judged(scores[0], scores[1], list(zip(replies[::2], replies[1::2], strict=True)))


def _replies(endpoint: Endpoint, prompts: Sequence[str], on_row: Callable[[int], None]) -> list[str]:
    """The reply to each prompt, and an empty text to an empty one. The two prompts of a row follow each other.

    Whatever ends it, Ctrl-C too, ends the requests that are under way, and nobody waits for one that does not end: the
    threads are those of a program that goes on, and end with it.
    """
    replies = [""] * len(prompts)
    waiting = iter([(number, prompt) for number, prompt in enumerate(prompts) if prompt])
    lock, stop = threading.Lock(), RequestStop()
    done: SimpleQueue[tuple[int, str | Exception]] = SimpleQueue()

    def ask() -> None:
        while True:
            with lock:
                number, prompt = next(waiting, (None, ""))
            if number is None:
                return
            try:
                done.put((number, endpoint.reply(prompt, stop)))
            except StoppedError:
                return
            except Exception as error:  # noqa: BLE001  # raised again where the replies are taken
                done.put((number, error))
                return

    left = Counter(number // 2 for number, prompt in enumerate(prompts) if prompt)  # requests of each row
    rows = len(prompts) // 2 - len(left)  # that are done
    threads = [
        threading.Thread(target=ask, daemon=True) for _ in range(min(endpoint.settings.parallel, sum(left.values())))
    ]
    try:
        for thread in threads:
            thread.start()
        on_row(rows)
        for _ in range(sum(left.values())):
            number, found = done.get()
            if isinstance(found, Exception):
                raise found
            replies[number] = found
            left[number // 2] -= 1
            if left[number // 2] == 0:
                rows += 1
                on_row(rows)
    finally:
        stop.ask()
        ends = time.monotonic() + _LEAVE
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, ends - time.monotonic()))
    return replies


def choice_in(reply: str) -> Choice | None:
    """The last choice of a reply; also one that stands there alone without brackets. None: there is none."""
    found = _CHOICE.findall(reply)
    word = found[-1] if found else reply.strip().strip("[]().*\"'`")
    return _CHOICES.get(word.upper())


def _prompts(endpoint: Endpoint, base: str, tuned: str, truth: str, prompt: str) -> Iterator[str]:
    """The two prompts of a row, or two empty texts if the answers are equal."""
    for first, second in ((base, tuned), (tuned, base)):
        same = first.strip() == second.strip()
        yield "" if same else endpoint.settings.filled(prompt=prompt, reference=truth, first=first, second=second)


def _share_of_tuned(base_first: Choice | None, tuned_first: Choice | None) -> float:
    """1 where the tuned answer is preferred in both orders, 0 where the base's is, else 0.5."""
    if (base_first, tuned_first) == ("B", "A"):
        return 1.0
    return 0.0 if (base_first, tuned_first) == ("A", "B") else 0.5
