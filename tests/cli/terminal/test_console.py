from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.cli.terminal.console import Terminal, to_json
from tunesmith.cli.terminal.tables import flowed
from tunesmith.errors import DataError
from tunesmith.runs.plain_text import duration
from tunesmith.runs.progress_lines import plain_lines
from tunesmith.safe_text import escaped

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
STORY = """
import time
from tunesmith.cli.terminal.console import Styled, Terminal
from tunesmith.errors import DataError
terminal = Terminal()
with terminal.task("training [b]", 20) as advance:
    for step in range(1, 21):
        advance(step, {"loss": f"{1 / step:.2f}"})
        if step == 10:
            terminal.say("half way \\x1b[2J")
            with terminal.task("validation", 3) as inner:
                inner(3, {})
    time.sleep(0.2)
terminal.warn("careful")
terminal.error(DataError("wrong"))
terminal.write(Styled("done", bold=True))
"""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def report(seconds_each: float, total: int, first: int = 1) -> list[str]:
    clock, lines = Clock(), []
    advance = plain_lines("training", total, write=lines.append, clock=clock)
    for done in range(first, total + 1):
        clock.now += seconds_each
        advance(done, {"loss": "1.5"})
    return lines


def test_fast_work_is_reported_at_most_every_two_seconds() -> None:
    lines = report(0.125, 100)
    assert [line.split()[1] for line in lines] == [f"{n}/100" for n in (16, 32, 48, 64, 80, 96, 100)]
    assert lines[0] == "training  16/100 (16%)  loss 1.5  0:10 left"
    assert lines[-1] == "training  100/100 (100%)  loss 1.5"


def test_work_of_a_moment_is_reported_once() -> None:
    assert report(0.001, 100) == ["training  100/100 (100%)  loss 1.5"]


def test_slow_work_is_reported_at_least_every_half_minute() -> None:
    lines = report(10, 100)
    assert [line.split()[1] for line in lines[:5]] == ["3/100", "6/100", "9/100", "10/100", "13/100"]
    assert lines[0] == "training  3/100 (3%)  loss 1.5  16:10 left"


def test_the_time_left_of_resumed_work_counts_from_where_it_went_on() -> None:
    assert report(1, 200, first=101)[0] == "training  102/200 (51%)  loss 1.5  1:38 left"


def test_a_task_of_nothing_ends_quietly() -> None:
    lines: list[str] = []
    plain_lines("rows", 0, write=lines.append)(0, {})
    assert lines == ["rows  0/0 (0%)"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (65, "1:05"), (7387, "2:03:07")])
