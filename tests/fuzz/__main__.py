"""`make fuzz`: each target for a time, by hypothesis and by atheris. Prints one table; ends with 1 after a crash.

    python -m tests.fuzz [TARGET ...] --seconds 600 --engine hypothesis

A crash is kept as tests/fuzz/seeds/TARGET/HASH, which the tests run from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from types import FrameType
from typing import Any, Never, cast

from hypothesis import HealthCheck, Phase, given, seed, settings
from tests.fuzz.inputs import SEEDS, documents, inputs
from tests.fuzz.targets import TARGETS

BATCH = 200  # examples between two looks at the clock
LONGEST = 20  # seconds of one input
ENGINES = ("hypothesis", "atheris")


def keep(target: str, data: bytes) -> str:
    """Keeps an input as a seed, and gives its name."""
    name = hashlib.sha256(data).hexdigest()[:12]
    (SEEDS / target).mkdir(parents=True, exist_ok=True)
    (SEEDS / target / name).write_bytes(data)
    return name


def by_hypothesis(target: str, seconds: float) -> tuple[int, dict[str, str]]:
    """The number of inputs, and of each kind of crash the seed that shows it, as hypothesis shrinks it."""
    ends, count, crashes = time.monotonic() + seconds, 0, dict[str, str]()
    number = 0
    last: list[bytes] = [b""]

    def once(data: bytes) -> None:
        nonlocal count
        count += 1
        signal.alarm(LONGEST)
        try:
            TARGETS[target](data)
        except Exception as error:
            if _kind(error) not in crashes:
                last[0] = data
                raise
        finally:
            signal.alarm(0)

    signal.signal(signal.SIGALRM, _too_long)
    while time.monotonic() < ends:
        number += 1
        limits = settings(
            max_examples=BATCH, deadline=None, database=None, phases=(Phase.generate,), print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=cast("Any", list(HealthCheck)),
        )  # fmt: skip
        try:
            seed(number)(limits(given(inputs(target))(once)))()
        except Exception as error:  # noqa: BLE001
            crashes[_kind(error)] = keep(target, last[0])
            print(f"{target}: {_kind(error)}: seeds/{target}/{crashes[_kind(error)]}", file=sys.stderr, flush=True)
            traceback.print_exception(error, limit=-3)
    return count, crashes


def _too_long(number: int, frame: FrameType | None) -> Never:
    raise TimeoutError(f"an input took more than {LONGEST} seconds")


def _kind(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "tunesmith" in frame.filename] or frames
    return f"{type(error).__name__} in {own[-1].name}:{own[-1].lineno}"


def by_atheris(target: str, seconds: float) -> tuple[int, dict[str, str]]:
    """The same by atheris, in a process of its own, because it ends the process."""
    command = [sys.executable, "-m", "tests.fuzz", target, "--engine", "atheris-child", "--seconds", str(int(seconds))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    counts = re.findall(r"^#(\d+)\b", done.stderr, re.MULTILINE)  # of libFuzzer's lines, such as "#1024 pulse ..."
    count = int(counts[-1]) if counts else 0
    if done.returncode == 0:
        return count, {}
    return count, {f"exit {done.returncode}: {'; '.join(done.stderr.strip().splitlines()[-6:])}": "-"}


def atheris_child(target: str, seconds: int) -> None:
    """Runs libFuzzer on a corpus of the target's documents; an exception ends it."""
    import tempfile
    from pathlib import Path

    import atheris  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(documents(target)):
            (Path(folder) / str(number)).write_bytes(data)
        TARGETS[target](documents(target)[0])  # imports
        cast("Any", atheris).instrument_all() if target in ("recipe",) else None
        crash: Callable[[bytes], None] = TARGETS[target]

        def once(data: bytes) -> None:
            try:
                crash(data)
            except BaseException:
                print("kept", keep(target, data), file=sys.stderr)
                raise

        flags = [sys.argv[0], folder, f"-max_total_time={seconds}", "-max_len=4096", "-rss_limit_mb=4096"]
        atheris.Setup(flags, once)
        atheris.Fuzz()


def main() -> int:
    """Fuzzes, and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--engine", choices=[*ENGINES, "atheris-child"], action="append")
    asked = parser.parse_args()
    if asked.engine == ["atheris-child"]:
        atheris_child(asked.targets[0], int(asked.seconds))
        return 0
    engines = asked.engine or [engine for engine in ENGINES if engine != "atheris" or find_spec("atheris")]
    if "atheris" not in engines:
        print("atheris does not take part: it is not installed, or another engine was asked for.", file=sys.stderr)
    print("| target | engine | inputs | crashes |\n|---|---|---|---|", flush=True)
    found = 0
    for target in asked.targets:
        for engine in engines:
            count, crashes = (by_hypothesis if engine == "hypothesis" else by_atheris)(target, asked.seconds)
            found += len(crashes)
            print(f"| {target} | {engine} | {count:,} | {'; '.join(crashes) or 0} |", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
