"""Stops a run between two steps: Ctrl-C, SIGTERM and SIGHUP wait for the end of the running step and its checkpoint."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Never

from tunesmith.runs.temporary import clear

ONE_PRESS = 0.3  # seconds; `timeout` and some shells send one Ctrl-C twice


MOMENT = 0.05  # seconds
LOST_WITHIN = 1.0  # seconds in which an interrupt that a library turned into another exception comes out
ENDING = (signal.SIGTERM, signal.SIGHUP)  # a supervisor ends the process; its terminal closes


_raised: deque[tuple[float, int]] = deque(maxlen=1)  # when, and the number of the signal


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived. It unwinds the stack as Ctrl-C does, so a run records that it was stopped."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


def end_within_import(number: int, frame: FrameType | None) -> None:
    """Ends the process as the signal does without a handler, if a module is being imported.

    An exception there can be lost or turned into another one by the library, or end the process from C++ with a dump.
    Ending at once loses nothing: it is what a kill does, but that temporary files are removed first.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            for each in (signal.SIGINT, *ENDING):
                signal.signal(each, signal.SIG_IGN)  # a second one must not interrupt the removal
            clear()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        frame = frame.f_back


def interrupt(number: int, frame: FrameType | None) -> Never:
    """A handler of SIGINT that raises KeyboardInterrupt, as Python's own does, outside of imports."""
    end_within_import(number, frame)
    _raised.append((time.monotonic(), number))
    raise KeyboardInterrupt


def terminate(number: int, frame: FrameType | None) -> Never:
    """A handler of SIGTERM and SIGHUP that raises Terminated, once.

    `timeout` and some supervisors send the signal twice; the second one must not interrupt the work of the first.
    """
    end_within_import(number, frame)
    for each in ENDING:
        if signal.getsignal(each) is terminate:
            signal.signal(each, signal.SIG_IGN)
    let_go_of_terminal(number)
    _raised.append((time.monotonic(), number))
    raise Terminated(number)


def just_interrupted() -> int | None:
    """The number of the signal that was raised a moment ago, if there was one and nobody heard it.

    Compiled code of a library may turn the interrupt into an exception of its own: torch, while a file of tensors is
    read, into "could not determine the shape of object".
    """
    return next((number for at, number in _raised if time.monotonic() - at < LOST_WITHIN), None)


def let_go_of_terminal(number: int) -> None:
    """After SIGHUP the terminal is gone: what is written to it is lost, and no longer an error."""
    if number != signal.SIGHUP:
        return
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


@contextmanager
def raised_where_it_can_be() -> Iterator[None]:
    """Inside, an interrupt that comes where Python cannot raise it, such as in ``__del__``, soon comes again."""
    before = sys.unraisablehook

    def hear(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            before(lost)
            return
        number = lost.exc_value.number if isinstance(lost.exc_value, Terminated) else signal.SIGINT
        if isinstance(lost.exc_value, Terminated):
            signal.signal(number, terminate)
        again = threading.Timer(MOMENT, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    sys.unraisablehook = hear
    try:
        yield
    finally:
        sys.unraisablehook = before


def heard() -> None:
    """Call it where a command goes on after an interrupt: what fails from then on is no consequence of it."""
    _raised.clear()


class Stop:
    """Whether a signal has asked to stop. ``say`` hears at once that it was received.

    A second Ctrl-C raises KeyboardInterrupt at once. A second SIGTERM or SIGHUP is ignored.
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
            usual: dict[int, tuple[object, ...]] = dict.fromkeys(ENDING, (signal.SIG_DFL, terminate))
            usual[signal.SIGINT] = (signal.default_int_handler, interrupt)
            for number, handlers in usual.items():  # after `nohup`, SIGHUP stays ignored
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
        if self._number is not None:
            if signal.getsignal(self._number) is terminate:
                terminate(self._number, None)
            raise Terminated(self._number)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._number is None:
            self._number, self._at = number, now
            let_go_of_terminal(number)
            with suppress(RuntimeError):  # the signal came while a line was being written
                self.say("stopping: this step ends and a checkpoint is saved; Ctrl-C again stops at once")
        elif number == signal.SIGINT and now - self._at > ONE_PRESS:
            interrupt(number, frame)


@contextmanager
def signal_ends_process() -> Iterator[None]:
    """Ends the process as the signal does without a handler, once the work inside has recorded that it was stopped."""
    try:
        yield
    except Terminated as stopped:
        if signal.getsignal(stopped.number) is signal.SIG_DFL:
            sys.stdout.flush()
            sys.stderr.flush()
            clear()
            signal.raise_signal(stopped.number)
        raise
