"""How long work reports its progress. Functions within the library are silent unless they are given a listener."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

Advance = Callable[[int, Mapping[str, str]], None]  # how much of the task is done, and facts such as {"loss": "0.412"}


def sample_line(line: Mapping[str, Any], *, width: int = 100) -> str:
    """A line of samples_during.jsonl as a sentence: ``rows.jsonl:3 is answered 'red' (expected 'blue')``."""

    def short(text: str) -> str:
        text = " ".join(text.split())
        return repr(text if len(text) <= width else text[: width - 1] + "…")

    return f"{line['source']} is answered {short(line['answer'])} (expected {short(line['truth'])})"


class Failure(str):
    """A warning about what a command could not do, though it goes on: the command line ends with exit code 1."""

    __slots__ = ()


class Listener(Protocol):
    """Hears the messages and the progress of a run.

    ``task`` is a context around long work. The function that it yields is called as the work goes on. Its total is None
    if it is not known.
    """

    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def task(self, title: str, total: int | None) -> AbstractContextManager[Advance]: ...


class Silent:
    """A listener that ignores everything."""

    def say(self, text: str) -> None:
        """Ignores it."""

    def warn(self, text: str) -> None:
        """Ignores it."""

    @contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """Shows nothing."""
        yield lambda done, facts: None


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of an optimizer step. ``tokens`` are in its rows, ``computed_tokens`` go through the model.

    ``denominator`` counts what the loss is a mean over: labels, or the examples of a preference objective.
    ``learning_rate`` is the step's; a group of parameters may have a multiple of it. ``seconds`` are wall time.
    ``skipped`` says why the step did not change the weights; its loss and gradient norm may then be not finite.
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
    skipped: str | None = None
