"""How long work tells what it does. The library is silent by default; the command line draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

Advance = Callable[[int, Mapping[str, str]], None]  # how much of the task is done, and facts such as {"loss": "0.412"}


def sample_line(line: Mapping[str, Any], *, width: int = 100) -> str:
    """A line of samples_during.jsonl for the eye: ``rows.jsonl:3 is answered 'red' (expected 'blue')``."""

    def short(text: str) -> str:
        text = " ".join(text.split())
        return repr(text if len(text) <= width else text[: width - 1] + "…")

    return f"{line['source']} is answered {short(line['answer'])} (expected {short(line['truth'])})"


class Listener(Protocol):
    """Hears what a run says. ``task`` is entered around long work; what it yields is called as the work goes on.

    The total is None where nobody knows it yet.
    """

    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def task(self, title: str, total: int | None) -> AbstractContextManager[Advance]: ...


class Silent:
    """A listener that hears nothing."""

    def say(self, text: str) -> None:
        """Nothing is said."""

    def warn(self, text: str) -> None:
        """Nothing is said; warnings are also stored in the run."""

    @contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """Nothing is drawn."""
        yield lambda done, facts: None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step. Tokens: in the rows, through the model, and labels. Seconds are wall time.

    ``denominator`` is what the loss is a mean over: labels, or examples of another objective. ``learning_rate`` is the
    step's; a group of parameters may have another in proportion.
    """

    step: int
    epoch: float
    loss: float
    denominator: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    computed_tokens: int
    supervised_tokens: int
    micro_batches: int
    seconds: float
