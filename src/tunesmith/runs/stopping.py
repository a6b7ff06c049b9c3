"""Stops a run between two steps: Ctrl-C and SIGTERM wait for the end of the running step and its checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Never

ONE_PRESS = 0.3  # seconds; `timeout` and some shells send one Ctrl-C twice


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. It unwinds the stack as Ctrl-C does, so a run records that it was stopped."""


def terminate(number: int, frame: FrameType | None) -> Never:
    """A handler of SIGTERM that raises Terminated, once.

    `timeout` and some supervisors send the signal twice; the second one must not interrupt the work of the first.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


class Stop:
    """Whether a signal has asked to stop. ``say`` hears at once that it was received.

    A second Ctrl-C raises KeyboardInterrupt at once. A second SIGTERM is ignored.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._number: int | None = None
        self._at = 0.0

    @property
    def asked(self) -> bool:
        """Whether to stop after this step."""
        return self._number is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals wait. Handlers of the caller's own stay, and only the main thread can hear signals."""
        before = {}
        if threading.current_thread() is threading.main_thread():
            usual = {signal.SIGINT: (signal.default_int_handler,), signal.SIGTERM: (signal.SIG_DFL, terminate)}
            for number, handlers in usual.items():
                if signal.getsignal(number) in handlers:
                    before[number] = signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(self) -> None:
        """Raises KeyboardInterrupt or Terminated if a signal has asked to stop. Call it once the work is saved."""
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._number == signal.SIGTERM:
            if signal.getsignal(signal.SIGTERM) is terminate:
                terminate(signal.SIGTERM, None)
            raise Terminated

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._number is None:
            self._number, self._at = number, now
            with suppress(RuntimeError):  # the signal came while a line was being written
                self.say("stopping: this step ends and a checkpoint is saved; Ctrl-C again stops at once")
        elif number == signal.SIGINT and now - self._at > ONE_PRESS:
            raise KeyboardInterrupt


@contextmanager
def sigterm_ends_process() -> Iterator[None]:
    """Ends the process as SIGTERM does without a handler, once the work inside has recorded that it was stopped."""
    try:
        yield
    except Terminated:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            sys.stdout.flush()
            sys.stderr.flush()
            signal.raise_signal(signal.SIGTERM)
        raise
