"""What a command's session keeps from the screen."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import warnings

import pytest

from tunesmith.cli.terminal.session import session


def warn(module: str, category: type[Warning] = RuntimeWarning) -> None:
    warnings.warn_explicit("rank_pattern keys were ignored", category, f"{module}.py", 1, module=module, registry={})


@pytest.mark.parametrize(
    ("module", "category", "seen"),
    [
        ("peft.tuners.tuners_utils", RuntimeWarning, 0),
        ("torch", UserWarning, 0),
        ("anything", FutureWarning, 0),
        ("score", UserWarning, 1),  # a user's own function
        ("torchmetrics_of_mine", UserWarning, 1),
    ],
)
def test_warnings_of_libraries_are_hidden_and_others_stay(module: str, category: type[Warning], seen: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with session():
            warn(module, category)
    assert len(caught) == seen


def test_warnings_that_are_asked_for_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with session():
            warn("peft.tuners.tuners_utils")
    assert len(caught) == 1


def test_bitsandbytes_is_quiet_inside_and_as_it_was_outside() -> None:
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    before = logger.level
    with session():
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == before


IN_DEL = """
import os, signal, sys, time
from tunesmith.cli.terminal.session import session
class Held:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0)
try:
    with session():
        held = Held()
        del held
        time.sleep(20)
except BaseException as end:
    sys.exit(getattr(end, "exit_code", 1))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_arrives_where_nothing_can_be_raised_still_stops_the_command(number: int) -> None:
    done = subprocess.run([sys.executable, "-c", IN_DEL, str(number)], capture_output=True, text=True, timeout=15)
    assert (done.returncode, "Traceback" in done.stderr) == (128 + number, False)


TURNED = """
import os, signal, sys, time
from tunesmith.cli.terminal.session import session
from tunesmith.errors import ModelError
from tunesmith.runs.stopping import heard
kinds = {"ValueError": ValueError("no shape"), "ModelError": ModelError("damaged", remedy="fetch it")}
try:
    with session():
        if sys.argv[1] != "0":
            try:
                os.kill(os.getpid(), int(sys.argv[1]))
                time.sleep(20)
            except KeyboardInterrupt:  # as compiled code does that has an error of its own
                if sys.argv[4] == "heard":
                    heard()
        time.sleep(float(sys.argv[3]))
        raise kinds[sys.argv[2]]
except BaseException as end:
    if type(end) is ValueError:
        raise
    sys.exit(getattr(end, "exit_code", 1))
"""


def turned(number: int, kind: str, later: float = 0.0, *, how: str = "lost") -> tuple[int, bool]:
    """The exit code, and whether there is a traceback."""
    argv = [sys.executable, "-c", TURNED, str(number), kind, str(later), how]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    return done.returncode, "Traceback" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_library_turned_into_an_error_still_stops_the_command(number: int) -> None:
    for kind in ("ValueError", "ModelError"):
        assert turned(number, kind) == (128 + number, False)


def test_an_error_without_an_interrupt_or_long_after_one_is_what_it_is() -> None:
    assert turned(0, "ValueError") == (1, True)
    assert turned(signal.SIGINT, "ValueError", 1.5) == (1, True)
    assert turned(signal.SIGINT, "ModelError", 1.5) == (1, False)
    assert turned(signal.SIGINT, "ValueError", how="heard") == (1, True)
