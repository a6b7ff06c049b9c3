"""How threads wait for each other: they spin for long on a quiet machine, and for a short time beside other work.

The threads of a team, which torch computes with, meet at a barrier after each operator. In GNU's OpenMP the first ones
spin there for milliseconds. On a quiet machine nothing is faster. Beside other work two threads of a team share a core,
and one spins where the other should run: a step takes 10 to 30 times as long.

GNU's OpenMP has a short spin as well, and takes it while a process has more threads in teams than there are cores
(libgomp, config/linux/wait.h). So a watcher looks every half second at how much of the cores other processes take.
While they leave too little for a team, it keeps idle threads, and OpenMP takes the short spin. No result depends on it.
Other libraries (OpenMP of LLVM and Intel) and other systems are left as they are, and so is a user's own setting.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

INTERVAL = 0.5  # seconds between two looks at the cores
TAKEN, FREE = 0.4, 0.15  # cores that a team lacks: from so many on it waits for a short time, below so many it spins
QUIET_LOOKS = 4  # so many looks in a row must find the cores free again
_MOST_IDLE = 8  # threads of an idle team
_OWN_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_USED = (1, 2, 3, 6, 7)  # of a line of /proc/stat: user, nice, system, irq, softirq


@dataclass(frozen=True, slots=True)
class Look:
    """Seconds since some moment: of the clock, that the cores were used, and that this process used them."""

    clock: float
    used: float
    own: float


def look() -> Look:
    """What the cores that this process may use have done so far."""
    tick, cores = os.sysconf("SC_CLK_TCK"), os.sched_getaffinity(0)
    used = 0
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *_ = fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            used += sum(int(fields[at]) for at in _USED)
    return Look(time.monotonic(), used / tick, time.process_time())


def cores_lacking(before: Look, now: Look, cores: int, threads: int) -> float:
    """How many cores a team of so many threads lacked between two looks, because others used them."""
    others = ((now.used - before.used) - (now.own - before.own)) / (now.clock - before.clock)
    return others - (cores - threads)


class Chooser:
    """Decides from look to look whether threads wait for a short time.

    Args:
        cores: that the process may use.
        threads: of a team.
        first: the look that the next one is compared with.
    """

    def __init__(self, cores: int, threads: int, first: Look) -> None:
        self._cores, self._threads, self._before = cores, threads, first
        self._quiet = 0
        self.short = False

    def hear(self, now: Look) -> bool:
        """Whether threads wait for a short time from now on."""
        before, self._before = self._before, now
        if now.clock - before.clock > 4 * INTERVAL:
            return self.short  # the process was stopped, or the machine slept
        lacking = cores_lacking(before, now, self._cores, self._threads)
        self._quiet = self._quiet + 1 if lacking < FREE else 0
        if lacking > TAKEN:
            self.short = True
        elif self._quiet >= QUIET_LOOKS:
            self.short = False
        return self.short


class _IdleTeam:
    """Threads that do nothing. While they are there, the process has more threads in teams than cores.

    Raises RuntimeError if so many threads cannot be started.
    """

    def __init__(self, gomp: ctypes.CDLL, count: int) -> None:
        _try_threads(count)  # libgomp would end the process
        self._end, begun = threading.Event(), threading.Event()

        def be_idle() -> None:
            try:
                # A parallel region of C's free(NULL), which does nothing. Its threads stay until this one ends.
                nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
                gomp.GOMP_parallel(nothing, None, ctypes.c_uint(count), ctypes.c_uint(0))
            finally:
                begun.set()
            self._end.wait()

        self._thread = threading.Thread(target=be_idle, name="tunesmith-idle-team", daemon=True)
        self._thread.start()
        begun.wait()

    def leave(self) -> None:
        self._end.set()
        self._thread.join()


def _try_threads(count: int) -> None:
    """Starts so many threads and ends them. Raises RuntimeError if the system does not allow it."""
    end, started = threading.Event(), []
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    finally:
        end.set()
        for thread in started:
            thread.join()


class _Watcher:
    """Watches the cores in a thread, while anybody wants it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: list[object] = []
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def enter(self) -> object:
        """Returns what ``leave`` takes."""
        user = object()
        with self._lock:
            self._users.append(user)
            if self._thread is None and (watch := _watch_of_this_machine()) is not None:
                self._end = threading.Event()
                thread = threading.Thread(target=watch, args=[self._end], name="tunesmith-waits", daemon=True)
                with suppress(RuntimeError):  # no thread can be started: threads go on waiting as they do
                    thread.start()
                    self._thread = thread
        return user

    def leave(self, user: object) -> None:
        with self._lock:
            if user in self._users:  # not in a fork, where the parent's users do not count
                self._users.remove(user)
            if not self._users and self._thread is not None:
                self._end.set()
                self._thread.join()
                self._thread = None

    def forget(self) -> None:
        """For a fork, which has the memory of its parent and none of its threads."""
        self.__init__()


def _watch_of_this_machine() -> Callable[[threading.Event], None] | None:
    """What the thread does; None where threads do not spin, or the user has said how they wait."""
    threads = torch.get_num_threads()
    if threads < 2 or any(name in os.environ for name in _OWN_SETTINGS) or (gomp := _gnu_openmp()) is None:
        return None
    cores = len(os.sched_getaffinity(0))
    count = max(cores - threads, 0) + 2
    if count > _MOST_IDLE:
        return None  # so many cores are left that other work does not take them all

    def watch(end: threading.Event) -> None:
        idle = None
        # What cannot be read or started is no reason to stop the work: threads go on waiting as they do.
        with suppress(OSError, ValueError, RuntimeError):
            try:
                chooser = Chooser(cores, threads, look())
                while not end.wait(INTERVAL):
                    short = chooser.hear(look())
                    if short and idle is None:
                        idle = _IdleTeam(gomp, count)
                    elif not short and idle is not None:
                        idle = idle.leave()
            finally:
                if idle is not None:
                    idle.leave()

    return watch


def _gnu_openmp() -> ctypes.CDLL | None:
    """The OpenMP that torch computes with, if it is GNU's."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
        mapped = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "/libgomp" in line and ".so" in line}
        own = [path for path in mapped if Path(path).is_relative_to(Path(torch.__file__).resolve().parent)]
        found = own or [path for path in mapped if ".libs/" not in path]  # other packages bring one of their own
        library = ctypes.CDLL(min(found)) if found else None
        return library if library and library.GOMP_parallel else None
    except (
        OSError,
        ValueError,
        AttributeError,
    ):  # another system, or a library that was replaced or has no such function
        return None


_WATCHER = _Watcher()
os.register_at_fork(after_in_child=_WATCHER.forget)


@contextmanager
def waiting_as_others_allow() -> Iterator[None]:
    """While it lasts, threads of a team wait as it suits what other processes do. It may be nested."""
    user = _WATCHER.enter()
    try:
        yield
    finally:
        _WATCHER.leave(user)
