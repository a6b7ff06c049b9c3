"""Who looks at blocks of rows: this process and some others, or a Ray cluster. What comes out is the same, in order."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

from tunesmith.data.checks.facts import BlockFacts, Reading
from tunesmith.data.files.rows import Block
from tunesmith.errors import DataError, pip_install
from tunesmith.runs.child_processes import clean_process, elsewhere, worker_pool

INLINE_BLOCKS = 4  # looked at in this process before others are started: small data needs none
IN_FLIGHT = 3  # blocks a process
RAY_BLOCKS = 64  # blocks handed to Ray at a time

Look = Callable[[Block, Reading], BlockFacts]


class Pool(Protocol):
    """Maps blocks to facts, in order, holding few of them at a time. Enter it before, leave it afterwards."""

    def __enter__(self) -> Pool: ...
    def __exit__(self, *error: object) -> None: ...
    def map(self, look: Look, blocks: Iterable[Block], reading: Reading) -> Iterator[tuple[str, BlockFacts]]: ...


class Processes:
    """Processes of this machine. The first blocks are looked at here.

    Args:
        workers: how many; with 1 there is no other process.
    """

    def __init__(self, workers: int) -> None:
        self.workers, self.seen = workers, 0
        self._executor: Any = None

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, kill_workers=True)

    def map(self, look: Look, blocks: Iterable[Block], reading: Reading) -> Iterator[tuple[str, BlockFacts]]:
        """The name of each block's file, and its facts.

        Raises:
            DataError: a process was ended from outside.
        """
        flying: deque[tuple[Block, Any]] = deque()
        for block in blocks:
            self.seen += 1
            if self.workers == 1 or self.seen <= INLINE_BLOCKS:
                yield block.name, look(block, reading)
                continue
            flying.append((replace(block, payload=None), self._submit(look, block, reading)))
            if len(flying) >= IN_FLIGHT * self.workers:
                yield self._done(*flying.popleft())
        while flying:
            yield self._done(*flying.popleft())

    def _submit(self, *call: Any) -> Any:
        if self._executor is None:
            self._executor = worker_pool(self.workers, initializer=end_with, arguments=[os.getpid()])
        return self._executor.submit(*call)

    def _done(self, block: Block, future: Any) -> tuple[str, BlockFacts]:
        from loky.process_executor import BrokenProcessPool

        try:
            return block.name, future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process that read rows was ended",
                where=f"{block.name}:{block.start}",
                why="Most often the system ends a process because memory runs out.",
                remedy="free memory, or set TUNESMITH_WORKERS=1",
            ) from error


def end_with(parent: int) -> None:
    """Readies a worker process, which ends with its parent however that ends: a killed parent can tell nobody."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    threading.Thread(target=_end_when_gone, args=(parent,), daemon=True).start()


def _end_when_gone(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class RayPool:
    """Ray Data on the cluster that ``RAY_ADDRESS`` names, or on one that is started on this machine.

    Blocks are read here and sent, so the machines need no access to the files.

    Raises:
        DataError: Ray is not installed.
    """

    def __enter__(self) -> RayPool:
        try:
            with clean_process():
                import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise DataError(
                "Ray is not installed", where="--ray", remedy=f"{pip_install('ray')}, or leave --ray out"
            ) from None
        self._started = not ray.is_initialized()
        if self._started:
            logging.getLogger("ray").setLevel(logging.WARNING)
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            with clean_process(), elsewhere():  # Ray puts the folder of its start on the path of every worker
                ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        return self

    def __exit__(self, *error: object) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        if self._started:
            ray.shutdown()

    def map(self, look: Look, blocks: Iterable[Block], reading: Reading) -> Iterator[tuple[str, BlockFacts]]:
        """The name of each block's file, and its facts."""
        import pickle

        import ray  # pyright: ignore[reportMissingImports]

        def look_at(row: dict[str, Any]) -> dict[str, Any]:
            return {"facts": pickle.dumps(look(pickle.loads(row["block"]), reading))}  # noqa: S301 - our own bytes

        blocks = iter(blocks)
        while some := list(islice(blocks, RAY_BLOCKS)):
            dataset = ray.data.from_items([{"block": pickle.dumps(block)} for block in some])
            for block, row in zip(some, dataset.map(look_at).iter_rows(), strict=True):
                yield block.name, pickle.loads(row["facts"])  # noqa: S301 - our own bytes