def test_a_duration_is_minutes_and_seconds(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_control_characters_are_written_out() -> None:
    assert escaped("a\tb\nc\x1b[31m\x07\x85é発") == "a\tb\nc\\x1b[31m\\x07\\x85é発"


def test_json_has_no_number_that_is_not_finite() -> None:
    text = to_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x"), "d": (1, None), "e": "é"})
    assert text == '{"a": null, "b": [null, 1.5], "c": "x", "d": [1, null], "e": "é"}'


def test_under_json_standard_output_has_the_result_alone(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(as_json=True)
    terminal.say("said")
    terminal.write("written")
    terminal.result({"a": 1})
    captured = capsys.readouterr()
    assert captured.out == '{"a": 1}\n'
    assert captured.err == "said\nwritten\n"


def test_without_json_the_result_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.say("said")
    terminal.result({"a": 1})
    terminal.warn("careful")
    terminal.error(DataError("wrong", where="f:1", remedy="mend it"))
    captured = capsys.readouterr()
    assert captured.out == "said\n"
    assert captured.err == "warning: careful\nerror: f:1: wrong\n  What to do: mend it\n"


FACTS = ["loss 0.1234", "lr 5.00e-04", "grad norm 0.512", "tokens/s 345", "saved 41%"]
FACTS_STORY = f"""
from tunesmith.cli.terminal.console import Styled, Terminal
terminal = Terminal()
with terminal.task("training", 36) as advance:
    for step in range(1, 37):
        advance(step, dict(fact.rsplit(" ", 1) for fact in {FACTS}))
        if step == 18:
            terminal.warn("careful")
"""


def on_a_screen(story: str = STORY, **environment: str) -> str:
    """What a story draws on a pseudo-terminal."""
    keeper, screen = pty.openpty()
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environ = {**inherited, "TERM": "xterm-256color", "COLUMNS": "100", **environment}
    with subprocess.Popen([sys.executable, "-c", story], stdout=screen, stderr=screen, env=environ) as process:
        os.close(screen)
        drawn = io.BytesIO()
        while True:
            try:
                piece = os.read(keeper, 65536)
            except OSError:  # Linux: the other side is closed
                break
            if not piece:
                break
            drawn.write(piece)
    os.close(keeper)
    assert process.returncode == 0
    return drawn.getvalue().decode()


def test_a_screen_gets_a_bar_with_colours() -> None:
    drawn = on_a_screen()
    assert "training [b]" in drawn and "20/20" in drawn and "loss 0.05" in drawn
    assert "half way \\x1b[2J" in drawn
    assert "\x1b[31m" in drawn and "\x1b[33m" in drawn
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1, "the cursor is hidden and shown again"


def test_no_color_is_respected() -> None:
    drawn = on_a_screen(NO_COLOR="1")
    assert "20/20" in drawn
    assert re.findall(r"\x1b\[[\d;]*m", drawn.replace("\x1b[0m", "")) == []


def rows_of(drawn: str) -> list[str]:
    """The rows that a screen was sent, without colours and cursor movements."""
    return [re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", row) for row in re.split(r"[\r\n]+", drawn)]


@pytest.mark.parametrize("columns", [28, 40, 80, 200])
def test_nothing_is_cut_off_on_a_narrow_screen(columns: int) -> None:
    rows = rows_of(on_a_screen(FACTS_STORY, COLUMNS=str(columns)))
    assert max(len(row) for row in rows if "careful" not in row) <= columns
    last = "\n".join(rows[-8:])
    assert "36/36" in last
    for fact in FACTS:
        assert fact in last, "whole, and on one row"
    assert not any("…" in row for row in rows)


def test_a_bar_whose_end_nobody_knew_is_full_when_it_is_done() -> None:
    story = (
        "from tunesmith.cli.terminal.console import Terminal\n"
        "with Terminal().task('reading', None) as advance:\n    advance(58, {})\n"
    )
    assert "58/58" in [row for row in rows_of(on_a_screen(story)) if row.strip()][-1]


def test_facts_are_broken_between_two_of_them() -> None:
    assert flowed(FACTS, 80) == ["  ".join(FACTS)]
    assert flowed(FACTS, 27) == ["loss 0.1234  lr 5.00e-04", "grad norm 0.512", "tokens/s 345  saved 41%"]
    assert flowed(["発発発 1", "b 2"], 9) == ["発発発 1", "b 2"], "as wide as they are on a screen"
    assert flowed([], 10) == []


def test_a_dumb_terminal_gets_plain_lines() -> None:
    drawn = on_a_screen(TERM="dumb").replace("\r\n", "\n")
    assert CONTROL.findall(drawn) == []
    assert "training [b]  20/20 (100%)  loss 0.05\n" in drawn


def test_a_pipe_gets_no_control_character_even_where_colour_is_forced() -> None:
    environ = {**os.environ, "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm-256color"}
    done = subprocess.run([sys.executable, "-c", STORY], capture_output=True, text=True, env=environ, check=True)
    assert CONTROL.findall(done.stdout + done.stderr) == []
    assert done.stdout == "half way \\x1b[2J\ndone\n"
    assert done.stderr.splitlines() == [
        "validation  3/3 (100%)",
        "training [b]  20/20 (100%)  loss 0.05",
        "warning: careful",
        "error: wrong",
    ]


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(as_json=True).result({"text": "a\nb\u2028c"})
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and json.loads(out) == {"text": "a\nb\u2028c"}
