"""Signals wait for the end of a step; a second Ctrl-C does not wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith.runs import stopping
from tunesmith.runs.stopping import ENDING, Stop, Terminated, terminate


def test_ctrl_c_waits_until_the_work_is_saved() -> None:
    said: list[str] = []
    stop = Stop(said.append)
    with stop.listening():
        assert not stop.asked
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # one press that arrives twice
        assert stop.asked
    assert said == ["stopping: this step ends and a checkpoint is saved; Ctrl-C again stops at once"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt) as caught:
        stop.end()
    assert caught.type is KeyboardInterrupt


def test_without_a_signal_nothing_ends() -> None:
    stop = Stop(print)
    with stop.listening():
        pass
    stop.end()


@pytest.fixture(autouse=True)
def _usual_handlers() -> Iterator[None]:
    """Those of a new process: libraries that other tests use leave their own."""
    usual = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(ENDING, signal.SIG_DFL)}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def test_a_second_ctrl_c_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "ONE_PRESS", -1.0)
    stop = Stop(lambda text: None)
    with pytest.raises(KeyboardInterrupt), stop.listening():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # `timeout` sends it twice
        signal.raise_signal(signal.SIGINT)
        raise AssertionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("handler", [signal.SIG_DFL, terminate])
def test_a_termination_signal_waits_too_and_ends_as_that(handler: signal._HANDLER, number: int) -> None:
    before = signal.signal(number, handler)
    stop = Stop(lambda text: None)
    try:
        with stop.listening():
            signal.raise_signal(number)
        with pytest.raises(Terminated) as caught:
            stop.end()
        assert caught.value.number == number
        assert signal.getsignal(number) is (signal.SIG_IGN if handler is terminate else signal.SIG_DFL)
    finally:
        signal.signal(number, before)


def test_after_nohup_a_closed_terminal_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = Stop(print)
    try:
        with stop.listening():
            signal.raise_signal(signal.SIGHUP)
        assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_line_that_is_being_written_does_not_lose_the_signal() -> None:
    def busy(text: str) -> None:
        raise RuntimeError("reentrant call")

    stop = Stop(busy)
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
    assert stop.asked


def test_handlers_of_the_callers_own_stay_and_a_thread_hears_none() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    stop = Stop(print)
    try:
        with stop.listening():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (heard, stop.asked) == ([signal.SIGINT], False)

    def listens() -> None:
        with stop.listening():
            heard.append(0)

    thread = threading.Thread(target=listens)
    thread.start()
    thread.join()
    assert heard == [signal.SIGINT, 0]


def test_a_program_without_a_handler_dies_of_the_signal_after_its_work_is_recorded() -> None:
    program = (
        "import signal\n"
        "from tunesmith.runs.stopping import Stop, signal_ends_process\n"
        "stop = Stop(lambda text: None)\n"
        "with signal_ends_process():\n"
        "    with stop.listening():\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "        print('saved')\n"
        "    try:\n"
        "        stop.end()\n"
        "    finally:\n"
        "        print('recorded')\n"
        "print('lives on')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "saved\nrecorded\n", "")


IMPORTED = """
import os, signal, sys
from tunesmith.runs.stopping import interrupt, terminate
sys.path.insert(0, sys.argv[1])
for number, handler in ((signal.SIGTERM, terminate), (signal.SIGHUP, terminate), (signal.SIGINT, interrupt)):
    signal.signal(number, handler)
try:
    import asks_for_signal
except BaseException as error:
    print("an exception:", type(error).__name__)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_within_an_import_ends_the_process_at_once(tmp_path: Path, number: int) -> None:
    (tmp_path / "asks_for_signal.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nprint('went on')\n")
    done = subprocess.run([sys.executable, "-c", IMPORTED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-number, "", "")


WITH_FILES = """
import os, signal, sys
from contextlib import ExitStack
from pathlib import Path
from tunesmith.data import token_cache
from tunesmith.data.files.given_rows import store_rows
from tunesmith.runs.stopping import terminate
from tunesmith.runs.temporary import folder_of_process, temporary, temporary_folder
from tunesmith.runs.whole_files import whole_file, whole_folder
sys.path.insert(0, sys.argv[1])
here = Path("made").absolute()
signal.signal(signal.SIGTERM, terminate)
files = ExitStack()
(folder_of_process("of-process-") / "inner").mkdir()
files.enter_context(whole_file(Path("made/file"))).write(b"half")
(files.enter_context(whole_folder(Path("made/folder"))) / "half").touch()
(files.enter_context(temporary_folder("own-")) / "half").touch()
files.enter_context(temporary(Path("made/plain"))).touch()
if os.fork() == 0:
    files.__exit__(ValueError, ValueError(), None)  # it removes nothing that its parent has
    os._exit(0)
os.wait()
before = sorted(path.name.partition("-")[0] for path in here.rglob("*"))
os.chdir("/")

class Rows(list):
    def __iter__(self):
        import asks_for_signal

assert len(before) == 8, before
if sys.argv[2] == "tokens":
    token_cache._write(here / "tokens.arrow", "key", Rows(), print, stops=True)
else:
    store_rows(Rows(), here, "rows")
"""


@pytest.mark.parametrize("what", ["rows", "tokens"])
def test_a_signal_within_an_import_leaves_no_temporary_file(tmp_path: Path, what: str) -> None:
    modules, made = tmp_path / "modules", tmp_path / "made"
    modules.mkdir()
    made.mkdir()
    look = f"import os\nfrom pathlib import Path\nprint(*Path({str(made)!r}).glob('*.partial'), sep='')\n"
    (modules / "asks_for_signal.py").write_text(
        f"{look}os.kill(os.getpid(), {int(signal.SIGTERM)})\nprint('went on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-u", "-c", WITH_FILES, str(modules), what],
        cwd=tmp_path, env={**os.environ, "TMPDIR": str(made)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")
    assert done.stdout.strip().endswith(".partial")
    assert list(made.iterdir()) == []
